//! Log-probabilities of completions: from hidden states to one number a sequence.

use arithmo_backends::ops::log_probs::completion_log_probs;
use arithmo_backends::{LogProbStats, TrainBackend, Weight};
use burn::tensor::backend::AutodiffBackend;
use burn::tensor::{Element, Int, Tensor, TensorData};

use crate::data::batch::PreferenceBatch;
use crate::model::input::ModelInput;
use crate::model::mistral::Mistral;
use crate::model::positions::PositionTable;

/// A [`PreferenceBatch`] on a device.
#[derive(Clone, Debug)]
pub struct DeviceBatch<B: TrainBackend> {
    /// The pairs' tokens in one row.
    pub input: ModelInput<B>,
    /// Which hidden states predict completion tokens, and which tokens.
    pub completions: Completions<B>,
}

/// Where the scored tokens of a batch are.
#[derive(Clone, Debug)]
pub struct Completions<B: TrainBackend> {
    /// Index into the hidden states, `[T]`.
    predicting: Tensor<B, 1, Int>,
    /// `[T]`
    targets: Tensor<B, 1, Int>,
    /// Index into `[T]` of each sequence's tokens, padded to the longest completion, `[rows * C]`.
    by_sequence: Tensor<B, 1, Int>,
    /// 1 for a token, 0 for padding, `[rows, C]`.
    mask: Tensor<B, 2>,
}

/// What the head says about the completions of a batch.
#[derive(Clone, Debug)]
pub struct CompletionLogProbs<B: TrainBackend> {
    /// Summed log-probability of each completion, `[rows]`.
    pub sums: Tensor<B, 1>,
    /// Per token: log-probability and, if asked for, the other columns of [`LogProbStats`], `[T, 1 or 4]`.
    pub tokens: Tensor<B, 2>,
}

impl<B: TrainBackend> DeviceBatch<B> {
    /// Sends `batch` to `device`.
    pub fn new(batch: &PreferenceBatch, table: &PositionTable<B>, device: &B::Device) -> Self {
        let input = ModelInput::new(&batch.tokens, table, device);
        Self {
            input: input.only(&batch.queries, device),
            completions: Completions::new(batch, device),
        }
    }
}

impl<B: TrainBackend> Completions<B> {
    fn new(batch: &PreferenceBatch, device: &B::Device) -> Self {
        let ints = |values: Vec<i64>| {
            let shape = [values.len()];
            Tensor::from_data(TensorData::new(values, shape), device)
        };
        let rows = batch.counts.len();
        let longest = batch.counts.iter().copied().max().unwrap_or(0);
        let (mut by_sequence, mut mask) = (Vec::new(), Vec::new());
        let mut first = 0;
        for &count in &batch.counts {
            by_sequence
                .extend((0..longest).map(|at| if at < count { (first + at) as i64 } else { 0 }));
            mask.extend((0..longest).map(|at| if at < count { 1f32 } else { 0.0 }));
            first += count;
        }
        let dtype = <B::FloatElem as Element>::dtype();
        Self {
            predicting: ints(batch.predicting.clone()),
            targets: ints(batch.targets.clone()),
            by_sequence: ints(by_sequence),
            mask: Tensor::from_data(TensorData::new(mask, [rows, longest]), (device, dtype)),
        }
    }

    /// Scores the completions.
    ///
    /// # Shapes
    /// - hidden: `[Q, D]`, after the final norm, of the batch's `queries`
    /// - head: `[V, D]`
    pub fn score(
        &self,
        hidden: Tensor<B, 2>,
        head: impl Into<Weight<B>>,
        stats: LogProbStats,
    ) -> CompletionLogProbs<B> {
        let [rows, longest] = self.mask.dims();
        if longest == 0 {
            // Only under `allow_empty_completions`: nothing is scored, every sum is zero.
            let device = hidden.device();
            let none = Tensor::zeros([0, stats.columns()], &device);
            return CompletionLogProbs { sums: Tensor::zeros([rows], &device), tokens: none };
        }
        let predicting = hidden.select(0, self.predicting.clone());
        let tokens = completion_log_probs(predicting, head, self.targets.clone(), stats);
        let logps = tokens.clone().narrow(1, 0, 1).squeeze_dim::<1>(1);
        let padded = logps.select(0, self.by_sequence.clone()).reshape([rows, longest]);
        let sums = (padded * self.mask.clone()).sum_dim(1).squeeze_dim(1);
        CompletionLogProbs { sums, tokens }
    }

    /// The same indices for an autodiff backend over `B` (handles only).
    pub fn to_autodiff<A>(&self) -> Completions<A>
    where
        A: TrainBackend + AutodiffBackend<InnerBackend = B>,
    {
        Completions {
            predicting: Tensor::from_inner(self.predicting.clone()),
            targets: Tensor::from_inner(self.targets.clone()),
            by_sequence: Tensor::from_inner(self.by_sequence.clone()),
            mask: Tensor::from_inner(self.mask.clone()),
        }
    }
}

/// Log-probabilities of `batch` under `model`, in one forward pass without a graph.
pub fn score<B: TrainBackend>(
    model: &Mistral<B>,
    batch: &DeviceBatch<B>,
    stats: LogProbStats,
) -> CompletionLogProbs<B> {
    let hidden = model.hidden_states(&batch.input);
    batch.completions.score(hidden, model.head(), stats)
}
