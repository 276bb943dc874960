//! Publishes a folder of files, in place of an older one that this program wrote.

use std::fs;
use std::path::{Path, PathBuf};

use super::list::{FileList, listed_files};
use super::part::Part;
use super::{remove, sync_folder};
use crate::error::{Error, Result};

/// Moves the complete folder `part` to `to`.
///
/// If `to` exists, the files of `part` are moved into it; `part` may lie in `to`. The files that `to` lists as this
/// program's are removed, all others stay. `key` is the file without which a reader cannot open the folder: it is
/// removed first and moved last, so that a killed process leaves no readable mixture of old and new files.
///
/// # Errors
/// A new file would replace one that is not listed, or the system refuses.
pub fn publish_folder(part: Part, to: &Path, key: &str) -> Result<()> {
    let fail = |e| Error::io(to, "write", e);
    let mut names: Vec<_> = FileList::read(part.path()).unwrap_or_default().names();
    names.push(super::list::NAME.to_string());
    if !to.is_dir() {
        part.publish(to).map_err(fail)?;
        sync_folder(super::parent(to));
        return Ok(());
    }
    let old = refuse_foreign_among(to, names.iter().map(String::as_str))?;
    // Before anything is removed, so that files left by a killed process are known as this program's.
    FileList::add(to, names.iter().cloned())?;
    remove(&to.join(key))?;
    let kept = to.join(super::list::NAME);
    for path in old.iter().filter(|path| **path != kept) {
        remove(path)?;
    }
    names.sort_by_key(|name| (name == key, name == super::list::NAME));
    for name in &names {
        fs::rename(part.path().join(name), to.join(name)).map_err(fail)?;
    }
    sync_folder(to);
    Ok(())
}

/// Returns the files that `folder` lists as this program's.
///
/// # Errors
/// The first of `names` that exists in `folder` and is not listed there: it must not be replaced.
pub fn refuse_foreign_among<'a>(
    folder: &Path,
    names: impl IntoIterator<Item = &'a str>,
) -> Result<Vec<PathBuf>> {
    let listed = listed_files(folder);
    let mut paths = names.into_iter().map(|name| folder.join(name));
    let foreign = paths.find(|path| (path.exists() || path.is_symlink()) && !listed.contains(path));
    match foreign {
        Some(path) => Err(Error::file(
            &path,
            "exists, and this program did not write it",
            "move it elsewhere, or choose another folder",
        )),
        None => Ok(listed),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::output::write_whole;

    fn publish(to: &Path, names: &[&str]) -> Result<()> {
        let part = Part::folder(to.parent().unwrap(), "model").unwrap();
        for name in names {
            write_whole(&part.path().join(name), name.as_bytes()).unwrap();
        }
        FileList::new(names.iter().copied()).write(part.path()).unwrap();
        publish_folder(part, to, "config.json")
    }

    #[test]
    fn a_part_inside_the_folder_leaves_only_its_files() {
        let parent = tempfile::tempdir().unwrap();
        let to = parent.path();
        for name in ["old", "new"] {
            let part = Part::folder(to, "model").unwrap();
            write_whole(&part.path().join(name), b"").unwrap();
            write_whole(&part.path().join("config.json"), name.as_bytes()).unwrap();
            FileList::new([name, "config.json"]).write(part.path()).unwrap();
            publish_folder(part, to, "config.json").unwrap();
            assert_eq!(fs::read(to.join("config.json")).unwrap(), name.as_bytes());
            assert_eq!(fs::read_dir(to).unwrap().count(), 3);
        }
    }

    #[test]
    fn foreign_files_stay_and_are_never_replaced() {
        let parent = tempfile::tempdir().unwrap();
        let to = parent.path().join("model");
        publish(&to, &["config.json", "old"]).unwrap();
        fs::create_dir(to.join(".git")).unwrap();
        fs::write(to.join("notes"), "mine").unwrap();
        publish(&to, &["config.json", "new"]).unwrap();
        assert!(to.join(".git").is_dir() && to.join("notes").is_file());
        assert!(to.join("new").is_file() && !to.join("old").exists());
        assert!(publish(&to, &["config.json", "notes"]).is_err());
        assert_eq!(fs::read(to.join("notes")).unwrap(), b"mine");
        assert!(to.join("config.json").is_file() && to.join("new").is_file());
        assert_eq!(fs::read_dir(parent.path()).unwrap().count(), 1);
    }
}
