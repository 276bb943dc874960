//! The cache folder of one repository: `blobs/`, `snapshots/<commit>/`, `refs/`.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use hf_hub::{Cache, Repo};

use crate::error::{Error, Result};
use crate::output::write_whole;

/// What the cache knows of a repository at one revision.
#[derive(Debug)]
pub(super) struct LocalRepo {
    cache: Cache,
    repo: Repo,
    /// `models--owner--name` in the cache folder.
    folder: PathBuf,
}

impl LocalRepo {
    pub(super) fn new(cache_dir: &Path, repo: &Repo) -> Self {
        let folder = cache_dir.join(repo.folder_name());
        Self { cache: Cache::new(cache_dir.to_path_buf()), repo: repo.clone(), folder }
    }

    /// The commit the revision meant when it was last downloaded; a commit means itself.
    fn commit(&self) -> Option<String> {
        let revision = self.repo.revision();
        let text = fs::read_to_string(self.folder.join("refs").join(revision));
        let commit = text.unwrap_or_else(|_| revision.to_string()).trim().to_string();
        let plain = !commit.is_empty() && commit.bytes().all(|b| b.is_ascii_alphanumeric());
        plain.then_some(commit)
    }

    /// The folder of the revision's files, if there is one.
    pub(super) fn snapshot(&self) -> Option<PathBuf> {
        let folder = self.snapshot_of(&self.commit()?);
        folder.is_dir().then_some(folder)
    }

    /// The folder of a commit's files.
    pub(super) fn snapshot_of(&self, commit: &str) -> PathBuf {
        self.cache.repo(self.repo.clone()).pointer_path(commit)
    }

    /// Where the content with this etag is kept.
    pub(super) fn blob(&self, etag: &str) -> PathBuf {
        self.cache.repo(self.repo.clone()).blob_path(etag)
    }

    /// The names of all files of the commit, as the hub listed them. A file of ours beside the usual layout, without which
    /// a folder or pattern could silently mean fewer files when offline.
    pub(super) fn listing(&self) -> Option<Vec<String>> {
        let path = self.listing_path(&self.commit()?);
        serde_json::from_slice(&fs::read(path).ok()?).ok()
    }

    fn listing_path(&self, commit: &str) -> PathBuf {
        self.folder.join("listings").join(format!("{commit}.json"))
    }

    /// Notes that the revision is `commit`, with `files`.
    pub(super) fn set_revision(&self, commit: &str, files: Option<&[String]>) -> Result<()> {
        if let Some(files) = files {
            let json = serde_json::Value::from(files.to_vec()).to_string();
            write_whole(&self.listing_path(commit), json.as_bytes())?;
        }
        if self.repo.revision() == commit {
            return Ok(());
        }
        let path = self.folder.join("refs").join(self.repo.revision());
        write_whole(&path, commit.as_bytes())
    }

    /// Makes `snapshots/<commit>/<name>` point to `blob`; returns its path.
    pub(super) fn link(&self, blob: &Path, commit: &str, name: &str) -> Result<PathBuf> {
        let path = self.snapshot_of(commit).join(name);
        let fail = |e| Error::io(&path, "write", e);
        if let Some(folder) = path.parent() {
            fs::create_dir_all(folder).map_err(fail)?;
        }
        if path.symlink_metadata().is_ok() {
            fs::remove_file(&path).map_err(fail)?;
        }
        // From snapshots/<commit>/<folders of name>/ up to the repository's folder.
        let mut target: PathBuf = (0..2 + name.matches('/').count()).map(|_| "..").collect();
        target.push("blobs");
        target.push(blob.file_name().unwrap_or_default());
        symlink_or_copy(&target, blob, &path).map_err(fail)?;
        Ok(path)
    }
}

#[cfg(unix)]
fn symlink_or_copy(target: &Path, _blob: &Path, path: &Path) -> io::Result<()> {
    std::os::unix::fs::symlink(target, path)
}

/// Links need a privilege on Windows that most users lack.
#[cfg(not(unix))]
fn symlink_or_copy(_target: &Path, blob: &Path, path: &Path) -> io::Result<()> {
    fs::hard_link(blob, path).or_else(|_| fs::copy(blob, path).map(drop))
}
