//! Reads the folder of a run: `metrics.jsonl`, `manifest.json`, scores before and after.

use std::collections::HashMap;
use std::fs;
use std::io;
use std::path::Path;

use serde::Deserialize;
use serde_json::Value;

use super::scores::Comparison;
use super::series::{Point, finite};
use crate::alarms::{Alarm, alarms};
use crate::error::{Error, Result};
use crate::input_file;

/// The log that training writes; its format is the only link between the two modules.
const METRICS_FILE: &str = "metrics.jsonl";

/// Everything that a report shows.
#[derive(Debug)]
pub(super) struct Run {
    /// The run folder's name.
    pub(super) name: String,
    /// The curves.
    pub(super) metrics: Metrics,
    /// `manifest.json`, or `null` without one.
    pub(super) manifest: Value,
    /// `data.lengths` of the manifest.
    pub(super) lengths: Option<Lengths>,
    /// `scores-before.jsonl` compared with `scores-after.jsonl`, if both exist.
    pub(super) comparison: Option<Comparison>,
    /// Warnings for the reader, one sentence each.
    pub(super) warnings: Vec<String>,
    /// Signs that the training does not do what one wants.
    pub(super) alarms: Vec<Alarm>,
}

impl Run {
    /// Reads the folder `run_dir`.
    ///
    /// # Errors
    /// There is no metric to show, or a file is malformed; an incomplete last line of the log is no
    /// error.
    pub(super) fn read(run_dir: &Path) -> Result<Self> {
        let mut warnings = Vec::new();
        let metrics = Metrics::read(&run_dir.join(METRICS_FILE), &mut warnings)?;
        let manifest = read_manifest(&run_dir.join("manifest.json"))?;
        let lengths = Lengths::of(&manifest, run_dir)?;
        let comparison = Comparison::read(run_dir, &mut warnings)?;
        let folder = fs::canonicalize(run_dir).unwrap_or_else(|_| run_dir.to_path_buf());
        let name = folder.file_name().unwrap_or(folder.as_os_str());
        let alarms = alarms(&|key| metrics.get(key));
        Ok(Self {
            name: name.to_string_lossy().into_owned(),
            metrics,
            manifest,
            lengths,
            comparison,
            warnings,
            alarms,
        })
    }

    /// Returns the training method: according to the manifest, or else `"dpo"` if a metric belongs to pairs and `"sft"` if none
    /// does.
    pub(super) fn method(&self) -> &str {
        self.config(&["method"]).and_then(Value::as_str).unwrap_or_else(|| {
            let is_preference_metric = |name: &String| name.starts_with("rewards/");
            let is_dpo = self.metrics.names().iter().any(is_preference_metric);
            if is_dpo { "dpo" } else { "sft" }
        })
    }

    /// Returns whether a sample of the run has one completion, and is not a pair.
    pub(super) fn has_single_completions(&self) -> bool {
        ["sft", "kto"].contains(&self.method())
    }

    /// Returns whether rewards are measured from a reference model.
    pub(super) fn has_reference(&self) -> bool {
        ["dpo", "kto"].contains(&self.method())
    }

    /// Returns the name, step and value of the best evaluation by `train.metric_for_best_model`, if the run compared its
    /// evaluations. Of equal ones the first is the best; the evaluation before the first step does not count.
    pub(super) fn best_evaluation(&self) -> Option<(&str, Point)> {
        let name = self.config(&["train", "metric_for_best_model"])?.as_str()?;
        let name = name.strip_prefix("eval_").unwrap_or(name);
        let greater = self.config(&["train", "greater_is_better"]).and_then(Value::as_bool);
        let sign = if greater.unwrap_or(!name.ends_with("loss")) { 1.0 } else { -1.0 };
        let points = self.metrics.get(&format!("eval_{name}")).iter();
        let points = points.filter(|point| point.0 > 0.0 && point.1.is_finite());
        let best =
            points.reduce(|best, point| if sign * (point.1 - best.1) > 0.0 { point } else { best });
        best.map(|best| (name, *best))
    }

    /// Returns a value of the manifest's `config`, for instance `["dpo", "loss_type"]`.
    pub(super) fn config(&self, keys: &[&str]) -> Option<&Value> {
        let config = self.manifest.get("config")?;
        keys.iter().try_fold(config, |value, key| value.get(key))
    }
}

/// The curves of a run by metric name, in the order of their first occurrence.
#[derive(Debug, Default)]
pub(super) struct Metrics {
    names: Vec<String>,
    series: HashMap<String, Vec<Point>>,
}

impl Metrics {
    /// Reads the log.
    fn read(path: &Path, warnings: &mut Vec<String>) -> Result<Self> {
        let text = read_if_exists(path)?.ok_or_else(|| {
            let problem = "no such file: this is not the folder of a training run";
            Error::file(path, problem, "give the `output_dir` of an `arithmo train` run")
        })?;
        let mut metrics = Self::default();
        let mut lines = text.lines().enumerate().peekable();
        while let Some((index, line)) = lines.next() {
            match serde_json::from_str::<Value>(line) {
                _ if line.trim().is_empty() => {}
                Ok(value) if metrics.add(&value).is_some() => {}
                Err(_) if lines.peek().is_none() && !text.ends_with('\n') => warnings.push(format!(
                    "The last line of {METRICS_FILE} is incomplete (the run was cut off, or is writing it now) and is left out."
                )),
                _ => return Err(bad_line(path, index, "not a JSON object with a number `step`")),
            }
        }
        if metrics.names.is_empty() {
            let problem = "holds no metric yet";
            return Err(Error::file(path, problem, "wait until the run has logged its first step"));
        }
        metrics.sort_and_check(warnings);
        Ok(metrics)
    }

    /// Adds the numbers of one line and ignores its other values; `None` if the line has no step.
    fn add(&mut self, line: &Value) -> Option<()> {
        let step = line.get("step")?.as_f64()?;
        let values = line.as_object()?.iter().filter(|(key, _)| *key != "step");
        for (key, value) in values.filter(|(_, v)| v.is_number() || v.is_null()) {
            if !self.series.contains_key(key) {
                self.names.push(key.clone());
            }
            let value = value.as_f64().unwrap_or(f64::NAN);
            self.series.entry(key.clone()).or_default().push((step, value));
        }
        Some(())
    }

    /// Sorts the points by step and warns of values that are not finite.
    fn sort_and_check(&mut self, warnings: &mut Vec<String>) {
        for name in &self.names {
            let Some(points) = self.series.get_mut(name) else {
                continue;
            };
            points.sort_by(|a, b| a.0.total_cmp(&b.0));
            let missing = points.len() - finite(points).count();
            if let Some(first) = points.iter().find(|p| !p.1.is_finite()) {
                let (count, step) = (points.len(), first.0);
                warnings.push(format!(
                    "{name}: {missing} of {count} values are not finite, the first at step {step}."
                ));
            }
        }
    }

    /// Returns the metric names in the order of their first occurrence.
    pub(super) fn names(&self) -> &[String] {
        &self.names
    }

    /// Returns the points of `name`, ascending in step; none if it was never logged.
    pub(super) fn get(&self, name: &str) -> &[Point] {
        self.series.get(name).map_or(&[], Vec::as_slice)
    }

    /// Returns the last step in the log.
    pub(super) fn last_step(&self) -> f64 {
        let last = |points: &Vec<Point>| points.last().map(|p| p.0);
        self.series.values().filter_map(last).fold(0.0, f64::max)
    }
}

/// Token lengths of the training pairs: `counts[i]` sequences have `i * bucket_size .. (i + 1) * bucket_size` tokens.
///
/// In `manifest.json`: `"data": {"lengths": {"bucket_size": 64, "prompt": [..], "chosen": [..], "rejected": [..]}}`, or
/// `"completion"` in place of `"chosen"` and `"rejected"`.
#[derive(Clone, Debug, Deserialize)]
pub(super) struct Lengths {
    /// Number of tokens per bucket, at least 1.
    pub(super) bucket_size: u32,
    /// Prompts.
    #[serde(default)]
    pub(super) prompt: Vec<u64>,
    /// Chosen completions.
    #[serde(default)]
    pub(super) chosen: Vec<u64>,
    /// Rejected completions.
    #[serde(default)]
    pub(super) rejected: Vec<u64>,
    /// Completions of supervised fine-tuning.
    #[serde(default)]
    pub(super) completion: Vec<u64>,
}

impl Lengths {
    /// Reads `data.lengths` of the manifest.
    fn of(manifest: &Value, run_dir: &Path) -> Result<Option<Self>> {
        let Some(value) = manifest.get("data").and_then(|data| data.get("lengths")) else {
            return Ok(None);
        };
        let bad = |problem: String| {
            let place = format!("{}: data.lengths", run_dir.join("manifest.json").display());
            let remedy = "it must be {\"bucket_size\": 64, \"prompt\": [counts], \"chosen\": [counts], \"rejected\": [counts]}, or have \
                          \"completion\": [counts] in place of the last two";
            Error::invalid(place, problem, remedy)
        };
        let lengths = Self::deserialize(value).map_err(|e| bad(e.to_string()))?;
        if lengths.bucket_size == 0 {
            return Err(bad("bucket_size is 0".to_string()));
        }
        Ok(Some(lengths))
    }
}

/// Reads the manifest; `null` without one.
fn read_manifest(path: &Path) -> Result<Value> {
    let Some(text) = read_if_exists(path)? else {
        return Ok(Value::Null);
    };
    serde_json::from_str(&text).map_err(|e| {
        let remedy = "restore the file, or remove it to report without it";
        Error::file(path, format_args!("not JSON: {e}"), remedy)
    })
}

/// Returns the text of a file, or `None` if it does not exist. Bytes that are not UTF-8 are
/// replaced, because an incomplete line may end anywhere.
pub(super) fn read_if_exists(path: &Path) -> Result<Option<String>> {
    match input_file::read(path) {
        Ok(bytes) => Ok(Some(String::from_utf8_lossy(&bytes).into_owned())),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(Error::io(path, "read", e)),
    }
}

/// Returns the error for line `index` (from 0) of `path`.
pub(super) fn bad_line(path: &Path, index: usize, problem: &str) -> Error {
    let place = format_args!("{}:{}", path.display(), index + 1).to_string();
    Error::invalid(place, problem, "repair or delete this line")
}
