//! From text to token ids: where the completion starts, BOS and EOS, truncation.

/// One side of a pair as the model sees it, already truncated.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EncodedSequence {
    /// Prompt ids, then completion ids. Never empty.
    pub ids: Vec<u32>,
    /// Index in `ids` of the first completion token: `ids[completion_start..]` is scored.
    pub completion_start: usize,
    /// Indices no other token may attend to. Empty except under `compat = "trl-0.7.4"`, which hides every
    /// EOS id that stands inside the text.
    pub hidden: Vec<usize>,
}

/// A pair ready for the model.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EncodedPair {
    /// The id of the [`PreferencePair`](super::pair::PreferencePair).
    pub id: String,
    /// Prompt and preferred completion.
    pub chosen: EncodedSequence,
    /// Prompt and other completion. Under truncation its prompt can differ from chosen's.
    pub rejected: EncodedSequence,
}
