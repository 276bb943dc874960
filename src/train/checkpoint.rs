//! Checkpoints: folders `checkpoints/step-N/` that appear only when complete and are verified before use.
//!
//! A folder contains one safetensors file per group of tensors, `state.json`, any further files, and `checkpoint.json` with
//! the size and SHA-256 of each. It is written as `.part-step-N`, flushed to disk and renamed. Old checkpoints are pruned
//! only after that.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use burn::tensor::backend::Backend;
use burn::tensor::{DType, Tensor, TensorData};
use safetensors::tensor::{Dtype, SafeTensors, View};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::schedule::PlateauState;
use super::selection::Selected;
use super::steps::{PART, Retention, clear_unfinished, list_steps, prune, set_aside};
use crate::adapter::parameters::Parameter;
use crate::error::{Error, Result};
use crate::input_file;
use crate::model::file_hash::{FileHash, hash_file};
use crate::output::sync_folder;

/// Tensors on the host with their names.
pub type NamedTensors = Vec<(String, TensorData)>;

const STATE: &str = "state.json";
pub(super) const CONTENTS: &str = "checkpoint.json";
/// Version of the format of a checkpoint folder.
const FORMAT: u32 = 1;

/// The state of a run without its tensors, with which it can continue as if it had never stopped.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct TrainState {
    /// Number of optimizer steps done.
    pub step: usize,
    /// Number of complete epochs done.
    pub epoch: usize,
    /// Number of pairs of the current epoch already used, in the order of that epoch.
    pub position: usize,
    /// Seed of the run, from which every order and mask is derived.
    pub seed: u64,
    /// State of random generators that cannot be derived from seed, epoch and step. Null if there are none.
    #[serde(default)]
    pub rng: Value,
    /// Number of attended tokens so far.
    pub num_tokens: u64,
    /// Training time so far in seconds.
    pub seconds: f64,
    /// Number of lines in the metrics log so far. `None` in checkpoints of versions that did not save it.
    #[serde(default)]
    pub log_lines: Option<u64>,
    /// What the evaluations have shown. Absent in checkpoints of older versions.
    #[serde(default)]
    pub selected: Selected,
    /// State of the schedule `reduce_lr_on_plateau`. `None` before its first evaluation and with other schedules.
    #[serde(default)]
    pub plateau: Option<PlateauState>,
    /// Sums since the last logged line, from which the metrics continue. Null if there are none.
    #[serde(default)]
    pub metrics: Value,
}

/// The contents of a checkpoint to save.
#[derive(Clone, Debug, Default)]
pub struct Snapshot {
    /// State of the run.
    pub state: TrainState,
    /// Groups of tensors. The group `adapter` is saved as `adapter.safetensors`.
    pub groups: Vec<(String, NamedTensors)>,
    /// Names and contents of further files, such as `adapter_config.json`.
    pub files: Vec<(String, Vec<u8>)>,
}

/// The contents of `checkpoint.json`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Contents {
    format: u32,
    pub(super) files: BTreeMap<String, FileHash>,
}

impl Contents {
    /// Returns whether all files except `state.json`, which includes the training time, are equal.
    fn same_weights(&self, other: &Self) -> bool {
        let weights = |contents: &Self| {
            let mut files = contents.files.clone();
            files.remove(STATE);
            files
        };
        weights(self) == weights(other)
    }
}

/// A checkpoint that was verified to be complete.
#[derive(Clone, Debug)]
pub struct Checkpoint {
    path: PathBuf,
    state: TrainState,
    contents: Contents,
}

impl Checkpoint {
    /// Writes `snapshot` to `folder/step-N`, and then removes the checkpoints up to it that `keep` does not retain. Unfinished checkpoints of an interrupted run are removed first. A complete checkpoint of the same step
    /// with the same weights is kept, and a damaged one is replaced.
    ///
    /// # Errors
    /// The disk is full or the folder is not writable. Earlier checkpoints are then unchanged.
    pub fn save(folder: &Path, snapshot: &Snapshot, keep: impl Into<Retention>) -> Result<Self> {
        fs::create_dir_all(folder).map_err(|e| Error::io(folder, "make the folder", e))?;
        clear_unfinished(folder)?;
        let step = snapshot.state.step;
        let part = folder.join(format!("{PART}step-{step}"));
        let path = folder.join(format!("step-{step}"));
        let contents = write_part(&part, snapshot).inspect_err(|_| {
            // The error of the write is the one to report.
            let _ = fs::remove_dir_all(&part);
        })?;
        let checkpoint = match open(step, &path) {
            Ok(same) if same.contents.same_weights(&contents) => same,
            _ => {
                replace_folder(&part, &path)?;
                Self { path, state: snapshot.state.clone(), contents }
            }
        };
        sync_folder(folder);
        prune(folder, step, step, keep.into())?;
        clear_unfinished(folder)?;
        Ok(checkpoint)
    }

    /// Returns the checkpoint with the most steps in `folder` whose files all have the size and hash with which they were
    /// written, or `None` if there is no such checkpoint or no folder. Calls `warn` for each newer checkpoint that is not
    /// complete, with the reason.
    ///
    /// # Errors
    /// The folder cannot be listed.
    pub fn newest_whole(folder: &Path, warn: &mut dyn FnMut(String)) -> Result<Option<Self>> {
        let mut steps = list_steps(folder)?;
        steps.reverse();
        for (step, path) in steps {
            match open(step, &path) {
                Ok(checkpoint) => return Ok(Some(checkpoint)),
                Err(reason) => warn(format!(
                    "{}: skipped, not a complete checkpoint: {reason}",
                    path.display()
                )),
            }
        }
        Ok(None)
    }

    /// Opens the checkpoint of `step` in `folder` and verifies its files.
    ///
    /// # Errors
    /// Returns why it is missing or not complete.
    pub fn open(folder: &Path, step: usize) -> std::result::Result<Self, String> {
        open(step, &folder.join(format!("step-{step}")))
    }

    /// Returns the folder of the checkpoint.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Returns the state of the run.
    pub fn state(&self) -> &TrainState {
        &self.state
    }

    /// Reads the tensors of `group`, bit for bit as saved, sorted by name.
    ///
    /// # Errors
    /// The group was not saved, or the file changed since the checkpoint was verified.
    pub fn tensors(&self, group: &str) -> Result<NamedTensors> {
        let path = self.path.join(format!("{group}.safetensors"));
        let bytes = input_file::read(&path).map_err(|e| Error::io(&path, "read", e))?;
        let fail = |problem: String| {
            let remedy = "remove this checkpoint folder, so that the one before it is used";
            Error::file(&path, problem, remedy)
        };
        let stored = SafeTensors::deserialize(&bytes).map_err(|e| fail(e.to_string()))?;
        let mut tensors = Vec::new();
        for (name, view) in stored.iter() {
            let dtype = burn_dtype(view.dtype())
                .ok_or_else(|| fail(format!("{name}: type {} is not supported", view.dtype())))?;
            let (bytes, shape) = (view.data().to_vec(), view.shape().to_vec());
            tensors.push((name.to_string(), TensorData::from_bytes_vec(bytes, shape, dtype)));
        }
        tensors.sort_by(|(a, _), (b, _)| a.cmp(b));
        Ok(tensors)
    }

    /// Reads the tensors of `group` that have the names and shapes of `like`, in its order.
    ///
    /// # Errors
    /// The group cannot be read, or a tensor is missing or has another shape.
    pub fn values<B: Backend>(
        &self,
        group: &str,
        like: &[Parameter<B>],
        device: &B::Device,
    ) -> Result<Vec<Tensor<B, 2>>> {
        let mut saved: BTreeMap<_, _> = self.tensors(group)?.into_iter().collect();
        let values = like.iter().map(|Parameter { name, value: tensor, .. }| {
            let data = saved.remove(name).filter(|data| data.shape == tensor.shape());
            data.map(|data| Tensor::from_data(data, device)).ok_or_else(|| {
                let problem = format!("{name} is missing or not {:?}", tensor.dims());
                Error::file(&self.path, problem, "remove this checkpoint folder")
            })
        });
        values.collect()
    }

    /// Returns whether the checkpoint has a file of this name.
    pub fn has_file(&self, name: &str) -> bool {
        self.path.join(name).is_file()
    }

    /// Reads a further file of the checkpoint.
    ///
    /// # Errors
    /// The file was not saved or cannot be read.
    pub fn file(&self, name: &str) -> Result<Vec<u8>> {
        let path = self.path.join(name);
        input_file::read(&path).map_err(|e| Error::io(&path, "read", e))
    }
}

/// Writes the snapshot into the new folder `part` and flushes it to disk.
fn write_part(part: &Path, snapshot: &Snapshot) -> Result<Contents> {
    fs::create_dir(part).map_err(|e| Error::io(part, "make the folder", e))?;
    let mut files = BTreeMap::new();
    for (group, tensors) in &snapshot.groups {
        let name = format!("{group}.safetensors");
        write_tensors(&part.join(&name), tensors)?;
        files.insert(name, seal(part, &format!("{group}.safetensors"))?);
    }
    let state = to_json(&part.join(STATE), &snapshot.state)?;
    let own = [(STATE.to_string(), state)];
    for (name, bytes) in snapshot.files.iter().chain(&own) {
        let path = part.join(name);
        fs::write(&path, bytes).map_err(|e| Error::io(&path, "write", e))?;
        files.insert(name.clone(), seal(part, name)?);
    }
    let format = FORMAT;
    let contents = Contents { format, files };
    let path = part.join(CONTENTS);
    let json = to_json(&path, &contents)?;
    fs::write(&path, json).map_err(|e| Error::io(&path, "write", e))?;
    seal(part, CONTENTS)?;
    sync_folder(part);
    Ok(contents)
}

/// Renames the finished folder `part` to `path` and replaces what exists there. If this fails, the old folder is restored.
fn replace_folder(part: &Path, path: &Path) -> Result<()> {
    let old = set_aside(path)?;
    fs::rename(part, path).map_err(|error| {
        let _ = old.map(|old| fs::rename(old, path));
        Error::io(path, "rename the checkpoint", error)
    })
}

fn to_json(path: &Path, value: &impl Serialize) -> Result<Vec<u8>> {
    let remedy = "this is a defect of the program: please report it";
    serde_json::to_vec_pretty(value).map_err(|e| Error::file(path, e, remedy))
}

/// Flushes a written file to disk and hashes it.
fn seal(part: &Path, name: &str) -> Result<FileHash> {
    let path = part.join(name);
    let file = input_file::open(&path).map_err(|e| Error::io(&path, "open", e))?;
    file.sync_all().map_err(|e| Error::io(&path, "write", e))?;
    hash_file(&path)
}

/// Opens a checkpoint and verifies its files, or returns why it is not complete.
fn open(step: usize, path: &Path) -> std::result::Result<Checkpoint, String> {
    let read = |name: &str| {
        input_file::read(path.join(name)).map_err(|e| format!("{name} cannot be read: {e}"))
    };
    let contents: Contents = serde_json::from_slice(&read(CONTENTS)?)
        .map_err(|e| format!("{CONTENTS} is damaged: {e}"))?;
    if contents.format != FORMAT {
        return Err(format!("its format version is {}, supported is {FORMAT}", contents.format));
    }
    for (name, expected) in &contents.files {
        let file = path.join(name);
        let size = fs::metadata(&file).map_err(|e| format!("{name} cannot be read: {e}"))?.len();
        if size != expected.bytes {
            return Err(format!(
                "{name} has {size} bytes, but was written with {}",
                expected.bytes
            ));
        }
        let found = hash_file(&file).map_err(|e| e.to_string())?;
        if found != *expected {
            return Err(format!("{name} changed since it was written: its SHA-256 differs"));
        }
    }
    if !contents.files.contains_key(STATE) {
        return Err(format!("{CONTENTS} does not list {STATE}"));
    }
    let state: TrainState =
        serde_json::from_slice(&read(STATE)?).map_err(|e| format!("{STATE}: {e}"))?;
    if state.step != step {
        return Err(format!("it contains step {}", state.step));
    }
    Ok(Checkpoint { path: path.to_path_buf(), state, contents })
}

/// A tensor in the form that safetensors writes.
struct Stored<'a> {
    data: &'a TensorData,
    dtype: Dtype,
}

impl View for Stored<'_> {
    fn dtype(&self) -> Dtype {
        self.dtype
    }

    fn shape(&self) -> &[usize] {
        &self.data.shape
    }

    fn data(&self) -> Cow<'_, [u8]> {
        Cow::Borrowed(self.data.as_bytes())
    }

    fn data_len(&self) -> usize {
        self.data.as_bytes().len()
    }
}

/// Writes `tensors` to a new safetensors file, each in its own dtype.
fn write_tensors(path: &Path, tensors: &NamedTensors) -> Result<()> {
    let remedy = "this is a defect of the program: please report it";
    let mut stored = Vec::with_capacity(tensors.len());
    for (name, data) in tensors {
        let dtype = PAIRED_TYPES.iter().find(|(burn, _)| *burn == data.dtype);
        let Some((_, dtype)) = dtype else {
            let problem = format!("{name}: type {:?} is not supported in checkpoints", data.dtype);
            return Err(Error::file(path, problem, remedy));
        };
        let dtype = *dtype;
        stored.push((name.as_str(), Stored { data, dtype }));
    }
    safetensors::serialize_to_file(stored, None, path).map_err(|error| match error {
        safetensors::SafeTensorError::IoError(e) => Error::io(path, "write", e),
        other => Error::file(path, other, remedy),
    })
}

/// Tensor types that a checkpoint supports, in Burn and in safetensors.
const PAIRED_TYPES: [(DType, Dtype); 7] = [
    (DType::F64, Dtype::F64),
    (DType::F32, Dtype::F32),
    (DType::F16, Dtype::F16),
    (DType::BF16, Dtype::BF16),
    (DType::I64, Dtype::I64),
    (DType::I32, Dtype::I32),
    (DType::U32, Dtype::U32),
];

fn burn_dtype(dtype: Dtype) -> Option<DType> {
    let mut pairs = PAIRED_TYPES.iter();
    pairs.find(|(_, stored)| *stored == dtype).map(|(burn, _)| *burn)
}
