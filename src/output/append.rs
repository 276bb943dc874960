//! Appends to files. Hard links to the same file, such as those that `cp -al` creates, keep their content.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::path::Path;

use super::whole_file::WholeFile;
use crate::error::{Error, Result};

/// Opens the file at `path` for reading and appending, and creates it if it does not exist. A file with several hard
/// links is first replaced by a copy.
///
/// # Errors
/// The file cannot be opened, or its copy cannot be written.
pub fn open_to_append(path: &Path) -> Result<File> {
    let fail = |action| move |e| Error::io(path, action, e);
    let open = || {
        let mut options = OpenOptions::new();
        options.read(true).append(true).create(true).open(path).map_err(fail("open"))
    };
    let mut file = open()?;
    let found = file.metadata().map_err(fail("open"))?;
    if !found.is_file() || hard_link_count(&found) < 2 {
        return Ok(file);
    }
    let mut copy = WholeFile::create(path)?;
    io::copy(&mut file, &mut copy).map_err(fail("copy"))?;
    copy.commit()?;
    open()
}

/// Returns the number of hard links to a file.
#[cfg(unix)]
pub(crate) fn hard_link_count(file: &fs::Metadata) -> u64 {
    use std::os::unix::fs::MetadataExt;
    file.nlink()
}

#[cfg(not(unix))]
pub(crate) fn hard_link_count(_file: &fs::Metadata) -> u64 {
    1
}

#[cfg(all(test, unix))]
mod tests {
    use std::io::Write;
    use std::os::unix::fs::{PermissionsExt, symlink};

    use super::*;

    #[test]
    fn hard_links_keep_their_content() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        fs::write(at("log"), "a\n").unwrap();
        fs::set_permissions(at("log"), fs::Permissions::from_mode(0o640)).unwrap();
        fs::hard_link(at("log"), at("backup")).unwrap();
        symlink("log", at("link")).unwrap();
        for (name, line) in [("link", "b\n"), ("log", "c\n"), ("new", "d\n")] {
            open_to_append(&at(name)).unwrap().write_all(line.as_bytes()).unwrap();
        }
        assert_eq!(fs::read_to_string(at("log")).unwrap(), "a\nb\nc\n");
        assert_eq!(fs::read_to_string(at("backup")).unwrap(), "a\n");
        assert_eq!(fs::read_to_string(at("new")).unwrap(), "d\n");
        assert!(fs::symlink_metadata(at("link")).unwrap().is_symlink());
        let mode = fs::metadata(at("log")).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o640);
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 4);
    }
}
