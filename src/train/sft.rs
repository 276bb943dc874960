//! Supervised fine-tuning. The loss is the mean cross-entropy of a step's completion tokens, as in TRL's `SFTTrainer` with
//! prompts and completions.

use arithmo_backends::{LogProbStats, TrainBackend};
use burn::backend::Autodiff;
use burn::module::AutodiffModule;
use burn::tensor::Tensor;

use crate::data::batch::PreferenceBatch;
use crate::data::encode::EncodedExample;
use crate::model::mistral::Mistral;
use crate::model::positions::PositionTable;
use crate::objective::log_probs::{DeviceBatch, score};
use crate::objective::metrics::{MicroBatchMetrics, Sum};
use crate::train::gradient::{Loss, gradients};
use crate::train::method::{Method, StepConfig, StepOutput, add_all, apply, mix};
use crate::train::optimizer::{AdamW, clip_by_global_norm};
use crate::train::pass::{Pass, passes};

/// Statistics of a token: log-probability, entropy, argmax match, mean logit.
type Token = [f64; 4];

/// The learner for supervised fine-tuning: the model and its optimizer.
#[derive(Debug)]
pub struct SftLearner<B: TrainBackend> {
    policy: Mistral<Autodiff<B>>,
    optimizer: AdamW<B>,
    table: PositionTable<B>,
    config: StepConfig,
    device: B::Device,
}

impl<B: TrainBackend> SftLearner<B> {
    /// Creates a learner for `policy`, which trains the tensors that require a gradient.
    pub fn new(
        policy: Mistral<Autodiff<B>>,
        optimizer: AdamW<B>,
        config: StepConfig,
        device: &B::Device,
    ) -> Self {
        let positions = policy.config.max_position_embeddings;
        Self {
            table: policy.valid().position_table(positions, device),
            policy,
            optimizer,
            config,
            device: device.clone(),
        }
    }

    /// Runs forward and backward of one pass. Returns the statistics of its tokens, `[4 T]`, and the gradient of the sum of
    /// their cross-entropies times `weight`.
    fn one_pass(
        &self,
        pass: &Pass<'_, EncodedExample>,
        weight: f64,
        dropout_seed: Option<u64>,
    ) -> (Tensor<B, 1>, Vec<Tensor<B, 2>>) {
        let batch = PreferenceBatch::from_examples(&pass.pairs);
        let mut on_device = DeviceBatch::new(&batch, &self.table, &self.device);
        on_device.input.context.dropout_seed = dropout_seed;
        let completions = on_device.completions.to_autodiff::<Autodiff<B>>();
        let head = self.policy.head();
        let keep = self.config.activations.keep(batch.tokens.length);
        gradients(&self.policy, &on_device.input, keep, |hidden| {
            let scored = completions.score(hidden, head, LogProbStats::All);
            Loss {
                loss: scored.sums.sum().mul_scalar(-weight),
                output: scored.tokens.inner().reshape([-1]),
            }
        })
    }
}

impl<B: TrainBackend> Method<B> for SftLearner<B> {
    type Sample = EncodedExample;

    const KEYS: &'static [&'static str] = &["mean_token_accuracy", "entropy"];

    const STATUS_KEYS: &'static [(&'static str, &'static str)] =
        &[("loss", "loss"), ("mean_token_accuracy", "acc")];

    fn policy(&self) -> &Mistral<Autodiff<B>> {
        &self.policy
    }

    fn policy_and_optimizer(&mut self) -> (&mut Mistral<Autodiff<B>>, &mut AdamW<B>) {
        (&mut self.policy, &mut self.optimizer)
    }

    fn optimizer(&self) -> &AdamW<B> {
        &self.optimizer
    }

    /// Runs one optimizer step. The loss is the mean over all completion tokens of the step (`num_items_in_batch` in
    /// transformers' `Trainer`).
    fn step(
        &mut self,
        step: usize,
        learning_rate: f64,
        micro_batches: &[Vec<&EncodedExample>],
    ) -> StepOutput {
        let tokens = |example: &&EncodedExample| example.sequence.scored_tokens();
        let total: usize = micro_batches.iter().flatten().map(tokens).sum();
        let weight = 1.0 / total.max(1) as f64;
        let (mut sum, mut outputs) = (Vec::new(), Vec::new());
        for (index, pass) in passes(micro_batches, self.config.pass_tokens).iter().enumerate() {
            let seed = self.config.dropout_seed.map(|seed| mix(seed, step, index));
            let (output, grads) = self.one_pass(pass, weight, seed);
            outputs.push(output);
            sum = add_all(sum, grads);
        }
        let (clipped, norm) = clip_by_global_norm(sum, self.config.max_grad_norm.unwrap_or(0.0));
        outputs.push(norm);

        let numbers: Vec<f64> = Tensor::cat(outputs, 0).into_data().iter::<f64>().collect();
        let (mut rest, _) = numbers.as_chunks::<4>();
        let measure = |micro: &Vec<&EncodedExample>| {
            let (micro_tokens, remaining) = rest.split_at(micro.iter().map(tokens).sum());
            rest = remaining;
            measure(micro.len(), micro_tokens)
        };
        let micro_batches: Vec<MicroBatchMetrics> = micro_batches.iter().map(measure).collect();
        let grad_norm = numbers.last().copied().unwrap_or(0.0);
        let (all, _) = numbers.as_chunks::<4>();
        let loss = Sum::of(all.iter().map(|token: &Token| -token[0])).mean();
        let applied = grad_norm.is_finite() && loss.is_finite();
        if applied {
            apply(&mut self.policy, &mut self.optimizer, learning_rate, clipped);
        }
        StepOutput { loss, micro_batches, grad_norm, applied }
    }

    fn evaluate(&self, examples: &[&EncodedExample]) -> MicroBatchMetrics {
        let policy = self.policy.valid();
        let mut tokens = Vec::new();
        for pass in passes(&[examples.to_vec()], self.config.pass_tokens) {
            let batch = PreferenceBatch::from_examples(&pass.pairs);
            let on_device = DeviceBatch::new(&batch, &self.table, &self.device);
            let scored = score(&policy, &on_device, LogProbStats::All);
            let numbers: Vec<f64> = scored.tokens.into_data().iter::<f64>().collect();
            tokens.extend_from_slice(numbers.as_chunks::<4>().0);
        }
        measure(examples.len(), &tokens)
    }
}

/// Computes TRL's metrics of a batch, which are means over its completion tokens.
fn measure(examples: usize, tokens: &[Token]) -> MicroBatchMetrics {
    let sum = |value: fn(&Token) -> f64| Sum::of(tokens.iter().map(value));
    let values = vec![sum(|token| token[2]), sum(|token| token[1])];
    MicroBatchMetrics::from_sums(examples, vec![sum(|token| -token[0])], values)
}
