//! Lists a repository: its commit and its files.

use std::collections::HashMap;

use hf_hub::Repo;
use serde::Deserialize;
use ureq::Body;

use super::address::redacted;
use super::client::{Attempt, Client, Failure, error_code, escape, is_model};
use super::incoming::Incoming;
use super::names::{self, quoted};
use crate::error::Error;

/// Maximum size of a listing and of a model's JSON file, in bytes.
pub(super) const MAX_JSON: u64 = 64 << 20;

/// The hub's description of a repository; empty for an endpoint that is only a file server.
#[derive(Debug, Default)]
pub(super) struct Listing {
    /// The commit of the revision, checked.
    pub(super) commit: Option<String>,
    /// The names of all files as the hub returns them, unchecked.
    pub(super) files: Option<Vec<String>>,
    /// The sizes of all files whose size the hub states.
    pub(super) sizes: HashMap<String, u64>,
}

impl Client {
    /// Returns commit, file names and sizes of a repository at its revision.
    pub(super) fn list(&self, repo: &Repo) -> Attempt<Listing> {
        #[derive(Deserialize)]
        struct Info {
            sha: Option<String>,
            siblings: Option<Vec<Sibling>>,
        }
        #[derive(Deserialize)]
        struct Sibling {
            rfilename: String,
            size: Option<u64>,
        }
        let kind = if is_model(repo) { "models/" } else { "" };
        let (repository, revision) = (repo.url(), escape(repo.revision(), ""));
        let url = format!("{}/api/{kind}{repository}/revision/{revision}", self.endpoint);
        let response = self.get(&url, None)?;
        if response.status() == 404 && error_code(&response).is_empty() {
            return Ok(Listing::default());
        }
        self.accept(&response, repo, None)?;
        let bytes = self.whole(response.into_body(), &url, "a listing", MAX_JSON)?;
        let info: Info = serde_json::from_slice(&bytes).map_err(|e| {
            let problem = format!("returned no listing: {e}");
            Error::invalid(redacted(&url), problem, "check HF_ENDPOINT")
        })?;
        let commit = info.sha.map(|sha| self.commit(&sha, repo)).transpose()?;
        let siblings = info.siblings.unwrap_or_default();
        Ok(Listing {
            commit,
            sizes: siblings
                .iter()
                .filter_map(|file| Some((file.rfilename.clone(), file.size?)))
                .collect(),
            files: Some(siblings.into_iter().map(|file| file.rfilename).collect()),
        })
    }

    /// Checks the commit that the hub names.
    ///
    /// # Errors
    /// It is not a commit, or not the requested one.
    pub(super) fn commit(&self, text: &str, repo: &Repo) -> Attempt<String> {
        let wrong = |problem: String| {
            let remedy = "check HF_ENDPOINT: a hub names the commit of every revision";
            Failure::Final(Error::invalid(repo.url(), problem, remedy))
        };
        let commit = names::commit(text).ok_or_else(|| {
            wrong(format!(
                "has no valid commit: {} names {}, which is not 40 hexadecimal digits",
                redacted(&self.endpoint),
                quoted(text)
            ))
        })?;
        match names::commit(repo.revision()).filter(|requested| *requested != commit) {
            Some(requested) => Err(wrong(format!(
                "has another commit than asked for: {} answers {requested} with {commit}",
                redacted(&self.endpoint)
            ))),
            None => Ok(commit),
        }
    }

    /// Reads a response body of at most `max` bytes into memory; `what` names its contents in the error.
    pub(super) fn whole(&self, body: Body, url: &str, what: &str, max: u64) -> Attempt<Vec<u8>> {
        let mut incoming = Incoming::start(body, self.timeout);
        let mut bytes = Vec::new();
        loop {
            let block = incoming.next().map_err(|error| self.broken(url, error))?;
            if block.is_empty() {
                return Ok(bytes);
            }
            bytes.extend(block);
            if bytes.len() as u64 > max {
                let problem = format!("returned {what} of more than {} MiB", max >> 20);
                return Err(Error::invalid(redacted(url), problem, "check HF_ENDPOINT").into());
            }
        }
    }
}
