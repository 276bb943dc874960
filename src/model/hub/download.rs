//! Talking to the hub: listings, and files that go on where an earlier download stopped.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Read, Seek, Write};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use hf_hub::Repo;
use serde::Deserialize;
use sha2::{Digest, Sha256};
use ureq::config::RedirectAuthHeaders;
use ureq::http::{HeaderMap, Response};
use ureq::typestate::WithoutBody;
use ureq::{Agent, Body, RequestBuilder};

use super::HubConfig;
use super::local::LocalRepo;
use crate::error::Error;
use crate::interrupt;
use crate::progress::{Progress, ProgressMode};

/// Why something could not be had.
#[derive(Debug)]
pub(super) enum Failure {
    /// No connection, or the hub is ill: the cache may be used instead.
    Unreachable(Error),
    /// The hub says that there is no such file.
    NotFound(Error),
    /// Anything that trying again will not mend.
    Final(Error),
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self::Final(error)
    }
}

impl From<Failure> for Error {
    fn from(failure: Failure) -> Self {
        match failure {
            Failure::Unreachable(error) | Failure::NotFound(error) | Failure::Final(error) => error,
        }
    }
}

type Attempt<T> = std::result::Result<T, Failure>;

/// What the hub says about a repository; an endpoint that is only a file server says nothing.
#[derive(Debug, Default)]
pub(super) struct Listing {
    pub(super) commit: Option<String>,
    pub(super) files: Option<Vec<String>>,
}

/// What the hub says about a file.
#[derive(Debug)]
struct Meta {
    commit: Option<String>,
    etag: Option<String>,
    size: Option<u64>,
}

/// Speaks HTTP with one endpoint.
#[derive(Debug)]
pub(super) struct Client {
    /// Follows redirects, and shows the token to the endpoint only.
    agent: Agent,
    /// Does not follow: the first answer carries commit and etag, the storage behind it does not.
    direct: Agent,
    endpoint: String,
    token: Option<String>,
    retries: u32,
    progress: ProgressMode,
}

impl Client {
    pub(super) fn new(config: &HubConfig) -> Self {
        let agent = |redirects| -> Agent {
            Agent::config_builder()
                .http_status_as_error(false)
                .max_redirects(redirects)
                .redirect_auth_headers(RedirectAuthHeaders::SameHost)
                .user_agent(concat!("arithmo/", env!("CARGO_PKG_VERSION")))
                .timeout_connect(Some(Duration::from_secs(10)))
                .timeout_recv_response(Some(Duration::from_secs(60)))
                .timeout_per_read(Some(Duration::from_secs(60)))
                .build()
                .into()
        };
        Self {
            agent: agent(10),
            direct: agent(0),
            endpoint: config.endpoint.clone(),
            token: config.token.clone(),
            retries: config.retries,
            progress: config.progress,
        }
    }

    /// Commit and file names of a repository at its revision.
    pub(super) fn list(&self, repo: &Repo) -> Attempt<Listing> {
        #[derive(Deserialize)]
        struct Info {
            sha: Option<String>,
            siblings: Option<Vec<Sibling>>,
        }
        #[derive(Deserialize)]
        struct Sibling {
            rfilename: String,
        }
        let url = format!("{}/api/{}", self.endpoint, repo.api_url());
        let mut response = self.get(&self.agent, &url, None)?;
        if response.status() == 404 && error_code(&response).is_empty() {
            return Ok(Listing::default());
        }
        self.accept(&response, repo, None)?;
        let info = response.body_mut().with_config().limit(1 << 30).read_to_vec();
        let info: Info = info.map_err(|e| self.unreachable(&url, &e)).and_then(|bytes| {
            let problem =
                |e| Error::invalid(&url, format!("gave no listing: {e}"), "check HF_ENDPOINT");
            Ok(serde_json::from_slice(&bytes).map_err(problem)?)
        })?;
        let names = |list: Vec<Sibling>| list.into_iter().map(|file| file.rfilename).collect();
        Ok(Listing { commit: info.sha, files: info.siblings.map(names) })
    }

    /// The local path of one file, downloaded if it is not in the cache. `commit` is what all files must belong to, and
    /// is learnt from the first answer if it is not known.
    pub(super) fn fetch(
        &self,
        repo: &Repo,
        local: &LocalRepo,
        commit: &mut Option<String>,
        name: &str,
    ) -> Attempt<PathBuf> {
        if Path::new(name).components().any(|part| !matches!(part, std::path::Component::Normal(_)))
        {
            return Err(Error::invalid(
                repo.url(),
                format!("lists the file {name:?}"),
                "report it",
            )
            .into());
        }
        if let Some(commit) = commit {
            let path = local.snapshot_of(commit).join(name);
            if path.is_file() {
                return Ok(path);
            }
        }
        let revision = escape(repo.revision(), "");
        let url =
            format!("{}/{}/resolve/{revision}/{}", self.endpoint, repo.url(), escape(name, "/"));
        let meta = self.head(&url, repo, name)?;
        let found = meta.commit.clone().or_else(|| commit.clone());
        let found = found.unwrap_or_else(|| "unknown".to_string());
        if commit.as_ref().is_some_and(|commit| *commit != found) {
            return Err(Failure::Final(Error::invalid(
                repo.url(),
                format!(
                    "changed during the download (from {} to {found})",
                    commit.as_deref().unwrap_or("?")
                ),
                "run it again, or give a commit as the revision",
            )));
        }
        *commit = Some(found.clone());
        let plain = |etag: &String| etag.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-');
        let etag = meta.etag.clone().filter(|etag| !etag.is_empty()).filter(plain);
        let etag = etag.unwrap_or_else(|| format!("{found}--{}", name.replace('/', "--")));
        let blob = local.blob(&etag);
        if !blob.is_file() {
            self.download(&url, repo, name, &meta, &blob)?;
        }
        Ok(local.link(&blob, &found, name)?)
    }

    /// Asks about a file without fetching it.
    fn head(&self, url: &str, repo: &Repo, name: &str) -> Attempt<Meta> {
        let mut url = url.to_string();
        for _ in 0..5 {
            let mut response = self.send(&url, || self.direct.head(&url), None)?;
            if matches!(response.status().as_u16(), 400 | 405 | 501) {
                // Not every mirror knows HEAD.
                response = self.get(&self.direct, &url, Some("bytes=0-0"))?;
            }
            let headers = response.headers();
            match text(headers, "location").filter(|place| place.starts_with('/')) {
                // A renamed repository; the token may go there, it is the same host.
                Some(place) if response.status().is_redirection() => url = self.origin() + place,
                _ => {
                    self.accept(&response, repo, Some(name))?;
                    return Ok(meta(&response));
                }
            }
        }
        Err(Error::invalid(url, "redirects in a circle", "check HF_ENDPOINT").into())
    }

    /// Fetches a file into `blob`, by way of `<blob>.incomplete`, which stays when the download breaks off.
    fn download(
        &self,
        url: &str,
        repo: &Repo,
        name: &str,
        meta: &Meta,
        blob: &Path,
    ) -> Attempt<()> {
        let part = blob.with_added_extension("incomplete");
        let fail = |e| Error::io(&part, "write", e);
        if let Some(folder) = part.parent() {
            fs::create_dir_all(folder).map_err(fail)?;
        }
        let file = OpenOptions::new().append(true).read(true).create(true).open(&part);
        let mut file = file.map_err(fail)?;
        self.lock(&file, name).map_err(fail)?;
        // Another process may have finished it while we waited.
        if blob.is_file() {
            return Ok(());
        }
        let progress = Progress::new(name, meta.size, "bytes", self.progress);
        let (mut attempts, mut before) = (0, file.metadata().map_err(fail)?.len());
        while let Err(failure) = self.receive(url, repo, name, meta, &mut file, &progress) {
            let now = file.metadata().map_err(fail)?.len();
            attempts = if now > before { 0 } else { attempts + 1 };
            before = now;
            match failure {
                Failure::Unreachable(_) if attempts < self.retries && !interrupt::requested() => {
                    progress
                        .println(&format!("{name}: the connection broke at byte {now}, going on"));
                    thread::sleep(Duration::from_millis(200 << attempts.min(5)));
                }
                failure => return Err(failure),
            }
        }
        progress.finish();
        file.sync_all().map_err(fail)?;
        if let Err(problem) = verify(&mut file, meta).map_err(fail)? {
            fs::remove_file(&part).map_err(fail)?;
            let place = format!("{}: {name}", repo.url());
            return Err(
                Error::invalid(place, problem, "run it again: the bad copy was removed").into()
            );
        }
        fs::rename(&part, blob).map_err(fail)?;
        Ok(())
    }

    /// One connection: appends to `file` what is missing.
    fn receive(
        &self,
        url: &str,
        repo: &Repo,
        name: &str,
        meta: &Meta,
        file: &mut File,
        progress: &Progress,
    ) -> Attempt<()> {
        let fail = |e| {
            Failure::Final(Error::invalid(
                name,
                format!("cannot be written: {e}"),
                "free disk space",
            ))
        };
        let mut start = file.metadata().map_err(fail)?.len();
        if meta.size.is_some_and(|size| start > size) {
            file.set_len(0).map_err(fail)?;
            start = 0;
        }
        if start > 0 && meta.size == Some(start) {
            return Ok(());
        }
        let range = (start > 0).then(|| format!("bytes={start}-"));
        let mut response = self.get(&self.agent, url, range.as_deref())?;
        if response.status() == 416 {
            file.set_len(0).map_err(fail)?;
            response = self.get(&self.agent, url, None)?;
        }
        self.accept(&response, repo, Some(name))?;
        let goes_on = text(response.headers(), "content-range")
            .is_some_and(|range| range.starts_with(&format!("bytes {start}-")));
        if response.status() != 206 || !goes_on {
            // The server sends the file from its beginning, whatever was asked for.
            file.set_len(0).map_err(fail)?;
        }
        let mut length = file.metadata().map_err(fail)?.len();
        progress.set_position(length);
        let mut body = response.body_mut().as_reader();
        let mut block = vec![0; 1 << 16];
        loop {
            if interrupt::requested() {
                let note = format!("{name} goes on from here when the command is run again");
                return Err(Error::Interrupted { note }.into());
            }
            let read = match body.read(&mut block) {
                Ok(0) => break,
                Ok(read) => read,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
                Err(e) => return Err(self.unreachable(url, &e)),
            };
            file.write_all(&block[..read]).map_err(fail)?;
            length += read as u64;
            progress.inc(read as u64);
        }
        match meta.size.filter(|size| length < *size) {
            Some(size) => Err(self.unreachable(url, &format!("ended at byte {length} of {size}"))),
            None => Ok(()),
        }
    }

    /// Two processes never write one file at a time.
    fn lock(&self, file: &File, name: &str) -> io::Result<()> {
        match file.try_lock() {
            Ok(()) => Ok(()),
            Err(TryLockError::WouldBlock) => {
                if self.progress != ProgressMode::Quiet {
                    eprintln!("{name}: waiting for another download of it");
                }
                file.lock()
            }
            // Some network file systems have no locks.
            Err(TryLockError::Error(e)) if e.kind() == io::ErrorKind::Unsupported => Ok(()),
            Err(TryLockError::Error(e)) => Err(e),
        }
    }

    fn get(&self, agent: &Agent, url: &str, range: Option<&str>) -> Attempt<Response<Body>> {
        self.send(url, || agent.get(url), range)
    }

    /// Sends a request, and once more if there is no answer at all.
    fn send(
        &self,
        url: &str,
        request: impl Fn() -> RequestBuilder<WithoutBody>,
        range: Option<&str>,
    ) -> Attempt<Response<Body>> {
        let send = || {
            // A compressed answer would have neither the size nor the ranges of the file.
            let mut request = request().header("Accept-Encoding", "identity");
            if let Some(range) = range {
                request = request.header("Range", range);
            }
            if let Some(token) = &self.token {
                request = request.header("Authorization", format!("Bearer {token}"));
            }
            request.call()
        };
        let answer = send().or_else(|error| {
            if self.retries == 0 || interrupt::requested() {
                return Err(error);
            }
            thread::sleep(Duration::from_millis(200));
            send()
        });
        answer.map_err(|e| self.unreachable(url, &e))
    }

    /// Scheme and host of the endpoint.
    fn origin(&self) -> String {
        let after_scheme = self.endpoint.find("://").map_or(0, |at| at + 3);
        let end = self.endpoint[after_scheme..].find('/').map(|at| after_scheme + at);
        self.endpoint[..end.unwrap_or(self.endpoint.len())].to_string()
    }

    fn unreachable(&self, url: &str, problem: &dyn std::fmt::Display) -> Failure {
        Failure::Unreachable(Error::invalid(
            url,
            format!("the hub cannot be reached: {problem}"),
            "check the network (HF_ENDPOINT, HTTPS_PROXY) and run it again: finished parts are kept",
        ))
    }

    /// Turns a refusal of the hub into an error with its remedy.
    fn accept(&self, response: &Response<Body>, repo: &Repo, name: Option<&str>) -> Attempt<()> {
        let (status, code) = (response.status().as_u16(), error_code(response));
        if status < 400 {
            return Ok(());
        }
        let site = format!("{}/{}", self.endpoint, repo.url());
        let revision = repo.revision();
        let error = |problem: String, remedy: &str| Error::invalid(repo.url(), problem, remedy);
        Err(match (status, code) {
            (404, "RevisionNotFound") => Failure::Final(error(
                format!("has no revision {revision:?} (404)"),
                "check model.revision: a branch, a tag or a commit",
            )),
            (404, code) if code != "RepoNotFound" && name.is_some() => Failure::NotFound(error(
                format!("has no file {} at revision {revision} (404)", name.unwrap_or_default()),
                "check the spelling of owner/name and of the file",
            )),
            (401 | 404, _) if self.token.is_none() => Failure::Final(error(
                format!("does not exist, or is private or gated ({status})"),
                "check the spelling of owner/name; for a private or gated repository set HF_TOKEN",
            )),
            (401 | 404, _) => Failure::Final(error(
                format!("does not exist, or the token has no access to it ({status})"),
                "check the spelling of owner/name, and that HF_TOKEN is valid and may read it",
            )),
            (403, _) => Failure::Final(error(
                "access is not granted (403)".to_string(),
                &format!(
                    "accept its licence on {site}, and set HF_TOKEN to a token of that account"
                ),
            )),
            (429 | 500.., _) => self.unreachable(&site, &format!("status {status}")),
            _ => Failure::Final(error(
                format!("is refused (status {status} {code})"),
                "check HF_ENDPOINT",
            )),
        })
    }
}

fn text<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    headers.get(name).and_then(|value| value.to_str().ok())
}

fn error_code(response: &Response<Body>) -> &str {
    text(response.headers(), "x-error-code").unwrap_or_default()
}

/// Commit, etag and size from the first answer: large files redirect to a storage and carry `x-linked-*`.
fn meta(response: &Response<Body>) -> Meta {
    let headers = response.headers();
    let etag = text(headers, "x-linked-etag").or_else(|| text(headers, "etag"));
    let total = text(headers, "content-range").and_then(|range| range.rsplit('/').next());
    let length = text(headers, "content-length").filter(|_| response.status() == 200);
    let size = text(headers, "x-linked-size").or(total).or(length);
    Meta {
        commit: text(headers, "x-repo-commit").map(str::to_string),
        etag: etag.map(|etag| etag.trim_start_matches("W/").trim_matches('"').to_string()),
        size: size.and_then(|size| size.parse().ok()),
    }
}

/// Length, and for large files (whose etag is their SHA-256) the content. The inner error is what is wrong with it.
fn verify(file: &mut File, meta: &Meta) -> io::Result<std::result::Result<(), String>> {
    let length = file.metadata()?.len();
    if let Some(size) = meta.size.filter(|size| *size != length) {
        return Ok(Err(format!("is {length} bytes long instead of {size}")));
    }
    let is_sha256 =
        |etag: &&String| etag.len() == 64 && etag.bytes().all(|b| b.is_ascii_hexdigit());
    let Some(wanted) = meta.etag.as_ref().filter(is_sha256) else {
        return Ok(Ok(()));
    };
    file.rewind()?;
    let (mut hash, mut block) = (Sha256::new(), vec![0; 1 << 20]);
    loop {
        match file.read(&mut block)? {
            0 => break,
            n => hash.update(&block[..n]),
        }
    }
    let got: String = hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
    match got.eq_ignore_ascii_case(wanted) {
        true => Ok(Ok(())),
        false => Ok(Err(format!("arrived damaged: its SHA-256 is {got} instead of {wanted}"))),
    }
}

/// Percent-encodes everything but unreserved characters and those in `keep`.
fn escape(text: &str, keep: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        let c = char::from(byte);
        if c.is_ascii_alphanumeric() || "-._~".contains(c) || keep.contains(c) {
            out.push(c);
        } else {
            out.push_str(&format!("%{byte:02X}"));
        }
    }
    out
}
