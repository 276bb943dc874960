//! The log of a run: `metrics.jsonl`, and TensorBoard event files.

use std::fs::File;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use serde_json::{Map, Number, Value};

use super::tensorboard::{self, EventFile};
use crate::error::{Error, Result};
use crate::input_file;
use crate::objective::metrics::KEYS;
use crate::output::{FileList, open_to_append, parent, write_whole};
use crate::train::checkpoint::TrainState;
use crate::train::folder::RunFolder;
use crate::train::manifest::RunManifest;

/// Name of the log in a run's folder. It has one JSON object per logged optimizer step or evaluation.
pub const METRICS_FILE: &str = "metrics.jsonl";

/// Name of the folder of TensorBoard event files in a run's folder, as in Hugging Face's Trainer.
pub const EVENTS_FOLDER: &str = "runs";

/// Returns the keys of a line in the order in which they are written: TRL's names, then our own. `eval_` keys have the same order.
fn keys() -> impl Iterator<Item = &'static str> {
    let before = ["epoch", "loss", "grad_norm", "learning_rate"];
    let after = ["num_tokens", "tokens_per_second", "peak_memory_bytes", "seconds"];
    before.into_iter().chain(KEYS).chain(after)
}

/// The metrics of one optimizer step, or of one evaluation (keys with the prefix `eval_`).
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Record {
    /// Number of optimizer steps done so far. The first one has step 1, or 0 if it is an evaluation before
    /// the first step.
    pub step: u64,
    /// Metric names and values in any order. A value that is not finite is written as `null`.
    pub values: Vec<(String, f64)>,
}

impl Record {
    /// Creates a record of `step` without values.
    pub fn new(step: u64) -> Self {
        let values = Vec::new();
        Self { step, values }
    }

    /// Adds a value.
    #[must_use]
    pub fn with(mut self, key: impl Into<String>, value: f64) -> Self {
        self.values.push((key.into(), value));
        self
    }

    /// Returns the value of `key`.
    pub fn get(&self, key: &str) -> Option<f64> {
        self.values.iter().find(|(name, _)| name == key).map(|(_, value)| *value)
    }

    /// Formats the record as a line of `metrics.jsonl`, including the newline.
    fn line(&self) -> String {
        let mut values: Vec<_> = self.values.iter().collect();
        values.sort_by_key(|(key, _)| rank(key)); // The sort is stable, so that unknown keys keep their order.
        let mut line = Map::new();
        line.insert("step".to_string(), self.step.into());
        for (key, value) in values {
            let number = Number::from_f64(*value).map_or(Value::Null, Value::Number);
            line.insert(key.clone(), number);
        }
        format!("{}\n", Value::Object(line))
    }
}

/// Returns the position of a key in [`keys`]; unknown ones come last.
fn rank(key: &str) -> usize {
    let key = key.strip_prefix("eval_").unwrap_or(key);
    keys().position(|known| known == key).unwrap_or(usize::MAX)
}

/// The open log of a run.
#[derive(Debug)]
pub struct MetricsLog {
    file: File,
    path: PathBuf,
    events: EventFile,
    /// Step of every line.
    steps: Vec<u64>,
    /// Step of the last evaluation.
    evaluated: Option<u64>,
    /// Manifest of the run, which is written again if it is removed during the run.
    manifest: Option<RunManifest>,
}

impl MetricsLog {
    /// Opens the log in `run_dir`, which is created if it is missing.
    ///
    /// If `resume_at` is `None`, a new run begins, and older logs and event files in that folder are removed. If it is
    /// `Some(step)`, the run continues after the checkpoint of that step. Later lines, and a last line that was cut by a
    /// crash, are then removed, so that the file becomes equal to that of an uninterrupted run. This requires that a step
    /// (and its evaluation, if any) is logged before its checkpoint is saved.
    ///
    /// # Errors
    /// The folder is not writable, or a line before the last one is not a line of such a log.
    pub fn create(run_dir: &Path, resume_at: Option<u64>) -> Result<Self> {
        let path = run_dir.join(METRICS_FILE);
        let events = run_dir.join(EVENTS_FOLDER);
        let (steps, evaluated) = match resume_at {
            None => {
                write_whole(&path, b"")?;
                tensorboard::remove_event_files(&events)?;
                (Vec::new(), None)
            }
            Some(step) => truncate_log(&path, step)?,
        };
        let file = open_to_append(&path)?;
        let events = EventFile::create(&events, resume_at.map_or(0, |step| step + 1))?;
        list_events(run_dir, &events)?;
        Ok(Self { file, path, events, steps, evaluated, manifest: None })
    }

    /// Returns the step of the last evaluation in the log.
    pub fn evaluated_at(&self) -> Option<u64> {
        self.evaluated
    }

    /// Sets the manifest, which [`Self::sync`] writes again if it is removed during the run.
    #[must_use]
    pub fn with_manifest(self, manifest: RunManifest) -> Self {
        Self { manifest: Some(manifest), ..self }
    }

    /// Returns the number of lines so far.
    pub fn lines(&self) -> u64 {
        self.steps.len() as u64
    }

    /// Warns if lines from before the checkpoint with `state` are missing because the log was removed or cut.
    pub fn warn_about_gaps(&self, state: &TrainState, logging_interval: usize) {
        let written = state.log_lines.unwrap_or(0);
        if self.lines() >= written {
            return;
        }
        let logged = (1..=state.step).filter(|step| step.is_multiple_of(logging_interval));
        let missing: Vec<u64> = logged
            .map(|step| step as u64)
            .filter(|step| self.steps.binary_search(step).is_err())
            .collect();
        let steps = match (missing.first(), missing.last()) {
            (Some(first), Some(last)) if first < last => format!(", from steps {first} to {last}"),
            (Some(only), _) => format!(", of step {only}"),
            _ => String::new(),
        };
        say!(
            "warning: {}: {} of {written} lines up to step {} are missing{steps}; the run continues, but its curves have a gap \
             there",
            self.path.display(),
            written - self.lines(),
            state.step,
        );
    }

    /// Appends `record` to `metrics.jsonl` as one line, and to the event file.
    ///
    /// The event tags are those of Hugging Face's Trainer: `train/loss`, and `eval/loss` for `eval_loss`.
    ///
    /// # Errors
    /// The disk is full or a file cannot be written.
    pub fn log(&mut self, record: &Record) -> Result<()> {
        self.steps.push(record.step);
        self.file
            .write_all(record.line().as_bytes())
            .map_err(|e| Error::io(&self.path, "write", e))?;
        if is_evaluation(record.values.iter().map(|(key, _)| key.as_str())) {
            self.evaluated = Some(record.step);
        }
        let tags: Vec<_> = record.values.iter().map(|(key, _)| tag(key)).collect();
        let values = tags.iter().zip(&record.values);
        self.events.scalars(record.step, values.map(|(tag, (_, value))| (tag.as_str(), *value)))
    }

    /// Waits until every logged line is on disk. This must be called before a checkpoint is saved. If the manifest, the log
    /// or the event file was removed from the run's folder, it is created again and a warning is printed.
    ///
    /// # Errors
    /// The disk reports an error.
    pub fn sync(&mut self) -> Result<()> {
        self.file.sync_data().map_err(|e| Error::io(&self.path, "write", e))?;
        let run_dir = parent(&self.path).to_path_buf();
        if let Some(manifest) = &self.manifest
            && !RunManifest::path(&run_dir).exists()
        {
            say!(
                "warning: {}: was removed during the run and is written again",
                RunManifest::path(&run_dir).display()
            );
            RunFolder::new(&run_dir).begin(manifest)?;
        }
        if !self.path.exists() {
            say!(
                "warning: {}: was removed during the run: its {} lines are lost, later ones are kept",
                self.path.display(),
                self.steps.len()
            );
            self.file = open_to_append(&self.path)?;
            self.steps.clear();
        }
        if !self.events.path().exists() {
            say!(
                "warning: {}: was removed during the run: its events are lost, later ones are kept",
                self.events.path().display()
            );
            let next = self.steps.last().map_or(0, |step| step + 1);
            self.events = EventFile::create(&run_dir.join(EVENTS_FOLDER), next)?;
            list_events(&run_dir, &self.events)?;
        }
        Ok(())
    }
}

/// Returns whether these are the keys of an evaluation.
fn is_evaluation<'a>(mut keys: impl Iterator<Item = &'a str>) -> bool {
    keys.any(|key| key.starts_with("eval_"))
}

/// Adds the event file to the list of files that the run wrote.
fn list_events(run_dir: &Path, events: &EventFile) -> Result<()> {
    let name = events.path().file_name().unwrap_or_default();
    FileList::add(run_dir, [format!("{EVENTS_FOLDER}/{}", name.to_string_lossy())])
}

/// Returns TensorBoard's tag for a key.
fn tag(key: &str) -> String {
    match key.strip_prefix("eval_") {
        Some(key) => format!("eval/{key}"),
        None => format!("train/{key}"),
    }
}

/// Removes the lines of steps after `last`, and an incomplete last line, from the log at `path`. Returns the steps of the
/// remaining lines and the step of their last evaluation.
fn truncate_log(path: &Path, last: u64) -> Result<(Vec<u64>, Option<u64>)> {
    let mut evaluated = None;
    let bytes = match input_file::read(path) {
        Ok(bytes) => bytes,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok((Vec::new(), None)),
        Err(e) => return Err(Error::io(path, "read", e)),
    };
    // A line without its newline was cut, even if the rest of it is valid JSON.
    let whole = bytes.iter().rposition(|b| *b == b'\n').map_or(0, |i| i + 1);
    let lines = bytes.get(..whole).unwrap_or_default();
    let (mut kept, mut steps) = (Vec::with_capacity(lines.len()), Vec::new());
    for (index, line) in lines.split_inclusive(|b| *b == b'\n').enumerate() {
        let (step, values) = parse(line).ok_or_else(|| not_ours(path, index + 1))?;
        if step <= last {
            if is_evaluation(values.keys().map(String::as_str)) {
                evaluated = Some(step);
            }
            kept.extend_from_slice(line);
            steps.push(step);
        }
    }
    if kept != bytes {
        write_whole(path, &kept)?;
    }
    Ok((steps, evaluated))
}

/// Parses a line into its step and its values.
fn parse(line: &[u8]) -> Option<(u64, Map<String, Value>)> {
    let line: Map<String, Value> = serde_json::from_slice(line).ok()?;
    Some((line.get("step")?.as_u64()?, line))
}

/// Returns the error for a line that is not a line of a metrics log.
fn not_ours(path: &Path, line: usize) -> Error {
    Error::invalid(
        format_args!("{}:{line}", path.display()),
        "not a line of a metrics log (a JSON object with an integer `step`)",
        "repair or delete this line, then resume again",
    )
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn record(step: u64) -> Record {
        let loss = 0.1 + 1.0 / (step as f64 + 2.0);
        Record::new(step).with("loss", loss).with("epoch", step as f64 / 7.0)
    }

    fn log_steps(dir: &Path, resume_at: Option<u64>, steps: std::ops::RangeInclusive<u64>) {
        let mut log = MetricsLog::create(dir, resume_at).unwrap();
        steps.for_each(|step| log.log(&record(step)).unwrap());
        log.sync().unwrap();
    }

    fn read(dir: &Path) -> String {
        fs::read_to_string(dir.join(METRICS_FILE)).unwrap()
    }

    fn event_file_count(dir: &Path) -> usize {
        fs::read_dir(dir.join(EVENTS_FOLDER)).unwrap().count()
    }

    #[test]
    fn keys_have_the_documented_order_and_numbers_are_exact() {
        let record = Record::new(3)
            .with("zebra", 1.0)
            .with("rewards/chosen", f64::NAN)
            .with("learning_rate", 5e-5)
            .with("loss", 0.1 + 0.2)
            .with("num_tokens", 732.0)
            .with("aardvark", f64::NEG_INFINITY)
            .with("epoch", 1.0 / 3.0);
        assert_eq!(
            record.line(),
            "{\"step\":3,\"epoch\":0.3333333333333333,\"loss\":0.30000000000000004,\
             \"learning_rate\":0.00005,\"rewards/chosen\":null,\"num_tokens\":732.0,\
             \"zebra\":1.0,\"aardvark\":null}\n"
        );
        let eval = Record::new(5).with("eval_rewards/margins", 0.5).with("eval_loss", 0.25);
        assert_eq!(eval.line(), "{\"step\":5,\"eval_loss\":0.25,\"eval_rewards/margins\":0.5}\n");
    }

    #[test]
    fn a_resumed_log_equals_an_uninterrupted_one() {
        let whole = tempfile::tempdir().unwrap();
        log_steps(whole.path(), None, 1..=20);
        let expected = read(whole.path());
        // Killed at any byte of step 13's line or later, after a checkpoint at step 10.
        let start = expected.find("{\"step\":13").unwrap();
        for cut_at in (start..=expected.len()).step_by(17).chain([expected.len() - 1]) {
            let broken = tempfile::tempdir().unwrap();
            fs::write(broken.path().join(METRICS_FILE), &expected[..cut_at]).unwrap();
            log_steps(broken.path(), Some(10), 11..=20);
            assert_eq!(read(broken.path()), expected, "killed at byte {cut_at}");
        }
        assert_eq!(event_file_count(whole.path()), 1);
        log_steps(whole.path(), Some(10), 11..=12);
        assert_eq!(event_file_count(whole.path()), 2);
        log_steps(whole.path(), None, 1..=2);
        assert_eq!(event_file_count(whole.path()), 1);
        assert_eq!(read(whole.path()).lines().count(), 2);
    }

    #[test]
    fn a_last_line_without_newline_is_removed_even_if_it_parses() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join(METRICS_FILE), "{\"step\":1}\n{\"step\":2}").unwrap();
        MetricsLog::create(dir.path(), Some(5)).unwrap();
        assert_eq!(read(dir.path()), "{\"step\":1}\n");
    }

    #[test]
    fn a_foreign_line_is_named_and_nothing_is_lost() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(METRICS_FILE);
        for broken in ["nonsense", "{\"loss\":1}", "[1]", "{\"step\":-1}"] {
            let text = format!("{{\"step\":1}}\n{broken}\n{{\"step\":3}}\n");
            fs::write(&path, &text).unwrap();
            let error = MetricsLog::create(dir.path(), Some(2)).unwrap_err();
            assert!(error.to_string().contains("metrics.jsonl:2"), "{error}");
            assert_eq!(read(dir.path()), text);
        }
    }

    #[test]
    fn the_last_evaluation_is_known() {
        let dir = tempfile::tempdir().unwrap();
        let mut log = MetricsLog::create(dir.path(), None).unwrap();
        assert_eq!(log.evaluated_at(), None);
        for step in 1..=4 {
            log.log(&record(step)).unwrap();
        }
        log.log(&Record::new(4).with("eval_loss", 0.5)).unwrap();
        log.log(&record(5)).unwrap();
        assert_eq!(log.evaluated_at(), Some(4));
        let at = |step| MetricsLog::create(dir.path(), Some(step)).unwrap();
        assert_eq!(at(5).evaluated_at(), Some(4));
        assert_eq!(at(3).evaluated_at(), None);
    }

    #[test]
    fn resuming_without_a_log_begins_one() {
        let dir = tempfile::tempdir().unwrap();
        log_steps(dir.path(), Some(0), 1..=1);
        assert_eq!(read(dir.path()), record(1).line());
    }
}
