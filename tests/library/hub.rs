//! Tests of downloads from a small hub on loopback: interrupted, resumed, damaged, refused and offline ones.

mod hostile;
mod limits;
mod push;
mod server;
mod storage;

use std::collections::HashMap;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use arithmo::model::hub::{Hub, HubConfig};
use arithmo::progress::ProgressMode;
use sha2::{Digest, Sha256};

const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";
const TOKEN: &str = "hf_secret";

/// How the server behaves. Tests change it while the server runs.
#[derive(Default)]
struct Behavior {
    /// Content by path, such as `/owner/name/resolve/main/config.json`.
    files: HashMap<String, Vec<u8>>,
    /// Listings by path.
    listings: HashMap<String, String>,
    /// Status and `x-error-code` with which every request is refused.
    refuse: Option<(u16, &'static str)>,
    /// Number of connections that are closed without a response.
    silent: usize,
    /// Number of downloads of the large file that end after half of its bytes.
    cuts: usize,
    /// Respond to a range request with status 200 and the whole file.
    ignore_range: bool,
    /// Respond to HEAD with 501.
    no_head: bool,
    /// Serve no listings, and send no `x-error-code` with a 404.
    plain: bool,
    /// Send bytes that do not match the etag.
    damage: bool,
    /// Commit of every file, if not [`COMMIT`].
    other_commit: Option<&'static str>,
    /// `METHOD path range token` of every request.
    log: Vec<String>,
}

struct Server {
    port: u16,
    behavior: Arc<Mutex<Behavior>>,
    stop: Arc<Mutex<bool>>,
}

impl Server {
    fn start(behavior: Behavior) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let behavior = Arc::new(Mutex::new(behavior));
        let stop = Arc::new(Mutex::new(false));
        let (shared, stopped) = (behavior.clone(), stop.clone());
        thread::spawn(move || {
            for stream in listener.incoming() {
                if *stopped.lock().unwrap() {
                    return;
                }
                // Errors are ignored, because clients may close the connection at any time.
                let _ = stream.and_then(|stream| answer(stream, &shared, port));
            }
        });
        Self { port, behavior, stop }
    }

    fn set(&self, change: impl FnOnce(&mut Behavior)) {
        change(&mut self.behavior.lock().unwrap());
    }

    /// Returns the requests since the last call whose log line contains `part`.
    fn log(&self, part: &str) -> Vec<String> {
        let log = std::mem::take(&mut self.behavior.lock().unwrap().log);
        log.into_iter().filter(|line| line.contains(part)).collect()
    }

    fn hub(&self, cache: &Path) -> Hub {
        Hub::new(self.config(cache))
    }

    fn config(&self, cache: &Path) -> HubConfig {
        HubConfig {
            endpoint: format!("http://127.0.0.1:{}", self.port),
            cache_dir: cache.to_path_buf(),
            token: Some(TOKEN.to_string()),
            offline: false,
            retries: 0,
            timeout: Duration::from_secs(60),
            progress: ProgressMode::Quiet,
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        *self.stop.lock().unwrap() = true;
        // A connection wakes the loop, which then drops the listener.
        let _ = TcpStream::connect(("127.0.0.1", self.port));
    }
}

fn answer(mut stream: TcpStream, shared: &Mutex<Behavior>, port: u16) -> std::io::Result<()> {
    let mut reader = BufReader::new(stream.try_clone()?);
    let mut first = String::new();
    reader.read_line(&mut first)?;
    let mut headers = HashMap::new();
    for line in reader.lines() {
        let line = line?;
        let Some((name, value)) = line.split_once(": ") else {
            break;
        };
        headers.insert(name.to_ascii_lowercase(), value.to_string());
    }
    let mut words = first.split_whitespace();
    let (method, path) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
    let range = headers.get("range").cloned().unwrap_or_default();
    let token = headers.get("authorization").map(String::as_str).unwrap_or("no token");
    let mut behavior = shared.lock().unwrap();
    behavior.log.push(format!("{method} {path} {range} {token}"));
    if behavior.silent > 0 {
        behavior.silent -= 1;
        return Ok(());
    }
    let (head, body) = respond(&mut behavior, method, path, &range, port);
    drop(behavior);
    stream.write_all(format!("HTTP/1.1 {head}connection: close\r\n\r\n").as_bytes())?;
    stream.write_all(&body)
}

/// Returns status line and headers, and the body.
fn respond(
    b: &mut Behavior,
    method: &str,
    path: &str,
    range: &str,
    port: u16,
) -> (String, Vec<u8>) {
    if let Some((status, code)) = b.refuse {
        return empty(&format!("{status} No\r\nx-error-code: {code}"));
    }
    if method == "HEAD" && b.no_head {
        return empty("501 Not Implemented");
    }
    if let Some(listing) = b.listings.get(path).filter(|_| !b.plain) {
        return (
            format!("200 OK\r\ncontent-length: {}\r\n", listing.len()),
            listing.clone().into(),
        );
    }
    if let Some(rest) = path.strip_prefix("/old/") {
        return empty(&format!("307 Moved\r\nlocation: /own/{rest}"));
    }
    // Large files are on another host name, as on the real hub.
    let stored = path.strip_prefix("/storage");
    let Some(content) = b.files.get(stored.unwrap_or(path)).cloned() else {
        let code = if b.plain { "" } else { "\r\nx-error-code: EntryNotFound" };
        return empty(&format!("404 Not Found{code}"));
    };
    send_file(b, method, path, range, port, &content)
}

/// Responds with a file of the repository. Files above 1000 bytes are redirected to the storage.
fn send_file(
    b: &mut Behavior,
    method: &str,
    path: &str,
    range: &str,
    port: u16,
    content: &[u8],
) -> (String, Vec<u8>) {
    let commit = b.other_commit.filter(|_| !path.ends_with("config.json")).unwrap_or(COMMIT);
    let (large, size) = (content.len() > 1000, content.len());
    let sha: String = Sha256::digest(content).iter().map(|byte| format!("{byte:02x}")).collect();
    if large && !path.starts_with("/storage") {
        return empty(&format!(
            "302 Found\r\nlocation: http://localhost:{port}/storage{path}\r\nx-repo-commit: {commit}\r\n\
             x-linked-etag: \"{sha}\"\r\nx-linked-size: {size}"
        ));
    }
    let asked = range.strip_prefix("bytes=").and_then(|r| r.split('-').next()?.parse().ok());
    let start: usize = asked.filter(|_| !b.ignore_range).unwrap_or(0);
    let status = match asked {
        Some(_) if start >= size => return empty("416 Range Not Satisfiable"),
        Some(_) if !b.ignore_range => {
            format!("206 Partial\r\ncontent-range: bytes {start}-{}/{size}", size - 1)
        }
        _ => "200 OK".to_string(),
    };
    let mut body = content[start..].to_vec();
    let (length, etag) = (body.len(), &sha[..40]);
    let head = format!(
        "{status}\r\ncontent-length: {length}\r\nx-repo-commit: {commit}\r\netag: \"{etag}\"\r\n"
    );
    if b.damage && large {
        body[7] ^= 1;
    }
    if large && b.cuts > 0 && method == "GET" {
        b.cuts -= 1;
        body.truncate(length / 2);
    }
    (head, if method == "HEAD" { Vec::new() } else { body })
}

fn empty(status: &str) -> (String, Vec<u8>) {
    (format!("{status}\r\ncontent-length: 0\r\n"), Vec::new())
}

fn noise(len: usize) -> Vec<u8> {
    (0..len as u64).map(|i| (i.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 33) as u8).collect()
}

/// Returns a hub with the model `own/tiny` and the data set `own/data`.
fn repository() -> Behavior {
    let model: [(&str, Vec<u8>); 4] = [
        ("config.json", b"{}".to_vec()),
        ("tokenizer.json", b"{\"a\": 1}".to_vec()),
        ("model.safetensors", noise(300_001)),
        ("README.md", b"not needed".to_vec()),
    ];
    let data: [(&str, Vec<u8>); 5] = [
        ("README.md", b"text".to_vec()),
        ("data/a b/0.parquet", noise(2000)),
        ("data/a b/1.parquet", noise(3000)),
        ("data/c/0.parquet", noise(500)),
        ("data/c/notes.txt", b"text".to_vec()),
    ];
    let mut behavior = Behavior::default();
    for (kind, api, files) in [
        ("own/tiny", "models/own/tiny", &model[..]),
        ("datasets/own/data", "datasets/own/data", &data[..]),
    ] {
        let names: Vec<String> =
            files.iter().map(|f| format!("{{\"rfilename\": \"{}\"}}", f.0)).collect();
        let listing = format!("{{\"sha\": \"{COMMIT}\", \"siblings\": [{}]}}", names.join(","));
        behavior.listings.insert(format!("/api/{api}/revision/main"), listing.clone());
        behavior.listings.insert(format!("/api/{api}/revision/{COMMIT}"), listing);
        for (name, content) in files {
            for revision in ["main", COMMIT] {
                let path = format!("/{kind}/resolve/{revision}/{}", name.replace(' ', "%20"));
                behavior.files.insert(path, content.clone());
            }
        }
    }
    behavior
}

fn read_weights(folder: &Path) -> Vec<u8> {
    fs::read(folder.join("model.safetensors")).unwrap()
}

/// Returns path and length of the unfinished file in the cache of a repository.
fn unfinished(repo: &Path) -> (PathBuf, u64) {
    let blobs = fs::read_dir(repo.join("blobs")).unwrap().map(|e| e.unwrap().path());
    let mut parts = blobs.filter(|p| p.extension().is_some_and(|e| e == "incomplete"));
    let part = parts.next().unwrap();
    let length = fs::metadata(&part).unwrap().len();
    (part, length)
}

#[test]
fn an_interrupted_download_resumes_with_a_range() {
    let server = Server::start(Behavior { cuts: 1, ..repository() });
    let cache = tempfile::tempdir().unwrap();
    let error = server.hub(cache.path()).resolve("own/tiny", "main").unwrap_err().to_string();
    assert!(error.contains("cannot be reached"), "{error}");
    let repo = cache.path().join("models--own--tiny");
    assert!(!repo.join("refs/main").exists());
    let (part, had) = unfinished(&repo);
    assert!(had > 0 && had <= 150_000, "{had}");
    server.log("");

    let folder = server.hub(cache.path()).resolve("own/tiny", "main").unwrap();
    assert_eq!(read_weights(&folder), noise(300_001));
    let gets = server.log("GET");
    // The storage gets a request for the missing bytes only and never gets the token. Complete files are not requested
    // again.
    let file = "own/tiny/resolve/main/model.safetensors";
    assert!(gets.contains(&format!("GET /storage/{file} bytes={had}- no token")), "{gets:?}");
    assert!(gets.contains(&format!("GET /{file} bytes={had}- Bearer {TOKEN}")), "{gets:?}");
    assert_eq!(gets.len(), 3, "{gets:?}");
    assert!(!part.exists() && !folder.join("README.md").exists());
    assert_eq!(folder, repo.join("snapshots").join(COMMIT));
    assert_eq!(fs::read_to_string(repo.join("refs/main")).unwrap(), COMMIT);
    let link = fs::read_link(folder.join("model.safetensors")).unwrap();
    assert!(link.starts_with("../../blobs"), "{link:?}");
}

/// Checks that resuming a download does not change a hard link to the unfinished file, which `cp -al` makes.
#[test]
#[cfg(unix)]
fn a_hard_link_to_an_unfinished_file_is_kept() {
    let server = Server::start(Behavior { cuts: 1, ..repository() });
    let cache = tempfile::tempdir().unwrap();
    server.hub(cache.path()).resolve("own/tiny", "main").unwrap_err();
    let (part, had) = unfinished(&cache.path().join("models--own--tiny"));
    let backup = cache.path().join("backup");
    fs::hard_link(&part, &backup).unwrap();
    server.log("");
    let folder = server.hub(cache.path()).resolve("own/tiny", "main").unwrap();
    assert_eq!(read_weights(&folder), noise(300_001));
    let rest = format!("bytes={had}-");
    assert!(server.log("GET").iter().any(|line| line.contains(&rest)));
    assert!(!part.exists());
    assert_eq!(fs::metadata(&backup).unwrap().len(), had);
}

#[test]
fn cached_models_need_no_hub() {
    let server = Server::start(repository());
    let cache = tempfile::tempdir().unwrap();
    let folder = server.hub(cache.path()).resolve("own/tiny", "main").unwrap();
    server.log("");
    // A commit cannot change, so it needs no request.
    assert_eq!(server.hub(cache.path()).resolve("own/tiny", COMMIT).unwrap(), folder);
    assert!(server.log("").is_empty());
    let config = server.config(cache.path());
    drop(server);
    assert_eq!(Hub::new(config.clone()).resolve("own/tiny", "main").unwrap(), folder);
    assert!(Hub::new(config.clone()).resolve("own/tiny", "dev").is_err());
    let offline = Hub::new(HubConfig { offline: true, ..config });
    assert_eq!(offline.resolve("own/tiny", "main").unwrap(), folder);
    let error = offline.resolve("own/tiny", "dev").unwrap_err().to_string();
    assert!(error.contains("HF_HUB_OFFLINE") && error.contains("dev"), "{error}");
}

#[test]
fn one_call_retries_broken_connections() {
    let server = Server::start(Behavior { silent: 1, cuts: 3, no_head: true, ..repository() });
    let cache = tempfile::tempdir().unwrap();
    let hub = Hub::new(HubConfig { retries: 2, ..server.config(cache.path()) });
    let folder = hub.resolve("own/tiny", "main").unwrap();
    assert_eq!(read_weights(&folder), noise(300_001));
    let ranges = server.log("GET /storage");
    assert_eq!(ranges.len(), 4, "{ranges:?}");
}

#[test]
fn a_file_server_without_ranges_or_listings_works() {
    let behavior = Behavior { cuts: 1, ignore_range: true, plain: true, ..repository() };
    let server = Server::start(behavior);
    let cache = tempfile::tempdir().unwrap();
    assert!(server.hub(cache.path()).resolve("own/tiny", "main").is_err());
    let folder = server.hub(cache.path()).resolve("own/tiny", "main").unwrap();
    assert_eq!(read_weights(&folder), noise(300_001));
    assert_eq!(folder.file_name().unwrap(), COMMIT);
    let error = server.hub(cache.path()).resolve("own/tini", "main").unwrap_err().to_string();
    assert!(error.contains("has no file config.json") && error.contains("spelling"), "{error}");
}

#[test]
fn damaged_downloads_are_detected_and_not_kept() {
    let server = Server::start(Behavior { damage: true, ..repository() });
    let cache = tempfile::tempdir().unwrap();
    let error = server.hub(cache.path()).resolve("own/tiny", "main").unwrap_err().to_string();
    assert!(error.contains("model.safetensors") && error.contains("SHA-256"), "{error}");
    server.set(|b| b.damage = false);
    let folder = server.hub(cache.path()).resolve("own/tiny", "main").unwrap();
    assert_eq!(read_weights(&folder), noise(300_001));
    let cache = tempfile::tempdir().unwrap();
    server.set(|b| b.other_commit = Some("ffffffffffffffffffffffffffffffffffffffff"));
    let error = server.hub(cache.path()).resolve("own/tiny", "main").unwrap_err().to_string();
    assert!(error.contains("changed during the download"), "{error}");
}

#[test]
fn sharded_models_are_downloaded_whole_and_pickled_ones_are_refused() {
    let mut behavior = repository();
    let path = |name: &str| format!("/own/tiny/resolve/main/{name}");
    let weights = behavior.files.remove(&path("model.safetensors")).unwrap();
    let api = "/api/models/own/tiny/revision/main".to_string();
    let listing = behavior.listings[&api].replace("model.safetensors", "pytorch_model.bin");
    behavior.listings.insert(api.clone(), listing.clone());
    let server = Server::start(behavior);
    let cache = tempfile::tempdir().unwrap();
    let error = server.hub(cache.path()).resolve("own/tiny", "main").unwrap_err().to_string();
    assert!(error.contains("only pickled weights (pytorch_model.bin)"), "{error}");
    let index = r#"{"weight_map": {"a": "m-1.safetensors", "b": "m-2.safetensors"}}"#;
    server.set(|b| {
        let listing = listing.replace("pytorch_model.bin", "model.safetensors.index.json");
        b.listings.insert(api, listing);
        b.files.insert(path("model.safetensors.index.json"), index.as_bytes().to_vec());
        b.files.insert(path("m-1.safetensors"), weights);
    });
    let error = server.hub(cache.path()).resolve("own/tiny", "main").unwrap_err().to_string();
    assert!(error.contains("has no file m-2.safetensors"), "{error}");
    let offline = Hub::new(HubConfig { offline: true, ..server.config(cache.path()) });
    assert!(offline.resolve("own/tiny", "main").is_err());
    server.set(|b| drop(b.files.insert(path("m-2.safetensors"), b"two".to_vec())));
    let folder = server.hub(cache.path()).resolve("own/tiny", "main").unwrap();
    assert_eq!(fs::read(folder.join("m-2.safetensors")).unwrap(), b"two");
    assert_eq!(offline.resolve("own/tiny", "main").unwrap(), folder);
}

#[test]
fn errors_of_the_hub_say_what_to_do() {
    let server = Server::start(repository());
    let cache = tempfile::tempdir().unwrap();
    let anonymous = Hub::new(HubConfig { token: None, ..server.config(cache.path()) });
    let cases = [
        (401, "RepoNotFound", "set HF_TOKEN", "HF_TOKEN is valid"),
        (404, "RepoNotFound", "spelling of owner/name", "spelling of owner/name"),
        (404, "RevisionNotFound", "has no revision \"main\"", "has no revision \"main\""),
        (403, "GatedRepo", "accept its license", "accept its license"),
        (503, "", "cannot be reached: status 503", "cannot be reached: status 503"),
        (418, "Odd", "status 418 Odd", "status 418 Odd"),
    ];
    for (status, code, without_token, with_token) in cases {
        server.set(|b| b.refuse = Some((status, code)));
        let error = anonymous.resolve("own/tiny", "main").unwrap_err().to_string();
        assert!(error.contains(without_token) && error.contains("own/tiny"), "{error}");
        assert!(error.contains("nor is there a folder \"own/tiny\""), "{error}");
        let error = server.hub(cache.path()).resolve("own/tiny", "main").unwrap_err().to_string();
        assert!(error.contains(with_token), "{error}");
    }
    for id in ["no/such/folder", "./here", "a b", "", "../x", "a//b"] {
        let error = anonymous.resolve(id, "main").unwrap_err().to_string();
        assert!(error.contains("neither an existing folder nor a hub id"), "{error}");
    }
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().to_str().unwrap();
    assert_eq!(anonymous.resolve(path, "main").unwrap(), folder.path());
}

#[test]
fn a_renamed_repository_is_followed_with_the_token() {
    let mut behavior = repository();
    let listing = behavior.listings["/api/models/own/tiny/revision/main"].clone();
    behavior.listings.insert("/api/models/old/tiny/revision/main".to_string(), listing);
    let server = Server::start(behavior);
    let cache = tempfile::tempdir().unwrap();
    let folder = server.hub(cache.path()).resolve("old/tiny", "main").unwrap();
    assert_eq!(read_weights(&folder), noise(300_001));
    let heads = server.log("HEAD /own/tiny/resolve/main/model.safetensors");
    assert!(heads.len() == 1 && heads[0].ends_with(TOKEN), "{heads:?}");
}

#[test]
fn data_sets_are_fetched_by_file_folder_and_pattern() {
    let server = Server::start(repository());
    let cache = tempfile::tempdir().unwrap();
    let hub = server.hub(cache.path());
    let names = |hub: &Hub, path: &str| -> Vec<String> {
        let paths = hub.fetch_files(&format!("hf://datasets/own/data{path}")).unwrap();
        assert!(paths.iter().all(|path| path.is_file()));
        let inside = |p: &PathBuf| p.to_str().unwrap().split(COMMIT).last().unwrap().to_string();
        paths.iter().map(inside).collect()
    };
    assert_eq!(names(&hub, "/data/c/0.parquet"), ["/data/c/0.parquet"]);
    let config = server.config(cache.path());
    let offline = Hub::new(HubConfig { offline: true, ..config.clone() });
    assert_eq!(names(&offline, "/data/c/0.parquet"), ["/data/c/0.parquet"]);
    // Only a part of the folder is cached, which is not enough for the whole folder.
    assert!(offline.fetch_files("hf://datasets/own/data/data").is_err());
    let both = ["/data/a b/0.parquet", "/data/a b/1.parquet"];
    assert_eq!(names(&hub, "/data/a b"), both);
    assert_eq!(names(&hub, "/data/a*/*.parquet"), both);
    assert_eq!(names(&hub, "@main/*/?/0.parquet"), ["/data/c/0.parquet"]);
    let all = [both[0], both[1], "/data/c/0.parquet"];
    assert_eq!(names(&hub, ""), all);
    assert_eq!(names(&hub, &format!("@{COMMIT}/**/*.parquet")), all);
    for (path, wanted) in [
        ("hf://datasets/own/data/nothing", "names no file"),
        ("hf://datasets/own/data/*.parquet", "names no file"),
        ("hf://datasets/own", "is not an address"),
        ("hf://models/own/tiny", "is not an address"),
        ("hf://datasets/own/data/../x", "is not an address"),
        ("hf://datasets/own/data/[", "not a valid pattern"),
    ] {
        let error = hub.fetch_files(path).unwrap_err().to_string();
        assert!(error.contains(wanted), "{error}");
    }
    drop(server);
    assert_eq!(names(&Hub::new(config), "/data"), all);
    assert_eq!(names(&offline, "/data/a b"), both);
}

#[test]
fn the_environment_is_read_as_by_huggingface_hub() {
    let read = |vars: &[(&str, &str)]| {
        let vars: HashMap<String, String> =
            vars.iter().map(|(k, v)| (k.to_string(), v.to_string())).collect();
        HubConfig::from_vars(|name| vars.get(name).cloned(), Some(PathBuf::from("/home/me")))
    };
    let plain = read(&[]);
    assert_eq!(plain.endpoint, "https://huggingface.co");
    assert_eq!(plain.cache_dir, Path::new("/home/me/.cache/huggingface/hub"));
    assert!(!plain.offline && plain.token.is_none());
    assert_eq!(read(&[("XDG_CACHE_HOME", "/x")]).cache_dir, Path::new("/x/huggingface/hub"));
    assert_eq!(read(&[("HF_HOME", "/h"), ("XDG_CACHE_HOME", "/x")]).cache_dir, Path::new("/h/hub"));
    assert_eq!(read(&[("HF_HOME", "/h"), ("HF_HUB_CACHE", "/c")]).cache_dir, Path::new("/c"));
    assert_eq!(read(&[("HF_ENDPOINT", "http://mirror/")]).endpoint, "http://mirror");
    assert!(
        read(&[("HF_HUB_OFFLINE", "1")]).offline
            && read(&[("TRANSFORMERS_OFFLINE", "yes")]).offline
    );
    for (value, seconds) in [("10", 10), (" 120 ", 120), ("0", 30), ("-1", 30), ("x", 30)] {
        let config = read(&[("HF_HUB_DOWNLOAD_TIMEOUT", value)]);
        assert_eq!(config.timeout, Duration::from_secs(seconds), "{value:?}");
    }
    assert!(!read(&[("HF_HUB_OFFLINE", "0")]).offline);
    let home = tempfile::tempdir().unwrap();
    fs::write(home.path().join("token"), "from-login\n").unwrap();
    let home = home.path().to_str().unwrap();
    assert_eq!(read(&[("HF_HOME", home)]).token.as_deref(), Some("from-login"));
    assert_eq!(read(&[("HF_HOME", home), ("HF_TOKEN", " given ")]).token.as_deref(), Some("given"));
}
