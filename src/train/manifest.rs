//! `manifest.json`: what a run is, so that it can be understood, repeated and resumed.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};
use serde_json::Value;
use sha2::{Digest, Sha256};

use crate::config::RunConfig;
use crate::error::{Error, Result};
use crate::output::write_whole;

/// The weights a run starts from.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ModelIdentity {
    /// The folder the weights were read from.
    pub folder: PathBuf,
    /// SHA-256 of its `config.json`, in hex.
    pub config_sha256: String,
}

impl ModelIdentity {
    /// The identity of the model in `folder`.
    ///
    /// # Errors
    /// `folder` has no readable `config.json`.
    pub fn of(folder: &Path) -> Result<Self> {
        let hash = hash_file(&folder.join("config.json"))?;
        Ok(Self { folder: folder.to_path_buf(), config_sha256: hash.sha256 })
    }
}

/// A run, as `manifest.json` in its `output_dir` describes it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RunManifest {
    /// Version of the program that started the run.
    pub version: String,
    /// When it started: UTC, as `2024-05-17T09:30:00Z`.
    pub started: String,
    /// The command line.
    pub command: Vec<String>,
    /// The backend and device it runs on.
    pub device: String,
    /// The configuration, defaults and overrides resolved.
    pub config: RunConfig,
    /// The weights.
    pub model: ModelIdentity,
    /// What was read, kept, cut and left out, with ids; any report of the data side.
    pub data: Value,
    /// Counts by name: pairs, optimizer steps, trained parameters, ...
    pub counts: BTreeMap<String, u64>,
}

impl RunManifest {
    /// A manifest of this program, started now by this process's command line.
    pub fn new(config: RunConfig, model: ModelIdentity, device: &str) -> Self {
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

    /// Where the manifest of the run in `output_dir` lies.
    pub fn path(output_dir: &Path) -> PathBuf {
        output_dir.join("manifest.json")
    }

    /// Writes the manifest, whole or not at all; the folder is made.
    ///
    /// # Errors
    /// The folder cannot be written to.
    pub fn write(&self, output_dir: &Path) -> Result<()> {
        let path = Self::path(output_dir);
        let mut text = serde_json::to_string_pretty(self)
            .map_err(|e| Error::file(&path, e, "this is a defect of the program: report it"))?;
        text.push('\n');
        write_whole(&path, text.as_bytes())
    }

    /// The manifest of the run in `output_dir`, if there is one.
    ///
    /// # Errors
    /// It is there and cannot be read.
    pub fn read(output_dir: &Path) -> Result<Option<Self>> {
        let path = Self::path(output_dir);
        let text = match std::fs::read_to_string(&path) {
            Ok(text) => text,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(Error::io(&path, "read", e)),
        };
        let remedy = "start the run again with --overwrite";
        serde_json::from_str(&text)
            .map(Some)
            .map_err(|e| Error::file(&path, format!("is not a run manifest: {e}"), remedy))
    }

    /// What makes `now` another run than this one: keys of the configuration, the model's config, the data report,
    /// counts. Version, time, command, device and the model's place may differ.
    pub fn differences(&self, now: &Self) -> Vec<String> {
        let mut found = self.config.diff(&now.config);
        let (old, new) = (&self.model.config_sha256, &now.model.config_sha256);
        if old != new {
            found.push(format!("the model's config.json: sha256 {old} -> {new}"));
        }
        let names = self.counts.keys().chain(now.counts.keys());
        let names: std::collections::BTreeSet<_> = names.collect();
        for name in names {
            let (old, new) = (self.counts.get(name), now.counts.get(name));
            if old != new {
                let show = |count: Option<&u64>| count.map_or("none".into(), u64::to_string);
                found.push(format!("{name}: {} -> {}", show(old), show(new)));
            }
        }
        if self.data != now.data {
            found.push("the data: its report is another than before".to_string());
        }
        found
    }

    /// Refuses to continue this run as `now` where that would be another run.
    ///
    /// # Errors
    /// Every difference [`RunManifest::differences`] finds, in one error.
    pub fn check_resume(&self, output_dir: &Path, now: &Self) -> Result<()> {
        let differences = self.differences(now);
        if differences.is_empty() {
            return Ok(());
        }
        let problem =
            format!("the run there was started otherwise:\n    {}", differences.join("\n    "));
        let remedy = "undo the change, choose another output_dir, or start again with --overwrite";
        Err(Error::file(&Self::path(output_dir), problem, remedy))
    }
}

/// Size and hash of a file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileHash {
    /// Bytes.
    pub bytes: u64,
    /// SHA-256 in hex.
    pub sha256: String,
}

/// Reads the file at `path` once, a piece at a time, and hashes it.
///
/// # Errors
/// It cannot be read.
pub fn hash_file(path: &Path) -> Result<FileHash> {
    let mut file = File::open(path).map_err(|e| Error::io(path, "open", e))?;
    let mut hasher = Sha256::new();
    let mut piece = vec![0; 1 << 20];
    let mut bytes = 0;
    loop {
        let read = file.read(&mut piece);
        let read = read.map_err(|e| Error::io(path, "read", e))?;
        if read == 0 {
            break;
        }
        hasher.update(piece.get(..read).unwrap_or_default());
        bytes += read as u64;
    }
    let digest = hasher.finalize();
    let sha256 = digest.iter().map(|byte| format!("{byte:02x}")).collect();
    Ok(FileHash { bytes, sha256 })
}

/// A time as `2024-05-17T09:30:00Z`.
fn utc(time: SystemTime) -> String {
    let seconds = time.duration_since(UNIX_EPOCH).map_or(0, |elapsed| elapsed.as_secs());
    let (days, rest) = (seconds / 86_400, seconds % 86_400);
    let (year, month, day) = civil_date(days);
    let (hour, minute, second) = (rest / 3600, rest / 60 % 60, rest % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}Z")
}

/// Year, month and day of a count of days since 1970-01-01, in the Gregorian calendar: years are counted from March, so
/// that the leap day is the last of its year.
fn civil_date(days: u64) -> (u64, u64, u64) {
    // Days since 0000-03-01; an era is 400 years, 146,097 days.
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
            RunManifest::new(RunConfig::default(), ModelIdentity::default(), "ndarray");
        manifest.data = serde_json::json!({"pairs": 3, "cut": ["a", "b"]});
        manifest.counts.insert("pairs".into(), 3);
        manifest
    }

    #[test]
    fn times_are_utc_dates() {
        // Days counted by hand: 1970 begins, leap days of 2000 and 2024, the last second of 1999.
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
    fn what_is_written_is_read_back() {
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
        now.counts.insert("steps".into(), 1);
        now.data = Value::Null;
        let error = old.check_resume(Path::new("run"), &now).unwrap_err().to_string();
        for part in [
            "run/manifest.json: ",
            "train.learning_rate: 5e-5 -> 0.0001",
            "config.json: sha256  -> ab",
            "pairs: 3 -> 4",
            "steps: none -> 1",
            "the data",
            "--overwrite",
        ] {
            assert!(error.contains(part), "{part}: {error}");
        }
    }

    #[test]
    fn files_are_hashed_whole() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("abc");
        // FIPS 180-2, appendix B.1.
        std::fs::write(&path, "abc").unwrap();
        let hash = hash_file(&path).unwrap();
        assert_eq!(hash.bytes, 3);
        assert_eq!(hash.sha256, "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
        // Appendix B.3: a million letters, read in several pieces.
        std::fs::write(&path, "a".repeat(1_000_000)).unwrap();
        let million = "cdc76e5c9914fb9281a1c7e284d73e67f1809a48a497200e046d39ccc7112cd0";
        assert_eq!(hash_file(&path).unwrap().sha256, million);
        assert!(hash_file(&folder.path().join("none")).is_err());
    }
}
