//! Finds where in a step the first value that is not finite appears.

use arithmo_backends::TrainBackend;
use burn::module::AutodiffModule;
use burn::tensor::Tensor;

use super::{Learner, mix};
use crate::data::batch::PackedBatch;
use crate::data::sample::Sample;
use crate::model::not_finite;
use crate::objective::Objective;
use crate::train::parameters::trained_parameters;

/// The place of the first value of a step that is not finite.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// Ids of the samples with which it appears.
    pub ids: Vec<String>,
    /// The layer or tensor, and the count of values, in words.
    pub place: String,
}

impl<B: TrainBackend, O: Objective<B>> Learner<B, O> {
    /// Finds the first value that is not finite in optimizer step `step` over `micro_batches`, which was not applied. Returns
    /// `None` if none is found.
    ///
    /// The samples are computed one by one and layer by layer. If all activations are finite, the gradients of each pass
    /// are searched from the last layer to the first, in the order of the backward pass.
    pub fn find_fault(&self, step: usize, micro_batches: &[Vec<&O::Sample>]) -> Option<Fault> {
        let policy = self.policy.valid();
        let mut found: Option<Fault> = None;
        for sample in micro_batches.iter().flatten() {
            let samples = [*sample];
            let on_device = self.on_device(&samples, &PackedBatch::new(&samples));
            if let Some(place) = not_finite::find_activation(&policy, &on_device.input) {
                let first = Fault { ids: Vec::new(), place: format!("the activations {place}") };
                found.get_or_insert(first).ids.push(sample.id().to_string());
            }
        }
        found.or_else(|| self.find_gradient(step, micro_batches))
    }

    /// Finds the first gradient, in the order of the backward pass, with a value that is not finite.
    fn find_gradient(&self, step: usize, micro_batches: &[Vec<&O::Sample>]) -> Option<Fault> {
        let baselines = self.training_baselines(micro_batches);
        let passes = self.passes(micro_batches, &baselines);
        passes.iter().enumerate().find_map(|(index, pass)| {
            let seed = self.config.dropout_seed.map(|seed| mix(seed, step, index));
            let batch = PackedBatch::new(&pass.pairs);
            let (_, grads) = self.one_pass(&batch, pass, seed);
            let names =
                trained_parameters(&self.policy).into_iter().map(|parameter| parameter.name);
            let named: Vec<(String, Tensor<B, 2>)> = names.zip(grads).collect();
            named.into_iter().rev().find_map(|(name, grad)| {
                let count = not_finite::describe(grad)?;
                let place = format!("the gradient of {name}: {count}");
                Some(Fault { ids: batch.ids.clone(), place })
            })
        })
    }
}
