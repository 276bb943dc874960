//! Runs a step of the real learner on random pairs.

use arithmo_backends::TrainBackend;
use burn::backend::Autodiff;
use burn::module::AutodiffModule;
use burn::tensor::DType;
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};
use serde_json::{Value, json};

use super::{BenchOptions, Probe};
use crate::adapter::LoraConfig;
use crate::adapter::lora::{attach, trainable};
use crate::config::GradientCheckpointing;
use crate::data::encode::{EncodedPair, EncodedSequence};
use crate::data::sample::Sample;
use crate::doctor::speed::{median, timed};
use crate::error::{Error, Result};
use crate::interrupt;
use crate::model::config::DecoderConfig;
use crate::model::load::random_on_device;
use crate::objective::Usage;
use crate::objective::dpo::ReferenceTiming;
use crate::objective::pass::{mean_weights, passes};
use crate::objective::preference::PreferenceLoss;
use crate::objective::reference::Reference;
use crate::train::activations::{Activations, choose_activations};
use crate::train::optimizer::{AdamW, Optimizer};
use crate::train::step::{Learner, StepConfig};

/// The smallest number of tokens in a step.
pub(super) const MIN_TOKENS: usize = 16;

/// Packed tokens of a pair, about as many as a question of Mathematics Stack Exchange has with two
/// answers.
const PAIR_TOKENS: usize = 512;

/// The fraction of a pair's packed tokens that belongs to each completion.
const COMPLETION_FRACTION: f64 = 0.35;

/// Small, so that no weight grows.
const LEARNING_RATE: f64 = 1e-6;

/// A model, its adapter and its learner.
pub(super) struct Setup<B: TrainBackend> {
    pub(super) learner: Learner<B>,
    pub(super) config: DecoderConfig,
    pub(super) dtype: DType,
    pub(super) activations: Activations,
    pub(super) trainable: usize,
    /// The largest number of packed tokens in a pair.
    pub(super) pair_tokens: usize,
    step: usize,
}

/// The measurement of steps with one number of tokens.
#[derive(Clone, Debug)]
pub(super) struct Run {
    pub(super) pairs: Vec<EncodedPair>,
    /// Tokens of the packed rows.
    pub(super) tokens: usize,
    /// Tokens of both sides of all pairs, each in full, as TRL computes them.
    attended: usize,
    /// Fraction of the layers whose activations were recomputed.
    pub(super) recomputed: f64,
    pub(super) precomputed: bool,
    /// Median seconds per step.
    pub(super) seconds: f64,
    /// FLOP per step.
    flop: f64,
    peak_bytes: Option<u64>,
}

impl<B: TrainBackend> Setup<B> {
    pub(super) fn new(
        options: &BenchOptions,
        config: DecoderConfig,
        dtype: DType,
        device: &B::Device,
    ) -> Result<Self> {
        let mut policy =
            random_on_device::<Autodiff<B>>(config.clone(), dtype, options.quantize, device)?;
        attach(&mut policy, &lora_config(options), 1, device)?;
        let activations = match options.checkpointing {
            GradientCheckpointing::On => Activations::Recompute,
            GradientCheckpointing::Off => Activations::Keep,
            GradientCheckpointing::Auto => choose_activations::<B>(&policy, None, device),
        };
        let step = StepConfig {
            max_grad_norm: Some(1.0),
            activations,
            pass_tokens: B::pass_tokens(),
            dropout_seed: None,
        };
        let optimizer =
            Optimizer::new(AdamW { beta1: 0.9, beta2: 0.999, epsilon: 1e-8, weight_decay: 0.0 });
        let (reference, trainable) = (Reference::base(policy.valid()), trainable(&policy));
        Ok(Self {
            learner: Learner::dpo(
                policy,
                optimizer,
                PreferenceLoss::sigmoid(0.1),
                reference,
                ReferenceTiming::EveryStep,
                step,
                device,
            ),
            pair_tokens: pair_tokens(config.max_position_embeddings),
            config,
            dtype,
            activations,
            trainable,
            step: 0,
        })
    }

    /// Runs steps of `tokens` packed tokens: one that is not timed, then those that are.
    pub(super) fn measure(
        &mut self,
        tokens: usize,
        options: &BenchOptions,
        device: &B::Device,
    ) -> Result<Run> {
        let pairs = pairs(tokens, self.pair_tokens, self.config.vocab_size);
        let step = [pairs.iter().collect::<Vec<_>>()];
        let passes = passes(&step, &mean_weights(&step), B::pass_tokens());
        if options.precomputed {
            for pass in &passes {
                self.learner.precompute_batch(&pass.pairs, Usage::Training)?;
            }
        }
        self.step(&step, device)?;
        let mut seconds = Vec::new();
        for _ in 0..options.steps {
            seconds.push(self.step(&step, device)?);
        }
        let layers = self.config.num_hidden_layers;
        let recomputed_tokens = passes.iter().map(|pass| {
            let kept = self.activations.keep(pass.tokens).min(layers);
            (layers - kept) as f64 / layers as f64 * pass.tokens as f64
        });
        let recomputed = recomputed_tokens.sum::<f64>() / tokens as f64;
        Ok(Run {
            tokens,
            attended: pairs.iter().map(Sample::attended_tokens).sum(),
            recomputed,
            precomputed: options.precomputed,
            seconds: median(seconds),
            flop: self.flop(&pairs, tokens, recomputed, options.precomputed),
            peak_bytes: B::peak_memory_bytes(device),
            pairs,
        })
    }

    /// Runs one step and returns its seconds.
    fn step(&mut self, pairs: &[Vec<&EncodedPair>], device: &B::Device) -> Result<f64> {
        if interrupt::requested() {
            let note = "the measurement was not finished".into();
            return Err(Error::Interrupted { note });
        }
        let (step, learner) = (self.step, &mut self.learner);
        self.step += 1;
        let (seconds, output) = timed::<B, _>(device, || learner.step(step, LEARNING_RATE, pairs))?;
        if output.applied {
            Ok(seconds)
        } else {
            Err(Error::run(
                "the loss or the gradient of a step is not finite",
                "run `arithmo doctor` on this backend",
            ))
        }
    }

    /// Returns the FLOP of a step on `tokens` packed tokens: each weight of the layers counts once per
    /// token, each weight of the head once per scored token (see [`flop_per_weight_and_token`]).
    /// Attention is not counted. `recomputed` is the fraction of layers whose activations are
    /// recomputed, and `precomputed` says that the reference is known.
    fn flop(
        &self,
        pairs: &[EncodedPair],
        tokens: usize,
        recomputed: f64,
        precomputed: bool,
    ) -> f64 {
        let tensors = self.config.tensors();
        let projections = tensors.iter().filter(|tensor| tensor.is_projection());
        let layers: f64 = projections.map(|projection| projection.count() as f64).sum();
        let head = (self.config.vocab_size * self.config.hidden_size) as f64;
        let scored = pairs.iter().flat_map(|p| [&p.chosen, &p.rejected]);
        let scored: usize = scored.map(EncodedSequence::scored_tokens).sum();
        let count = flop_per_weight_and_token(recomputed, precomputed);
        // The head is never recomputed.
        count * layers * tokens as f64
            + flop_per_weight_and_token(0.0, precomputed) * head * scored as f64
    }
}

/// Returns the FLOP per weight and token: 2 for the policy's forward pass, 2 for the gradient of
/// the input, 2 for the reference unless it is `precomputed`, and 2 for the fraction `recomputed`
/// of the layers.
fn flop_per_weight_and_token(recomputed: f64, precomputed: bool) -> f64 {
    let reference = if precomputed { 0.0 } else { 2.0 };
    4.0 + reference + 2.0 * recomputed
}

/// Returns the configuration of the adapter.
fn lora_config(options: &BenchOptions) -> LoraConfig {
    LoraConfig {
        r: options.rank,
        lora_alpha: 2.0 * options.rank as f64,
        target_modules: options.targets.clone(),
        ..LoraConfig::default()
    }
}

/// Returns the packed tokens of a pair, limited by the positions of the model.
fn pair_tokens(positions: usize) -> usize {
    let longest = positions.saturating_sub(2) as f64 / (1.0 - COMPLETION_FRACTION);
    PAIR_TOKENS.min(longest as usize).max(MIN_TOKENS / 2)
}

/// Returns random pairs with `tokens` packed tokens in total, at most `max_tokens` each.
fn pairs(tokens: usize, max_tokens: usize, vocabulary: usize) -> Vec<EncodedPair> {
    let count = tokens.div_ceil(max_tokens);
    let mut rng = ChaCha8Rng::seed_from_u64(tokens as u64);
    let mut random = |count: usize| -> Vec<u32> {
        let id = |_| rng.next_u32() % vocabulary as u32;
        (0..count).map(id).collect()
    };
    let pair = |index: usize| {
        let size = tokens / count + usize::from(index < tokens % count);
        let completion = (size as f64 * COMPLETION_FRACTION).round() as usize;
        let prompt = random(size - 2 * completion);
        // The last token of a sequence predicts nothing and is not in the packed row.
        let [chosen, mut rejected] = [(); 2].map(|()| random(completion + 1));
        // Completions that start with the same tokens would share them.
        rejected[0] = (chosen[0] + 1) % vocabulary as u32;
        let [chosen, rejected] = [chosen, rejected].map(|ids| EncodedSequence {
            ids: [prompt.clone(), ids].concat(),
            completion_start: prompt.len(),
            hidden: Vec::new(),
        });
        let id = format!("{tokens}-{index}");
        EncodedPair { id, chosen, rejected }
    };
    (0..count).map(pair).collect()
}

impl Run {
    /// Returns the measurement as a [`Probe`].
    pub(super) fn probe(&self) -> Probe {
        let sides = self.pairs.iter().flat_map(|p| [&p.chosen, &p.rejected]);
        Probe {
            tokens: self.tokens,
            scored: sides.map(EncodedSequence::scored_tokens).sum(),
            seconds: self.seconds,
        }
    }

    /// Returns the header of the table.
    pub(super) fn header() -> String {
        format!(
            "{:>7}{:>7}{:>10}{:>11}{:>12}{:>10}{:>10}{:>8}{:>8}{:>10}",
            "tokens",
            "pairs",
            "s/step",
            "tokens/s",
            "attended/s",
            "pairs/s",
            "TFLOP/s",
            "count",
            "MFU",
            "peak GB"
        )
    }

    /// Returns the measurement as a line of the table.
    pub(super) fn line(&self, peak: Option<f64>) -> String {
        let per_second = |count: usize| count as f64 / self.seconds;
        let mfu = match peak {
            Some(peak) => format!("{:.1} %", 100.0 * self.flop / self.seconds / peak),
            None => "-".to_string(),
        };
        let memory = match self.peak_bytes {
            Some(bytes) => format!("{:.2}", bytes as f64 / 1e9),
            None => "-".to_string(),
        };
        format!(
            "{:>7}{:>7}{:>10.3}{:>11.1}{:>12.1}{:>10.2}{:>10.3}{:>7.1}N{mfu:>8}{memory:>10}",
            self.tokens,
            self.pairs.len(),
            self.seconds,
            per_second(self.tokens),
            per_second(self.attended),
            per_second(self.pairs.len()),
            self.flop / self.seconds / 1e12,
            flop_per_weight_and_token(self.recomputed, self.precomputed),
        )
    }

    /// Returns the measurement as a JSON object.
    pub(super) fn json(&self, peak: Option<f64>) -> Value {
        let rate = self.flop / self.seconds;
        json!({
            "tokens": self.tokens,
            "attended_tokens": self.attended,
            "pairs": self.pairs.len(),
            "seconds_per_step": self.seconds,
            "tokens_per_second": self.tokens as f64 / self.seconds,
            "attended_tokens_per_second": self.attended as f64 / self.seconds,
            "pairs_per_second": self.pairs.len() as f64 / self.seconds,
            "flop_per_weight_and_token": flop_per_weight_and_token(self.recomputed, self.precomputed),
            "recomputed_layers_share": self.recomputed,
            "flop_per_second": rate,
            "mfu": peak.map(|peak| rate / peak),
            "peak_memory_bytes": self.peak_bytes,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::sample::Sample;

    #[test]
    fn pairs_take_the_tokens_asked_for() {
        for (tokens, max_tokens, count) in
            [(16, 512, 1), (1024, 512, 2), (1000, 77, 13), (513, 512, 2)]
        {
            let pairs = pairs(tokens, max_tokens, 5);
            assert_eq!(pairs.len(), count);
            assert_eq!(pairs.iter().map(Sample::packed_tokens).sum::<usize>(), tokens);
            assert!(pairs.iter().all(|pair| pair.packed_tokens() <= max_tokens));
        }
        let pair = &pairs(512, 512, 32000)[0];
        assert_eq!(pair.chosen.completion_start, 154);
        assert_eq!(pair.chosen.scored_tokens(), 180);
        // The prompt counts twice, and the last token of each side counts too.
        assert_eq!(pair.attended_tokens(), 512 + 154 + 2);
    }

    #[test]
    fn pairs_have_positions() {
        for positions in [32, 64, 400, 32768] {
            for pair in pairs(1024, pair_tokens(positions), 100) {
                assert!(pair.chosen.ids.len() <= positions);
                assert_eq!(pair.chosen.ids.len(), pair.rejected.ids.len());
            }
        }
    }

    #[test]
    fn flop_are_counted_as_in_the_literature() {
        assert_eq!(flop_per_weight_and_token(0.0, false), 6.0);
        assert_eq!(flop_per_weight_and_token(1.0, false), 8.0);
        assert_eq!(flop_per_weight_and_token(0.0, true), 4.0);
        assert_eq!(flop_per_weight_and_token(1.0, true), 6.0);
    }
}
