//! Downloads files of a repository into the cache and continues interrupted downloads.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use hf_hub::Repo;
use ureq::Body;
use ureq::http::Response;

use super::client::{
    Attempt, Client, Failure, escape, header_text, interrupted, is_model, location,
};
use super::incoming::{Incoming, pause};
use super::listing::{Listing, MAX_JSON};
use super::local::LocalRepo;
use super::names::{self, quoted};
use super::retries::Retries;
use super::verify::{Meta, verify};
use crate::error::Error;
use crate::output::append::hard_link_count;
use crate::output::check::is_at;
use crate::output::open_to_append;
use crate::progress::{Progress, ProgressMode};

/// Largest accepted size of a file whose size is not stated, in bytes. Weights and data come with their size.
const MAX_UNSIZED: u64 = 256 << 20;

/// One file to download.
struct Wanted<'a> {
    url: String,
    repo: &'a Repo,
    name: &'a str,
    meta: Meta,
    /// Maximum number of bytes to accept.
    limit: u64,
}

impl Wanted<'_> {
    /// Returns an error about this file.
    fn error(&self, problem: impl std::fmt::Display, remedy: &str) -> Failure {
        let place = format!("{}: {}", self.repo.url(), self.name);
        Failure::Final(Error::invalid(place, problem, remedy))
    }

    /// Returns the error for a failed write to the disk.
    fn not_written(&self, error: &io::Error) -> Failure {
        self.error(format!("cannot be written: {error}"), "free disk space")
    }
}

/// An incomplete copy of a file.
struct Part {
    file: File,
    progress: Progress,
    /// Time at which the last bytes arrived.
    last: Instant,
}

impl Part {
    fn length(&self) -> io::Result<u64> {
        self.file.metadata().map(|data| data.len())
    }
}

impl Client {
    /// Returns the local path of one file, downloaded unless it is in the cache. All files must belong to the
    /// listing's commit, which is set by the first response if it is unknown.
    pub(super) fn fetch(
        &self,
        repo: &Repo,
        local: &LocalRepo,
        listing: &mut Listing,
        name: &str,
    ) -> Attempt<PathBuf> {
        if let Err(problem) = names::check_path(name) {
            let problem = format!("names the file {}: {problem}", quoted(name));
            let remedy = "report it to the repository's owner";
            return Err(Error::invalid(repo.url(), problem, remedy).into());
        }
        let cached = |commit: &String| local.file(commit, name);
        if let Some(path) = listing.commit.as_ref().and_then(cached) {
            return Ok(path);
        }
        let revision = escape(repo.revision(), "");
        let url =
            format!("{}/{}/resolve/{revision}/{}", self.endpoint, repo.url(), escape(name, "/"));
        let response = self.head(&url)?;
        if location(&response).is_none() {
            self.accept(&response, repo, Some(name))?;
        }
        let mut meta = Meta::from_response(&response);
        let commit = self.resolve_commit(&meta, repo, listing)?;
        listing.commit = Some(commit.clone());
        let listed = listing.sizes.get(name).copied();
        if let (Some(listed), Some(size)) = (listed, meta.size.filter(|size| Some(*size) != listed))
        {
            let problem = format!("{name} has {listed} bytes in the listing, and {size} by itself");
            return Err(Error::invalid(repo.url(), problem, "check HF_ENDPOINT").into());
        }
        meta.size = meta.size.or(listed);
        let blob = local.blob(&names::blob(meta.etag.as_deref(), &commit, name))?;
        if !blob.is_file() {
            let wanted = self.wanted(url, repo, name, meta)?;
            self.download(&wanted, &blob)?;
        }
        Ok(local.link(&blob, &commit, name)?)
    }

    /// Determines the commit to which a file belongs.
    ///
    /// # Errors
    /// The named commit is not valid, no source names one, or it differs from that of earlier files.
    fn resolve_commit(&self, meta: &Meta, repo: &Repo, listing: &Listing) -> Attempt<String> {
        let named = meta.commit.as_deref().map(|text| self.commit(text, repo));
        let named = named.transpose()?;
        let requested = || names::commit(repo.revision());
        let known = listing.commit.clone();
        match (&known, &named) {
            (Some(known), Some(named)) if known != named => {
                let problem = format!("changed during the download (from {known} to {named})");
                let remedy = "run it again, or name a commit as the revision";
                Err(Error::invalid(repo.url(), problem, remedy).into())
            }
            _ => named.or(known).or_else(requested).ok_or_else(|| {
                let problem = "has no commit: the server names none (X-Repo-Commit)";
                let remedy = "check HF_ENDPOINT; from a plain file server, download the files into a folder and name that";
                Error::invalid(repo.url(), problem, remedy).into()
            }),
        }
    }

    /// Creates the description of a file to download, with the maximum number of bytes to accept.
    ///
    /// # Errors
    /// The stated size exceeds that maximum.
    fn wanted<'a>(
        &self,
        url: String,
        repo: &'a Repo,
        name: &'a str,
        meta: Meta,
    ) -> Attempt<Wanted<'a>> {
        let is_model_json = is_model(repo) && name.ends_with(".json");
        let max = if is_model_json { MAX_JSON } else { u64::MAX };
        let limit = meta.size.unwrap_or(MAX_UNSIZED).min(max);
        let wanted = Wanted { url, repo, name, meta, limit };
        match wanted.meta.size.filter(|size| *size > limit) {
            Some(size) => Err(wanted.error(
                format!("has {size} bytes; a model's JSON file may have at most {max}"),
                "report it to the repository's owner",
            )),
            None => Ok(wanted),
        }
    }

    /// Downloads a file to `blob` by way of `<blob>.incomplete`, which is kept if the download breaks off.
    fn download(&self, wanted: &Wanted, blob: &Path) -> Attempt<()> {
        let part = blob.with_added_extension("incomplete");
        let fail = |e| Error::io(&part, "write", e);
        let Some(file) = self.own_part(wanted, &part, blob)? else {
            return Ok(());
        };
        let (name, now) = (wanted.name, Instant::now());
        let mut copy = Part {
            file,
            progress: Progress::new(name, wanted.meta.size, "bytes", self.progress),
            last: now,
        };
        let have = copy.length().map_err(fail)?;
        enough_space(wanted, &part, have)?;
        let mut retries = Retries::new(self.retries, self.timeout, wanted.meta.size, have, now);
        while let Err(failure) = self.receive(wanted, &mut copy) {
            let Failure::Unreachable(error) = failure else {
                return Err(failure);
            };
            let length = copy.length().map_err(fail)?;
            match retries.again(length, copy.last, Instant::now()) {
                Some(wait) => {
                    copy.progress.println(&format!(
                        "{name}: the connection broke at byte {length}, continuing"
                    ));
                    if !pause(wait) {
                        return Err(interrupted().into());
                    }
                }
                None => return Err(Failure::Unreachable(error)),
            }
        }
        copy.progress.finish();
        copy.file.sync_all().map_err(fail)?;
        if let Err(problem) = verify(&mut copy.file, &wanted.meta).map_err(fail)? {
            fs::remove_file(&part).map_err(fail)?;
            return Err(wanted.error(problem, "run it again: the bad copy was removed"));
        }
        fs::rename(&part, blob).map_err(fail)?;
        Ok(())
    }

    /// Opens one connection and appends the missing bytes to the copy.
    fn receive(&self, wanted: &Wanted, copy: &mut Part) -> Attempt<()> {
        let fail = |e: io::Error| wanted.not_written(&e);
        let size = wanted.meta.size;
        let mut start = copy.length().map_err(fail)?;
        if start > wanted.limit {
            copy.file.set_len(0).map_err(fail)?;
            start = 0;
        }
        if start > 0 && size == Some(start) {
            return Ok(());
        }
        let range = (start > 0).then(|| format!("bytes={start}-"));
        let mut response = self.get(&wanted.url, range.as_deref())?;
        if response.status() == 416 && start > 0 {
            copy.file.set_len(0).map_err(fail)?;
            response = self.get(&wanted.url, None)?;
        }
        self.accept(&response, wanted.repo, Some(wanted.name))?;
        if !continues_at(&response, start) {
            // The server ignores the requested range and sends the whole file.
            copy.file.set_len(0).map_err(fail)?;
            start = 0;
        }
        let announced_length =
            announced_length(&response).map(|length| start.saturating_add(length));
        let limit = wanted.limit.min(announced_length.unwrap_or(u64::MAX));
        if let Some(length) = announced_length.filter(|length| *length > wanted.limit) {
            let max = wanted.limit;
            return Err(wanted.error(
                format!("the server announces {length} bytes, at most {max} are accepted"),
                "check HF_ENDPOINT, or report it to the repository's owner",
            ));
        }
        copy.progress.set_position(start);
        self.append(wanted, copy, response.into_body(), limit)?;
        let length = copy.length().map_err(fail)?;
        match size.or(announced_length).filter(|size| length < *size) {
            Some(size) => {
                let problem = format!("ended at byte {length} of {size}");
                Err(self.unreachable(&wanted.url, &problem))
            }
            None => Ok(()),
        }
    }

    /// Appends a response body to the copy, which never becomes longer than `limit`.
    fn append(&self, wanted: &Wanted, copy: &mut Part, body: Body, limit: u64) -> Attempt<()> {
        let fail = |e: io::Error| wanted.not_written(&e);
        let mut length = copy.length().map_err(fail)?;
        let mut incoming = Incoming::start(body, self.timeout);
        loop {
            let block = incoming.next().map_err(|error| self.broken(&wanted.url, error))?;
            if block.is_empty() {
                return Ok(());
            }
            copy.last = Instant::now();
            length += block.len() as u64;
            if length > limit {
                copy.file.set_len(0).map_err(fail)?;
                return Err(wanted.error(
                    format!("the server sends more than {limit} bytes"),
                    "check HF_ENDPOINT; a file without a stated size may have at most 256 MiB",
                ));
            }
            copy.file.write_all(&block).map_err(fail)?;
            copy.progress.inc(block.len() as u64);
        }
    }

    /// Opens and locks the unfinished file, so that no other process writes to it. If it has other hard links, as in a
    /// cache copied by `cp -al`, it is replaced by a copy. Returns `None` if another process has completed the download.
    fn own_part(&self, wanted: &Wanted, part: &Path, blob: &Path) -> Attempt<Option<File>> {
        let fail = |e| Error::io(part, "write", e);
        loop {
            let file = open_part(part).map_err(fail)?;
            self.lock(&file, wanted.name, part)?;
            if blob.is_file() {
                return Ok(None);
            }
            let several = hard_link_count(&file.metadata().map_err(fail)?) > 1;
            if several {
                open_to_append(part)?;
            }
            if !several && is_at(&file, part) {
                return Ok(Some(file));
            }
        }
    }

    /// Waits until no other process writes the file.
    fn lock(&self, file: &File, name: &str, part: &Path) -> Attempt<()> {
        let mut announced_wait = self.progress == ProgressMode::Quiet;
        loop {
            match file.try_lock() {
                Ok(()) => return Ok(()),
                Err(TryLockError::WouldBlock) => {
                    if !announced_wait {
                        say!("{name}: waiting for another download of it");
                        announced_wait = true;
                    }
                    if !pause(Duration::from_millis(200)) {
                        return Err(interrupted().into());
                    }
                }
                // Some network file systems do not support locks.
                Err(TryLockError::Error(e)) if e.kind() == io::ErrorKind::Unsupported => {
                    return Ok(());
                }
                Err(TryLockError::Error(e)) => return Err(Error::io(part, "lock", e).into()),
            }
        }
    }
}

/// Opens the incomplete file. Anything else of that name, such as a link or a pipe, is removed rather than followed.
fn open_part(part: &Path) -> io::Result<File> {
    if let Some(folder) = part.parent() {
        fs::create_dir_all(folder)?;
    }
    if part.symlink_metadata().is_ok_and(|data| !data.file_type().is_file()) {
        fs::remove_file(part)?;
    }
    OpenOptions::new().append(true).read(true).create(true).open(part)
}

/// Returns whether a response is the rest of the file from byte `start` on.
fn continues_at(response: &Response<Body>, start: u64) -> bool {
    let range = header_text(response.headers(), "content-range");
    let from_start = range.is_some_and(|range| range.starts_with(&format!("bytes {start}-")));
    response.status() == 206 && from_start
}

/// Returns the length of the body as the server announces it.
fn announced_length(response: &Response<Body>) -> Option<u64> {
    header_text(response.headers(), "content-length")?.trim().parse().ok()
}

/// Returns an error if the disk has too little space for the download.
fn enough_space(wanted: &Wanted, part: &Path, have: u64) -> Attempt<()> {
    let missing = wanted.meta.size.unwrap_or(0).saturating_sub(have);
    match free_space(part).filter(|free| *free < missing) {
        Some(free) => Err(wanted.error(
            format!("needs {missing} more bytes, but the disk has {free} free"),
            "free disk space, or set HF_HUB_CACHE to a folder on another disk",
        )),
        None => Ok(()),
    }
}

/// Returns the bytes available on the disk of `path`, if the system tells.
#[cfg(all(target_os = "linux", target_endian = "little"))]
fn free_space(path: &Path) -> Option<u64> {
    let status = rustix::fs::statvfs(path).ok()?;
    Some(status.f_bavail.saturating_mul(status.f_frsize))
}

#[cfg(not(all(target_os = "linux", target_endian = "little")))]
fn free_space(_path: &Path) -> Option<u64> {
    None
}
