//! Refuses outputs that are inputs or exist already, before anything is computed.

use std::fs::{self, File};
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use super::target::{STDOUT, Target};
use crate::error::{Error, Result};

/// An output file of a command, to be checked before the work begins.
#[derive(Clone, Copy, Debug)]
pub struct OutputFile<'a> {
    /// The path.
    pub path: &'a Path,
    /// Whether an existing file may be replaced.
    pub overwrite: bool,
    /// Whether the output is a single stream, which may also be standard output (`-`), a device or a FIFO.
    pub stream: bool,
}

impl OutputFile<'_> {
    /// Checks that the output is not one of `inputs`, would not replace a file of an input folder, and does not exist
    /// unless it may be replaced.
    ///
    /// # Errors
    /// The first of these problems, with the flag that solves it.
    pub fn check<'a>(&self, inputs: impl IntoIterator<Item = &'a Path>) -> Result<()> {
        let path = self.path;
        let elsewhere = "give another --output";
        let is_folder_name = path.as_os_str().as_encoded_bytes().ends_with(b"/");
        if path.file_name().is_none() || is_folder_name {
            return Err(Error::file(path, "is not a file name", elsewhere));
        }
        let target = Target::resolve(path)?;
        if !self.stream {
            if path == Path::new(STDOUT) {
                let problem = "this command cannot write its output to standard output";
                return Err(Error::invalid("--output -", problem, "name a file"));
            }
            target.require_file(path)?;
        }
        let Target::File(end) = &target else {
            return refuse_inputs_among(&[path.to_path_buf()], inputs);
        };
        refuse_inputs_among(std::slice::from_ref(end), inputs)?;
        // A name that is too long, a folder that is a file: found before the work, not after it.
        if let Err(e) = fs::symlink_metadata(end)
            && e.kind() != ErrorKind::NotFound
        {
            return Err(Error::io(path, "write", e));
        }
        if target.exists() && !self.overwrite { Err(exists_error(path)) } else { Ok(()) }
    }
}

/// Returns the error for an output that exists and may not be replaced.
pub fn exists_error(path: &Path) -> Error {
    let remedy = "replace it with --overwrite, or give another --output";
    Error::file(path, "exists already", remedy)
}

/// Checks that none of `files`, which will be written or removed, is an input or belongs to an input folder.
///
/// # Errors
/// The first such file, with the input.
pub fn refuse_inputs_among<'a>(
    files: &[PathBuf],
    inputs: impl IntoIterator<Item = &'a Path>,
) -> Result<()> {
    for input in inputs {
        for file in files {
            let hit = if input.is_dir() { belongs_to(file, input) } else { same_file(file, input) };
            if hit {
                let problem = if input.is_dir() {
                    format!("belongs to the input {}", input.display())
                } else {
                    "is an input too".to_string()
                };
                return Err(Error::file(file, problem, "give another output"));
            }
        }
    }
    Ok(())
}

/// Returns whether two paths lead to the same file, whatever their spelling and links.
pub fn same_file(a: &Path, b: &Path) -> bool {
    let (Ok(found_a), Ok(found_b)) = (fs::metadata(a), fs::metadata(b)) else {
        return false;
    };
    if same_inode(&found_a, &found_b) {
        return true;
    }
    matches!((fs::canonicalize(a), fs::canonicalize(b)), (Ok(a), Ok(b)) if a == b)
}

/// Returns whether both are the same file of the same file system.
#[cfg(unix)]
fn same_inode(a: &fs::Metadata, b: &fs::Metadata) -> bool {
    use std::os::unix::fs::MetadataExt;
    (a.dev(), a.ino()) == (b.dev(), b.ino())
}

#[cfg(not(unix))]
fn same_inode(_a: &fs::Metadata, _b: &fs::Metadata) -> bool {
    false
}

/// Returns whether `path` still names the open `file`.
#[cfg(unix)]
pub(crate) fn is_at(file: &File, path: &Path) -> bool {
    let found = (file.metadata(), fs::symlink_metadata(path));
    matches!(found, (Ok(open), Ok(named)) if same_inode(&open, &named))
}

/// Returns true: on other systems an open file cannot be removed.
#[cfg(not(unix))]
pub(crate) fn is_at(_file: &File, _path: &Path) -> bool {
    true
}

/// The folder of a model folder that holds files of the model too.
const CHAT_TEMPLATES: &str = "additional_chat_templates";

/// Returns whether `file` is a file of the model, adapter or evaluation in `folder`, whose entries may be links. JSON
/// Lines do not count: they are results that users keep there.
fn belongs_to(file: &Path, folder: &Path) -> bool {
    let entries = |folder: &Path| fs::read_dir(folder).into_iter().flatten().flatten();
    let mut paths =
        entries(folder).chain(entries(&folder.join(CHAT_TEMPLATES))).map(|entry| entry.path());
    paths.any(|path| {
        let results = path.extension().is_some_and(|extension| extension == "jsonl");
        !results && same_file(file, &path)
    })
}

#[cfg(all(test, unix))]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn an_input_is_recognized_through_links_and_other_spellings() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        fs::create_dir(at("model")).unwrap();
        fs::create_dir(at("model/additional_chat_templates")).unwrap();
        let template = "model/additional_chat_templates/tool_use.jinja";
        for name in ["data", "old", "model/config.json", "model/scores.jsonl", template] {
            fs::write(at(name), "").unwrap();
        }
        symlink("data", at("link")).unwrap();
        fs::hard_link(at("data"), at("hard")).unwrap();
        let check = |output: &str, input: &str, overwrite| {
            let (path, input) = (at(output), at(input));
            let file = OutputFile { path: &path, overwrite, stream: true };
            file.check([input.as_path()]).map_err(|e| e.to_string())
        };
        for output in ["data", "link", "hard", "model/../data", "./data"] {
            for overwrite in [false, true] {
                let error = check(output, "data", overwrite).unwrap_err();
                assert!(error.contains("is an input too"), "{output}: {error}");
            }
        }
        for output in ["model/config.json", template] {
            assert!(check(output, "model", true).unwrap_err().contains("belongs to"));
        }
        check("model/scores.jsonl", "model", true).unwrap();
        check("model/new.json", "model", false).unwrap();
        assert!(check("old", "data", false).unwrap_err().contains("--overwrite"));
        check("old", "data", true).unwrap();
        check("new", "data", false).unwrap();
    }
}
