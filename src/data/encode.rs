//! From text to token ids: where the completion starts, BOS and EOS, truncation.

use serde::{Deserialize, Serialize};

/// The TRL version whose tokenisation, truncation and metric definitions a run follows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Compat {
    /// TRL 1.x: prompt and completion tokenised together, metrics over completion tokens.
    #[default]
    #[serde(rename = "trl-1")]
    Trl1,
    /// TRL 0.7.4 (2023-11): each part tokenised alone without BOS, its own truncation rule.
    #[serde(rename = "trl-0.7.4")]
    Trl074,
}

/// Which end of a sequence longer than `max_length` is kept.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TruncationMode {
    /// Cut the end of the completion.
    #[default]
    KeepStart,
    /// Cut the start of the prompt.
    KeepEnd,
}

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
