//! Messages about resuming a run, and the changes that a resumed run may make to its length.

use std::path::{Path, PathBuf};

use crate::config::nearest_name;
use crate::error::{Error, Result};
use crate::train::manifest::RunManifest;

/// Returns the message for a run that should be resumed but starts at its first step. A mistyped `output_dir` is a likely
/// cause, so the message suggests a run with a similar name.
pub(super) fn nothing_to_resume(output_dir: &Path) -> String {
    let dir = output_dir.display();
    let (kind, reason) = match (output_dir.is_dir(), RunManifest::path(output_dir).exists()) {
        (false, _) => ("warning", "there is no such folder"),
        (true, false) => ("warning", "it contains no run"),
        // The folder is right, as after a crash before the first checkpoint.
        (true, true) => ("note", "it contains no complete checkpoint"),
    };
    let suggestion = similar_run(output_dir)
        .map_or(String::new(), |run| format!("; did you mean the run in {}?", run.display()));
    format!("{kind}: nothing to resume in {dir} ({reason}): starting from step 0{suggestion}")
}

/// Returns a folder beside `output_dir` that contains a run and has a similar name.
fn similar_run(output_dir: &Path) -> Option<PathBuf> {
    if RunManifest::path(output_dir).exists() {
        return None;
    }
    let name = output_dir.file_name()?.to_str()?;
    let parent = output_dir.parent()?;
    let folder = if parent.as_os_str().is_empty() { Path::new(".") } else { parent };
    let runs: Vec<String> = std::fs::read_dir(folder)
        .ok()?
        .flatten()
        .filter(|entry| RunManifest::path(&entry.path()).exists())
        .filter_map(|entry| entry.file_name().into_string().ok())
        .collect();
    let run = nearest_name(name, runs.iter().map(String::as_str))?;
    Some(parent.join(run))
}

/// A run that continues from a checkpoint.
#[derive(Debug)]
pub(super) struct Resumption<'a> {
    /// Manifest with which the run was started or last extended.
    pub(super) before: RunManifest,
    /// Manifest of the current configuration.
    pub(super) now: &'a RunManifest,
    /// Number of steps done.
    pub(super) step: usize,
}

impl Resumption<'_> {
    /// Checks that the run is not shorter than the steps already done.
    ///
    /// # Errors
    /// The run would have fewer steps than the newest checkpoint.
    pub(super) fn check_length(&self) -> Result<()> {
        let total = self.total();
        if total >= self.step as u64 {
            return Ok(());
        }
        Err(Error::invalid(
            self.key(),
            format!(
                "a run of {total} steps is shorter than the steps already done: the newest checkpoint in {} is that of step {}",
                self.now.config.output_dir.display(),
                self.step
            ),
            format!("set {} steps or more, or choose another output_dir", self.step),
        ))
    }

    /// Returns the notes and warnings for the user.
    pub(super) fn notes(&self) -> Vec<String> {
        let mut notes = Vec::new();
        if self.before.model.content.is_none() {
            notes.push(format!(
                "warning: {}: is of an older version and does not say with which weights and tokenizer the run was started: \
                 make sure that they have not changed",
                RunManifest::path(&self.now.config.output_dir).display()
            ));
        }
        let changes = self.before.config.length_changes(&self.now.config);
        if !changes.is_empty() {
            let (kind, step) = (self.now.config.train.lr_scheduler_type, self.step);
            let kind = serde_json::to_string(&kind).unwrap_or_default();
            notes.push(format!(
                "note: {}: the run has {} steps now, it had {}; from step {step} on the learning rate follows a {kind} \
                 schedule over the new length",
                changes.join(", "),
                self.total(),
                self.before.counts.get(STEPS).copied().unwrap_or_default(),
            ));
        }
        notes
    }

    /// Returns the manifest to write if the length changed: the original one with the new length.
    pub(super) fn extended_manifest(&self) -> Option<RunManifest> {
        if self.before.config.length_changes(&self.now.config).is_empty() {
            return None;
        }
        let mut manifest = self.before.clone();
        let train = &self.now.config.train;
        manifest.config.train.max_steps = train.max_steps;
        manifest.config.train.num_train_epochs = train.num_train_epochs;
        manifest.counts.insert(STEPS.to_string(), self.total());
        Some(manifest)
    }

    /// Returns the new number of steps.
    fn total(&self) -> u64 {
        self.now.counts.get(STEPS).copied().unwrap_or_default()
    }

    /// Returns the configuration key that determines the length of the run.
    fn key(&self) -> &'static str {
        if self.now.config.train.max_steps > 0 {
            "train.max_steps"
        } else {
            "train.num_train_epochs"
        }
    }
}

/// Name of the manifest's count that is the length of the run.
pub(super) const STEPS: &str = "optimizer_steps";

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::RunConfig;
    use crate::train::manifest::StartingModel;

    fn manifest(max_steps: i64) -> RunManifest {
        let mut config = RunConfig::default();
        config.train.max_steps = max_steps;
        let mut manifest = RunManifest::new(config, StartingModel::default(), "ndarray");
        manifest.counts.insert(STEPS.into(), max_steps as u64);
        manifest
    }

    #[test]
    fn a_run_may_be_extended_but_not_cut_below_the_steps_done() {
        let (before, longer) = (manifest(8), manifest(12));
        let resumption = |now, step| Resumption { before: before.clone(), now, step };
        let extended = resumption(&longer, 8);
        extended.check_length().unwrap();
        let written = extended.extended_manifest().unwrap();
        assert_eq!(written.config, longer.config);
        assert_eq!(written.counts, longer.counts);
        assert_eq!(written.started, before.started);
        let note = extended.notes().pop().unwrap();
        for part in ["max_steps: 8 -> 12", "12 steps now", "had 8", "from step 8", "\"cosine\""] {
            assert!(note.contains(part), "{part}: {note}");
        }
        let same = resumption(&before, 4);
        assert!(same.extended_manifest().is_none());
        // The only note is that the old manifest does not describe the model.
        assert!(same.notes().iter().all(|note| note.contains("older version")));
        let shorter = manifest(6);
        resumption(&shorter, 6).check_length().unwrap();
        let error = resumption(&shorter, 8).check_length().unwrap_err().to_string();
        assert!(error.contains("train.max_steps: a run of 6 steps"), "{error}");
        assert!(error.contains("step 8"), "{error}");
    }

    #[test]
    fn a_mistyped_folder_suggests_the_run_beside_it() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        manifest(8).write(&at("dpo-large")).unwrap();
        std::fs::create_dir(at("notes")).unwrap();
        let message = nothing_to_resume(&at("dpo-lrage"));
        let expected = format!(
            "warning: nothing to resume in {} (there is no such folder): starting from step 0; did you mean the run in {}?",
            at("dpo-lrage").display(),
            at("dpo-large").display()
        );
        assert_eq!(message, expected);
        let message = nothing_to_resume(&at("notes"));
        assert!(
            message.contains("contains no run") && !message.contains("did you mean"),
            "{message}"
        );
        let message = nothing_to_resume(&at("dpo-large"));
        assert!(
            message.contains("no complete checkpoint") && !message.contains("did you mean"),
            "{message}"
        );
    }
}
