//! Checkpoints: folders `checkpoints/step-N/` that are either whole or not there, and are known to be whole when used.
//!
//! A folder holds one safetensors file a group of tensors, `state.json`, any further files, and `checkpoint.json` with
//! size and SHA-256 of each. It is written as `.part-step-N`, flushed to disk and renamed; an old one is pruned only
//! after that.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::path::{Path, PathBuf};

use burn::tensor::{DType, TensorData};
use safetensors::tensor::{Dtype, SafeTensors, View};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::manifest::{FileHash, hash_file};
use crate::error::{Error, Result};

/// Tensors by name, on the host.
pub type NamedTensors = Vec<(String, TensorData)>;

/// Prefix of everything that is being written or thrown away.
const PART: &str = ".part-";
const STATE: &str = "state.json";
const CONTENTS: &str = "checkpoint.json";
/// Version of the form of a checkpoint folder.
const FORMAT: u32 = 1;

/// Where a run stands: all it takes, beside tensors, to go on as if it had never stopped.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct TrainState {
    /// Optimizer steps done.
    pub step: usize,
    /// Passes over the data done.
    pub epoch: usize,
    /// Pairs of the current pass already consumed, in that pass's order.
    pub position: usize,
    /// The run's seed, from which every order and mask is derived.
    pub seed: u64,
    /// State of random generators that cannot be derived from seed, epoch and step; null if there are none.
    #[serde(default)]
    pub rng: Value,
    /// Attended tokens so far.
    pub num_tokens: u64,
    /// Seconds of training so far.
    pub seconds: f64,
    /// What the metrics need to continue: sums since the last logged line; null if there are none.
    #[serde(default)]
    pub metrics: Value,
}

/// What is saved.
#[derive(Clone, Debug, Default)]
pub struct Snapshot {
    /// Where the run stands.
    pub state: TrainState,
    /// Groups of tensors: `adapter` becomes `adapter.safetensors`.
    pub groups: Vec<(String, NamedTensors)>,
    /// Further files, by name, as `adapter_config.json`.
    pub files: Vec<(String, Vec<u8>)>,
}

/// `checkpoint.json`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Contents {
    format: u32,
    files: BTreeMap<String, FileHash>,
}

impl Contents {
    /// Whether all but `state.json`, which also says how long training took, is the same.
    fn same_weights(&self, other: &Self) -> bool {
        let weights = |contents: &Self| {
            let mut files = contents.files.clone();
            files.remove(STATE);
            files
        };
        weights(self) == weights(other)
    }
}

/// A checkpoint that was found whole.
#[derive(Clone, Debug)]
pub struct Checkpoint {
    path: PathBuf,
    state: TrainState,
    contents: Contents,
}

impl Checkpoint {
    /// Writes `snapshot` to `folder/step-N`, then removes all but the newest `save_total_limit` checkpoints up to it
    /// (0: keeps all). What an interrupted run left unfinished in `folder` is removed first. A whole checkpoint of
    /// the same step with the same weights is kept as it is, a damaged one replaced.
    ///
    /// # Errors
    /// The disk is full or refuses; the checkpoints before are untouched.
    pub fn save(folder: &Path, snapshot: &Snapshot, save_total_limit: usize) -> Result<Self> {
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
                put_in_place(&part, &path)?;
                Self { path, state: snapshot.state.clone(), contents }
            }
        };
        sync_folder(folder)?;
        prune(folder, step, save_total_limit)?;
        clear_unfinished(folder)?;
        Ok(checkpoint)
    }

    /// The checkpoint with the most steps in `folder` whose every file has the size and hash it was written with;
    /// `None` if there is none, or no folder. `warn` is told of each newer one that is not whole, and why.
    ///
    /// # Errors
    /// The folder cannot be listed.
    pub fn newest_whole(folder: &Path, warn: &mut dyn FnMut(String)) -> Result<Option<Self>> {
        let mut steps = list_steps(folder)?;
        steps.reverse();
        for (step, path) in steps {
            match open(step, &path) {
                Ok(checkpoint) => return Ok(Some(checkpoint)),
                Err(reason) => {
                    warn(format!("{}: skipped, not a whole checkpoint: {reason}", path.display()))
                }
            }
        }
        Ok(None)
    }

    /// Its folder.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Where the run stood.
    pub fn state(&self) -> &TrainState {
        &self.state
    }

    /// The tensors of `group`, bit for bit as saved, sorted by name.
    ///
    /// # Errors
    /// The group was not saved, or the file changed since it was found whole.
    pub fn tensors(&self, group: &str) -> Result<NamedTensors> {
        let path = self.path.join(format!("{group}.safetensors"));
        let bytes = fs::read(&path).map_err(|e| Error::io(&path, "read", e))?;
        let fail = |problem: String| {
            let remedy = "remove this checkpoint folder: the one before it is used then";
            Error::file(&path, problem, remedy)
        };
        let stored = SafeTensors::deserialize(&bytes).map_err(|e| fail(e.to_string()))?;
        let mut tensors = Vec::new();
        for (name, view) in stored.iter() {
            let dtype = burn_dtype(view.dtype())
                .ok_or_else(|| fail(format!("{name}: type {} is not kept here", view.dtype())))?;
            let (bytes, shape) = (view.data().to_vec(), view.shape().to_vec());
            tensors.push((name.to_string(), TensorData::from_bytes_vec(bytes, shape, dtype)));
        }
        tensors.sort_by(|(a, _), (b, _)| a.cmp(b));
        Ok(tensors)
    }

    /// Whether the snapshot had a further file of this name.
    pub fn holds(&self, name: &str) -> bool {
        self.path.join(name).is_file()
    }

    /// The contents of a further file of the snapshot.
    ///
    /// # Errors
    /// It was not saved.
    pub fn file(&self, name: &str) -> Result<Vec<u8>> {
        let path = self.path.join(name);
        fs::read(&path).map_err(|e| Error::io(&path, "read", e))
    }
}

/// Removes what is unfinished in a folder of checkpoints: the rest of a write or of a removal that was interrupted.
///
/// # Errors
/// The folder refuses.
pub fn clear_unfinished(folder: &Path) -> Result<()> {
    for (name, path) in list(folder)? {
        if name.starts_with(PART) {
            let removed = match path.is_dir() {
                true => fs::remove_dir_all(&path),
                false => fs::remove_file(&path),
            };
            removed.map_err(|e| Error::io(&path, "remove", e))?;
        }
    }
    Ok(())
}

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
    sync_folder(part)?;
    Ok(contents)
}

/// Gives the finished folder `part` its name, replacing what bears it.
fn put_in_place(part: &Path, path: &Path) -> Result<()> {
    let old = set_aside(path)?;
    fs::rename(part, path).map_err(|error| {
        let _ = old.map(|old| fs::rename(old, path));
        Error::io(path, "give the checkpoint its name", error)
    })
}

fn to_json(path: &Path, value: &impl Serialize) -> Result<Vec<u8>> {
    let remedy = "this is a defect of the program: please report it";
    serde_json::to_vec_pretty(value).map_err(|e| Error::file(path, e, remedy))
}

/// Flushes a written file to disk and hashes it.
fn seal(part: &Path, name: &str) -> Result<FileHash> {
    let path = part.join(name);
    let file = File::open(&path).map_err(|e| Error::io(&path, "open", e))?;
    file.sync_all().map_err(|e| Error::io(&path, "write", e))?;
    hash_file(&path)
}

/// Makes names in a folder durable. Systems on which a folder cannot be opened do so by themselves.
fn sync_folder(folder: &Path) -> Result<()> {
    match File::open(folder) {
        Ok(opened) => opened.sync_all().map_err(|e| Error::io(folder, "write", e)),
        Err(_) => Ok(()),
    }
}

/// Moves a folder, if it is there, to a name that counts as unfinished, at once: no half of it can be met under its own
/// name while [`clear_unfinished`] removes it.
fn set_aside(path: &Path) -> Result<Option<PathBuf>> {
    if !path.exists() {
        return Ok(None);
    }
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let aside = path.with_file_name(format!("{PART}old-{name}"));
    fs::rename(path, &aside).map_err(|e| Error::io(path, "move", e))?;
    Ok(Some(aside))
}

/// Sets the oldest checkpoints aside until `limit` are left, `newest` included. Those beyond `newest` belong to a run that
/// went on from an earlier one because they were not whole: they neither count nor are touched.
fn prune(folder: &Path, newest: usize, limit: usize) -> Result<()> {
    if limit == 0 {
        return Ok(());
    }
    let mut steps = list_steps(folder)?;
    steps.retain(|(step, _)| *step <= newest);
    let surplus = steps.len().saturating_sub(limit);
    steps.iter().take(surplus).try_for_each(|(_, path)| set_aside(path).map(drop))
}

/// Name and path of what lies in `folder`; nothing if it is not there.
fn list(folder: &Path) -> Result<Vec<(String, PathBuf)>> {
    let entries = match fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(e) => return Err(Error::io(folder, "list", e)),
    };
    entries
        .map(|entry| {
            let entry = entry.map_err(|e| Error::io(folder, "list", e))?;
            Ok((entry.file_name().to_string_lossy().into_owned(), entry.path()))
        })
        .collect()
}

/// The checkpoints in `folder`, fewest steps first.
fn list_steps(folder: &Path) -> Result<Vec<(usize, PathBuf)>> {
    let numbered = |(name, path): (String, PathBuf)| {
        let step: usize = name.strip_prefix("step-")?.parse().ok()?;
        (name == format!("step-{step}")).then_some((step, path))
    };
    let mut steps: Vec<_> = list(folder)?.into_iter().filter_map(numbered).collect();
    steps.sort();
    Ok(steps)
}

/// Opens a checkpoint if it is whole, else says why it is not.
fn open(step: usize, path: &Path) -> std::result::Result<Checkpoint, String> {
    let read =
        |name: &str| fs::read(path.join(name)).map_err(|e| format!("{name} cannot be read: {e}"));
    let contents: Contents = serde_json::from_slice(&read(CONTENTS)?)
        .map_err(|e| format!("{CONTENTS} is damaged: {e}"))?;
    if contents.format != FORMAT {
        return Err(format!("its form is number {}, known is {FORMAT}", contents.format));
    }
    for (name, expected) in &contents.files {
        let file = path.join(name);
        let size = fs::metadata(&file).map_err(|e| format!("{name} cannot be read: {e}"))?.len();
        if size != expected.bytes {
            return Err(format!("{name} has {size} bytes, was written with {}", expected.bytes));
        }
        let found = hash_file(&file).map_err(|e| e.to_string())?;
        if found != *expected {
            return Err(format!("{name} is not what was written: its sha256 differs"));
        }
    }
    if !contents.files.contains_key(STATE) {
        return Err(format!("{CONTENTS} does not list {STATE}"));
    }
    let state: TrainState =
        serde_json::from_slice(&read(STATE)?).map_err(|e| format!("{STATE}: {e}"))?;
    if state.step != step {
        return Err(format!("it holds step {}", state.step));
    }
    Ok(Checkpoint { path: path.to_path_buf(), state, contents })
}

/// A tensor as safetensors writes it: its bytes as they are.
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

fn write_tensors(path: &Path, tensors: &NamedTensors) -> Result<()> {
    let remedy = "this is a defect of the program: please report it";
    let mut stored = Vec::with_capacity(tensors.len());
    for (name, data) in tensors {
        let dtype = PAIRED_TYPES.iter().find(|(burn, _)| *burn == data.dtype);
        let Some((_, dtype)) = dtype else {
            let problem = format!("{name}: type {:?} is not kept in checkpoints", data.dtype);
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

/// The types a checkpoint keeps, as Burn and as safetensors call them.
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
