//! Sends large files to the hub's storage by git LFS's batch API, with the transfers `basic` and `multipart`.
//!
//! The hub answers with signed addresses of a storage, which belong to other hosts. They get no token: it is sent with
//! the request for the addresses and with the final verification, both on the endpoint.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::{Map, Value, json};
use ureq::Body;
use ureq::http::{HeaderMap, HeaderName, HeaderValue, Response};

use super::Push;
use super::entry::Entry;
use super::outgoing::{Content, Upload, storage_refuses};
use crate::error::Error;
use crate::model::hub::address::{redacted, resolve_redirect};
use crate::model::hub::client::{Attempt, Failure, header_text};
use crate::progress::Progress;

/// Content type of git LFS.
const LFS: &str = "application/vnd.git-lfs+json";

/// Headers that describe the body of a request, which a server cannot set.
const OWN_HEADERS: [&str; 4] = ["content-length", "transfer-encoding", "host", "connection"];

#[derive(Deserialize)]
struct Batch {
    objects: Vec<Object>,
}

/// The hub's answer about one file.
#[derive(Deserialize)]
struct Object {
    oid: String,
    actions: Option<Actions>,
    error: Option<Refusal>,
}

#[derive(Deserialize)]
struct Refusal {
    code: Option<u16>,
    message: Option<String>,
}

#[derive(Deserialize)]
struct Actions {
    upload: Option<Action>,
    verify: Option<Action>,
}

#[derive(Deserialize)]
struct Action {
    href: String,
    #[serde(default)]
    header: Map<String, Value>,
}

/// The addresses to which the parts of a file are sent.
struct Parts {
    size: u64,
    urls: Vec<String>,
}

impl Push<'_> {
    /// Sends the large files that the hub does not have, and returns how many.
    pub(super) fn store(&self, files: &[&Entry]) -> Attempt<usize> {
        let batch = self.client.retried(|_| {}, || self.batch(files))?;
        let mut missing = Vec::new();
        for object in batch.objects {
            let Some(file) = files.iter().find(|file| file.hash.sha256 == object.oid) else {
                continue;
            };
            if let Some(refusal) = object.error {
                return Err(self.refused_object(file, &refusal));
            }
            if let Some(Actions { upload: Some(upload), verify }) = object.actions {
                missing.push((*file, upload, verify));
            }
        }
        let total = missing.iter().map(|(file, ..)| file.hash.bytes).sum();
        let progress = Progress::new("push", Some(total), "bytes", self.client.progress);
        let mut done = 0;
        for (file, upload, verify) in &missing {
            progress.set_message(file.name.clone());
            file.check_unchanged()?;
            self.send(file, upload, done, &progress)?;
            if let Some(verify) = verify {
                self.verify(file, verify)?;
            }
            done += file.hash.bytes;
        }
        progress.finish();
        Ok(missing.len())
    }

    /// Asks the hub which files it lacks, and where they are to be sent.
    fn batch(&self, files: &[&Entry]) -> Attempt<Batch> {
        let objects: Vec<Value> = (files.iter())
            .map(|file| json!({"oid": file.hash.sha256, "size": file.hash.bytes}))
            .collect();
        let body = json!({
            "operation": "upload",
            "transfers": ["basic", "multipart"],
            "objects": objects,
            "hash_algo": "sha256",
            "ref": {"name": self.to.revision},
        });
        let (endpoint, repo) = (&self.client.endpoint, &self.to.repo);
        let url = format!("{endpoint}/{repo}.git/info/lfs/objects/batch");
        self.ask(&lfs_post(url, &body, true))
    }

    /// Sends one file, of which `done` bytes of all files lie before.
    fn send(&self, file: &Entry, upload: &Action, done: u64, progress: &Progress) -> Attempt<()> {
        let Some(parts) = self.parts(file, upload)? else {
            let url = self.storage_url(&upload.href)?;
            let body = file.section(0, file.hash.bytes);
            return self.put(url, headers(&upload.header), body, done, progress).map(drop);
        };
        let (size, mut tags) = (parts.size, Vec::new());
        for (index, url) in parts.urls.into_iter().enumerate() {
            let start = size * index as u64;
            let body = file.section(start, size.min(file.hash.bytes - start));
            let place = redacted(&url);
            let response = self.put(url, HeaderMap::new(), body, done + start, progress)?;
            let tag = header_text(response.headers(), "etag").map(str::to_string);
            let tag = tag.ok_or_else(|| {
                let problem = format!("part {} was answered without an ETag", index + 1);
                Error::invalid(place, problem, "push again, or check HF_ENDPOINT")
            })?;
            tags.push(json!({"partNumber": index + 1, "etag": tag}));
        }
        let body = json!({"oid": file.hash.sha256, "parts": tags});
        let completion = lfs_post(self.storage_url(&upload.href)?, &body, false);
        self.client.retried(|_| {}, || self.exchange(&completion, &mut |_| {})).map(drop)
    }

    /// Returns the addresses of a file's parts, or `None` if it is sent as a whole.
    fn parts(&self, file: &Entry, upload: &Action) -> Attempt<Option<Parts>> {
        let Some(size) = upload.header.get("chunk_size") else {
            return Ok(None);
        };
        let size = size.as_u64().or_else(|| size.as_str()?.parse().ok()).unwrap_or(0);
        let numbered = upload
            .header
            .iter()
            .filter_map(|(name, url)| Some((name.parse::<u64>().ok()?, url.as_str()?.to_string())));
        let numbered: BTreeMap<u64, String> = numbered.collect();
        let (count, bytes) = (numbered.len() as u64, file.hash.bytes);
        let consecutive = numbered.keys().copied().eq(1..=count);
        if size == 0 || !consecutive || bytes.div_ceil(size) != count {
            let problem = format!(
                "describes {count} parts of {size} bytes for {}, which has {bytes} bytes",
                file.name
            );
            return Err(self.wrong_answer(&problem));
        }
        let urls = numbered.into_values().map(|url| self.storage_url(&url));
        Ok(Some(Parts { size, urls: urls.collect::<Attempt<_>>()? }))
    }

    /// Sends `body` to a signed address; `done` bytes of all files lie before it.
    fn put(
        &self,
        url: String,
        headers: HeaderMap,
        body: Content,
        done: u64,
        progress: &Progress,
    ) -> Attempt<Response<Body>> {
        let upload = Upload { method: "PUT", url, headers, body, with_token: false };
        let broken = |error: &Error| {
            progress.set_position(done);
            let problem = error.to_string();
            let problem = problem.lines().next().unwrap_or_default();
            progress.println(&format!("{problem}; sending this part again"));
        };
        let mut shown = 0;
        let attempt = || {
            shown = 0;
            self.exchange(&upload, &mut |sent| {
                progress.inc(sent.saturating_sub(shown));
                shown = sent;
            })
        };
        self.client.retried(broken, attempt)
    }

    /// Sends a request to the storage, and returns its response if it accepts the request.
    fn exchange(&self, upload: &Upload, progress: &mut dyn FnMut(u64)) -> Attempt<Response<Body>> {
        let response = self.client.upload(upload, progress)?;
        let (url, status) = (&upload.url, response.status().as_u16());
        match status {
            200..300 => Ok(response),
            408 | 429 | 500..600 => Err(self.client.unreachable(url, &format!("status {status}"))),
            300..400 => {
                let problem = "redirects the upload, which has a signed address";
                Err(Error::invalid(redacted(url), problem, "check HF_ENDPOINT").into())
            }
            status => {
                let said = self.client.said(response, url);
                Err(storage_refuses(url, status, &said))
            }
        }
    }

    /// Asks the hub to check that a file has arrived.
    fn verify(&self, file: &Entry, verify: &Action) -> Attempt<()> {
        let body = json!({"oid": file.hash.sha256, "size": file.hash.bytes});
        let mut request = lfs_post(self.storage_url(&verify.href)?, &body, true);
        request.headers.extend(headers(&verify.header));
        self.client.retried(|_| {}, || self.answered(&request)).map(drop)
    }

    /// Returns the absolute address that the hub names for an upload.
    ///
    /// # Errors
    /// It is malformed, or leads from https to http.
    fn storage_url(&self, href: &str) -> Attempt<String> {
        resolve_redirect(&self.client.endpoint, href).map_err(|problem| {
            self.wrong_answer(&format!("sends uploads to {}, which {problem}", redacted(href)))
        })
    }

    /// Returns the failure for a file that the hub does not take.
    fn refused_object(&self, file: &Entry, refusal: &Refusal) -> Failure {
        let said: String = refusal.message.iter().flat_map(|text| text.chars()).take(300).collect();
        let said = said.replace(char::is_control, " ");
        let code = refusal.code.map(|code| format!(" ({code})")).unwrap_or_default();
        let place = format!("{}: {}", self.to.repo, file.name);
        let remedy = "check the account's storage limits on the hub, and push again";
        Failure::Final(Error::invalid(place, format!("is refused{code}: {said}"), remedy))
    }
}

/// Creates a POST request of git LFS.
fn lfs_post(url: String, body: &Value, with_token: bool) -> Upload {
    let mut upload = Upload::post(url, LFS, body.to_string().into_bytes());
    upload.headers.insert("accept", HeaderValue::from_static(LFS));
    upload.with_token = with_token;
    upload
}

/// Returns the headers that the hub demands for a request, without those that describe its body.
fn headers(all: &Map<String, Value>) -> HeaderMap {
    let named = all.iter().filter_map(|(name, value)| {
        let name = HeaderName::from_bytes(name.as_bytes()).ok()?;
        let value = HeaderValue::from_str(value.as_str()?).ok()?;
        (!OWN_HEADERS.contains(&name.as_str())).then_some((name, value))
    });
    named.collect()
}
