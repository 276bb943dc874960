//! Sends requests to the hub: token, redirects, timeouts, and the meaning of refusals.

use std::time::Duration;

use hf_hub::Repo;
use ureq::http::header::AUTHORIZATION;
use ureq::http::{HeaderMap, HeaderValue, Response};
use ureq::{Agent, Body};

use super::HubConfig;
use super::address::{Origin, redacted, resolve_redirect};
use super::incoming::{BodyError, pause, unless_interrupted};
use super::names::quoted;
use crate::error::Error;
use crate::progress::ProgressMode;

/// The reason why a download failed.
#[derive(Debug)]
pub(super) enum Failure {
    /// No connection, or a server error: the cache may be used instead.
    Unreachable(Error),
    /// The hub has no such file.
    NotFound(Error),
    /// An error that a retry will not resolve.
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

pub(super) type Attempt<T> = std::result::Result<T, Failure>;

/// Maximum number of consecutive redirects.
const MAX_REDIRECTS: usize = 10;

/// The HTTP method: asks for a file or for its headers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Method {
    Head,
    Get,
}

/// An HTTP client for one endpoint.
#[derive(Debug)]
pub(super) struct Client {
    /// Does not follow redirects itself: only the code here knows to which origin the token belongs.
    pub(super) agent: Agent,
    pub(super) endpoint: String,
    pub(super) token: Option<String>,
    pub(super) retries: u32,
    pub(super) timeout: Duration,
    pub(super) progress: ProgressMode,
}

impl Client {
    /// Creates a client for the endpoint of `config`, without contacting it.
    pub(super) fn new(config: &HubConfig) -> Self {
        let agent = Agent::config_builder()
            .http_status_as_error(false)
            .max_redirects(0)
            .max_redirects_will_error(false)
            .user_agent(concat!("arithmo/", env!("CARGO_PKG_VERSION")))
            .timeout_connect(Some(config.timeout.min(Duration::from_secs(10))))
            .timeout_recv_response(Some(config.timeout))
            // `Incoming` gives up a silent body earlier; this timeout ends the thread it leaves behind.
            .timeout_per_read(Some(config.timeout * 2))
            .build()
            .into();
        Self {
            agent,
            endpoint: config.endpoint.clone(),
            token: config.token.clone(),
            retries: config.retries,
            timeout: config.timeout,
            progress: config.progress,
        }
    }

    /// Converts the reason why a body broke off into an error with its remedy.
    pub(super) fn broken(&self, url: &str, error: BodyError) -> Failure {
        match error {
            BodyError::Broken(problem) => self.unreachable(url, &problem),
            BodyError::TooSlow(problem) => Failure::Final(Error::invalid(
                redacted(url),
                problem,
                "run the same command again to continue from here; HF_HUB_DOWNLOAD_TIMEOUT sets the timeout in seconds",
            )),
            BodyError::Interrupted => Failure::Final(interrupted()),
        }
    }

    /// Requests a file and follows redirects to it.
    pub(super) fn get(&self, url: &str, range: Option<&str>) -> Attempt<Response<Body>> {
        let mut url = url.to_string();
        for _ in 0..=MAX_REDIRECTS {
            let response = self.send(Method::Get, &url, range)?;
            match location(&response) {
                Some(place) => url = self.follow(&url, place)?,
                None => return Ok(response),
            }
        }
        Err(redirect_loop(&url))
    }

    /// Requests the headers of a file. It returns the first response, which carries commit and etag, unlike that of
    /// the storage behind it. Only a redirect within the hub, as for a renamed repository, is followed.
    pub(super) fn head(&self, url: &str) -> Attempt<Response<Body>> {
        let mut url = url.to_string();
        for _ in 0..=MAX_REDIRECTS {
            let mut response = self.send(Method::Head, &url, None)?;
            if matches!(response.status().as_u16(), 400 | 405 | 501) {
                // Some mirrors do not support HEAD.
                response = self.send(Method::Get, &url, Some("bytes=0-0"))?;
            }
            let Some(place) = location(&response) else {
                return Ok(response);
            };
            let target = self.follow(&url, place)?;
            let relative = place.starts_with('/') && !place.starts_with("//");
            let complete = response.headers().contains_key("x-repo-commit") && !relative;
            if complete || Origin::parse(&target) != Origin::parse(&self.endpoint) {
                return Ok(response);
            }
            url = target;
        }
        Err(redirect_loop(&url))
    }

    /// Resolves the target of a redirect.
    fn follow(&self, url: &str, place: &str) -> Attempt<String> {
        resolve_redirect(url, place).map_err(|problem| {
            let problem = format!("redirects to {}, which {problem}", quoted(&redacted(place)));
            Error::invalid(redacted(url), problem, "check HF_ENDPOINT").into()
        })
    }

    /// Sends a request, and once more if the connection breaks before a response.
    fn send(&self, method: Method, url: &str, range: Option<&str>) -> Attempt<Response<Body>> {
        let mut headers = self.headers(url, true)?;
        if let Some(range) = range.and_then(|range| HeaderValue::from_str(range).ok()) {
            headers.insert("range", range);
        }
        let attempt = || {
            let (agent, url, headers) = (self.agent.clone(), url.to_string(), headers.clone());
            unless_interrupted(move || {
                let mut request = match method {
                    Method::Head => agent.head(&url),
                    Method::Get => agent.get(&url),
                };
                if let Some(all) = request.headers_mut() {
                    all.extend(headers);
                }
                request.call()
            })
            .ok_or_else(|| Failure::Final(interrupted()))
        };
        let again = |error: &ureq::Error| {
            let temporary = matches!(error, ureq::Error::Io(_) | ureq::Error::ConnectionFailed);
            temporary && self.retries > 0 && pause(Duration::from_millis(200))
        };
        let answer = match attempt()? {
            Err(error) if again(&error) => attempt()?,
            answer => answer,
        };
        answer.map_err(|error| self.not_answered(url, error))
    }

    /// Returns the headers of every request to `url`, with the access token if `url` belongs to the endpoint and
    /// `with_token` is set.
    pub(super) fn headers(&self, url: &str, with_token: bool) -> Attempt<HeaderMap> {
        let origin = Origin::parse(url).map_err(|problem| wrong_endpoint(url, problem))?;
        let mut headers = HeaderMap::new();
        // A compressed response would have neither the size nor the byte ranges of the file.
        headers.insert("accept-encoding", HeaderValue::from_static("identity"));
        if with_token && Origin::parse(&self.endpoint).as_ref() == Ok(&origin) {
            headers.extend(self.authorization()?.map(|value| (AUTHORIZATION, value)));
        }
        Ok(headers)
    }

    /// Converts the reason why a request was not answered into an error with its remedy.
    pub(super) fn not_answered(&self, url: &str, error: ureq::Error) -> Failure {
        match error {
            ureq::Error::BadUri(_)
            | ureq::Error::Http(_)
            | ureq::Error::InvalidProxyUrl
            | ureq::Error::Protocol(_)
            | ureq::Error::LargeResponseHeader(..) => wrong_endpoint(url, error.to_string()),
            error => self.unreachable(url, &error),
        }
    }

    /// Returns the authorization header, if there is a token.
    fn authorization(&self) -> Attempt<Option<HeaderValue>> {
        let Some(token) = &self.token else {
            return Ok(None);
        };
        let bad = |_| {
            Error::invalid(
                "HF_TOKEN",
                "holds a character that no token contains",
                "copy the token again from the hub's settings",
            )
        };
        let mut value = HeaderValue::from_str(&format!("Bearer {token}")).map_err(bad)?;
        value.set_sensitive(true);
        Ok(Some(value))
    }

    /// Returns the failure for a hub that cannot be reached.
    pub(super) fn unreachable(&self, url: &str, problem: &dyn std::fmt::Display) -> Failure {
        Failure::Unreachable(Error::invalid(
            redacted(url),
            format!("the hub cannot be reached: {problem}"),
            "check the network (HF_ENDPOINT, HTTPS_PROXY) and run it again: finished parts are kept",
        ))
    }

    /// Returns an error with its remedy if the hub refused the request.
    pub(super) fn accept(
        &self,
        response: &Response<Body>,
        repo: &Repo,
        name: Option<&str>,
    ) -> Attempt<()> {
        let (status, code) = (response.status().as_u16(), error_code(response));
        if matches!(status, 200 | 206) {
            return Ok(());
        }
        let site = format!("{}/{}", redacted(&self.endpoint), repo.url());
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
                    "accept its license on {site}, and set HF_TOKEN to a token of that account"
                ),
            )),
            (429 | 500..600, _) => self.unreachable(&site, &format!("status {status}")),
            _ => Failure::Final(error(
                format!("is refused (status {status} {code})"),
                "check HF_ENDPOINT",
            )),
        })
    }
}

/// Returns the failure for an endpoint that is not the address of a hub.
fn wrong_endpoint(url: &str, problem: String) -> Failure {
    let remedy = "check HF_ENDPOINT: it is https://huggingface.co or the address of a mirror";
    Failure::Final(Error::invalid(redacted(url), problem, remedy))
}

/// Returns the error of a download that the user stopped.
pub(super) fn interrupted() -> Error {
    Error::Interrupted {
        note: "the download continues from here when the same command is run again".into(),
    }
}

/// Returns the failure for too many redirects.
fn redirect_loop(url: &str) -> Failure {
    let problem = format!("redirects more than {MAX_REDIRECTS} times, or in a circle");
    Failure::Final(Error::invalid(redacted(url), problem, "check HF_ENDPOINT"))
}

/// Returns the location to which a response redirects, if it does.
pub(super) fn location(response: &Response<Body>) -> Option<&str> {
    let redirects = matches!(response.status().as_u16(), 301 | 302 | 303 | 307 | 308);
    header_text(response.headers(), "location").filter(|_| redirects)
}

/// Returns the value of a header if it is text.
pub(super) fn header_text<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    headers.get(name).and_then(|value| value.to_str().ok())
}

/// Returns the hub's error code, or an empty text.
pub(super) fn error_code(response: &Response<Body>) -> &str {
    header_text(response.headers(), "x-error-code").unwrap_or_default()
}

/// Returns whether a repository is a model rather than a data set.
pub(super) fn is_model(repo: &Repo) -> bool {
    repo.folder_name().starts_with("models--")
}

/// Percent-encodes everything but unreserved characters and those in `keep`.
pub(super) fn escape(text: &str, keep: &str) -> String {
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
