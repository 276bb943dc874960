//! A server on loopback whose responses a test defines, and a folder in which only the cache may change.

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use arithmo::model::hub::{Hub, HubConfig};
use arithmo::progress::ProgressMode;

use super::{COMMIT, TOKEN};
use crate::support::file_names;

pub(crate) struct Request {
    pub(crate) method: String,
    pub(crate) path: String,
    pub(crate) range: Option<u64>,
    pub(crate) token: bool,
    /// Names and values of all headers, in lower case.
    pub(crate) headers: Vec<String>,
    pub(crate) body: Vec<u8>,
}

pub(crate) enum Reply {
    /// Sends these bytes and closes the connection.
    Bytes(Vec<u8>),
    /// Sends these bytes and keeps the connection open.
    Silence(Vec<u8>),
    /// Sends the first bytes once, then the second repeatedly, with this pause.
    Endless(Vec<u8>, Vec<u8>, Duration),
}

type Handler = dyn Fn(&Request) -> Reply + Send + Sync;

/// A server that responds with the results of a handler, with one thread per connection.
pub(crate) struct Hostile {
    pub(crate) port: u16,
    /// Number of requests with a body of more than 1,000 bytes that break off after these.
    pub(crate) cuts: Arc<AtomicUsize>,
    log: Arc<Mutex<Vec<String>>>,
    stop: Arc<AtomicBool>,
}

impl Hostile {
    pub(crate) fn start(handler: impl Fn(&Request) -> Reply + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let server = Self {
            port: listener.local_addr().unwrap().port(),
            cuts: Arc::default(),
            log: Arc::default(),
            stop: Arc::default(),
        };
        let (log, stop, handler) = (server.log.clone(), server.stop.clone(), Arc::new(handler));
        let cuts = server.cuts.clone();
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                if stop.load(Ordering::SeqCst) {
                    return;
                }
                let (log, stop, handler) = (log.clone(), stop.clone(), handler.clone());
                let cuts = cuts.clone();
                thread::spawn(move || drop(answer(stream, &log, &cuts, &stop, &*handler)));
            }
        });
        server
    }

    /// Returns the requests so far, as `METHOD path`, followed by `token` if the request had one.
    pub(crate) fn requests(&self) -> Vec<String> {
        self.log.lock().unwrap().clone()
    }

    pub(crate) fn config(&self, cache: &Path) -> HubConfig {
        HubConfig {
            endpoint: format!("http://127.0.0.1:{}", self.port),
            cache_dir: cache.to_path_buf(),
            token: Some(TOKEN.to_string()),
            offline: false,
            retries: 5,
            timeout: Duration::from_secs(30),
            progress: ProgressMode::Quiet,
        }
    }

    /// Returns the error of resolving `own/tiny`. Panics if there is none, or if it contains the token.
    pub(crate) fn refused(&self, cache: &Path) -> String {
        self.refused_within(cache, Duration::from_secs(30))
    }

    pub(crate) fn refused_within(&self, cache: &Path, timeout: Duration) -> String {
        let config = HubConfig { timeout, ..self.config(cache) };
        let error = Hub::new(config).resolve("own/tiny", "main").unwrap_err();
        assert!(!error.to_string().contains(TOKEN), "{error}");
        error.to_string()
    }
}

impl Drop for Hostile {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        let _ = TcpStream::connect(("127.0.0.1", self.port));
    }
}

fn answer(
    mut stream: TcpStream,
    log: &Mutex<Vec<String>>,
    cuts: &AtomicUsize,
    stop: &AtomicBool,
    handler: &Handler,
) -> std::io::Result<()> {
    let mut reader = BufReader::new(stream.try_clone()?);
    let mut first = String::new();
    reader.read_line(&mut first)?;
    let mut words = first.split_whitespace().map(str::to_string);
    let mut request = Request {
        method: words.next().unwrap_or_default(),
        path: words.next().unwrap_or_default(),
        range: None,
        token: false,
        headers: Vec::new(),
        body: Vec::new(),
    };
    let mut length = 0;
    loop {
        let mut line = String::new();
        reader.read_line(&mut line)?;
        let line = line.trim_end().to_ascii_lowercase();
        if line.is_empty() {
            break;
        }
        if let Some(range) = line.strip_prefix("range: bytes=") {
            request.range = range.trim_end_matches('-').parse().ok();
        }
        if let Some(bytes) = line.strip_prefix("content-length: ") {
            length = bytes.parse().unwrap();
        }
        request.token |= line.starts_with("authorization:");
        request.headers.push(line);
    }
    let cut = length > 1000
        && cuts
            .fetch_update(Ordering::SeqCst, Ordering::SeqCst, |cuts| cuts.checked_sub(1))
            .is_ok();
    request.body = vec![0; if cut { 1000 } else { length }];
    reader.read_exact(&mut request.body)?;
    let token = if request.token { " token" } else { "" };
    log.lock().unwrap().push(format!("{} {}{token}", request.method, request.path));
    if cut {
        return Ok(());
    }
    match handler(&request) {
        Reply::Bytes(bytes) => stream.write_all(&bytes),
        Reply::Silence(bytes) => {
            stream.write_all(&bytes)?;
            while !stop.load(Ordering::SeqCst) {
                thread::sleep(Duration::from_millis(20));
            }
            Ok(())
        }
        Reply::Endless(head, block, pause) => {
            stream.write_all(&head)?;
            while !stop.load(Ordering::SeqCst) {
                stream.write_all(&block)?;
                thread::sleep(pause);
            }
            Ok(())
        }
    }
}

/// Returns a response with `headers`, `body` and the body's length.
pub(crate) fn reply(status: &str, headers: &str, body: &[u8]) -> Reply {
    let length = body.len();
    let mut bytes = format!(
        "HTTP/1.1 {status}\r\n{headers}content-length: {length}\r\nconnection: close\r\n\r\n"
    )
    .into_bytes();
    bytes.extend(body);
    Reply::Bytes(bytes)
}

/// Returns the head of a response without the body's length.
pub(crate) fn open_ended(headers: &str) -> Vec<u8> {
    format!("HTTP/1.1 200 OK\r\n{headers}connection: close\r\n\r\n").into_bytes()
}

/// A hub with a tiny model. Tests change its fields to make it malicious.
#[derive(Clone)]
pub(crate) struct Tiny {
    pub(crate) sha: Option<String>,
    pub(crate) listing: bool,
    pub(crate) commit: Option<String>,
    pub(crate) etag: String,
    pub(crate) files: BTreeMap<&'static str, Vec<u8>>,
}

impl Tiny {
    pub(crate) fn new() -> Self {
        let files = [
            ("config.json", b"{}".to_vec()),
            ("tokenizer.json", b"{}".to_vec()),
            ("model.safetensors", vec![7; 20_000]),
        ];
        Self {
            sha: Some(COMMIT.into()),
            listing: true,
            commit: Some(COMMIT.into()),
            etag: "x".into(),
            files: files.into(),
        }
    }

    pub(crate) fn respond(&self, request: &Request) -> Reply {
        let path = request.path.replace("%20", " ");
        if path.starts_with("/api/") {
            if !self.listing {
                return reply("404 Not Found", "", b"");
            }
            let sha = serde_json::to_string(&self.sha).unwrap();
            let names: Vec<String> = self
                .files
                .keys()
                .map(|name| format!("{{\"rfilename\": {}}}", serde_json::to_string(name).unwrap()))
                .collect();
            let names = names.join(", ");
            let listing = format!("{{\"sha\": {sha}, \"siblings\": [{names}]}}");
            return reply("200 OK", "", listing.as_bytes());
        }
        let name = path.splitn(6, '/').nth(5).unwrap_or_default();
        let Some(content) = self.files.get(name) else {
            return reply("404 Not Found", "x-error-code: EntryNotFound\r\n", b"");
        };
        let commit = self
            .commit
            .as_ref()
            .map(|commit| format!("x-repo-commit: {commit}\r\n"))
            .unwrap_or_default();
        let headers = format!("{commit}etag: \"{}\"\r\n", self.etag);
        let Reply::Bytes(mut bytes) = reply("200 OK", &headers, content) else { unreachable!() };
        if request.method == "HEAD" {
            bytes.truncate(bytes.len() - content.len());
        }
        Reply::Bytes(bytes)
    }
}

pub(crate) fn is_weights(request: &Request) -> bool {
    request.path.ends_with("model.safetensors")
}

/// A temporary folder with a cache deep inside, and a folder `victim` that must not change.
pub(crate) struct Place(pub(crate) tempfile::TempDir);

impl Place {
    pub(crate) fn new() -> Self {
        let root = tempfile::tempdir().unwrap();
        fs::create_dir_all(root.path().join("a/b/c/d/cache")).unwrap();
        fs::create_dir_all(root.path().join("victim")).unwrap();
        fs::write(root.path().join("victim/config.json"), "precious").unwrap();
        Self(root)
    }

    pub(crate) fn cache(&self) -> std::path::PathBuf {
        self.0.path().join("a/b/c/d/cache")
    }

    /// Panics if a file was written outside the cache, or if a link leads out of it.
    pub(crate) fn check(&self, what: &str) {
        let root = self.0.path();
        assert_eq!(file_names(root), ["a", "victim"], "{what}");
        for folder in ["a", "a/b", "a/b/c", "a/b/c/d"] {
            assert_eq!(file_names(&root.join(folder)).len(), 1, "{what}: {folder}");
        }
        assert_eq!(file_names(&root.join("victim")), ["config.json"], "{what}");
        let precious = root.join("victim/config.json");
        assert!(!precious.is_symlink(), "{what}");
        assert_eq!(fs::read_to_string(precious).unwrap(), "precious", "{what}");
        let cache = self.cache().canonicalize().unwrap();
        for entry in glob::glob(&format!("{}/**/*", cache.display())).unwrap() {
            let path = entry.unwrap();
            let real = path.canonicalize().unwrap();
            assert!(real.starts_with(&cache), "{what}: {path:?} is {real:?}");
        }
    }
}
