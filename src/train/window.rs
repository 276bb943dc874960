//! The window of metrics between two logged lines.

use serde::{Deserialize, Serialize};

use crate::config::EvalMeans;
use crate::objective::metrics::MicroBatchMetrics;
use crate::train::checkpoint::TrainState;
use crate::train::logger::Record;
use crate::train::step::StepOutput;

/// The metrics between two logged lines, which are averaged or summed. Saved in checkpoints.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(super) struct Window {
    micro_batches: Vec<MicroBatchMetrics>,
    losses: Vec<f64>,
    tokens: u64,
    /// Training time in seconds when the window began.
    since: f64,
}

impl Window {
    /// Adds a step of `tokens` attended tokens.
    pub(super) fn add(&mut self, output: StepOutput, tokens: usize) {
        self.tokens += tokens as u64;
        self.losses.push(output.loss);
        self.micro_batches.extend(output.micro_batches);
    }

    /// Returns the record of the window and starts a new window.
    pub(super) fn record(
        &mut self,
        state: &TrainState,
        means: EvalMeans,
        last: LastStep,
    ) -> Record {
        let window = std::mem::take(self);
        self.since = state.seconds;
        let (_, values) = match means {
            EvalMeans::Pairs => MicroBatchMetrics::mean_by_pairs(&window.micro_batches),
            EvalMeans::Trl => MicroBatchMetrics::mean(&window.micro_batches),
        };
        let loss = window.losses.iter().sum::<f64>() / window.losses.len().max(1) as f64;
        let seconds = state.seconds - window.since;
        let record = Record::new(state.step as u64)
            .with("epoch", last.epoch)
            .with("loss", loss)
            .with("grad_norm", last.grad_norm)
            .with("learning_rate", last.learning_rate)
            .with("num_tokens", state.num_tokens as f64)
            .with("tokens_per_second", window.tokens as f64 / seconds.max(1e-9))
            .with("seconds", state.seconds);
        values.into_iter().fold(record, |record, (key, value)| record.with(key, value))
    }
}

/// Values of the last step of a window, which are logged without averaging.
#[derive(Clone, Copy, Debug)]
pub(super) struct LastStep {
    /// Number of epochs completed after the step.
    pub(super) epoch: f64,
    /// Learning rate of the step.
    pub(super) learning_rate: f64,
    /// Global L2 norm of the gradient before clipping.
    pub(super) grad_norm: f64,
}
