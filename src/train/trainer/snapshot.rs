//! Saves the state of a run as a checkpoint, and restores it.

use arithmo_backends::TrainBackend;

use super::Trainer;
use crate::error::{Error, Result};
use crate::objective::Objective;
use crate::train::checkpoint::{Checkpoint, NamedTensors, Snapshot, TrainState};
use crate::train::folder::RunFolder;
use crate::train::optimizer::Optimizer;
use crate::train::parameters::trained_parameters;
use crate::train::steps::Retention;
use crate::train::window::Window;

/// Name of the checkpoint's group of the objective's tensors.
const OBJECTIVE_GROUP: &str = "reference";

impl<B: TrainBackend, O: Objective<B>> Trainer<'_, B, O> {
    /// Restores the state of the run from `checkpoint`.
    ///
    /// # Errors
    /// The checkpoint does not fit the trained model.
    pub fn restore(&mut self, checkpoint: &Checkpoint) -> Result<()> {
        let tensors = checkpoint.tensors("optimizer")?;
        let trained = trained_parameters(&self.learner.policy);
        let optimizer = Optimizer::of(self.config)?;
        let restored = optimizer.restored(tensors, &trained, &self.device)?;
        self.weights.restore(&mut self.learner.policy, checkpoint, &self.device)?;
        let groups = self.learner.optimizer.groups().clone();
        self.learner.optimizer = restored.with_groups(groups);
        self.restore_objective(checkpoint)?;
        self.state = checkpoint.state().clone();
        self.window = match self.state.metrics.take() {
            serde_json::Value::Null => Window::default(),
            window => serde_json::from_value(window).map_err(|error| {
                let problem =
                    format!("its sums since the last logged line cannot be read: {error}");
                let remedy = "remove this checkpoint folder, so that the one before it is used";
                Error::file(checkpoint.path(), problem, remedy)
            })?,
        };
        Ok(())
    }

    /// Restores the state of the objective, after that of the policy.
    fn restore_objective(&mut self, checkpoint: &Checkpoint) -> Result<()> {
        let learner = &mut self.learner;
        if !learner.objective.tensors().is_empty() {
            let values =
                checkpoint.values(OBJECTIVE_GROUP, learner.objective.tensors(), &self.device)?;
            learner.objective.set_tensors(values, &learner.policy);
        }
        let Some(name) = O::STATE_FILE.filter(|name| checkpoint.has_file(name)) else {
            return Ok(());
        };
        let restored = self.learner.objective.restore(&checkpoint.file(name)?);
        restored.map_err(|error| {
            let problem = format!("{name} cannot be read: {error}");
            let remedy = "remove this checkpoint folder, so that the one before it is used";
            Error::file(checkpoint.path(), problem, remedy)
        })
    }

    /// Saves a checkpoint and removes those that `keep` does not retain.
    pub(super) fn save_checkpoint(&mut self, keep: Retention) -> Result<()> {
        let weights = self.weights.tensors(&self.learner.policy);
        check_finite(self.state.step, &weights)?;
        self.log.sync()?;
        let done = self.state.step % self.sampler.steps_per_epoch();
        self.state.epoch = self.state.step / self.sampler.steps_per_epoch();
        self.state.position = done * self.sampler.batch_size * self.sampler.accumulation;
        self.state.log_lines = Some(self.log.lines());
        let metrics = serde_json::to_value(&self.window).map_err(defect)?;
        let mut files = self.weights.files(&self.learner.policy);
        let state = self.learner.objective.state()?;
        files.extend(O::STATE_FILE.map(String::from).zip(state));
        let mut groups = vec![
            (self.weights.group().to_string(), weights),
            ("optimizer".to_string(), self.learner.optimizer.export()),
        ];
        let tensors = self.learner.objective.tensors();
        if !tensors.is_empty() {
            let data = tensors.iter().map(|tensor| (tensor.name.clone(), tensor.value.to_data()));
            groups.push((OBJECTIVE_GROUP.to_string(), data.collect()));
        }
        let state = TrainState { metrics, ..self.state.clone() };
        let snapshot = Snapshot { state, groups, files };
        let folder = RunFolder::new(&self.config.output_dir).checkpoints();
        Checkpoint::save(&folder, &snapshot, keep)?;
        Ok(())
    }
}

fn defect(error: serde_json::Error) -> Error {
    Error::run(error, "this is a defect of the program: report it")
}

/// Checks that the weights are finite. An update can make them non-finite even if loss and gradient are finite.
///
/// # Errors
/// A weight is not finite.
fn check_finite(step: usize, weights: &NamedTensors) -> Result<()> {
    for (name, data) in weights {
        if data.iter::<f64>().any(|weight| !weight.is_finite()) {
            return Err(Error::run(
                format!(
                    "the weights after step {step} are not finite (in {name}), so no checkpoint was saved"
                ),
                "lower train.learning_rate",
            ));
        }
    }
    Ok(())
}
