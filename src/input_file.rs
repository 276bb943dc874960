//! Opens input files. Opening a FIFO in place of a file would block forever, so special files are refused where a
//! regular file is needed. [`open`], [`read`] and [`read_to_string`] replace those of [`std::fs`] in this crate.

use std::fs::{self, File, FileType};
use std::io::{self, Read};
use std::path::Path;

use crate::output::target::is_open_descriptor;

/// Opens a regular file for reading.
///
/// # Errors
/// The path is not a regular file, or it cannot be opened.
pub fn open(path: &Path) -> io::Result<File> {
    refuse_special(fs::metadata(path)?.file_type())?;
    File::open(path)
}

/// Opens a file that is read once from its start, which may be a FIFO or a terminal (`/dev/stdin`, `<(command)`).
///
/// # Errors
/// The path is a folder, or it cannot be opened.
pub fn open_stream(path: &Path) -> io::Result<File> {
    if fs::metadata(path)?.is_dir() {
        return Err(special("is a folder"));
    }
    File::open(path)
}

/// Opens a file that is read once: a regular file or an open descriptor of this process (`/dev/stdin`, `<(command)`).
///
/// # Errors
/// The path is neither of these, or it cannot be opened.
pub fn open_once(path: &Path) -> io::Result<File> {
    if is_open_descriptor(path) { open_stream(path) } else { open(path) }
}

/// Reads the text of a file that is read once; the file is opened like by [`open_once`].
///
/// # Errors
/// Same as [`open_once`]; or the file cannot be read or is not UTF-8.
pub fn read_once(path: &Path) -> io::Result<String> {
    io::read_to_string(open_once(path)?)
}

/// Reads the bytes of a regular file.
///
/// # Errors
/// The path is not a regular file, or it cannot be read.
pub fn read(path: impl AsRef<Path>) -> io::Result<Vec<u8>> {
    let mut file = open(path.as_ref())?;
    let size = file.metadata().map_or(0, |metadata| metadata.len());
    let mut bytes = Vec::with_capacity(usize::try_from(size).unwrap_or(0).min(1 << 30));
    file.read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// Reads the text of a regular file.
///
/// # Errors
/// The path is not a regular file, cannot be read, or is not UTF-8.
pub fn read_to_string(path: impl AsRef<Path>) -> io::Result<String> {
    let text = String::from_utf8(read(path)?);
    text.map_err(|e| io::Error::new(io::ErrorKind::InvalidData, e.utf8_error()))
}

/// Returns an error if the file type is not that of a regular file.
fn refuse_special(found: FileType) -> io::Result<()> {
    if found.is_file() {
        return Ok(());
    }
    Err(special(kind(found)))
}

/// Creates the error for a file that is not regular.
fn special(problem: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, problem)
}

/// Describes the type of a file that is not regular.
#[cfg(unix)]
fn kind(found: FileType) -> &'static str {
    use std::os::unix::fs::FileTypeExt;
    if found.is_dir() {
        "is a folder"
    } else if found.is_fifo() {
        "is a FIFO, where a regular file is needed"
    } else {
        "is not a regular file"
    }
}

#[cfg(not(unix))]
fn kind(found: FileType) -> &'static str {
    if found.is_dir() { "is a folder" } else { "is not a regular file" }
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;

    #[test]
    fn only_regular_files_are_opened_and_nothing_blocks() {
        let folder = tempfile::tempdir().unwrap();
        let fifo = folder.path().join("fifo");
        let made = std::process::Command::new("mkfifo").arg(&fifo).status();
        assert!(made.unwrap().success());
        for (path, problem) in [
            (fifo.as_path(), "FIFO"),
            (folder.path(), "folder"),
            ("/dev/zero".as_ref(), "not a regular file"),
        ] {
            let error = read(path).unwrap_err().to_string();
            assert!(error.contains(problem), "{error}");
            assert!(read_to_string(path).is_err() && open(path).is_err());
        }
        let missing = read(folder.path().join("gone")).unwrap_err();
        assert_eq!(missing.kind(), io::ErrorKind::NotFound);
        let file = folder.path().join("file");
        fs::write(&file, "text").unwrap();
        assert_eq!(read_to_string(&file).unwrap(), "text");
        assert!(open_stream(folder.path()).is_err() && open_stream(&file).is_ok());
    }
}
