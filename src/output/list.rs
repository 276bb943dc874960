//! Lists the files that this program wrote into a folder in its `.arithmo-files.json`. Only listed files are ever
//! removed.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Component, Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::{remove, write_whole};
use crate::error::{Error, Result};

/// File name of the list.
pub const NAME: &str = ".arithmo-files.json";

/// A list of paths relative to its folder, with `/` between names.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileList {
    files: BTreeSet<String>,
}

impl FileList {
    /// Reads the list in `folder`; `None` if there is no readable one. Then no file there is known to be this
    /// program's.
    pub fn read(folder: &Path) -> Option<Self> {
        let path = folder.join(NAME);
        let regular = fs::symlink_metadata(&path).is_ok_and(|found| found.is_file());
        let text = regular.then(|| fs::read(&path).ok()).flatten()?;
        serde_json::from_slice(&text).ok()
    }

    /// Creates a list of `names`.
    pub fn new(names: impl IntoIterator<Item = impl Into<String>>) -> Self {
        Self { files: names.into_iter().map(Into::into).collect() }
    }

    /// Checks that `folder` can hold the list.
    ///
    /// # Errors
    /// A link, a folder, a FIFO or a file of somebody else has the name of the list.
    pub fn check(folder: &Path) -> Result<()> {
        let path = folder.join(NAME);
        match fs::symlink_metadata(&path) {
            Ok(found) if !found.is_file() => Err(Error::file(
                &path,
                "is not a regular file, but the list of the files that this program writes must be stored there",
                "move it elsewhere, or choose another folder",
            )),
            Ok(_) if Self::read(folder).is_none() => Err(Error::file(
                &path,
                "has the name of the list of the files that this program writes, but is not such a list",
                "move it elsewhere, or choose another folder",
            )),
            _ => Ok(()),
        }
    }

    /// Adds `names` to the list in `folder`. Call it before the files are written.
    ///
    /// # Errors
    /// The folder is not writable.
    pub fn add(folder: &Path, names: impl IntoIterator<Item = impl Into<String>>) -> Result<()> {
        let mut list = Self::read(folder).unwrap_or_default();
        let before = list.files.len();
        list.files.extend(names.into_iter().map(Into::into));
        if list.files.len() > before || !folder.join(NAME).exists() {
            list.write(folder)
        } else {
            Ok(())
        }
    }

    /// Writes the list into `folder` and replaces an older one.
    ///
    /// # Errors
    /// The folder is not writable.
    pub fn write(&self, folder: &Path) -> Result<()> {
        Self::check(folder)?;
        let path = folder.join(NAME);
        let text = serde_json::to_string_pretty(self)
            .map_err(|e| Error::file(&path, e, "this is a defect of the program: report it"))?;
        write_whole(&path, format!("{text}\n").as_bytes())
    }

    /// Returns the listed paths.
    pub fn names(self) -> Vec<String> {
        self.files.into_iter().collect()
    }

    /// Returns the listed files that exist in `folder`. Paths that lead out of it are ignored.
    pub fn existing(&self, folder: &Path) -> Vec<PathBuf> {
        let inside = |name: &&String| {
            let mut parts = Path::new(name.as_str()).components();
            parts.all(|part| matches!(part, Component::Normal(_)))
        };
        let paths = self.files.iter().filter(inside);
        let paths = paths.map(|name| folder.join(name));
        // A link counts, whatever its target. A folder does not.
        let is_file = |path: &PathBuf| fs::symlink_metadata(path).is_ok_and(|at| !at.is_dir());
        // Files behind a link to another folder do not count either.
        let real = fs::canonicalize(folder);
        let within = |path: &PathBuf| match (&real, path.parent().map(fs::canonicalize)) {
            (Ok(real), Some(Ok(parent))) => parent.starts_with(real),
            _ => false,
        };
        paths.filter(|path| is_file(path) && within(path)).collect()
    }
}

/// Returns the existing files that `folder` lists, and the list itself.
pub fn listed_files(folder: &Path) -> Vec<PathBuf> {
    let Some(list) = FileList::read(folder) else {
        return Vec::new();
    };
    let mut files = list.existing(folder);
    files.push(folder.join(NAME));
    files
}

/// Removes `files`, then the folders below `folder` that this leaves empty, and `folder` itself if it is empty too.
///
/// # Errors
/// The system refuses.
pub fn remove_files(folder: &Path, files: &[PathBuf]) -> Result<()> {
    for file in files {
        remove(file)?;
    }
    for file in files {
        let above = file.ancestors().skip(1);
        for above in above.take_while(|above| above.starts_with(folder)) {
            // It contains other files, or is removed already.
            if fs::remove_dir(above).is_err() {
                break;
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_listed_files_are_removed() {
        let parent = tempfile::tempdir().unwrap();
        let folder = parent.path().join("folder");
        let at = |name: &str| folder.join(name);
        for name in ["a", "sub/b", "deep/er/c", "deep/mine"] {
            write_whole(&at(name), b"").unwrap();
        }
        fs::write(parent.path().join("outside"), "").unwrap();
        assert_eq!(listed_files(&folder), Vec::<PathBuf>::new());
        let hostile = parent.path().join("outside").display().to_string();
        FileList::add(&folder, ["a", "sub/b", "deep/er/c", "gone", "deep"]).unwrap();
        FileList::add(&folder, ["../outside", &hostile]).unwrap();
        let files = listed_files(&folder);
        assert_eq!(files.len(), 4);
        remove_files(&folder, &files).unwrap();
        assert!(parent.path().join("outside").is_file() && at("deep/mine").is_file());
        assert!(!at("a").exists() && !at("sub").exists() && !at("deep/er").exists());
        fs::remove_file(at("deep/mine")).unwrap();
        FileList::add(&folder, ["a"]).unwrap();
        remove_files(&folder, &listed_files(&folder)).unwrap();
        assert!(folder.exists(), "its empty subfolder belongs to the user");
    }

    #[test]
    fn a_file_of_somebody_else_is_no_list_and_stays() {
        let folder = tempfile::tempdir().unwrap();
        for text in ["my notes", "", "[1, 2]"] {
            fs::write(folder.path().join(NAME), text).unwrap();
            let error = FileList::add(folder.path(), ["a"]).unwrap_err().to_string();
            assert!(error.contains("is not such a list"), "{error}");
            assert_eq!(fs::read_to_string(folder.path().join(NAME)).unwrap(), text);
        }
    }

    #[cfg(unix)]
    #[test]
    fn files_behind_a_link_stay() {
        let parent = tempfile::tempdir().unwrap();
        let at = |name: &str| parent.path().join(name);
        write_whole(&at("theirs/a"), b"").unwrap();
        fs::create_dir(at("ours")).unwrap();
        std::os::unix::fs::symlink("../theirs", at("ours/sub")).unwrap();
        FileList::add(&at("ours"), ["sub/a"]).unwrap();
        assert_eq!(listed_files(&at("ours")).len(), 1);
    }
}
