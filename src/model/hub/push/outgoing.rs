//! Sends requests with a body: counts the bytes on their way, and ends when nothing moves or when the user asks to stop.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant};

use ureq::http::header::{CONTENT_LENGTH, CONTENT_TYPE};
use ureq::http::{HeaderMap, HeaderValue, Request, Response};
use ureq::{Body, SendBody};

use super::stopped;
use crate::error::Error;
use crate::input_file;
use crate::interrupt;
use crate::model::hub::address::redacted;
use crate::model::hub::client::{Attempt, Client, Failure, header_text};
use crate::model::hub::incoming::pause;

/// Interval at which progress is shown and Ctrl-C is checked.
const POLL_INTERVAL: Duration = Duration::from_millis(50);

/// Number of timeouts after which a server that has the whole body and does not answer is given up. A storage needs time
/// to put the parts of a large file together.
const PATIENCE: u32 = 10;

/// A request with a body.
#[derive(Clone, Debug)]
pub(super) struct Upload {
    /// `"POST"` or `"PUT"`.
    pub(super) method: &'static str,
    pub(super) url: String,
    pub(super) headers: HeaderMap,
    pub(super) body: Content,
    /// Whether the request carries the access token if its URL belongs to the endpoint.
    pub(super) with_token: bool,
}

impl Upload {
    /// Creates a POST request to the hub's API.
    pub(super) fn post(url: String, content_type: &'static str, body: Vec<u8>) -> Self {
        let headers =
            HeaderMap::from_iter([(CONTENT_TYPE, HeaderValue::from_static(content_type))]);
        Self { method: "POST", url, headers, body: Content::Bytes(body.into()), with_token: true }
    }
}

/// The body of a request.
#[derive(Clone, Debug)]
pub(super) enum Content {
    Bytes(Arc<[u8]>),
    /// A part of a file.
    Section {
        path: PathBuf,
        start: u64,
        length: u64,
    },
}

impl Content {
    /// Returns the number of bytes.
    pub(super) fn length(&self) -> u64 {
        match self {
            Self::Bytes(bytes) => bytes.len() as u64,
            Self::Section { length, .. } => *length,
        }
    }

    /// Opens the content for reading.
    fn open(&self) -> Result<Box<dyn Read + Send>, Error> {
        match self {
            Self::Bytes(bytes) => Ok(Box::new(io::Cursor::new(Arc::clone(bytes)))),
            Self::Section { path, start, length } => {
                let mut file: File =
                    input_file::open(path).map_err(|e| Error::io(path, "open", e))?;
                let seek = file.seek(SeekFrom::Start(*start));
                seek.map_err(|e| Error::io(path, "read", e))?;
                Ok(Box::new(file.take(*length)))
            }
        }
    }
}

/// The state of a request that the sending and the waiting thread share.
#[derive(Debug, Default)]
struct Shared {
    sent: AtomicU64,
    /// Set when nobody waits for the response any more.
    abandoned: AtomicBool,
}

/// A reader that counts what was read from it.
struct Counted {
    from: Box<dyn Read + Send>,
    shared: Arc<Shared>,
}

impl Read for Counted {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.shared.abandoned.load(Ordering::Relaxed) {
            return Err(io::Error::other("the upload was given up"));
        }
        let read = self.from.read(buffer)?;
        self.shared.sent.fetch_add(read as u64, Ordering::Relaxed);
        Ok(read)
    }
}

impl Client {
    /// Sends a request once, and returns the response whatever its status. `progress` is called with the number of bytes
    /// that are on their way.
    pub(super) fn upload(
        &self,
        upload: &Upload,
        progress: &mut dyn FnMut(u64),
    ) -> Attempt<Response<Body>> {
        let (url, length) = (&upload.url, upload.body.length());
        let mut headers = self.headers(url, upload.with_token)?;
        headers.extend(upload.headers.clone());
        headers.insert(CONTENT_LENGTH, HeaderValue::from(length));
        let shared = Arc::new(Shared::default());
        let body = Counted { from: upload.body.open()?, shared: Arc::clone(&shared) };
        let response = self.start(upload.method, url, headers, body);
        let (mut sent, mut moved) = (0, Instant::now());
        let given_up = |failure| {
            shared.abandoned.store(true, Ordering::Relaxed);
            Err(failure)
        };
        loop {
            match response.recv_timeout(POLL_INTERVAL) {
                Ok(Ok(response)) => {
                    progress(shared.sent.load(Ordering::Relaxed));
                    return Ok(response);
                }
                Ok(Err(error)) => return Err(self.not_answered(url, error)),
                Err(RecvTimeoutError::Disconnected) => {
                    return Err(self.unreachable(url, &"the connection ended"));
                }
                Err(RecvTimeoutError::Timeout) if interrupt::requested() => {
                    return given_up(stopped().into());
                }
                Err(RecvTimeoutError::Timeout) => {}
            }
            let now = shared.sent.load(Ordering::Relaxed);
            if now != sent {
                (sent, moved) = (now, Instant::now());
                progress(sent);
            }
            let limit = if sent < length { self.timeout } else { self.timeout * PATIENCE };
            if moved.elapsed() >= limit {
                let seconds = limit.as_secs_f64();
                let problem = format!("nothing was accepted or answered for {seconds} s");
                return given_up(self.unreachable(url, &problem));
            }
        }
    }

    /// Starts a thread that sends a request.
    fn start(
        &self,
        method: &'static str,
        url: &str,
        headers: HeaderMap,
        body: Counted,
    ) -> mpsc::Receiver<Result<Response<Body>, ureq::Error>> {
        let (sender, response) = mpsc::sync_channel(1);
        let (agent, url, wait) = (self.agent.clone(), url.to_string(), self.timeout * PATIENCE);
        thread::spawn(move || {
            let body = SendBody::from_owned_reader(body);
            let request = Request::builder().method(method).uri(url).body(body);
            let sent = request.map_err(ureq::Error::from).and_then(|mut request| {
                request.headers_mut().extend(headers);
                let request = agent.configure_request(request);
                let request =
                    request.timeout_recv_response(Some(wait)).timeout_per_read(Some(wait));
                agent.run(request.build())
            });
            // Nobody waits any more if this fails.
            let _ = sender.send(sent);
        });
        response
    }

    /// Repeats `attempt` with growing pauses while the hub cannot be reached, at most as often as the settings allow.
    /// `broken` is told of each failed attempt that is repeated.
    pub(super) fn retried<T>(
        &self,
        mut broken: impl FnMut(&Error),
        mut attempt: impl FnMut() -> Attempt<T>,
    ) -> Attempt<T> {
        let mut failures = 0;
        loop {
            match attempt() {
                Err(Failure::Unreachable(error)) if failures + 1 < self.retries => {
                    failures += 1;
                    broken(&error);
                    self.wait(failures)?;
                }
                other => return other,
            }
        }
    }

    /// Waits before the next attempt after this number of failed ones.
    pub(super) fn wait(&self, failures: u32) -> Attempt<()> {
        let time = Duration::from_millis(200 << failures.min(5));
        if pause(time) { Ok(()) } else { Err(stopped().into()) }
    }

    /// Returns what a server says about a request that it refused: at most 300 characters, without the token.
    pub(super) fn said(&self, response: Response<Body>, url: &str) -> String {
        const MAX: u64 = 1 << 20;
        let header = header_text(response.headers(), "x-error-message").map(str::to_string);
        let text = header.or_else(|| {
            let body = self.whole(response.into_body(), url, "a refusal", MAX).ok()?;
            let json: serde_json::Value = serde_json::from_slice(&body).ok()?;
            let text = json.get("error").or_else(|| json.get("message"));
            text.and_then(|text| text.as_str()).map(str::to_string)
        });
        let mut text = text.unwrap_or_default();
        if let Some(token) = &self.token {
            text = text.replace(token.as_str(), "***");
        }
        let text: String = text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
        match text.char_indices().nth(300) {
            Some((end, _)) => format!("{}…", &text[..end]),
            None => text,
        }
    }
}

/// Returns the failure for a storage, to which large files are sent, that refuses a request.
pub(super) fn storage_refuses(url: &str, status: u16, said: &str) -> Failure {
    let colon = if said.is_empty() { "" } else { ": " };
    Failure::Final(Error::invalid(
        redacted(url),
        format!("the hub's storage refuses the upload (status {status}){colon}{said}"),
        "push again: finished files are not sent again",
    ))
}
