//! Writes files that are either complete or absent.

use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

use super::part::Part;
use super::target::{Target, open_in_place};
use super::{parent, remove, sync_folder};
use crate::error::{Error, Result};

/// A file that is being written. [`WholeFile::commit`] moves it to its final path; if dropped before, it leaves nothing
/// behind. An output that is not a regular file is written in place.
#[derive(Debug)]
pub struct WholeFile {
    writer: BufWriter<Sink>,
    /// The path as the caller named it.
    path: PathBuf,
}

#[derive(Debug)]
enum Sink {
    /// A temporary file, and the path that it will be renamed to.
    Part(Part, PathBuf),
    InPlace(File),
    Stdout(io::Stdout),
}

impl Write for Sink {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Self::Part(part, _) => part.open_file()?.write(bytes),
            Self::InPlace(file) => file.write(bytes),
            Self::Stdout(stdout) => match stdout.write(bytes) {
                // A reader that has gone away (`| head`) is not an error.
                Err(e) if e.kind() == io::ErrorKind::BrokenPipe => Ok(bytes.len()),
                written => written,
            },
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match self {
            Self::Part(..) => Ok(()),
            Self::InPlace(file) => file.flush(),
            Self::Stdout(stdout) => match stdout.flush() {
                Err(e) if e.kind() == io::ErrorKind::BrokenPipe => Ok(()),
                flushed => flushed,
            },
        }
    }
}

impl WholeFile {
    /// Creates a file that will appear at `path`, and the missing parent folders.
    ///
    /// # Errors
    /// The parent folder cannot be created or written to, or `path` is a folder.
    pub fn create(path: &Path) -> Result<Self> {
        let sink = match Target::resolve(path)? {
            Target::File(to) => {
                let folder = parent(&to);
                fs::create_dir_all(folder).map_err(|e| Error::io(folder, "make the folder", e))?;
                let name = to.file_name().unwrap_or_default().to_string_lossy();
                let part = Part::file(folder, &name);
                let part = part.map_err(|e| Error::io(folder, "write in the folder", e))?;
                Sink::Part(part, to)
            }
            Target::InPlace(at) => {
                Sink::InPlace(open_in_place(&at).map_err(|e| Error::io(path, "open", e))?)
            }
            Target::Stdout => Sink::Stdout(io::stdout()),
        };
        Ok(Self { writer: BufWriter::with_capacity(1 << 18, sink), path: path.to_path_buf() })
    }

    /// Flushes the file to disk and renames it to its final path, replacing an older file.
    ///
    /// # Errors
    /// The disk is full or the rename is refused. An older file is then unchanged.
    pub fn commit(self) -> Result<()> {
        self.finish()?.publish()
    }

    /// Flushes the file to disk without renaming it.
    fn finish(self) -> Result<Finished> {
        let Self { writer, path } = self;
        let fail = |e| Error::io(&path, "write", e);
        let mut sink = writer.into_inner().map_err(|e| fail(e.into_error()))?;
        sink.flush().map_err(fail)?;
        let part = match sink {
            Sink::Part(part, to) => {
                let file = part.open_file().map_err(fail)?;
                file.sync_all().map_err(fail)?;
                // The new file gets the permissions of the one it replaces.
                if let Ok(old) = fs::metadata(&to) {
                    file.set_permissions(old.permissions()).map_err(fail)?;
                }
                Some((part, to))
            }
            _ => None,
        };
        Ok(Finished { part, path })
    }
}

/// A complete file on disk, under its temporary name.
struct Finished {
    /// The temporary file and its final path; `None` if the output was written in place.
    part: Option<(Part, PathBuf)>,
    path: PathBuf,
}

impl Finished {
    fn publish(self) -> Result<()> {
        match self.part {
            Some((part, to)) => part.publish(&to).map_err(|e| Error::io(&self.path, "write", e)),
            None => Ok(()),
        }
    }
}

/// Commits files that belong together, so that a process killed at any time leaves no mixture of old and new ones.
///
/// The last file is the main one. Its older version is removed first, and the new one is renamed last.
///
/// # Errors
/// Same as [`WholeFile::commit`]. Nothing is replaced before every file is complete.
pub fn commit_set(files: Vec<WholeFile>) -> Result<()> {
    let finished = files.into_iter().map(WholeFile::finish);
    let finished = finished.collect::<Result<Vec<_>>>()?;
    let last = finished.last().and_then(|last| last.part.as_ref());
    let last = last.map(|(_, to)| to.clone());
    if let Some(to) = last.as_ref().filter(|_| finished.len() > 1) {
        remove(to)?;
    }
    finished.into_iter().try_for_each(Finished::publish)?;
    if let Some(to) = &last {
        sync_folder(parent(to));
    }
    Ok(())
}

impl Write for WholeFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.writer.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.writer.flush()
    }
}

/// Writes `bytes` to `path` as a [`WholeFile`].
///
/// # Errors
/// Same as [`WholeFile::create`] and [`WholeFile::commit`].
pub fn write_whole(path: &Path, bytes: &[u8]) -> Result<()> {
    let mut file = WholeFile::create(path)?;
    file.write_all(bytes).map_err(|e| Error::io(path, "write", e))?;
    file.commit()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dropped_file_leaves_the_old_one_and_nothing_else() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("deep/out.txt");
        write_whole(&path, b"old").unwrap();
        let mut file = WholeFile::create(&path).unwrap();
        file.write_all(b"half").unwrap();
        drop(file);
        assert_eq!(fs::read(&path).unwrap(), b"old");
        assert_eq!(fs::read_dir(path.parent().unwrap()).unwrap().count(), 1);
    }

    #[cfg(unix)]
    #[test]
    fn a_link_stays_and_its_target_is_replaced_with_its_permissions() {
        use std::os::unix::fs::{PermissionsExt, symlink};
        let folder = tempfile::tempdir().unwrap();
        let (target, link) = (folder.path().join("target"), folder.path().join("link"));
        fs::write(&target, "old").unwrap();
        fs::set_permissions(&target, fs::Permissions::from_mode(0o640)).unwrap();
        symlink("target", &link).unwrap();
        write_whole(&link, b"new").unwrap();
        assert!(fs::symlink_metadata(&link).unwrap().is_symlink());
        assert_eq!(fs::read(&target).unwrap(), b"new");
        let mode = fs::metadata(&target).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o640);
    }

    /// The old main file is never left beside new other files.
    #[test]
    fn a_set_appears_with_its_last_file() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        write_whole(&at("pairs"), b"old").unwrap();
        // The first name is a folder by now: publishing stops there.
        let files = ["held-out", "pairs"].map(|name| {
            let mut file = WholeFile::create(&at(name)).unwrap();
            file.write_all(b"new").unwrap();
            file
        });
        fs::create_dir(at("held-out")).unwrap();
        assert!(commit_set(files.into()).is_err());
        assert!(!at("pairs").exists());
        fs::remove_dir(at("held-out")).unwrap();
        let files = ["held-out", "pairs"].map(|name| WholeFile::create(&at(name)).unwrap());
        commit_set(files.into()).unwrap();
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 2);
    }
}
