//! Watches the log of a run for alarms.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use crate::alarms::{Point, alarms};
use crate::error::{Error, Result};
use crate::input_file;
use crate::train::logger::{METRICS_FILE, Record};

/// The curves of a run so far, and the alarms that were raised.
#[derive(Debug, Default)]
pub(super) struct Watch {
    curves: BTreeMap<String, Vec<Point>>,
    raised: BTreeSet<&'static str>,
}

impl Watch {
    /// Reads the curves that the run in `run_dir` has logged so far.
    ///
    /// # Errors
    /// The log cannot be read.
    pub(super) fn read(run_dir: &Path) -> Result<Self> {
        let path = run_dir.join(METRICS_FILE);
        let text = match input_file::read_to_string(&path) {
            Ok(text) => text,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => String::new(),
            Err(e) => return Err(Error::io(&path, "read", e)),
        };
        let mut watch = Self::default();
        for line in text.lines() {
            // The log was checked when it was opened.
            let line: serde_json::Map<String, serde_json::Value> =
                serde_json::from_str(line).unwrap_or_default();
            let step = line.get("step").and_then(serde_json::Value::as_f64).unwrap_or(0.0);
            for (key, value) in line.iter().filter(|(key, _)| *key != "step") {
                watch.push(key, (step, value.as_f64().unwrap_or(f64::NAN)));
            }
            // The process that logged this line printed the alarms that it raised.
            watch.new_alarms();
        }
        Ok(watch)
    }

    /// Adds a record and returns the texts of alarms that were not raised before.
    pub(super) fn add(&mut self, record: &Record) -> Vec<String> {
        for (key, value) in &record.values {
            self.push(key, (record.step as f64, *value));
        }
        self.new_alarms()
    }

    /// Returns the texts of the alarms that the curves raise and that were not raised before.
    fn new_alarms(&mut self) -> Vec<String> {
        let curves = |key: &str| self.curves.get(key).map_or(&[][..], Vec::as_slice);
        let found = alarms(&curves).into_iter();
        let new: Vec<_> = found.filter(|alarm| !self.raised.contains(alarm.name)).collect();
        self.raised.extend(new.iter().map(|alarm| alarm.name));
        new.into_iter().map(|alarm| alarm.text).collect()
    }

    fn push(&mut self, key: &str, point: Point) {
        match self.curves.get_mut(key) {
            Some(points) => points.push(point),
            None => {
                self.curves.insert(key.to_string(), vec![point]);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A run of 30 steps with a gradient of 0, of which the alarm comes with line 20.
    #[test]
    fn an_alarm_is_raised_once_also_when_the_run_is_resumed() {
        let folder = tempfile::tempdir().unwrap();
        let record = |step: u64| Record::new(step).with("grad_norm", 0.0);
        let raised = |watch: &mut Watch, steps: std::ops::RangeInclusive<u64>| -> Vec<u64> {
            steps.filter(|step| !watch.add(&record(*step)).is_empty()).collect()
        };
        let mut watch = Watch::read(folder.path()).unwrap();
        assert_eq!(raised(&mut watch, 1..=30), [20]);
        for (lines, expected) in [(25, vec![]), (20, vec![]), (19, vec![20])] {
            let log: String = (1..=lines)
                .map(|step| format!("{{\"step\": {step}, \"grad_norm\": 0.0}}\n"))
                .collect();
            std::fs::write(folder.path().join(METRICS_FILE), log).unwrap();
            let mut watch = Watch::read(folder.path()).unwrap();
            assert_eq!(raised(&mut watch, lines + 1..=30), expected, "{lines}");
        }
    }
}
