//! Manages the cache folder of one repository: `blobs/`, `snapshots/<commit>/`, `refs/`.

use std::fs;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use hf_hub::Repo;

use super::names;
use crate::error::{Error, Result};
use crate::input_file;
use crate::output::write_whole;

/// The part of the cache that belongs to a repository at one revision.
#[derive(Debug)]
pub(super) struct LocalRepo {
    cache_dir: PathBuf,
    repo: Repo,
    /// `models--owner--name` in the cache folder.
    folder: PathBuf,
}

impl LocalRepo {
    /// Creates the cache part of `repo`, whose id and revision are already checked (`names::repository`).
    pub(super) fn new(cache_dir: &Path, repo: &Repo) -> Self {
        Self {
            cache_dir: cache_dir.to_path_buf(),
            repo: repo.clone(),
            folder: cache_dir.join(repo.folder_name()),
        }
    }

    /// Returns the commit that the revision had at its last download, or the revision itself if it is a commit.
    fn commit(&self) -> Option<String> {
        let revision = self.repo.revision();
        names::commit(revision).or_else(|| {
            let path = self.folder.join("refs").join(revision);
            let mut text = String::new();
            // The text of any other file is not a commit, however long.
            let file = input_file::open(&path).ok()?;
            file.take(100).read_to_string(&mut text).ok()?;
            names::commit(text.trim())
        })
    }

    /// Returns the folder of the revision's files, if it exists.
    pub(super) fn snapshot(&self) -> Option<PathBuf> {
        let folder = self.snapshot_folder(&self.commit()?);
        folder.is_dir().then_some(folder)
    }

    /// Returns the folder of a commit's files.
    fn snapshot_folder(&self, commit: &str) -> PathBuf {
        self.folder.join("snapshots").join(commit)
    }

    /// Returns the path of the file `name` of `commit`, if it exists.
    pub(super) fn file(&self, commit: &str, name: &str) -> Option<PathBuf> {
        names::check_path(name).ok()?;
        let path = self.snapshot_folder(commit).join(name);
        path.is_file().then_some(path)
    }

    /// Returns the path of the blob of this name.
    ///
    /// # Errors
    /// The path would lie outside the cache.
    pub(super) fn blob(&self, name: &str) -> Result<PathBuf> {
        self.inside(&format!("blobs/{name}"))
    }

    /// Returns the names of all files of the commit, as the hub listed them. The list is an addition to the usual
    /// layout: without it, a folder or glob could silently match fewer files when offline.
    pub(super) fn listing(&self) -> Option<Vec<String>> {
        let name = format!("{}.json", self.commit()?);
        let path = self.folder.join("listings").join(name);
        serde_json::from_slice(&input_file::read(&path).ok()?).ok()
    }

    /// Records that the revision is `commit`, with `files`.
    ///
    /// # Errors
    /// The disk is full, or a path would lie outside the cache.
    pub(super) fn set_revision(&self, commit: &str, files: Option<&[String]>) -> Result<()> {
        if let Some(files) = files {
            let json = serde_json::Value::from(files.to_vec()).to_string();
            let path = self.inside(&format!("listings/{commit}.json"))?;
            write_whole(&path, json.as_bytes())?;
        }
        let revision = self.repo.revision();
        if names::commit(revision).is_some() {
            return Ok(());
        }
        let path = self.inside(&format!("refs/{revision}"))?;
        write_whole(&path, commit.as_bytes())
    }

    /// Creates the link `snapshots/<commit>/<name>` to `blob` and returns its path.
    ///
    /// # Errors
    /// The path would lie outside the cache, or the system refuses.
    pub(super) fn link(&self, blob: &Path, commit: &str, name: &str) -> Result<PathBuf> {
        let path = self.inside(&format!("snapshots/{commit}/{name}"))?;
        let fail = |e| Error::io(&path, "write", e);
        if let Some(folder) = path.parent() {
            fs::create_dir_all(folder).map_err(fail)?;
        }
        if path.symlink_metadata().is_ok() {
            fs::remove_file(&path).map_err(fail)?;
        }
        // The relative path goes up from snapshots/<commit>/<folders of name>/ to the repository's folder.
        let mut target: PathBuf = (0..2 + name.matches('/').count()).map(|_| "..").collect();
        target.push("blobs");
        target.push(blob.file_name().unwrap_or_default());
        symlink_or_copy(&target, blob, &path).map_err(fail)?;
        Ok(path)
    }

    /// Returns the path of `name` in this repository's folder, for writing. All written paths come from here,
    /// whatever was checked before: nothing is written outside the cache, not even through a link inside it.
    ///
    /// # Errors
    /// The path leaves the cache.
    fn inside(&self, name: &str) -> Result<PathBuf> {
        let path = self.folder.join(name);
        let refuse = |problem: &str| {
            Error::file(
                &path,
                format!("is not written: {problem}"),
                "remove the link, and set HF_HUB_CACHE to where the files are to be kept",
            )
        };
        names::check_path(name).map_err(refuse)?;
        let parents = path.ancestors().skip(1);
        let mut parents = parents.take_while(|parent| parent.starts_with(&self.cache_dir));
        // Missing folders are created as folders, never as links.
        if let Some(parent) = parents.find(|parent| parent.symlink_metadata().is_ok()) {
            let real = |path: &Path| path.canonicalize().map_err(|e| Error::io(path, "open", e));
            if !real(parent)?.starts_with(real(&self.cache_dir)?) {
                return Err(refuse("a link leads out of the cache"));
            }
        }
        Ok(path)
    }
}

#[cfg(unix)]
fn symlink_or_copy(target: &Path, _blob: &Path, path: &Path) -> io::Result<()> {
    std::os::unix::fs::symlink(target, path)
}

/// Creates a hard link or a copy, because symbolic links need a privilege on Windows that most users lack.
#[cfg(not(unix))]
fn symlink_or_copy(_target: &Path, blob: &Path, path: &Path) -> io::Result<()> {
    fs::hard_link(blob, path).or_else(|_| fs::copy(blob, path).map(drop))
}

#[cfg(all(test, unix))]
mod tests {
    use std::os::unix::fs::symlink;

    use hf_hub::RepoType;

    use super::*;

    const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

    fn local(cache: &Path, revision: &str) -> LocalRepo {
        let repo = Repo::with_revision("own/tiny".into(), RepoType::Model, revision.into());
        LocalRepo::new(cache, &repo)
    }

    /// Passes names that the earlier checks would have refused.
    #[test]
    fn nothing_is_written_outside_the_cache() {
        let root = tempfile::tempdir().unwrap();
        let cache = root.path().join("a/b/cache");
        let outside = root.path().join("outside");
        fs::create_dir_all(&outside).unwrap();
        let blob = cache.join("blobs/x");
        for bad in ["../../../../../../outside", outside.to_str().unwrap(), "../.."] {
            let repo = local(&cache, bad);
            assert!(repo.set_revision(COMMIT, None).is_err(), "{bad}");
            let repo = local(&cache, "main");
            assert!(repo.set_revision(bad, Some(&[])).is_err(), "{bad}");
            assert!(repo.link(&blob, bad, "config.json").is_err(), "{bad}");
            assert!(repo.link(&blob, COMMIT, bad).is_err(), "{bad}");
            assert!(repo.blob(bad).is_err(), "{bad}");
            assert_eq!(repo.file(COMMIT, bad), None);
        }
        assert_eq!(fs::read_dir(&outside).unwrap().count(), 0);
    }

    #[test]
    fn links_in_the_cache_do_not_lead_out_of_it() {
        let root = tempfile::tempdir().unwrap();
        let (cache, outside) = (root.path().join("cache"), root.path().join("outside"));
        fs::create_dir_all(&outside).unwrap();
        let repo = local(&cache, "main");
        let folder = cache.join("models--own--tiny");
        fs::create_dir_all(folder.join("snapshots")).unwrap();
        for link in ["blobs", "refs", "snapshots/link"] {
            symlink(&outside, folder.join(link)).unwrap();
        }
        assert!(repo.blob("x").is_err());
        assert!(repo.set_revision(COMMIT, None).is_err());
        assert!(repo.link(&outside, "link", "config.json").is_err());
        // A link to the cache itself is the user's choice of a disk.
        let linked = root.path().join("linked");
        symlink(&cache, &linked).unwrap();
        let repo = local(&linked, "main");
        assert!(repo.link(&outside, COMMIT, "config.json").is_ok());
        assert_eq!(fs::read_dir(&outside).unwrap().count(), 0);
    }

    #[test]
    fn a_revision_file_names_a_commit_or_nothing() {
        let cache = tempfile::tempdir().unwrap();
        let repo = local(cache.path(), "main");
        let refs = cache.path().join("models--own--tiny/refs");
        fs::create_dir_all(&refs).unwrap();
        for (text, expected) in [
            (COMMIT, Some(COMMIT)),
            (&format!("{COMMIT}\n"), Some(COMMIT)),
            ("..", None),
            ("main", None),
            ("", None),
        ] {
            fs::write(refs.join("main"), text).unwrap();
            assert_eq!(repo.commit().as_deref(), expected, "{text:?}");
        }
        assert_eq!(local(cache.path(), COMMIT).commit().as_deref(), Some(COMMIT));
    }
}
