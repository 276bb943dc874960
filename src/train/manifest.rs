//! The file `manifest.json`, which describes a run so that it can be understood, repeated and resumed.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use arithmo_backends::TrainBackend;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::adapter::peft::WEIGHTS;
use crate::config::RunConfig;
use crate::data::sample::Sample;
use crate::error::{Error, Result};
use crate::input_file;
use crate::model::file_hash::hash_file;
use crate::model::identity::ModelIdentity;
use crate::output::write_whole;
use crate::train::data::{RunData, lengths};
use crate::train::resume::STEPS;

/// Name of the manifest in a run's folder.
pub const MANIFEST_FILE: &str = "manifest.json";

/// The model from which a run starts.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct StartingModel {
    /// Folder from which the weights were read.
    pub folder: PathBuf,
    /// SHA-256 of the model's `config.json` in hexadecimal.
    pub config_sha256: String,
    /// Hashes of everything that affects the model's results, including the starting adapter. `None` in manifests of older
    /// versions.
    #[serde(default)]
    pub content: Option<ModelIdentity>,
}

impl StartingModel {
    /// Hashes the model in `folder` and the adapter from which `config` starts.
    ///
    /// # Errors
    /// A file cannot be read, or the user interrupts.
    pub fn of(folder: &Path, config: &RunConfig) -> Result<Self> {
        let hash = hash_file(&folder.join("config.json"))?;
        let content = if config.model.from_scratch {
            ModelIdentity::read_without_weights(folder)?
        } else {
            ModelIdentity::read(folder)?
        };
        let content = match &config.lora.adapter {
            Some(adapter) => content.with_adapter(adapter)?,
            None => content,
        };
        Ok(Self {
            folder: folder.to_path_buf(),
            config_sha256: hash.sha256,
            content: Some(content),
        })
    }

    /// Returns the differences between this model and `now`.
    fn differences(&self, now: &Self) -> Vec<String> {
        if let (Some(old), Some(new)) = (&self.content, &now.content) {
            return old.differences(new);
        }
        let (old, new) = (&self.config_sha256, &now.config_sha256);
        if old == new {
            return Vec::new();
        }
        vec![format!("the model's config.json: sha256 {old} -> {new}")]
    }
}

/// The manifest of a run: the contents of `manifest.json` in its `output_dir`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RunManifest {
    /// Version of the program that started the run.
    pub version: String,
    /// Time of the start in UTC, as in `2024-05-17T09:30:00Z`.
    pub started: String,
    /// Command line of the run.
    pub command: Vec<String>,
    /// Backend and device of the run.
    pub device: String,
    /// Configuration with all defaults and overrides resolved.
    pub config: RunConfig,
    /// Model from which the run starts.
    pub model: StartingModel,
    /// Report about the data: hashes of the files, and the samples that were changed or left out, with ids.
    pub data: Value,
    /// Counts by name: pairs, optimizer steps, trained parameters, ...
    pub counts: BTreeMap<String, u64>,
}

impl RunManifest {
    /// Creates the manifest of a run that this process starts now.
    pub fn new(config: RunConfig, model: StartingModel, device: &str) -> Self {
        Self {
            version: env!("CARGO_PKG_VERSION").to_string(),
            started: utc(SystemTime::now()),
            command: std::env::args_os()
                .map(|argument| argument.to_string_lossy().into_owned())
                .collect(),
            device: device.to_string(),
            config,
            model,
            data: Value::Null,
            counts: BTreeMap::new(),
        }
    }

    /// Creates the manifest of the run: configuration, model, data and counts.
    ///
    /// # Errors
    /// A file that was read before cannot be read again for hashing.
    pub fn of_run<B: TrainBackend, S: Sample>(
        config: &RunConfig,
        data: &RunData<S>,
        model_folder: &Path,
        device: &B::Device,
    ) -> Result<Self> {
        let model = StartingModel::of(model_folder, config)?;
        let device = format!("{} {device:?}", B::name(device));
        let mut manifest = Self::new(config.clone(), model, &device);
        let eval_hash = config.data.eval_file.as_deref().map(hash_file).transpose()?;
        let adapter = config.lora.adapter.as_deref().map(|folder| hash_file(&folder.join(WEIGHTS)));
        manifest.data = json!({
            "adapter": adapter.transpose()?,
            "train_file": hash_file(&config.data.train_file)?,
            "eval_file": eval_hash,
            "train": data.train_report,
            "eval": data.eval_report,
            "lengths": lengths(&data.train),
        });
        let steps = config.train.total_steps(data.train.len()) as u64;
        manifest.counts = BTreeMap::from([
            (format!("train_{}", S::NAME), data.train.len() as u64),
            (format!("eval_{}", S::NAME), data.eval.len() as u64),
            (STEPS.to_string(), steps),
        ]);
        Ok(manifest)
    }

    /// Returns the path of the manifest of the run in `output_dir`.
    pub fn path(output_dir: &Path) -> PathBuf {
        output_dir.join(MANIFEST_FILE)
    }

    /// Writes the manifest whole or not at all, and creates the folder if it is missing.
    ///
    /// # Errors
    /// The folder is not writable.
    pub fn write(&self, output_dir: &Path) -> Result<()> {
        let path = Self::path(output_dir);
        let mut text = serde_json::to_string_pretty(self)
            .map_err(|e| Error::file(&path, e, "this is a defect of the program: report it"))?;
        text.push('\n');
        write_whole(&path, text.as_bytes())
    }

    /// Reads the manifest of the run in `output_dir`. Returns `None` if there is none.
    ///
    /// # Errors
    /// The manifest exists and cannot be read.
    pub fn read(output_dir: &Path) -> Result<Option<Self>> {
        let path = Self::path(output_dir);
        let text = match input_file::read_to_string(&path) {
            Ok(text) => text,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(Error::io(&path, "read", e)),
        };
        let remedy = "restore the file, or choose another output_dir";
        serde_json::from_str(&text)
            .map(Some)
            .map_err(|e| Error::file(&path, format!("is not a run manifest: {e}"), remedy))
    }

    /// Returns the differences that make `now` another run than this one: in the configuration, the model's content, the
    /// data report and the counts. Version, time, command, device, the model's folder and the number of steps may differ.
    pub fn differences(&self, now: &Self) -> Vec<String> {
        let mut found = self.config.diff(&now.config);
        found.extend(self.model.differences(&now.model));
        let names = self.counts.keys().chain(now.counts.keys());
        let names: std::collections::BTreeSet<_> = names.collect();
        // The length may change (see `Resumption`).
        for name in names.into_iter().filter(|name| *name != STEPS) {
            let (old, new) = (self.counts.get(name), now.counts.get(name));
            if old != new {
                let show = |count: Option<&u64>| count.map_or("none".into(), u64::to_string);
                found.push(format!("{name}: {} -> {}", show(old), show(new)));
            }
        }
        if self.data != now.data {
            found.push("the data: its report differs from the one before".to_string());
        }
        found
    }

    /// Checks that `now` is the same run as this one.
    ///
    /// # Errors
    /// There are differences. The error lists all that [`RunManifest::differences`] finds.
    pub fn check_resume(&self, output_dir: &Path, now: &Self) -> Result<()> {
        let differences = self.differences(now);
        if differences.is_empty() {
            return Ok(());
        }
        let problem =
            format!("the run there was started differently:\n    {}", differences.join("\n    "));
        let remedy = "undo the change, choose another output_dir, or start again with --overwrite";
        Err(Error::file(&Self::path(output_dir), problem, remedy))
    }
}

/// Formats a time as `2024-05-17T09:30:00Z`.
fn utc(time: SystemTime) -> String {
    let seconds = time.duration_since(UNIX_EPOCH).map_or(0, |elapsed| elapsed.as_secs());
    let (days, rest) = (seconds / 86_400, seconds % 86_400);
    let (year, month, day) = civil_date(days);
    let (hour, minute, second) = (rest / 3600, rest / 60 % 60, rest % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}Z")
}

/// Converts a number of days since 1970-01-01 to year, month and day in the Gregorian calendar. Years are counted from
/// March, so that the leap day is the last day of its year.
fn civil_date(days: u64) -> (u64, u64, u64) {
    // Days since 0000-03-01. An era has 400 years or 146,097 days.
    let days = days + 719_468;
    let (era, day_of_era) = (days / 146_097, days % 146_097);
    let leap_days = day_of_era / 1_460 - day_of_era / 36_524 + day_of_era / 146_096;
    let year_of_era = (day_of_era - leap_days) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * from_march + 2) / 5 + 1;
    let (month, next_year) = match from_march {
        0..=9 => (from_march + 3, 0),
        _ => (from_march - 9, 1),
    };
    (era * 400 + year_of_era + next_year, month, day)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn manifest() -> RunManifest {
        let mut manifest =
            RunManifest::new(RunConfig::default(), StartingModel::default(), "ndarray");
        manifest.data = serde_json::json!({"pairs": 3, "cut": ["a", "b"]});
        manifest.counts.insert("pairs".into(), 3);
        manifest
    }

    #[test]
    fn times_are_utc_dates() {
        // Computed by hand: the start of 1970, the leap days of 2000 and 2024, the last second of 1999, and the end of
        // February 2100, which has no leap day.
        for (seconds, expected) in [
            (0, "1970-01-01T00:00:00Z"),
            (951_782_400, "2000-02-29T00:00:00Z"),
            (951_868_800, "2000-03-01T00:00:00Z"),
            (946_684_799, "1999-12-31T23:59:59Z"),
            (1_709_164_800, "2024-02-29T00:00:00Z"),
            (4_107_542_399, "2100-02-28T23:59:59Z"),
            (4_107_542_400, "2100-03-01T00:00:00Z"),
        ] {
            assert_eq!(utc(UNIX_EPOCH + Duration::from_secs(seconds)), expected);
        }
    }

    #[test]
    fn a_written_manifest_is_read_back() {
        let folder = tempfile::tempdir().unwrap();
        let run = folder.path().join("runs/one");
        assert_eq!(RunManifest::read(&run).unwrap(), None);
        let manifest = manifest();
        manifest.write(&run).unwrap();
        assert_eq!(RunManifest::read(&run).unwrap(), Some(manifest.clone()));
        manifest.check_resume(&run, &manifest).unwrap();

        std::fs::write(RunManifest::path(&run), "{\"version\":").unwrap();
        let error = RunManifest::read(&run).unwrap_err().to_string();
        assert!(error.contains("not a run manifest"), "{error}");
    }

    #[test]
    fn a_changed_run_is_refused_and_each_difference_named() {
        let old = manifest();
        let mut now = old.clone();
        now.started = "later".into();
        now.command = vec!["arithmo".into(), "--resume".into()];
        now.config.train.logging_steps = 7;
        assert!(old.differences(&now).is_empty());

        now.config.train.learning_rate = 1e-4;
        now.model.config_sha256 = "ab".into();
        now.counts.insert("pairs".into(), 4);
        now.counts.insert("kept".into(), 1);
        now.data = Value::Null;
        let error = old.check_resume(Path::new("run"), &now).unwrap_err().to_string();
        for part in [
            "run/manifest.json: ",
            "train.learning_rate: 5e-5 -> 0.0001",
            "config.json: sha256  -> ab",
            "pairs: 3 -> 4",
            "kept: none -> 1",
            "the data",
            "--overwrite",
        ] {
            assert!(error.contains(part), "{part}: {error}");
        }
    }

    /// The model in a manifest of an older version, which has no content, is compared by its config only.
    #[test]
    fn old_manifests_are_read() {
        let folder = tempfile::tempdir().unwrap();
        let mut json = serde_json::to_value(manifest()).unwrap();
        json["model"].as_object_mut().unwrap().remove("content");
        std::fs::write(RunManifest::path(folder.path()), json.to_string()).unwrap();
        let old = RunManifest::read(folder.path()).unwrap().unwrap();
        assert_eq!(old.model.content, None);
        let mut now = old.clone();
        now.model.content = Some(ModelIdentity::default());
        assert!(old.differences(&now).is_empty());
    }
}
