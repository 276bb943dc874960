//! Temporary files and folders, named `.part-NAME-ID` and created beside the final path. They are locked while their
//! process runs. The next command that writes to the same path removes those that a killed process left, and no others.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use crate::error::{Error, Result};

/// Prefix of every temporary name.
const PREFIX: &str = ".part-";
/// Maximum bytes of the final name that the temporary name repeats, so that it stays below 255 bytes.
const MAX_NAME_BYTES: usize = 190;
/// Hexadecimal digits after the name: process id, time and counter, and a checksum of everything before.
const ID_DIGITS: usize = 24;

/// A file or folder under a temporary name. It is removed when dropped, unless it was published.
#[derive(Debug)]
pub struct Part {
    path: PathBuf,
    /// Holds the lock. `None` for a folder on systems where folders cannot be opened.
    file: Option<File>,
    published: bool,
}

impl Part {
    /// Creates a temporary file for `name` in `folder`, after removing those of dead processes.
    ///
    /// # Errors
    /// The folder is not writable.
    pub fn file(folder: &Path, name: &str) -> io::Result<Self> {
        remove_dead(folder, name);
        Self::make(folder, name, |path| {
            let mut options = OpenOptions::new();
            let file = options.read(true).write(true).create_new(true).open(path)?;
            Ok(Some(file))
        })
    }

    /// Creates a temporary folder for `name` in `folder`, after removing those of dead processes.
    ///
    /// # Errors
    /// The folder is not writable.
    pub fn folder(folder: &Path, name: &str) -> io::Result<Self> {
        remove_dead(folder, name);
        Self::make(folder, name, |path| {
            fs::create_dir(path)?;
            Ok(File::open(path).ok())
        })
    }

    fn make(
        folder: &Path,
        name: &str,
        create: impl Fn(&Path) -> io::Result<Option<File>>,
    ) -> io::Result<Self> {
        loop {
            let path = folder.join(temporary_name(name));
            let file = match create(&path) {
                Err(e) if e.kind() == io::ErrorKind::AlreadyExists => continue,
                created => created?,
            };
            // Before it was locked, another process may have considered it dead.
            let taken = file.as_ref().is_some_and(|file| {
                matches!(file.try_lock(), Err(TryLockError::WouldBlock)) || !path.exists()
            });
            if !taken {
                return Ok(Self { path, file, published: false });
            }
        }
    }

    /// Returns the temporary path.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Returns the open file.
    pub(super) fn open_file(&self) -> io::Result<&File> {
        self.file.as_ref().ok_or_else(|| io::Error::other("a folder cannot be written to"))
    }

    /// Renames it to `to`. A file may replace a file, a folder only an empty folder.
    ///
    /// # Errors
    /// The system refuses.
    pub fn publish(mut self, to: &Path) -> io::Result<()> {
        fs::rename(&self.path, to)?;
        self.published = true;
        Ok(())
    }
}

impl Drop for Part {
    fn drop(&mut self) {
        if !self.published {
            remove_part(&self.path);
        }
    }
}

/// Checks that `folder` is writable by creating a temporary file in it.
///
/// # Errors
/// The folder is not writable.
pub fn check_writable(folder: &Path) -> Result<()> {
    let probe = Part::file(folder, "probe");
    probe.map(drop).map_err(|e| Error::io(folder, "write in the folder", e))
}

/// Returns whether `name` is a temporary name of this program, according to its checksum.
pub fn is_part(name: &str) -> bool {
    let Some(rest) = name.strip_prefix(PREFIX) else {
        return false;
    };
    let Some((before, sum)) = name.split_at_checked(name.len().saturating_sub(8)) else {
        return false;
    };
    let shape = rest.rsplit_once('-').is_some_and(|(_, id)| id.len() == ID_DIGITS);
    shape && sum == checksum(before)
}

/// Removes the temporary files and folders for `name` in `folder` whose process has ended.
fn remove_dead(folder: &Path, name: &str) {
    let prefix = format!("{PREFIX}{}-", shortened(name));
    remove_dead_where(folder, |found| {
        found.len() == prefix.len() + ID_DIGITS && found.starts_with(&prefix)
    });
}

/// Removes all temporary files and folders in `folder` whose process has ended.
pub fn remove_all_dead(folder: &Path) {
    remove_dead_where(folder, |_| true);
}

fn remove_dead_where(folder: &Path, wanted: impl Fn(&str) -> bool) {
    let Ok(entries) = fs::read_dir(folder) else {
        return;
    };
    for entry in entries.flatten() {
        let (name, path) = (entry.file_name(), entry.path());
        let name = name.to_string_lossy();
        if is_part(&name) && wanted(&name) && is_dead(&path) {
            remove_part(&path);
        }
    }
}

/// Returns whether no process holds the lock; false if the file system has no locks.
fn is_dead(path: &Path) -> bool {
    let opened = match fs::symlink_metadata(path) {
        Ok(found) if found.is_dir() => File::open(path),
        // Some network file systems lock only files that are open for writing.
        Ok(found) if found.is_file() => OpenOptions::new().read(true).write(true).open(path),
        _ => return false,
    };
    opened.is_ok_and(|file| file.try_lock().is_ok())
}

/// Removes a temporary file or folder. If that fails, a later command tries again.
fn remove_part(path: &Path) {
    let _ = if path.is_dir() { fs::remove_dir_all(path) } else { fs::remove_file(path) };
}

/// Returns a new temporary name for `name`.
fn temporary_name(name: &str) -> String {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    let count = COUNT.fetch_add(1, Ordering::Relaxed);
    let elapsed = SystemTime::now().duration_since(UNIX_EPOCH);
    let nanos = elapsed.map_or(0, |elapsed| elapsed.as_nanos() as u32);
    let time = nanos.wrapping_add(count.wrapping_mul(0x9e37_79b9));
    let process = std::process::id();
    let before = format!("{PREFIX}{}-{process:08x}{time:08x}", shortened(name));
    format!("{before}{}", checksum(&before))
}

fn checksum(text: &str) -> String {
    format!("{:08x}", crc32fast::hash(text.as_bytes()))
}

fn shortened(name: &str) -> &str {
    let mut end = name.len().min(MAX_NAME_BYTES);
    while !name.is_char_boundary(end) {
        end -= 1;
    }
    &name[..end]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_dead_parts_of_the_same_name_are_removed() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        let dead = [temporary_name("a.jsonl"), temporary_name("a.jsonl")];
        fs::write(at(&dead[0]), "half").unwrap();
        fs::create_dir(at(&dead[1])).unwrap();
        fs::write(at(&dead[1]).join("file"), "half").unwrap();
        let other = temporary_name("a.jsonl-b");
        let mut altered = temporary_name("a.jsonl").into_bytes();
        let last = altered.len() - 1;
        altered[last] = if altered[last] == b'0' { b'1' } else { b'0' };
        let altered = String::from_utf8(altered).unwrap();
        let users = [".part-a.jsonl", ".part-a.jsonl-mine", &other, &altered];
        users.iter().for_each(|name| fs::write(at(name), "").unwrap());
        let living = Part::file(folder.path(), "a.jsonl").unwrap();
        let second = Part::folder(folder.path(), "a.jsonl").unwrap();
        assert!(!dead.iter().any(|name| at(name).exists()));
        assert!(users.iter().all(|name| at(name).exists()));
        assert!(living.path().is_file() && second.path().is_dir());
        drop(living);
        second.publish(&at("a")).unwrap();
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), users.len() + 1);
    }

    #[test]
    fn long_names_are_shortened() {
        let folder = tempfile::tempdir().unwrap();
        let part = Part::file(folder.path(), &"é".repeat(127)).unwrap();
        assert!(is_part(&part.path().file_name().unwrap().to_string_lossy()));
    }
}
