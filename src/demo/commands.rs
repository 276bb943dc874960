//! The commands that a user can run to repeat the demo's steps on the same files.

use super::folder::{DemoFolder, Training};
use super::{BATCH, MAX_NEW_TOKENS, SAMPLES};
use crate::message::shell;

impl DemoFolder {
    pub(super) fn prepare_command(&self) -> String {
        let (input, config) = (shell(&self.rows()), shell(&self.prepare_config()));
        let output = shell(&self.pairs());
        format!("arithmo prepare --input {input} --config {config} --output {output}")
    }

    /// Returns the command for the evaluation `when`: `before`, or `after` with the adapter.
    pub(super) fn evaluate_command(&self, when: &str) -> String {
        let adapter = match when {
            "after" => format!(" --adapter {}", shell(&self.adapter(Training::Own))),
            _ => String::new(),
        };
        format!(
            "arithmo evaluate gsm8k --model {}{adapter} --dtype f32 --data {} --max-new-tokens {MAX_NEW_TOKENS} \
             --batch-size {BATCH} --output {}",
            shell(&self.model()),
            shell(&self.held_out_problems()),
            shell(&self.evaluation(when)),
        )
    }

    pub(super) fn sample_command(&self, seed: u64) -> String {
        format!(
            "arithmo sample-pairs --model {} --dtype f32 --data {} --samples {SAMPLES} --max-new-tokens {MAX_NEW_TOKENS} \
             --batch-size {BATCH} --seed {seed} --output {}",
            shell(&self.model()),
            shell(&self.problems()),
            shell(&self.own_pairs()),
        )
    }

    pub(super) fn train_command(&self, training: Training) -> String {
        format!("arithmo train --config {}", shell(&self.run_config(training)))
    }

    pub(super) fn compare_command(&self) -> String {
        let [before, after] = ["before", "after"].map(|when| shell(&self.evaluation(when)));
        let output = shell(&self.comparison());
        format!("arithmo compare {before} {after} --output {output}")
    }

    pub(super) fn report_command(&self, training: Training) -> String {
        format!("arithmo report --run {}", shell(&self.run(training)))
    }
}
