//! Output files that are either whole or absent: written beside their final name, renamed at the end.

use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

use tempfile::NamedTempFile;

use crate::error::{Error, Result};

/// A file being written. Until [`WholeFile::commit`] the final name is untouched; dropped without it, nothing is left.
#[derive(Debug)]
pub struct WholeFile {
    writer: BufWriter<NamedTempFile>,
    path: PathBuf,
}

impl WholeFile {
    /// Starts a file that will appear at `path`; missing parent folders are made.
    ///
    /// # Errors
    /// The folder cannot be made or written to.
    pub fn create(path: &Path) -> Result<Self> {
        let folder = match path.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent,
            _ => Path::new("."),
        };
        fs::create_dir_all(folder).map_err(|e| Error::io(folder, "make the folder", e))?;
        let file = tempfile::Builder::new()
            .prefix(".part-")
            .tempfile_in(folder)
            .map_err(|e| Error::io(folder, "write in the folder", e))?;
        Ok(Self { writer: BufWriter::with_capacity(1 << 18, file), path: path.to_path_buf() })
    }

    /// Flushes to disk and gives the file its final name, replacing an older one.
    ///
    /// # Errors
    /// The disk is full or the rename is refused; the older file, if any, is still there.
    pub fn commit(self) -> Result<()> {
        let Self { writer, path } = self;
        let fail = |e| Error::io(&path, "write", e);
        let file = writer.into_inner().map_err(|e| fail(e.into_error()))?;
        file.as_file().sync_all().map_err(fail)?;
        set_usual_permissions(file.as_file()).map_err(fail)?;
        file.persist(&path).map_err(|e| fail(e.error))?;
        Ok(())
    }
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
/// As [`WholeFile::create`] and [`WholeFile::commit`].
pub fn write_whole(path: &Path, bytes: &[u8]) -> Result<()> {
    let mut file = WholeFile::create(path)?;
    file.write_all(bytes).map_err(|e| Error::io(path, "write", e))?;
    file.commit()
}

/// Removes the file or folder at `path`; that there is none is fine.
///
/// # Errors
/// The system refuses.
pub fn remove(path: &Path) -> Result<()> {
    let removed = match path.is_dir() {
        true => fs::remove_dir_all(path),
        false => fs::remove_file(path),
    };
    match removed {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(Error::io(path, "remove", e)),
        _ => Ok(()),
    }
}

/// Temporary files are private to their owner; a finished one is readable like any other file.
#[cfg(unix)]
fn set_usual_permissions(file: &File) -> io::Result<()> {
    use std::os::unix::fs::PermissionsExt;
    file.set_permissions(fs::Permissions::from_mode(0o644))
}

#[cfg(not(unix))]
fn set_usual_permissions(_file: &File) -> io::Result<()> {
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_abandoned_file_leaves_the_old_one_and_no_rest() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("deep/out.txt");
        write_whole(&path, b"old").unwrap();
        let mut file = WholeFile::create(&path).unwrap();
        file.write_all(b"half").unwrap();
        drop(file);
        assert_eq!(fs::read(&path).unwrap(), b"old");
        assert_eq!(fs::read_dir(path.parent().unwrap()).unwrap().count(), 1);
    }
}
