//! The error of a step that is not finite.

use arithmo_backends::TrainBackend;
use burn::module::AutodiffModule;

use super::Trainer;
use crate::data::sample::Sample;
use crate::error::{Error, first_few};
use crate::model::not_finite;
use crate::objective::Objective;
use crate::train::step::StepOutput;
use crate::train::steps::Retention;

impl<B: TrainBackend, O: Objective<B>> Trainer<'_, B, O> {
    /// Saves the last good state and returns the error of a step that is not finite. It names the samples and the first layer,
    /// gradient or weight with such a value.
    pub(super) fn not_finite(&mut self, output: &StepOutput, batches: &[Vec<&O::Sample>]) -> Error {
        let weight = not_finite::explain_weights(&self.learner.policy.valid());
        if self.state.step == 0
            && let Some(error) = weight
        {
            return error;
        }
        let saved = match self.state.step {
            0 => "nothing was trained yet".to_string(),
            // No checkpoint is pruned, because the weights before this step may already be bad and an earlier checkpoint
            // may be needed.
            step => match self.save_checkpoint(Retention::all()) {
                Ok(()) => format!("the state before it is saved as checkpoint step-{step}"),
                Err(error) => format!("and the state before it could not be saved: {error}"),
            },
        };
        let fault = self.learner.find_fault(self.state.step, batches);
        let all = || batches.iter().flatten().map(|sample| sample.id().to_string()).collect();
        let place = match (weight, &fault) {
            (Some(Error::Run { problem, .. }), _) => format!("; {problem}"),
            (_, Some(fault)) => format!("; first {}", fault.place),
            _ => String::new(),
        };
        let ids = fault.map_or_else(all, |fault| fault.ids);
        let losses: Vec<f64> = output.micro_batches.iter().map(|micro| micro.loss).collect();
        Error::run(
            format!(
                "step {} is not finite: losses {losses:?}, gradient norm {}, {} {}{place}; {saved}",
                self.state.step + 1,
                output.grad_norm,
                O::Sample::NAME,
                first_few(ids, ", ")
            ),
            match self.state.step {
                0 => {
                    "the weights are finite: use model.dtype = \"f32\", or a loss without an exponential (which \"discopop\" and \
                     dpo.f_divergence_type have) if policy and reference differ much"
                }
                _ => "lower train.learning_rate, or use model.dtype = \"f32\" or \"bf16\"",
            },
        )
    }
}
