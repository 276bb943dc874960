//! Encodes labeled examples by the rules of TRL's `KTOTrainer`.

use std::collections::{HashMap, HashSet};

use super::{EncodeConfig, EncodedDataset, EncodedExample, encode_completion, encode_examples};
use crate::data::example::Example;
use crate::data::labeled::{EncodedLabeled, LabeledExample};
use crate::data::tokenizer::Tokenizer;
use crate::error::Result;

/// Encodes all labeled examples, in order, as TRL 1.x's `KTOTrainer` does: like [`encode_examples`].
///
/// # Errors
/// Same as [`encode_examples`].
pub fn encode_labeled(
    tokenizer: &Tokenizer,
    examples: &[LabeledExample],
    config: &EncodeConfig,
) -> Result<EncodedDataset<EncodedLabeled>> {
    let plain = |example: &LabeledExample| Example {
        id: example.id.clone(),
        prompt: example.prompt.clone(),
        completion: example.completion.clone(),
        rendered: example.rendered.clone(),
    };
    let all: Vec<Example> = examples.iter().map(plain).collect();
    let mut dataset = encode_examples(tokenizer, &all, config)?;
    dataset.report.single_completion = true;
    // What truncation removed from a completion may fit after the prompt of another example.
    let unlimited = EncodeConfig { max_length: None, ..config.clone() };
    let cut: HashSet<&String> = dataset.report.chosen_truncated.iter().collect();
    let by_id: HashMap<&String, &LabeledExample> =
        examples.iter().map(|example| (&example.id, example)).collect();
    let convert = |example: EncodedExample| {
        let labeled = by_id[&example.id];
        let whole = if cut.contains(&example.id) {
            encode_completion(tokenizer, &plain(labeled), &unlimited)?.sides.map(|(whole, _)| whole)
        } else {
            None
        };
        let whole = whole.unwrap_or_else(|| example.sequence.clone());
        let completion = whole.ids[whole.completion_start..].to_vec();
        Ok(EncodedLabeled { example, completion, desirable: labeled.desirable })
    };
    let pairs: Result<_> = dataset.pairs.into_iter().map(convert).collect();
    Ok(EncodedDataset { pairs: pairs?, report: dataset.report, refused: dataset.refused })
}
