//! Supervised fine-tuning. The loss is the mean cross-entropy of a step's completion tokens, as in TRL's `SFTTrainer` with
//! prompts and completions.

use arithmo_backends::TrainBackend;
use burn::tensor::Tensor;

use super::log_probs::CompletionLogProbs;
use super::metrics::{MicroBatchMetrics, Sum};
use super::pass::Pass;
use super::{MicroBatch, Objective, Usage};
use crate::data::batch::PackedBatch;
use crate::data::encode::EncodedExample;
use crate::data::sample::Sample;

/// The objective of supervised fine-tuning.
#[derive(Clone, Copy, Debug)]
pub struct Sft;

impl<B: TrainBackend> Objective<B> for Sft {
    type Sample = EncodedExample;

    const STATUS_KEYS: &'static [(&'static str, &'static str)] =
        &[("loss", "loss"), ("mean_token_accuracy", "acc")];

    /// Returns weights that make the loss of a step the mean over all its completion tokens (`num_items_in_batch` in
    /// transformers' `Trainer`).
    fn weights(&self, micro_batches: &[Vec<&EncodedExample>]) -> Vec<f64> {
        let examples = micro_batches.iter().flatten();
        let tokens: usize = examples.clone().map(|example| example.scored_tokens(0)).sum();
        vec![1.0 / tokens.max(1) as f64; examples.count()]
    }

    /// Returns the summed cross-entropy of each example.
    fn losses<A: TrainBackend>(
        &self,
        policy: &CompletionLogProbs<A>,
        _reference: Tensor<A, 1>,
        _batch: &PackedBatch,
        _pass: &Pass<'_, EncodedExample>,
        _usage: Usage,
    ) -> Tensor<A, 1> {
        policy.sums.clone().neg()
    }

    /// Computes TRL's metrics, which are means over completion tokens.
    fn metrics(
        &self,
        micro_batch: &MicroBatch<'_, EncodedExample>,
        _usage: Usage,
    ) -> MicroBatchMetrics {
        let samples = micro_batch.outputs;
        let completions = samples.iter().flat_map(|sample| &sample.policy);
        let tokens = completions.flat_map(|completion| &completion.tokens);
        let sum = |value: fn(&[f64; 4]) -> f64| Sum::of(tokens.clone().map(value));
        let values =
            [("mean_token_accuracy", sum(|token| token[2])), ("entropy", sum(|token| token[1]))];
        MicroBatchMetrics::from_sums(samples.len(), vec![sum(|token| -token[0])], values)
    }

    fn step_loss(&self, micro_batches: &[MicroBatchMetrics]) -> f64 {
        MicroBatchMetrics::pooled(micro_batches).loss
    }
}
