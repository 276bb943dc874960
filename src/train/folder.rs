//! The folder of a run: `manifest.json`, `metrics.jsonl`, `checkpoints/step-N/`, `adapter/` or `model/`.

use std::path::{Path, PathBuf};

use crate::error::{Error, Result};
use crate::output::remove;
use crate::train::checkpoint::{Checkpoint, clear_unfinished};
use crate::train::logger::{EVENTS_FOLDER, METRICS_FILE};
use crate::train::manifest::RunManifest;

/// What to do about a run that is already there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Existing {
    /// Refuse to start.
    Refuse,
    /// Continue it from its newest whole checkpoint, or from the start if it has none.
    Resume,
    /// Remove it and start again.
    Overwrite,
}

/// A run's `output_dir`.
#[derive(Clone, Debug)]
pub struct RunFolder {
    path: PathBuf,
}

/// Everything a run writes; nothing else in the folder is ever touched.
const OWN: [&str; 7] =
    ["manifest.json", METRICS_FILE, EVENTS_FOLDER, "checkpoints", "adapter", "model", "report"];

impl RunFolder {
    /// The folder at `path`, which need not exist.
    pub fn new(path: &Path) -> Self {
        Self { path: path.to_path_buf() }
    }

    /// `checkpoints/`
    pub fn checkpoints(&self) -> PathBuf {
        self.path.join("checkpoints")
    }

    /// `adapter/`
    pub fn adapter(&self) -> PathBuf {
        self.path.join("adapter")
    }

    /// `model/`, where all weights are trained
    pub fn model(&self) -> PathBuf {
        self.path.join("model")
    }

    /// Refuses early a folder that holds a run.
    ///
    /// # Errors
    /// There is a run, and it is neither to be continued nor removed.
    pub fn check(&self, existing: Existing) -> Result<()> {
        if self.path.is_file() {
            return Err(Error::file(&self.path, "is a file", "name a folder as output_dir"));
        }
        let found = OWN.iter().find(|name| self.path.join(name).exists());
        match (existing, found) {
            (Existing::Refuse, Some(name)) => Err(Error::file(
                &self.path,
                format!("already holds a run (it has {name})"),
                "continue it with --resume, replace it with --overwrite, or choose another output_dir",
            )),
            _ => Ok(()),
        }
    }

    /// The checkpoint to go on from, if the run is to be resumed and has one.
    ///
    /// # Errors
    /// The run there was started with another configuration, model or data: every difference is named.
    pub fn resume_point(
        &self,
        existing: Existing,
        now: &RunManifest,
    ) -> Result<Option<Checkpoint>> {
        if existing != Existing::Resume {
            return Ok(None);
        }
        match RunManifest::read(&self.path)? {
            Some(before) => before.check_resume(&self.path, now)?,
            None if self.checkpoints().exists() => {
                return Err(Error::file(
                    &self.path,
                    "has checkpoints but no manifest.json, so that it is not known what run they belong to",
                    "start again with --overwrite",
                ));
            }
            None => {}
        }
        Checkpoint::newest_whole(&self.checkpoints(), &mut |warning| {
            eprintln!("warning: {warning}")
        })
    }

    /// Clears what is in the way and writes the manifest.
    ///
    /// # Errors
    /// The folder cannot be written.
    pub fn prepare(&self, existing: Existing, manifest: &RunManifest, resumed: bool) -> Result<()> {
        if existing == Existing::Overwrite {
            // The manifest last: while anything is left, it says whose it is.
            for name in OWN.iter().rev() {
                remove(&self.path.join(name))?;
            }
        }
        // Rests of a process that was killed while it wrote; only where there was a run.
        if existing != Existing::Refuse {
            for folder in [&self.path, &self.checkpoints(), &self.adapter()] {
                clear_unfinished(folder)?;
            }
        }
        match resumed {
            true => Ok(()),
            false => manifest.write(&self.path),
        }
    }
}
