//! Lists, prunes and removes the folders `step-N` of a run's checkpoints, and folders that are unfinished or being removed.
//! Files that do not belong to a checkpoint are never removed.

use std::fs;
use std::path::{Path, PathBuf};

use super::checkpoint::{CONTENTS, Contents};
use crate::error::{Error, Result};
use crate::input_file;
use crate::output::list::remove_files;
use crate::output::remove;

/// Prefix of the names of folders that are being written or removed.
pub(super) const PART: &str = ".part-";

/// Removes unfinished checkpoints from a folder: the remains of an interrupted write or removal. Entries with other names,
/// and files that do not belong to a checkpoint, are kept.
///
/// # Errors
/// A file or folder cannot be listed, moved or removed.
pub fn clear_unfinished(folder: &Path) -> Result<()> {
    for (name, path) in list(folder)? {
        let rest = name.strip_prefix(PART);
        let rest = rest.map(|rest| rest.strip_prefix("old-").unwrap_or(rest));
        if let Some(name) = rest.filter(|rest| parse_step(rest).is_some()) {
            let place = folder.join(name);
            if path.is_symlink() {
                remove(&path)?;
            } else if path.is_dir() {
                remove_files(&path, &checkpoint_files_in(&path)?)?;
                if path.is_dir() && fs::remove_dir(&path).is_err() {
                    keep_foreign(&path, &place)?;
                }
            } else {
                keep_foreign_file(&path, &place)?;
            }
        }
    }
    Ok(())
}

/// Moves the file `old`, which had the name of a checkpoint and is none, to where it was, or into the checkpoint that has
/// the name now.
fn keep_foreign_file(old: &Path, path: &Path) -> Result<()> {
    let to = match (path.is_dir(), path.file_name()) {
        (true, Some(name)) => path.join(name),
        _ => path.to_path_buf(),
    };
    if to.exists() {
        return Ok(());
    }
    fs::rename(old, &to).map_err(|e| Error::io(old, "move", e))
}

/// Moves files that do not belong to a checkpoint from the removed folder `old` back to `path`, where they were.
fn keep_foreign(old: &Path, path: &Path) -> Result<()> {
    fs::create_dir_all(path).map_err(|e| Error::io(path, "make the folder", e))?;
    for (name, foreign) in list(old)? {
        let to = path.join(name);
        if !to.exists() {
            fs::rename(&foreign, &to).map_err(|e| Error::io(&foreign, "move", e))?;
        }
    }
    // The folder is not empty if something of the same name is at `path` already.
    let _ = fs::remove_dir(old);
    Ok(())
}

/// Returns the files of all checkpoints in `folder`, including unfinished ones. A new run in its place removes them.
///
/// # Errors
/// The folder cannot be listed.
pub fn checkpoint_files(folder: &Path) -> Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for (name, path) in list(folder)? {
        let name = name.strip_prefix(PART).unwrap_or(&name);
        if parse_step(name.strip_prefix("old-").unwrap_or(name)).is_some() {
            files.extend(checkpoint_files_in(&path)?);
        }
    }
    Ok(files)
}

/// Returns the files in `path` that belong to the checkpoint: those that it lists, or, if it is unfinished or damaged, those
/// with a checkpoint's extensions. Returns nothing for a link, because its target does not
/// belong to the run, nor for a file with the name of a checkpoint.
fn checkpoint_files_in(path: &Path) -> Result<Vec<PathBuf>> {
    if path.is_symlink() || !path.is_dir() {
        return Ok(Vec::new());
    }
    let contents = input_file::read(path.join(CONTENTS)).ok();
    let contents: Option<Contents> = contents.and_then(|text| serde_json::from_slice(&text).ok());
    let ours = |name: &str| match &contents {
        Some(contents) => name == CONTENTS || contents.files.contains_key(name),
        None => name.ends_with(".safetensors") || name.ends_with(".json"),
    };
    let mut files = list(path)?;
    files.retain(|(name, path)| !path.is_dir() && ours(name));
    Ok(files.into_iter().map(|(_, path)| path).collect())
}

/// Renames a folder, if it exists, to the name of an unfinished one, and returns the new path. Renaming is atomic, so that
/// the folder never appears incomplete under its own name while [`clear_unfinished`] removes it.
pub(super) fn set_aside(path: &Path) -> Result<Option<PathBuf>> {
    if !path.exists() && !path.is_symlink() {
        return Ok(None);
    }
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let aside = path.with_file_name(format!("{PART}old-{name}"));
    fs::rename(path, &aside).map_err(|e| Error::io(path, "move", e))?;
    Ok(Some(aside))
}

/// Which checkpoints stay when one is saved.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Retention {
    /// Number of checkpoints that stay, the newest ones. 0 keeps all.
    pub limit: usize,
    /// Step of the best checkpoint, which stays in any case.
    pub best: Option<usize>,
}

impl From<usize> for Retention {
    /// Keeps the newest `limit` checkpoints, or all if it is 0.
    fn from(limit: usize) -> Self {
        Self { limit, best: None }
    }
}

impl Retention {
    /// Keeps all checkpoints.
    pub fn all() -> Self {
        Self::default()
    }
}

/// Sets the oldest checkpoints aside until `keep.limit` are left, but never `newest` or the best one. Checkpoints after `last`
/// are incomplete ones that the run could not resume from; they are neither counted nor changed.
pub(super) fn prune(folder: &Path, newest: usize, last: usize, keep: Retention) -> Result<()> {
    if keep.limit == 0 {
        return Ok(());
    }
    let mut steps = list_steps(folder)?;
    // A folder without any file of a checkpoint is not a checkpoint.
    let ours = |path: &Path| checkpoint_files_in(path).is_ok_and(|files| !files.is_empty());
    steps.retain(|(step, path)| *step <= last && ours(path));
    let kept = |step: usize| step == newest || keep.best == Some(step);
    let always = steps.iter().filter(|(step, _)| kept(*step)).count();
    let surplus = steps.len().saturating_sub(keep.limit.max(always));
    let removable = steps.iter().filter(|(step, _)| !kept(*step));
    removable.take(surplus).try_for_each(|(_, path)| set_aside(path).map(drop))
}

/// Returns the names and paths of the entries of `folder`, or nothing if it does not exist.
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

/// Returns the number `N` of a folder name `step-N`.
fn parse_step(name: &str) -> Option<usize> {
    let step: usize = name.strip_prefix("step-")?.parse().ok()?;
    (name == format!("step-{step}")).then_some(step)
}

/// Returns the step numbers and paths of the checkpoints in `folder`, in ascending order.
pub(super) fn list_steps(folder: &Path) -> Result<Vec<(usize, PathBuf)>> {
    let numbered = |(name, path): (String, PathBuf)| Some((parse_step(&name)?, path));
    let mut steps: Vec<_> = list(folder)?.into_iter().filter_map(numbered).collect();
    steps.sort();
    Ok(steps)
}
