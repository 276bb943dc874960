//! Writes the outputs of all commands. A regular file is either complete or absent; a device or a FIFO is written in
//! place. Files that this program did not write are never removed, and replaced only on request.
//!
//! - [`whole_file`]: writes a file beside its final path and renames it when it is complete; [`commit_set`] does so for
//!   files that belong together;
//! - [`append`]: appends to a file, but not to its hard links;
//! - [`target`]: resolves the links of an output path;
//! - [`check`](mod@check): refuses outputs that are inputs or exist already, before anything is computed;
//! - [`part`]: creates temporary files and removes those of dead processes;
//! - [`list`]: lists the files that this program wrote into a folder;
//! - [`folder`]: publishes the files of a folder together;
//! - [`lock`]: keeps two processes from writing to the same place.

pub mod append;
pub mod check;
pub mod folder;
pub mod list;
pub mod lock;
pub mod part;
pub mod target;
pub mod whole_file;

use std::fs;
use std::io;
use std::path::Path;

pub use append::open_to_append;
pub use check::{OutputFile, refuse_inputs_among, same_file};
pub use list::FileList;
pub use lock::Lock;
pub use target::Target;
pub use whole_file::{WholeFile, commit_set, write_whole};

use crate::error::{Error, Result};

/// Removes the file, link or empty folder at `path`, if there is one. The target of a link stays.
///
/// # Errors
/// The system refuses.
pub fn remove(path: &Path) -> Result<()> {
    let removed = match fs::symlink_metadata(path) {
        Ok(metadata) if metadata.is_dir() => fs::remove_dir(path),
        Ok(_) => fs::remove_file(path),
        Err(e) => Err(e),
    };
    match removed {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(Error::io(path, "remove", e)),
        _ => Ok(()),
    }
}

/// Returns the folder that contains `path`.
pub(crate) fn parent(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}

/// Flushes the names in `folder` to disk. Errors are ignored, because not every file system supports this.
pub(crate) fn sync_folder(folder: &Path) {
    if let Ok(folder) = fs::File::open(folder) {
        let _ = folder.sync_all();
    }
}

/// Returns whether `folder` contains anything other than locks and temporary files of this program.
pub fn is_taken(folder: &Path) -> bool {
    let Ok(entries) = fs::read_dir(folder) else {
        return false;
    };
    entries.flatten().any(|entry| {
        let name = entry.file_name();
        let name = name.to_string_lossy();
        name != lock::NAME && !part::is_part(&name)
    })
}
