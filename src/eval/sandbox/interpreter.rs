//! Finds a Python interpreter and its own files.

use std::collections::BTreeSet;
use std::env;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use serde::Deserialize;

use super::child::{End, supervise};
use crate::error::{Error, Result};

/// A Python interpreter and the paths that it must be able to read.
#[derive(Clone, Debug)]
pub(super) struct Interpreter {
    /// Path of the interpreter itself, not of a wrapper that starts it.
    pub(super) program: PathBuf,
    /// Standard library, installed packages and shared libraries.
    pub(super) readable: Vec<PathBuf>,
}

/// The output of `layout.py`.
#[derive(Deserialize)]
struct Layout {
    python: PathBuf,
    prefixes: Vec<PathBuf>,
    folders: Vec<PathBuf>,
    files: Vec<PathBuf>,
}

/// Time limit for `layout.py`, long enough for a slow network file system.
const LAYOUT_TIMEOUT: Duration = Duration::from_secs(60);
/// Maximum size of the output of `layout.py`. The names of some thousand shared libraries take a tenth of it.
const MAX_LAYOUT_BYTES: u64 = 4 << 20;

impl Interpreter {
    /// Finds the interpreter by running `python` (a name or a path). It runs outside the sandbox, because it may be a
    /// wrapper.
    ///
    /// # Errors
    /// The program cannot be started or does not answer as Python 3 does, or the user interrupts.
    pub(super) fn find(python: &str) -> Result<Self> {
        let wrong = |problem: String| {
            Error::invalid("--python", problem, "name a Python 3 interpreter, or install python3")
        };
        // -I ignores PYTHON* variables, packages in the user's home, and the current folder.
        let mut command = Command::new(python);
        command.args(["-I", "-B", "-c", include_str!("layout.py")]).stdin(Stdio::null());
        let result = supervise(&mut command, LAYOUT_TIMEOUT, MAX_LAYOUT_BYTES)
            .map_err(|e| wrong(format!("{python} cannot be started: {e}")))?;
        let status = match result.end {
            End::Exited(status) => status,
            End::OutOfTime => {
                let seconds = LAYOUT_TIMEOUT.as_secs();
                return Err(wrong(format!("{python} did not answer within {seconds} s")));
            }
            End::Interrupted => return Err(super::interrupted()),
        };
        if !status.success() {
            return Err(wrong(format!("{python} ended with {status}")));
        }
        // A package's .pth file may print something first, so only the last line is read.
        let output = String::from_utf8_lossy(&result.output);
        let line = output.lines().next_back().unwrap_or_default();
        let layout: Layout = serde_json::from_str(line)
            .map_err(|_| wrong(format!("{python} does not report its path")))?;
        if !layout.python.is_absolute() {
            return Err(wrong(format!("{python} does not report its path")));
        }
        Ok(Self {
            program: layout.python.clone(),
            readable: layout.readable(env::home_dir().as_deref()),
        })
    }
}

impl Layout {
    /// Returns the existing files and folders that are below one of the prefixes after links are resolved. Folders that
    /// contain the user's home are left out.
    fn readable(&self, home: Option<&Path>) -> Vec<PathBuf> {
        let real = |path: &PathBuf| path.canonicalize().ok();
        let prefixes: Vec<PathBuf> = self.prefixes.iter().filter_map(real).collect();
        let home = home.and_then(|home| home.canonicalize().ok());
        let contains_home = |path: &PathBuf| match &home {
            Some(home) => home.starts_with(path),
            None => path.parent().is_none(),
        };
        let paths: BTreeSet<PathBuf> = self
            .folders
            .iter()
            .chain(&self.files)
            .filter_map(real)
            .filter(|path| prefixes.iter().any(|prefix| path.starts_with(prefix)))
            .filter(|path| !contains_home(path))
            .collect();
        paths.into_iter().collect()
    }
}

#[cfg(all(test, unix))]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn only_paths_below_a_prefix_are_readable() {
        let root = tempfile::tempdir().unwrap();
        let root = root.path().canonicalize().unwrap();
        let prefix = root.join("project/venv");
        for folder in ["project/venv/lib/site-packages", "project/src", "home/me", "base/lib"] {
            fs::create_dir_all(root.join(folder)).unwrap();
        }
        // A folder of packages that is a link to the user's project does not belong to the interpreter.
        symlink(root.join("project/src"), prefix.join("lib/linked")).unwrap();
        symlink("lib", prefix.join("lib64")).unwrap();
        fs::write(prefix.join("pyvenv.cfg"), "").unwrap();
        let layout = Layout {
            python: prefix.join("bin/python"),
            prefixes: vec![prefix.clone(), root.join("base"), root.join("home")],
            folders: vec![
                prefix.join("lib/site-packages"),
                prefix.join("lib64/site-packages"),
                prefix.join("lib/linked"),
                prefix.join("lib/missing"),
                root.join("project/src"),
                root.join("home"),
                root.join("base/lib"),
            ],
            files: vec![prefix.join("pyvenv.cfg"), root.join("project/.env")],
        };
        assert_eq!(
            layout.readable(Some(&root.join("home/me"))),
            [root.join("base/lib"), prefix.join("lib/site-packages"), prefix.join("pyvenv.cfg"),]
        );
    }
}
