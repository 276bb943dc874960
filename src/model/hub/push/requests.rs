//! Sends the requests of a push to the hub, and says what a refusal means.

use serde::Deserialize;
use ureq::Body;
use ureq::http::Response;

use super::Push;
use super::outgoing::Upload;
use crate::error::Error;
use crate::model::hub::address::{Origin, redacted, resolve_redirect};
use crate::model::hub::client::{Attempt, Client, Failure, error_code, escape, location};
use crate::model::hub::names::{self, quoted};

/// Maximum number of consecutive redirects of one request.
const MAX_REDIRECTS: usize = 5;

/// Maximum size of an answer, in bytes. The addresses of 10,000 parts of a file take a few MiB.
const MAX_ANSWER: u64 = 64 << 20;

impl Push<'_> {
    /// Sends a request to the hub and reads its JSON answer.
    pub(super) fn ask<T: for<'de> Deserialize<'de>>(&self, request: &Upload) -> Attempt<T> {
        let response = self.answered(request)?;
        let bytes =
            self.client.whole(response.into_body(), &request.url, "an answer", MAX_ANSWER)?;
        serde_json::from_slice(&bytes).map_err(|e| {
            let problem = format!("returned another answer than a hub's: {e}");
            Error::invalid(redacted(&request.url), problem, "check HF_ENDPOINT").into()
        })
    }

    /// Returns the address of an operation on the branch.
    pub(super) fn url(&self, operation: &str) -> String {
        let (endpoint, repo) = (&self.client.endpoint, &self.to.repo);
        format!("{endpoint}/api/models/{repo}/{operation}/{}", escape(&self.to.revision, ""))
    }

    /// Sends a request to the hub, and returns its response if it accepts the request.
    pub(super) fn answered(&self, request: &Upload) -> Attempt<Response<Body>> {
        let response = self.sent(request)?;
        self.accepted(response, &request.url)
    }

    /// Sends a request to the hub and follows redirects within it, such as those of a renamed repository. Nothing is sent to
    /// another server.
    pub(super) fn sent(&self, request: &Upload) -> Attempt<Response<Body>> {
        let mut request = request.clone();
        for _ in 0..=MAX_REDIRECTS {
            let response = self.client.upload(&request, &mut |_| {})?;
            let Some(place) = location(&response) else {
                return Ok(response);
            };
            let wrong = |problem: String| {
                let problem = format!("redirects to {}, {problem}", quoted(&redacted(place)));
                Failure::Final(Error::invalid(redacted(&request.url), problem, "check HF_ENDPOINT"))
            };
            let target = resolve_redirect(&request.url, place)
                .map_err(|problem| wrong(format!("which {problem}")))?;
            if Origin::parse(&target) != Origin::parse(&request.url) {
                return Err(wrong("and an upload is not sent to another server".to_string()));
            }
            if !matches!(response.status().as_u16(), 307 | 308) {
                return Err(wrong("which would not keep the request's body".to_string()));
            }
            request.url = target;
        }
        let problem = format!("redirects more than {MAX_REDIRECTS} times, or in a circle");
        Err(Error::invalid(redacted(&request.url), problem, "check HF_ENDPOINT").into())
    }

    /// Returns the response if the hub accepted the request, and otherwise an error with its remedy.
    pub(super) fn accepted(&self, response: Response<Body>, url: &str) -> Attempt<Response<Body>> {
        let (status, code) = (response.status().as_u16(), error_code(&response).to_string());
        if (200..300).contains(&status) {
            return Ok(response);
        }
        let said = self.client.said(response, url);
        let repo = &self.to.repo;
        let error = |problem: &str, remedy: &str| {
            let colon = if said.is_empty() { "" } else { ": " };
            let problem = format!("{problem} (status {status}){colon}{said}");
            Failure::Final(Error::invalid(repo, problem, remedy))
        };
        let owner = repo.split('/').next().unwrap_or_default();
        Err(match (status, code.as_str()) {
            (401, _) => error(
                "the hub does not accept the token",
                "make a new token that may write on the hub's settings page, and set HF_TOKEN to it",
            ),
            (403, _) => error(
                "the token may not write there, or the account's storage is full",
                &format!(
                    "use a token that may write to repositories of {owner}, and check its storage on the hub"
                ),
            ),
            (404, "RevisionNotFound") => error(
                &format!("has no branch {:?}", self.to.revision),
                "create the branch on the hub, or push to main",
            ),
            (404, _) => error(
                "does not exist, or the token has no access to it",
                "check the spelling of OWNER/NAME, and that the token may write there",
            ),
            (402 | 413 | 507, _) => {
                error("is too large for the account", "free storage on the hub, and push again")
            }
            (408 | 412 | 429 | 500..600, _) => {
                let colon = if said.is_empty() { "" } else { ": " };
                self.client.unreachable(url, &format!("status {status}{colon}{said}"))
            }
            _ => error(
                "the hub refuses the push",
                "correct what the hub names, or check HF_ENDPOINT",
            ),
        })
    }

    /// Returns the failure for an answer that no hub gives.
    pub(super) fn wrong_answer(&self, problem: &str) -> Failure {
        let place = redacted(&self.client.endpoint);
        Failure::Final(Error::invalid(place, problem, "check HF_ENDPOINT"))
    }
}

impl Client {
    /// Returns the name of the token's user.
    pub(super) fn user(&self) -> Attempt<String> {
        #[derive(Deserialize)]
        struct User {
            name: String,
        }
        const MAX: u64 = 1 << 20;
        let url = format!("{}/api/whoami-v2", self.endpoint);
        let response = self.get(&url, None)?;
        let place = redacted(&url);
        match response.status().as_u16() {
            200 => {}
            status @ (408 | 429 | 500..600) => {
                return Err(self.unreachable(&url, &format!("status {status}")));
            }
            status => {
                let problem = format!("the hub does not accept the token (status {status})");
                let remedy = "set HF_TOKEN to a valid token, or write OWNER/NAME";
                return Err(Error::invalid(place, problem, remedy).into());
            }
        }
        let bytes = self.whole(response.into_body(), &url, "an answer", MAX)?;
        let user: Option<User> = serde_json::from_slice(&bytes).ok();
        let name = user.map(|user| user.name).filter(|name| !name.contains('/'));
        name.filter(|name| names::is_id(name)).ok_or_else(|| {
            let problem = "does not name the token's user";
            Error::invalid(place, problem, "write OWNER/NAME, or check HF_ENDPOINT").into()
        })
    }
}
