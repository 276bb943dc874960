//! Computes the log-probabilities of completions: one number per sequence from hidden states.

use arithmo_backends::ops::log_probs::completion_log_probs;
use arithmo_backends::{LogProbStats, TrainBackend, Weight};
use burn::tensor::backend::AutodiffBackend;
use burn::tensor::{Element, Int, Tensor, TensorData};

use crate::data::batch::PackedBatch;
use crate::error::Result;
use crate::model::decoder::Decoder;
use crate::model::input::ModelInput;
use crate::model::not_finite;
use crate::model::positions::PositionTable;

/// A [`PackedBatch`] on a device.
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
    /// The weight of each token in the sums, 0 for padding, `[rows, C]`; `None` if it is `mask`.
    token_weights: Option<Tensor<B, 2>>,
}

/// Log-probabilities of the completions of a batch.
#[derive(Clone, Debug)]
pub struct CompletionLogProbs<B: TrainBackend> {
    /// Summed log-probability of each completion, `[rows]`.
    pub sums: Tensor<B, 1>,
    /// The sums with the weights of [`Completions::weigh_tails`], `[rows]`.
    pub weighted_sums: Tensor<B, 1>,
    /// With [`LogProbStats::Squares`]: the weight of each completion in WPO (arXiv 2406.11827, equation 2),
    /// `exp(mean over tokens of (log p - log of the sum of squared probabilities))`, `[rows]`. The sum is the expected
    /// probability of a token that is drawn from the policy. It carries no gradient.
    pub weights: Option<Tensor<B, 1>>,
    /// Log-probability of each token and, if requested, the other columns of [`LogProbStats`], `[T, 1]`, `[T, 4]` or `[T, 5]`.
    pub tokens: Tensor<B, 2>,
}

impl<B: TrainBackend> DeviceBatch<B> {
    /// Copies `batch` to `device`.
    pub fn new(batch: &PackedBatch, table: &PositionTable<B>, device: &B::Device) -> Self {
        let input = ModelInput::new(&batch.tokens, table, device);
        Self {
            input: input.only(&batch.queries, device),
            completions: Completions::new(batch, device),
        }
    }
}

impl<B: TrainBackend> Completions<B> {
    /// Copies the scored tokens of `batch` to `device`.
    fn new(batch: &PackedBatch, device: &B::Device) -> Self {
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
            token_weights: None,
        }
    }

    /// Makes the weighted sums count the tokens of each completion beyond the length of the pair's shorter completion with
    /// the weight `alpha` (LD-DPO, arXiv 2409.06411).
    ///
    /// # Panics
    /// If `batch` is not the batch of pairs that this was made from.
    pub fn weigh_tails(&mut self, batch: &PackedBatch, alpha: f64) {
        let (chosen, rejected) = batch.counts.split_at(batch.counts.len() / 2);
        let shorter = |row: usize| chosen[row % chosen.len()].min(rejected[row % chosen.len()]);
        self.weigh(batch, |row, at| if at < shorter(row) { 1.0 } else { alpha });
    }

    /// Makes the weighted sums count scored token `at` of the sequence `row` with the weight `weight(row, at)`.
    ///
    /// # Panics
    /// If `batch` is not the batch that this was made from.
    pub fn weigh(&mut self, batch: &PackedBatch, weight: impl Fn(usize, usize) -> f64) {
        let [rows, longest] = self.mask.dims();
        assert_eq!(batch.counts.len(), rows, "weigh: rows");
        let mut weights = Vec::with_capacity(rows * longest);
        for (row, count) in batch.counts.iter().enumerate() {
            weights.extend((0..longest).map(|at| if at < *count { weight(row, at) } else { 0.0 }));
        }
        let (device, dtype) = (self.mask.device(), self.mask.dtype());
        let weights = TensorData::new(weights, [rows, longest]).convert_dtype(dtype);
        self.token_weights = Some(Tensor::from_data(weights, (&device, dtype)));
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
            let sums = Tensor::zeros([rows], &device);
            return CompletionLogProbs {
                weighted_sums: sums.clone(),
                weights: (stats == LogProbStats::Squares).then(|| sums.ones_like()),
                sums,
                tokens: Tensor::zeros([0, stats.columns()], &device),
            };
        }
        let predicting = hidden.select(0, self.predicting.clone());
        let tokens = completion_log_probs(predicting, head, self.targets.clone(), stats);
        let logps = self.by_sequence(tokens.clone().narrow(1, 0, 1));
        let sum = |mask: &Tensor<B, 2>| (logps.clone() * mask.clone()).sum_dim(1).squeeze_dim(1);
        let sums: Tensor<B, 1> = sum(&self.mask);
        let weighted_sums = self.token_weights.as_ref().map_or_else(|| sums.clone(), sum);
        let weights = (stats == LogProbStats::Squares).then(|| {
            let squares = self.by_sequence(tokens.clone().narrow(1, 4, 1));
            let excess = ((logps.clone() - squares) * self.mask.clone()).detach().sum_dim(1);
            let counts = self.mask.clone().sum_dim(1).clamp_min(1.0);
            (excess / counts).exp().squeeze_dim(1)
        });
        CompletionLogProbs { sums, weighted_sums, weights, tokens }
    }

    /// Arranges one column of token statistics, `[T, 1]`, by sequence, `[rows, C]`; padding holds any token's value.
    fn by_sequence(&self, column: Tensor<B, 2>) -> Tensor<B, 2> {
        let values = column.squeeze_dim::<1>(1);
        values.select(0, self.by_sequence.clone()).reshape(self.mask.dims())
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
            token_weights: self.token_weights.clone().map(Tensor::from_inner),
        }
    }
}

impl<B: TrainBackend + AutodiffBackend> CompletionLogProbs<B>
where
    B::InnerBackend: TrainBackend,
{
    /// Returns the values without their graph.
    pub fn inner(self) -> CompletionLogProbs<B::InnerBackend> {
        CompletionLogProbs {
            sums: self.sums.inner(),
            weighted_sums: self.weighted_sums.inner(),
            weights: self.weights.map(Tensor::inner),
            tokens: self.tokens.inner(),
        }
    }
}

/// Computes the log-probabilities of `batch` under `model` in one forward pass without a graph.
pub fn score<B: TrainBackend>(
    model: &Decoder<B>,
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
    model: &Decoder<B>,
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
