//! The passes of a run: which samples are computed together, and the largest of these.

use super::job::Job;
use super::profile::Profile;
use crate::config::Method;
use crate::data::lengths::SampleLengths;
use crate::train::pass::grouped;
use crate::train::sampler::Sampler;
use crate::train::setup::fitting_tokens;

/// Steps whose passes are looked at, to find the largest.
const STEPS_SEEN: usize = 5000;

/// Samples that are assumed where they are not known, at most: more than one pass takes.
const MOST_ASSUMED: usize = 1 << 14;

/// The largest pass of a run, and what surrounds it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PassShape {
    /// Tokens of the packed row, `T`.
    pub tokens: usize,
    /// Those whose hidden states are wanted.
    pub queries: usize,
    /// Completion tokens that are scored.
    pub scored: usize,
    /// Tokens of the longest sample: no query sees further.
    pub span: usize,
}

impl PassShape {
    fn add(&mut self, sample: &SampleLengths) {
        self.tokens += sample.packed();
        self.queries += sample.predicting();
        self.scored += sample.scored();
        self.span = self.span.max(sample.packed());
    }

    pub(super) fn of<'a>(samples: impl IntoIterator<Item = &'a SampleLengths>) -> Self {
        let mut shape = Self::default();
        samples.into_iter().for_each(|sample| shape.add(sample));
        shape
    }
}

/// Samples of a run: those of its files, or as many as a step has of the longest that can be.
#[derive(Clone, Debug)]
pub struct Samples {
    /// Of the training file; empty: not known.
    pub train: Vec<SampleLengths>,
    /// Of the held-out file.
    pub eval: Vec<SampleLengths>,
}

impl Job {
    /// Most tokens of a pass.
    pub fn pass_tokens(&self, profile: &Profile) -> usize {
        let asked = self.config.train.max_tokens_per_pass;
        asked.unwrap_or_else(|| {
            let widest = self.shape.widest_bytes_per_token(self.size());
            fitting_tokens(profile.pass_tokens, profile.largest_tensor, widest)
        })
    }

    /// Sequences of a sample.
    pub(super) fn sides(&self) -> usize {
        match self.config.method {
            Method::Dpo => 2,
            Method::Sft => 1,
        }
    }

    /// Whether lengths are those of the files.
    pub fn knows_samples(&self) -> bool {
        !self.samples.train.is_empty()
    }

    /// The samples with sequences no longer than `max_length`.
    pub(super) fn cut(&self, samples: &[SampleLengths]) -> Vec<SampleLengths> {
        let longest = self.config.data.max_length;
        samples.iter().map(|sample| sample.cut(longest)).collect()
    }

    /// The training samples, or a step of the longest.
    pub(super) fn train_samples(&self) -> Vec<SampleLengths> {
        let train = &self.config.train;
        match self.knows_samples() {
            true => self.cut(&self.samples.train),
            false => {
                let longest = SampleLengths::longest(self.config.data.max_length, self.sides());
                let count = train.per_device_train_batch_size * train.gradient_accumulation_steps;
                vec![longest; count.clamp(1, MOST_ASSUMED)]
            }
        }
    }

    /// The largest pass of the run, and the most passes of a step.
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
        let budget = self.pass_tokens(profile);
        let total = match self.knows_samples() {
            true => train.total_steps(samples.len()).clamp(1, STEPS_SEEN),
            false => 1,
        };
        let (mut largest, mut most) = (PassShape::default(), 0);
        for order in sampler.steps(total) {
            let of_step: Vec<usize> = order.iter().map(|index| tokens[*index]).collect();
            let passes = grouped(&of_step, budget);
            most = most.max(passes.len());
            for pass in passes {
                let size: usize = of_step[pass.clone()].iter().sum();
                if size > largest.tokens {
                    largest = PassShape::of(order[pass].iter().map(|index| &samples[*index]));
                }
            }
        }
        (largest, most)
    }

    /// The largest pass of held-out samples; `None` without such.
    pub(super) fn eval_pass(&self, profile: &Profile) -> Option<PassShape> {
        self.config.data.eval_file.as_ref()?;
        let samples = match self.samples.eval.is_empty() {
            true => vec![SampleLengths::longest(self.config.data.max_length, self.sides())],
            false => self.cut(&self.samples.eval),
        };
        let size = self.config.train.per_device_eval_batch_size.max(1);
        let budget = self.pass_tokens(profile);
        let passes = samples.chunks(size).flat_map(|batch| {
            let tokens: Vec<usize> = batch.iter().map(SampleLengths::packed).collect();
            let passes = grouped(&tokens, budget).into_iter();
            passes.map(|pass| PassShape::of(&batch[pass])).collect::<Vec<_>>()
        });
        passes.max_by_key(|pass| pass.tokens)
    }

    /// The largest batch of the reference, where it is computed beforehand: those are not cut into passes.
    pub(super) fn precomputed_pass(&self) -> Option<PassShape> {
        if !self.config.dpo.precompute_ref_log_probs {
            return None;
        }
        let size = self.config.dpo.precompute_ref_batch_size;
        let size = size.unwrap_or(self.config.train.per_device_train_batch_size);
        let samples = self.train_samples();
        let batches = samples.chunks(size.max(1)).map(PassShape::of);
        batches.max_by_key(|pass| pass.tokens)
    }
}
