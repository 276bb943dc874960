//! Resolves output paths: to a regular file, which is replaced as a whole, or to something that is written in place.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::path::{Component, Path, PathBuf};

use super::parent;
use crate::error::{Error, Result};

/// The path that means standard output.
pub const STDOUT: &str = "-";

/// Maximum number of links to follow; more are considered a circle.
const MAX_LINKS: usize = 40;

/// The destination of an output path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// A regular file, which may not exist yet. The last component of the path is not a link, so that a file renamed to
    /// the path replaces the target of a link and leaves the link.
    File(PathBuf),
    /// A device, a FIFO or an open descriptor, which is written in place.
    InPlace(PathBuf),
    /// Standard output: `-`, `/dev/stdout`.
    Stdout,
}

impl Target {
    /// Resolves the links of `path`.
    ///
    /// # Errors
    /// The path leads to a folder, or its links go in a circle.
    pub fn resolve(path: &Path) -> Result<Self> {
        if path == Path::new(STDOUT) {
            return Ok(Self::Stdout);
        }
        let (end, descriptor) = follow(path).map_err(|e| Error::io(path, "follow", e))?;
        match descriptor {
            Some(1) => return Ok(Self::Stdout),
            Some(_) => return Ok(Self::InPlace(end)),
            None => {}
        }
        match fs::metadata(&end) {
            Ok(found) if found.is_dir() => {
                Err(Error::file(path, "is a folder", "give the output a file name"))
            }
            Ok(found) if !found.is_file() => Ok(Self::InPlace(end)),
            _ => Ok(Self::File(end)),
        }
    }

    /// Returns whether both lead to the same place, however the paths are spelled. The files need not exist.
    pub fn is_same(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::File(a), Self::File(b)) => real_file(a) == real_file(b),
            _ => self == other,
        }
    }

    /// Returns whether the target is a regular file that exists.
    pub fn exists(&self) -> bool {
        matches!(self, Self::File(path) if path.exists())
    }

    /// Checks that the target of `path` is a regular file, for outputs with further files beside them.
    ///
    /// # Errors
    /// It is not a regular file.
    pub fn require_file(&self, path: &Path) -> Result<()> {
        match self {
            Self::File(_) => Ok(()),
            _ => Err(Error::file(
                path,
                "is not a regular file, and further files are written beside this output",
                "name a file",
            )),
        }
    }
}

/// Returns whether `path` leads to an open descriptor of this process, such as `/dev/stdin` or `<(command)`.
pub fn is_open_descriptor(path: &Path) -> bool {
    follow(path).is_ok_and(|(_, descriptor)| descriptor.is_some())
}

/// Resolves the links of the `path` of a folder, which may not exist yet.
///
/// # Errors
/// The path leads to something other than a folder, or its links go in a circle.
pub fn resolve_folder(path: &Path) -> Result<PathBuf> {
    let (end, _) = follow(path).map_err(|e| Error::io(path, "follow", e))?;
    match fs::metadata(&end) {
        Ok(found) if !found.is_dir() => {
            let problem = if found.is_file() { "is a file" } else { "is not a folder" };
            Err(Error::file(path, problem, "name a folder"))
        }
        // The result must have a file name, unlike `.`.
        Ok(_) => fs::canonicalize(&end).map_err(|e| Error::io(path, "open", e)),
        Err(_) => Ok(end),
    }
}

/// Follows the links of `path`. Returns the path they lead to, and its number if it is an open descriptor.
fn follow(path: &Path) -> io::Result<(PathBuf, Option<u32>)> {
    let mut end = path.to_path_buf();
    for _ in 0..MAX_LINKS {
        let descriptor = descriptor(&end);
        if descriptor.is_some() {
            return Ok((end, descriptor));
        }
        match fs::read_link(&end) {
            // A `..` in a link is relative to the real folder of the link.
            Ok(to) => end = real(parent(&end)).join(to),
            Err(_) => return Ok((end, None)),
        }
    }
    Err(io::Error::other("too many links: they go in a circle"))
}

/// Returns the number of the open descriptor that `path` names: 1 for `/dev/stdout`, `N` for `/dev/fd/N` or
/// `/proc/self/fd/N`.
fn descriptor(path: &Path) -> Option<u32> {
    if path == Path::new("/dev/stdout") {
        return Some(1);
    }
    let number: u32 = path.file_name()?.to_str()?.parse().ok()?;
    let folder = fs::canonicalize(path.parent()?).ok()?;
    let mut own = ["/proc/self/fd", "/dev/fd"].iter().map(fs::canonicalize);
    own.any(|own| own.is_ok_and(|own| own == folder)).then_some(number)
}

/// Opens an output that is written in place. Blocks on a FIFO until another process reads from it.
pub(super) fn open_in_place(path: &Path) -> io::Result<File> {
    let mut options = OpenOptions::new();
    if fs::metadata(path).is_ok_and(|found| found.is_file()) {
        // An open descriptor of a file, such as by `3>>log`.
        options.append(true);
    } else {
        options.write(true);
    }
    options.open(path)
}

/// Returns the absolute path of a file, without links as far as its folders exist, and without `.` and `..`.
fn real_file(path: &Path) -> PathBuf {
    let mut known = std::path::absolute(path).unwrap_or_else(|_| path.to_path_buf());
    // The components behind the folders that exist, the last one first, and the number of `..` that cancel the next ones.
    let (mut missing, mut cancelled) = (Vec::new(), 0);
    loop {
        if let Ok(real) = fs::canonicalize(&known) {
            return missing.into_iter().rev().fold(real, |path, name| path.join(name));
        }
        match known.components().next_back() {
            Some(Component::ParentDir) => cancelled += 1,
            Some(Component::Normal(_)) if cancelled > 0 => cancelled -= 1,
            Some(Component::Normal(name)) => missing.push(name.to_os_string()),
            _ => return path.to_path_buf(),
        }
        known.pop();
    }
}

fn real(folder: &Path) -> PathBuf {
    fs::canonicalize(folder).unwrap_or_else(|_| folder.to_path_buf())
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn links_lead_to_their_last_target_and_devices_are_written_in_place() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        fs::create_dir(at("deep")).unwrap();
        fs::write(at("file"), "old").unwrap();
        symlink("../file", at("deep/to-file")).unwrap();
        symlink("deep/to-file", at("to-link")).unwrap();
        symlink("nothing-yet", at("dangling")).unwrap();
        symlink("b", at("a")).unwrap();
        symlink("a", at("b")).unwrap();
        symlink("/dev/null", at("to-null")).unwrap();
        let real = |name: &str| fs::canonicalize(folder.path()).unwrap().join(name);
        let resolve = |name: &str| Target::resolve(&at(name));
        let Target::File(found) = resolve("to-link").unwrap() else {
            panic!("not a file");
        };
        assert_eq!(fs::canonicalize(found).unwrap(), real("file"));
        assert_eq!(resolve("dangling").unwrap(), Target::File(real("nothing-yet")));
        assert_eq!(resolve("new").unwrap(), Target::File(at("new")));
        assert_eq!(resolve("to-null").unwrap(), Target::InPlace("/dev/null".into()));
        assert!(resolve("a").is_err());
        assert!(resolve("deep").unwrap_err().to_string().contains("is a folder"));
        for stdout in ["-", "/dev/stdout", "/proc/self/fd/1", "/dev/fd/1"] {
            assert_eq!(Target::resolve(stdout.as_ref()).unwrap(), Target::Stdout, "{stdout}");
        }
        assert!(matches!(Target::resolve("/dev/fd/2".as_ref()).unwrap(), Target::InPlace(_)));
    }

    #[test]
    fn spellings_of_one_file_are_the_same_target() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        fs::create_dir(at("deep")).unwrap();
        symlink("deep", at("to-deep")).unwrap();
        symlink("deep/new", at("to-new")).unwrap();
        let target = |name: &str| Target::resolve(&at(name)).unwrap();
        for name in
            ["deep/new", "to-deep/new", "to-new", "./deep/../deep/./new", "no/a/../../deep/new"]
        {
            assert!(target(name).is_same(&target("deep/new")), "{name}");
        }
        for name in ["new", "deep/new2", "deep/new/new", "no/deep/new"] {
            assert!(!target(name).is_same(&target("deep/new")), "{name}");
        }
        assert!(target("no/new").is_same(&target("no/b/../new")));
    }

    #[test]
    fn folder_links_lead_to_their_last_target_which_may_not_exist() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        let real = |name: &str| fs::canonicalize(folder.path()).unwrap().join(name);
        fs::create_dir(at("empty")).unwrap();
        fs::write(at("file"), "").unwrap();
        symlink("empty", at("to-empty")).unwrap();
        symlink("nothing-yet", at("dangling")).unwrap();
        symlink("file", at("to-file")).unwrap();
        symlink("/dev/null", at("null")).unwrap();
        symlink("circle", at("circle")).unwrap();
        assert_eq!(resolve_folder(&at("to-empty")).unwrap(), real("empty"));
        assert_eq!(resolve_folder(&at("empty/.")).unwrap(), real("empty"));
        assert_eq!(resolve_folder(&at("dangling")).unwrap(), real("nothing-yet"));
        assert_eq!(resolve_folder(&at("new")).unwrap(), at("new"));
        for (name, said) in
            [("to-file", "is a file"), ("null", "is not a folder"), ("circle", "circle")]
        {
            let error = resolve_folder(&at(name)).unwrap_err().to_string();
            assert!(error.contains(said), "{error}");
        }
    }
}
