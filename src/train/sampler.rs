//! Which pairs make up which optimizer step: a pure function of the seed and the step, so that a resumed run needs no
//! state to go on with the same data.

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};

/// The order of the training data.
#[derive(Clone, Copy, Debug)]
pub struct Sampler {
    /// Number of pairs.
    pub samples: usize,
    /// Pairs in a micro-batch; the last one of an epoch may be shorter.
    pub batch_size: usize,
    /// Micro-batches in an optimizer step; the last group of an epoch may be shorter, and still makes a step (as
    /// transformers' `Trainer` does).
    pub accumulation: usize,
    /// `None`: file order.
    pub shuffle_seed: Option<u64>,
}

/// The data of one optimizer step.
#[derive(Clone, Debug, PartialEq)]
pub struct StepPlan {
    /// Indices of the pairs of each micro-batch.
    pub micro_batches: Vec<Vec<usize>>,
    /// Epochs done when this step is: `1.5` is half-way through the second.
    pub epoch: f64,
}

impl Sampler {
    /// Optimizer steps in one pass over the data.
    pub fn steps_per_epoch(&self) -> usize {
        self.batches().div_ceil(self.accumulation)
    }

    /// The data of optimizer step `step`, counted from 0.
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

    /// The samples of each of the first `total` steps, in order, whatever their micro-batches.
    pub fn steps(self, total: usize) -> impl Iterator<Item = Vec<usize>> {
        let size = self.batch_size * self.accumulation;
        let epochs = total.div_ceil(self.steps_per_epoch());
        let of_epoch = move |epoch| -> Vec<Vec<usize>> {
            let order = self.order(epoch);
            order.chunks(size).map(<[usize]>::to_vec).collect()
        };
        (0..epochs).flat_map(of_epoch).take(total)
    }

    fn batches(&self) -> usize {
        self.samples.div_ceil(self.batch_size)
    }

    /// Fisher-Yates, a new permutation each epoch.
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
