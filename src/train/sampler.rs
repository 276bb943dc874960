//! Determines the pairs of each optimizer step as a pure function of the seed and the step number, so that a resumed run
//! needs no state to continue with the same data.

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};

use crate::config::RunConfig;

/// Determines the order of the training data.
#[derive(Clone, Copy, Debug)]
pub struct Sampler {
    /// Number of pairs.
    pub samples: usize,
    /// Number of pairs in a micro-batch. The last one of an epoch may be smaller.
    pub batch_size: usize,
    /// Number of micro-batches in an optimizer step. The last step of an epoch may have fewer, as in transformers'
    /// `Trainer`.
    pub accumulation: usize,
    /// Seed of the order of each epoch. `None` means file order.
    pub shuffle_seed: Option<u64>,
}

/// Returns the number of optimizer steps, at least one, in an epoch of `samples` pairs: micro-batches of `batch_size`, in
/// groups of `accumulation`. An incomplete last micro-batch or group counts.
pub fn steps_per_epoch(samples: usize, batch_size: usize, accumulation: usize) -> usize {
    samples.div_ceil(batch_size.max(1)).div_ceil(accumulation.max(1)).max(1)
}

/// The data of one optimizer step.
#[derive(Clone, Debug, PartialEq)]
pub struct StepPlan {
    /// Indices of the pairs in each micro-batch.
    pub micro_batches: Vec<Vec<usize>>,
    /// Number of epochs completed after this step, as in `1.5` for half of the second epoch.
    pub epoch: f64,
}

impl Sampler {
    /// Creates the sampler of a run with `samples` training samples.
    pub fn of_run(config: &RunConfig, samples: usize) -> Self {
        Self {
            samples,
            batch_size: config.train.per_device_train_batch_size,
            accumulation: config.train.gradient_accumulation_steps,
            shuffle_seed: config.data.shuffle.then_some(config.seed),
        }
    }

    /// Returns the number of optimizer steps in one epoch.
    pub fn steps_per_epoch(&self) -> usize {
        steps_per_epoch(self.samples, self.batch_size, self.accumulation)
    }

    /// Returns the data of optimizer step `step`, counted from 0.
    pub fn plan(&self, step: usize) -> StepPlan {
        let (epoch, step) = (step / self.steps_per_epoch(), step % self.steps_per_epoch());
        let order = self.order(epoch);
        let first = step * self.accumulation;
        let last = (first + self.accumulation).min(self.batches());
        let batch = |index: usize| {
            let start = index * self.batch_size;
            order[start..(start + self.batch_size).min(self.samples)].to_vec()
        };
        StepPlan {
            micro_batches: (first..last).map(batch).collect(),
            epoch: epoch as f64 + last as f64 / self.batches() as f64,
        }
    }

    /// Returns the indices of the samples of each of the first `total` steps, in order, without their division into
    /// micro-batches.
    pub fn steps(self, total: usize) -> impl Iterator<Item = Vec<usize>> {
        let size = self.batch_size * self.accumulation;
        let epochs = total.div_ceil(self.steps_per_epoch());
        let epoch_steps = move |epoch| -> Vec<Vec<usize>> {
            let order = self.order(epoch);
            order.chunks(size).map(<[usize]>::to_vec).collect()
        };
        (0..epochs).flat_map(epoch_steps).take(total)
    }

    /// Returns the number of micro-batches in one epoch.
    fn batches(&self) -> usize {
        self.samples.div_ceil(self.batch_size)
    }

    /// Returns the order of the samples in an epoch: a new Fisher-Yates permutation for each epoch.
    fn order(&self, epoch: usize) -> Vec<usize> {
        let mut order: Vec<usize> = (0..self.samples).collect();
        if let Some(seed) = self.shuffle_seed {
            let mut rng = ChaCha8Rng::seed_from_u64(seed);
            rng.set_stream(epoch as u64);
            for last in (1..order.len()).rev() {
                let other = (u128::from(rng.next_u64()) * (last as u128 + 1)) >> 64;
                order.swap(last, other as usize);
            }
        }
        order
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_group_of_an_epoch_is_short_and_still_a_step() {
        let sampler = Sampler { samples: 7, batch_size: 2, accumulation: 3, shuffle_seed: None };
        assert_eq!(sampler.steps_per_epoch(), 2);
        let first = sampler.plan(0);
        assert_eq!(first.micro_batches, [vec![0, 1], vec![2, 3], vec![4, 5]]);
        assert_eq!(first.epoch, 0.75);
        assert_eq!(sampler.plan(1), StepPlan { micro_batches: vec![vec![6]], epoch: 1.0 });
        assert_eq!(sampler.plan(2).micro_batches, first.micro_batches);
    }

    #[test]
    fn steps_are_those_that_are_planned() {
        let sampler =
            Sampler { samples: 23, batch_size: 2, accumulation: 3, shuffle_seed: Some(7) };
        let steps: Vec<_> = sampler.steps(9).collect();
        assert_eq!(steps.len(), 9);
        for (index, step) in steps.iter().enumerate() {
            assert_eq!(*step, sampler.plan(index).micro_batches.concat());
        }
    }

    #[test]
    fn every_epoch_is_another_permutation() {
        let sampler =
            Sampler { samples: 50, batch_size: 50, accumulation: 1, shuffle_seed: Some(3) };
        let epoch = |step| sampler.plan(step).micro_batches.remove(0);
        assert_ne!(epoch(0), epoch(1));
        assert_eq!(epoch(1), epoch(1));
        let mut sorted = epoch(1);
        sorted.sort_unstable();
        assert_eq!(sorted, (0..50).collect::<Vec<_>>());
    }
}
