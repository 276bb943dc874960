//! Computes the log-probabilities of completions: one number per sequence from hidden states.

use arithmo_backends::ops::log_probs::completion_log_probs;
use arithmo_backends::{LogProbStats, TrainBackend, Weight};
use burn::tensor::backend::AutodiffBackend;
use burn::tensor::{Element, Int, Tensor, TensorData};

use crate::data::batch::PreferenceBatch;
use crate::error::Result;
use crate::model::input::ModelInput;
use crate::model::mistral::Mistral;
use crate::model::not_finite;
use crate::model::positions::PositionTable;

/// A [`PreferenceBatch`] on a device.
#[derive(Clone, Debug)]
pub struct DeviceBatch<B: TrainBackend> {
    /// The tokens of the packed row.
    pub input: ModelInput<B>,
    /// The scored tokens and the hidden states that predict them.
    pub completions: Completions<B>,
}

/// The scored tokens of a batch and the hidden states that predict them.
#[derive(Clone, Debug)]
pub struct Completions<B: TrainBackend> {
    /// For each scored token, the index of the hidden state that predicts it, `[T]`.
    predicting: Tensor<B, 1, Int>,
    /// Ids of the scored tokens, `[T]`.
    targets: Tensor<B, 1, Int>,
    /// Indices into `[T]` of each sequence's tokens, padded to the longest completion, `[rows * C]`.
    by_sequence: Tensor<B, 1, Int>,
    /// 1 for a token and 0 for padding, `[rows, C]`.
    mask: Tensor<B, 2>,
}

/// Log-probabilities of the completions of a batch.
#[derive(Clone, Debug)]
pub struct CompletionLogProbs<B: TrainBackend> {
    /// Summed log-probability of each completion, `[rows]`.
    pub sums: Tensor<B, 1>,
    /// Log-probability of each token and, if requested, the other columns of [`LogProbStats`], `[T, 1 or 4]`.
    pub tokens: Tensor<B, 2>,
}

impl<B: TrainBackend> DeviceBatch<B> {
    /// Copies `batch` to `device`.
    pub fn new(batch: &PreferenceBatch, table: &PositionTable<B>, device: &B::Device) -> Self {
        let input = ModelInput::new(&batch.tokens, table, device);
        Self {
            input: input.only(&batch.queries, device),
            completions: Completions::new(batch, device),
        }
    }
}

impl<B: TrainBackend> Completions<B> {
    /// Copies the scored tokens of `batch` to `device`.
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

    /// Computes the log-probabilities of the completions.
    ///
    /// # Shapes
    /// - hidden: `[Q, D]`, the states of the batch's `queries` after the final norm
    /// - head: `[V, D]`
    pub fn score(
        &self,
        hidden: Tensor<B, 2>,
        head: impl Into<Weight<B>>,
        stats: LogProbStats,
    ) -> CompletionLogProbs<B> {
        let [rows, longest] = self.mask.dims();
        if longest == 0 {
            // Under `allow_empty_completions` a batch may have no scored token. Every sum is then zero.
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

    /// Converts to an autodiff backend over `B`. Copies only handles.
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

/// Computes the log-probabilities of `batch` under `model` in one forward pass without a graph.
pub fn score<B: TrainBackend>(
    model: &Mistral<B>,
    batch: &DeviceBatch<B>,
    stats: LogProbStats,
) -> CompletionLogProbs<B> {
    let hidden = model.hidden_states(&batch.input);
    batch.completions.score(hidden, model.head(), stats)
}

/// Reads the summed log-probabilities `sums` of `batch` under `model` from the device and checks them.
///
/// # Errors
/// A sum is not finite. The error names the weight or layer from which this comes ([`not_finite::explain`]).
pub fn finite_sums<B: TrainBackend>(
    model: &Mistral<B>,
    batch: &DeviceBatch<B>,
    sums: Tensor<B, 1>,
) -> Result<Vec<f32>> {
    let sums: Vec<f32> = sums.into_data().iter::<f32>().collect();
    if sums.iter().all(|sum| sum.is_finite()) {
        Ok(sums)
    } else {
        Err(not_finite::explain(model, [batch.input.clone()]))
    }
}
