//! The passes of a run: which samples are computed together, and which pass is the largest.

use super::job::Job;
use super::profile::Profile;
use crate::config::Method;
use crate::data::lengths::SampleLengths;
use crate::objective::pass::{PassLimits, grouped};
use crate::train::activations::fitting_tokens;
use crate::train::sampler::Sampler;

/// Number of steps that are examined to find the largest pass.
const MAX_STEPS_EXAMINED: usize = 5000;

/// The largest number of samples that is assumed if the data is unknown: more than one pass holds.
const MAX_ASSUMED_SAMPLES: usize = 1 << 14;

/// The size of a pass.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PassShape {
    /// Tokens of the packed row, `T`.
    pub tokens: usize,
    /// Tokens whose hidden states are needed after the last block.
    pub queries: usize,
    /// Completion tokens that are scored.
    pub scored: usize,
    /// Tokens of the longest sample; no query attends beyond it.
    pub span: usize,
}

impl PassShape {
    /// Adds a sample to the packed row.
    fn add(&mut self, sample: &SampleLengths) {
        self.tokens += sample.packed();
        self.queries += sample.predicting();
        self.scored += sample.scored();
        self.span = self.span.max(sample.packed());
    }

    /// Returns the size of a pass over `samples`.
    pub(super) fn of<'a>(samples: impl IntoIterator<Item = &'a SampleLengths>) -> Self {
        let mut shape = Self::default();
        samples.into_iter().for_each(|sample| shape.add(sample));
        shape
    }
}

/// The lengths of a run's samples.
#[derive(Clone, Debug)]
pub struct Samples {
    /// Lengths of the training file; empty if they are unknown, and then a step of the longest
    /// samples is assumed.
    pub train: Vec<SampleLengths>,
    /// Lengths of the held-out file.
    pub eval: Vec<SampleLengths>,
}

impl Job {
    /// Returns the largest number of tokens in a pass.
    pub fn pass_tokens(&self, profile: &Profile) -> usize {
        let requested = self.config.train.max_tokens_per_pass;
        requested.unwrap_or_else(|| {
            let widest = self.shape.widest_bytes_per_token(self.size());
            fitting_tokens(profile.pass_tokens, profile.largest_tensor, widest)
        })
    }

    /// Returns what a pass may hold.
    fn pass_limits(&self, profile: &Profile) -> PassLimits {
        let is_dpo = self.config.method == Method::Dpo;
        let whole_micro_batches = is_dpo && self.config.dpo.loss().needs_whole_micro_batches();
        PassLimits { tokens: self.pass_tokens(profile), whole_micro_batches }
    }

    /// Returns the number of sequences of a sample.
    pub(super) fn sides(&self) -> usize {
        match self.config.method {
            Method::Dpo | Method::Orpo | Method::Cpo => 2,
            Method::Sft | Method::Kto => 1,
        }
    }

    /// Returns whether the lengths come from the data files.
    pub fn knows_samples(&self) -> bool {
        !self.samples.train.is_empty()
    }

    /// Returns the samples with their sequences truncated to `max_length`.
    pub(super) fn truncate(&self, samples: &[SampleLengths]) -> Vec<SampleLengths> {
        let max_length = self.config.data.max_length;
        samples.iter().map(|sample| sample.cut(max_length)).collect()
    }

    /// Returns the training samples, or one step of the longest possible samples if they are
    /// unknown.
    pub(super) fn train_samples(&self) -> Vec<SampleLengths> {
        let train = &self.config.train;
        if self.knows_samples() {
            self.truncate(&self.samples.train)
        } else {
            let longest = SampleLengths::longest(self.config.data.max_length, self.sides());
            let count = train.per_device_train_batch_size * train.gradient_accumulation_steps;
            vec![longest; count.clamp(1, MAX_ASSUMED_SAMPLES)]
        }
    }

    /// Returns the largest pass of the run, and the largest number of passes in a step.
    pub(super) fn largest_pass(&self, profile: &Profile) -> (PassShape, usize) {
        let samples = self.train_samples();
        let tokens: Vec<usize> = samples.iter().map(SampleLengths::packed).collect();
        let train = &self.config.train;
        let sampler = Sampler {
            samples: samples.len(),
            batch_size: train.per_device_train_batch_size.max(1),
            accumulation: train.gradient_accumulation_steps.max(1),
            shuffle_seed: self.config.data.shuffle.then_some(self.config.seed),
        };
        let limits = self.pass_limits(profile);
        let total = if self.knows_samples() {
            train.total_steps(samples.len()).clamp(1, MAX_STEPS_EXAMINED)
        } else {
            1
        };
        let (mut largest, mut max_passes) = (PassShape::default(), 0);
        for order in sampler.steps(total) {
            let step_tokens: Vec<usize> = order.iter().map(|index| tokens[*index]).collect();
            let sizes = vec![sampler.batch_size; order.len().div_ceil(sampler.batch_size)];
            let passes = grouped(&step_tokens, &sizes, limits);
            max_passes = max_passes.max(passes.len());
            for pass in passes {
                let size: usize = step_tokens[pass.clone()].iter().sum();
                if size > largest.tokens {
                    largest = PassShape::of(order[pass].iter().map(|index| &samples[*index]));
                }
            }
        }
        (largest, max_passes)
    }

    /// Returns the held-out samples, or the longest possible one if they are unknown; `None` without a held-out file.
    fn eval_samples(&self) -> Option<Vec<SampleLengths>> {
        self.config.data.eval_file.as_ref()?;
        Some(if self.samples.eval.is_empty() {
            vec![SampleLengths::longest(self.config.data.max_length, self.sides())]
        } else {
            self.truncate(&self.samples.eval)
        })
    }

    /// Returns the largest pass over held-out samples; `None` without a held-out file.
    pub(super) fn eval_pass(&self, profile: &Profile) -> Option<PassShape> {
        let samples = self.eval_samples()?;
        let size = self.config.train.per_device_eval_batch_size.max(1);
        let limits = self.pass_limits(profile);
        let passes = samples.chunks(size).flat_map(|batch| {
            let tokens: Vec<usize> = batch.iter().map(SampleLengths::packed).collect();
            let passes = grouped(&tokens, &[tokens.len()], limits).into_iter();
            passes.map(|pass| PassShape::of(&batch[pass])).collect::<Vec<_>>()
        });
        passes.max_by_key(|pass| pass.tokens)
    }

    /// Returns the largest batch for which the reference is computed before training; these batches
    /// are not split into passes.
    pub(super) fn precomputed_pass(&self) -> Option<PassShape> {
        let sizes = self.config.precompute_sizes()?;
        let (train, eval) = (self.train_samples(), self.eval_samples().unwrap_or_default());
        let batches =
            train.chunks(sizes.training.max(1)).chain(eval.chunks(sizes.evaluation.max(1)));
        batches.map(PassShape::of).max_by_key(|pass| pass.tokens)
    }
}
