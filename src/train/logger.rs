//! What a run logs: `metrics.jsonl` for every tool, and TensorBoard event files.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use serde_json::{Map, Number, Value};

use super::tensorboard::{self, EventFile};
use crate::error::{Error, Result};
use crate::output::write_whole;

/// Name of the log in a run's folder: one JSON object per logged optimizer step or evaluation.
pub const METRICS_FILE: &str = "metrics.jsonl";

/// Folder of TensorBoard's event files in a run's folder; the name is that of Hugging Face's Trainer.
pub const EVENTS_FOLDER: &str = "runs";

/// The keys of a line in the order they are written: TRL's names, then our own. `eval_` keys follow the same order.
const KEYS: [&str; 18] = [
    "epoch",
    "loss",
    "grad_norm",
    "learning_rate",
    "rewards/chosen",
    "rewards/rejected",
    "rewards/accuracies",
    "rewards/margins",
    "logps/chosen",
    "logps/rejected",
    "logits/chosen",
    "logits/rejected",
    "mean_token_accuracy",
    "entropy",
    "num_tokens",
    "tokens_per_second",
    "peak_memory_bytes",
    "seconds",
];

/// What is logged at one optimizer step, or by one evaluation (keys with the prefix `eval_`).
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Record {
    /// Optimizer steps done so far; the first is 1.
    pub step: u64,
    /// Metric names and values, in any order; a value that is not finite is written as `null`.
    pub values: Vec<(String, f64)>,
}

impl Record {
    /// A record of `step` without values.
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

    /// The record as a line of `metrics.jsonl`, newline included.
    fn line(&self) -> String {
        let mut values: Vec<_> = self.values.iter().collect();
        values.sort_by_key(|(key, _)| rank(key)); // stable: unknown keys stay as given
        let mut line = Map::new();
        line.insert("step".to_string(), self.step.into());
        for (key, value) in values {
            let number = Number::from_f64(*value).map_or(Value::Null, Value::Number);
            line.insert(key.clone(), number);
        }
        format!("{}\n", Value::Object(line))
    }
}

fn rank(key: &str) -> usize {
    let key = key.strip_prefix("eval_").unwrap_or(key);
    let position = KEYS.iter().position(|known| *known == key);
    position.unwrap_or(KEYS.len())
}

/// The open log of a run.
#[derive(Debug)]
pub struct MetricsLog {
    file: File,
    path: PathBuf,
    events: EventFile,
}

impl MetricsLog {
    /// Opens the log in `run_dir` (made if missing).
    ///
    /// With `resume_at: None` a run begins: an older log and older event files in that folder are removed.
    /// With `Some(step)` the run continues behind the checkpoint of that step: later lines, and a last line that was
    /// cut short by a crash, are removed, so that the file becomes that of an uninterrupted run. For that the learner
    /// logs a step (and its evaluation, if any) before it saves the step's checkpoint.
    ///
    /// # Errors
    /// The folder cannot be written, or a line before the last is not one this log wrote.
    pub fn create(run_dir: &Path, resume_at: Option<u64>) -> Result<Self> {
        let path = run_dir.join(METRICS_FILE);
        let events = run_dir.join(EVENTS_FOLDER);
        match resume_at {
            None => {
                write_whole(&path, b"")?;
                tensorboard::remove_event_files(&events)?;
            }
            Some(step) => cut(&path, step)?,
        }
        let file = OpenOptions::new()
            .append(true)
            .create(true)
            .open(&path)
            .map_err(|e| Error::io(&path, "open", e))?;
        let events = EventFile::create(&events, resume_at.map_or(0, |step| step + 1))?;
        Ok(Self { file, path, events })
    }

    /// Appends `record` to `metrics.jsonl` as one whole line, and to the event file.
    ///
    /// Event tags are those of Hugging Face's Trainer: `train/loss`, and `eval/loss` for `eval_loss`.
    ///
    /// # Errors
    /// The disk is full or a file cannot be written.
    pub fn log(&mut self, record: &Record) -> Result<()> {
        self.file
            .write_all(record.line().as_bytes())
            .map_err(|e| Error::io(&self.path, "write", e))?;
        let tags: Vec<_> = record.values.iter().map(|(key, _)| tag(key)).collect();
        let values = tags.iter().zip(&record.values);
        self.events.scalars(record.step, values.map(|(tag, (_, value))| (tag.as_str(), *value)))
    }

    /// Waits until every logged line is on the disk: to be called before a checkpoint counts as written.
    ///
    /// # Errors
    /// The disk reports an error.
    pub fn sync(&self) -> Result<()> {
        self.file.sync_data().map_err(|e| Error::io(&self.path, "write", e))
    }
}

fn tag(key: &str) -> String {
    match key.strip_prefix("eval_") {
        Some(key) => format!("eval/{key}"),
        None => format!("train/{key}"),
    }
}

/// Removes from the log at `path` the lines of steps after `last`, and an incomplete last line.
fn cut(path: &Path, last: u64) -> Result<()> {
    let bytes = match fs::read(path) {
        Ok(bytes) => bytes,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(e) => return Err(Error::io(path, "read", e)),
    };
    // A line without its newline was cut short, even if what is left of it happens to parse.
    let whole = bytes.iter().rposition(|b| *b == b'\n').map_or(0, |i| i + 1);
    let lines = bytes.get(..whole).unwrap_or_default();
    let mut kept = Vec::with_capacity(lines.len());
    for (index, line) in lines.split_inclusive(|b| *b == b'\n').enumerate() {
        if step_of(line).ok_or_else(|| not_ours(path, index + 1))? <= last {
            kept.extend_from_slice(line);
        }
    }
    if kept == bytes {
        return Ok(());
    }
    write_whole(path, &kept)
}

fn step_of(line: &[u8]) -> Option<u64> {
    serde_json::from_slice::<Value>(line).ok()?.get("step")?.as_u64()
}

fn not_ours(path: &Path, line: usize) -> Error {
    Error::invalid(
        format_args!("{}:{line}", path.display()),
        "not a line of a metrics log (a JSON object with an integer `step`)",
        "repair or delete this line, then resume again",
    )
}

#[cfg(test)]
mod tests {
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
    fn keys_have_the_documented_order_and_numbers_are_whole() {
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
    fn a_last_line_without_newline_is_torn_even_if_it_parses() {
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
    fn resuming_without_a_log_begins_one() {
        let dir = tempfile::tempdir().unwrap();
        log_steps(dir.path(), Some(0), 1..=1);
        assert_eq!(read(dir.path()), record(1).line());
    }
}
