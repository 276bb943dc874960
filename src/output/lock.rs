//! Locks, so that no two processes write to the same place. The operating system releases a lock when its process ends,
//! even if it is killed.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Read, Seek, Write};
use std::path::{Path, PathBuf};

use super::append::hard_link_count;
use super::check::is_at;
use super::parent;
use super::target::resolve_folder;
use crate::error::{Error, Result};

/// File name of the lock in an output folder.
pub const NAME: &str = ".arithmo-lock";

/// A held lock. It is released when dropped. Its file contains the id of the process.
#[derive(Debug)]
pub struct Lock {
    path: PathBuf,
    /// `None` where the file system has no locks.
    file: Option<File>,
    /// The folders created for the lock, innermost first. They are removed with it if they are empty.
    created: Vec<PathBuf>,
}

impl Lock {
    /// Locks `folder`, or the target of the link `folder`, and creates it if it does not exist.
    ///
    /// # Errors
    /// Another process holds the lock, or the folder cannot be created or written to.
    pub fn folder(folder: &Path) -> Result<Self> {
        Self::take(resolve_folder(folder)?.join(NAME), folder)
    }

    /// Locks an output that does not exist yet or will be replaced, with a lock file beside it.
    ///
    /// # Errors
    /// Same as [`Lock::folder`].
    pub fn beside(output: &Path) -> Result<Self> {
        let name = output.file_name().unwrap_or_default().to_string_lossy();
        let name = format!(".{name}{NAME}");
        Self::take(parent(output).join(name), output)
    }

    fn take(path: PathBuf, place: &Path) -> Result<Self> {
        let folder = parent(&path);
        let missing =
            folder.ancestors().take_while(|above| !above.as_os_str().is_empty() && !above.exists());
        let created = missing.map(Path::to_path_buf).collect();
        fs::create_dir_all(folder).map_err(|e| Error::io(folder, "make the folder", e))?;
        let file = open_and_lock(&path, place)?;
        Ok(Self { path, file, created })
    }
}

/// Opens and locks the file at `path`; returns `None` if the file system has no locks.
fn open_and_lock(path: &Path, place: &Path) -> Result<Option<File>> {
    loop {
        check_place(path)?;
        let mut options = OpenOptions::new();
        let options = options.read(true).write(true).create(true).truncate(false);
        let mut file =
            options.open(path).map_err(|e| Error::io(parent(path), "write in the folder", e))?;
        let text = read_lock(&mut file).map_err(|e| Error::io(path, "read", e))?;
        if !is_lock(&text) {
            return Err(not_a_lock(path));
        }
        match file.try_lock() {
            // The former holder removed the file before it was locked here, so the lock is without effect.
            Ok(()) if !is_at(&file, path) => continue,
            Ok(()) if file.metadata().is_ok_and(|found| hard_link_count(&found) > 1) => {
                // A hard link to the file, such as in a copied folder, must keep its content.
                fs::remove_file(path).map_err(|e| Error::io(path, "remove", e))?;
            }
            Ok(()) => {
                let written = file
                    .set_len(0)
                    .and_then(|()| file.rewind())
                    .and_then(|()| writeln!(file, "{}", std::process::id()));
                written.map_err(|e| Error::io(path, "write", e))?;
                return Ok(Some(file));
            }
            Err(TryLockError::WouldBlock) => return Err(already_locked(place, &mut file)),
            Err(TryLockError::Error(error)) => {
                say!(
                    "warning: {}: cannot lock: {error}\n  do not start a second command that writes there",
                    path.display()
                );
                return Ok(None);
            }
        }
    }
}

/// Maximum bytes of a lock file, which contains a process id.
const MAX_BYTES: u64 = 32;

/// Returns an error if another kind of file is at `path`: locking would empty it, or the target of a link.
fn check_place(path: &Path) -> Result<()> {
    match fs::symlink_metadata(path) {
        Ok(found) if !found.is_file() || found.len() > MAX_BYTES => Err(not_a_lock(path)),
        _ => Ok(()),
    }
}

fn not_a_lock(path: &Path) -> Error {
    Error::file(
        path,
        "is not a lock of this program, but has the name of one",
        "move it elsewhere, or choose another output",
    )
}

/// Returns whether a lock file may contain this text: a process id, or nothing yet.
fn is_lock(text: &[u8]) -> bool {
    let number = text.strip_suffix(b"\n").unwrap_or(text);
    number.iter().all(u8::is_ascii_digit)
}

/// Reads a lock file from its start, at most one byte more than [`MAX_BYTES`].
fn read_lock(file: &mut File) -> io::Result<Vec<u8>> {
    let mut text = Vec::new();
    file.rewind()?;
    file.take(MAX_BYTES + 1).read_to_end(&mut text)?;
    Ok(text)
}

impl Drop for Lock {
    fn drop(&mut self) {
        // The file is removed while it is still locked: a process that has opened it in the meantime notices and
        // creates a new one. Another file in its place stays.
        if self.file.as_ref().is_none_or(|file| is_at(file, &self.path)) {
            let _ = fs::remove_file(&self.path);
        }
        self.file = None;
        for folder in &self.created {
            if fs::remove_dir(folder).is_err() {
                break;
            }
        }
    }
}

/// Returns the error for a place that another process writes to.
fn already_locked(place: &Path, file: &mut File) -> Error {
    let text = read_lock(file).unwrap_or_default();
    let process = match String::from_utf8_lossy(&text).trim().parse::<u32>() {
        Ok(process) => format!("process {process}"),
        Err(_) => "another process".to_string(),
    };
    Error::file(
        place,
        format!("{process} is writing there"),
        "wait until it has ended, or choose another place",
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_lock_names_the_first_process_and_a_released_one_leaves_nothing() {
        let parent = tempfile::tempdir().unwrap();
        let folder = parent.path().join("deep/run");
        let lock = Lock::folder(&folder).unwrap();
        // A refused attempt must not change the first lock.
        Lock::folder(&folder).unwrap_err();
        let error = Lock::folder(&folder).unwrap_err().to_string();
        assert!(error.contains(&format!("process {}", std::process::id())), "{error}");
        drop(lock);
        assert_eq!(fs::read_dir(parent.path()).unwrap().count(), 0);
        // The file of a killed process does not lock.
        fs::create_dir_all(&folder).unwrap();
        fs::write(folder.join(NAME), "4194304\n").unwrap();
        drop(Lock::folder(&folder).unwrap());
        assert!(folder.is_dir());
        let file = folder.join("pairs.jsonl");
        let _beside = Lock::beside(&file).unwrap();
        assert!(Lock::beside(&file).is_err());
        assert!(Lock::folder(&folder).is_ok());
    }

    #[test]
    fn other_files_are_neither_emptied_nor_removed() {
        let parent = tempfile::tempdir().unwrap();
        let at = |name: &str| parent.path().join(name);
        for text in ["my short notes", "12 eggs\n", "7\n8\n", " 7", "7\r\n"] {
            fs::write(at("precious"), text).unwrap();
            fs::hard_link(at("precious"), at(NAME)).unwrap();
            let error = Lock::folder(parent.path()).unwrap_err().to_string();
            assert!(error.contains("is not a lock of this program"), "{text:?}: {error}");
            assert_eq!(fs::read_to_string(at("precious")).unwrap(), text);
            fs::remove_file(at(NAME)).unwrap();
        }
        // A file that replaces the lock file is not removed with the lock.
        let lock = Lock::folder(parent.path()).unwrap();
        fs::rename(at("precious"), at(NAME)).unwrap();
        drop(lock);
        assert_eq!(fs::read_to_string(at(NAME)).unwrap(), "7\r\n");
    }

    /// `cp -al` creates such a link when it copies a folder in which a process was killed.
    #[cfg(unix)]
    #[test]
    fn a_hard_link_to_a_dead_lock_keeps_its_text() {
        let parent = tempfile::tempdir().unwrap();
        let at = |name: &str| parent.path().join(name);
        fs::write(at("backup"), "4194304\n").unwrap();
        fs::hard_link(at("backup"), at(NAME)).unwrap();
        let lock = Lock::folder(parent.path()).unwrap();
        let own = format!("{}\n", std::process::id());
        assert_eq!(fs::read_to_string(at(NAME)).unwrap(), own);
        drop(lock);
        assert_eq!(fs::read_to_string(at("backup")).unwrap(), "4194304\n");
        assert!(!at(NAME).exists());
    }
}
