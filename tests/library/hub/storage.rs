//! A hub that takes pushes, as Hugging Face's HTTP API describes it, with a storage on another port.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde_json::{Value, json};
use sha1::Sha1;
use sha2::{Digest, Sha256};

use super::server::{Hostile, Reply, Request, reply};
use super::{COMMIT, TOKEN};

/// What hub and storage hold, and how they behave. Tests change it.
#[derive(Default)]
pub(crate) struct State {
    /// Whether the repository exists.
    pub(crate) exists: bool,
    /// The bodies of the requests that created it.
    pub(crate) created: Vec<Value>,
    /// Content and hash of each committed file.
    pub(crate) files: BTreeMap<String, (Vec<u8>, String)>,
    /// The lines of each commit.
    pub(crate) commits: Vec<Vec<Value>>,
    /// Contents of the storage by SHA-256.
    pub(crate) objects: BTreeMap<String, Vec<u8>>,
    /// Parts of large files by number.
    parts: BTreeMap<u64, Vec<u8>>,
    /// Size of a part, if files are sent in parts.
    pub(crate) chunk: Option<usize>,
    /// Number of commits whose answer is lost.
    pub(crate) lost_answers: usize,
    pub(crate) storage_port: u16,
}

/// The hub and its storage.
pub(crate) struct PushHub {
    pub(crate) hub: Hostile,
    pub(crate) storage: Hostile,
    pub(crate) state: Arc<Mutex<State>>,
}

/// Returns the SHA-256 of `bytes` in hexadecimal.
pub(crate) fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Returns the hash by which git names the content `bytes`.
fn git_hash(bytes: &[u8]) -> String {
    let bytes = [format!("blob {}\0", bytes.len()).as_bytes(), bytes].concat();
    Sha1::digest(&bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

pub(crate) fn json_reply(value: &Value) -> Reply {
    reply("200 OK", "content-type: application/json\r\n", value.to_string().as_bytes())
}

impl PushHub {
    pub(crate) fn start() -> Self {
        Self::with(|_, _| None)
    }

    /// Starts a hub in which `change` may answer a request of the hub or the storage in its place.
    pub(crate) fn with(
        change: impl Fn(&Request, &mut State) -> Option<Reply> + Clone + Send + Sync + 'static,
    ) -> Self {
        let state: Arc<Mutex<State>> = Arc::default();
        let (for_hub, for_storage, changed) = (state.clone(), state.clone(), change.clone());
        let storage = Hostile::start(move |request| {
            let mut state = for_storage.lock().unwrap();
            changed(request, &mut state).unwrap_or_else(|| state.store(request))
        });
        state.lock().unwrap().storage_port = storage.port;
        let hub = Hostile::start(move |request| {
            let mut state = for_hub.lock().unwrap();
            change(request, &mut state).unwrap_or_else(|| state.respond(request))
        });
        Self { hub, storage, state }
    }

    pub(crate) fn set(&self, change: impl FnOnce(&mut State)) {
        change(&mut self.state.lock().unwrap());
    }

    /// Panics unless the storage has received no token, and the hub one with every request.
    #[track_caller]
    pub(crate) fn check_tokens(&self) {
        let hub = self.hub.requests();
        assert!(hub.iter().all(|line| line.ends_with(" token")), "{hub:?}");
        let storage = self.storage.requests();
        assert!(storage.iter().all(|line| !line.ends_with(" token")), "{storage:?}");
    }

    /// Returns the number of requests of hub and storage that contain `part`.
    pub(crate) fn count(&self, part: &str) -> usize {
        let all = [self.hub.requests(), self.storage.requests()].concat();
        all.iter().filter(|line| line.contains(part)).count()
    }
}

impl State {
    /// Answers a request to the hub.
    pub(crate) fn respond(&mut self, request: &Request) -> Reply {
        let body = || serde_json::from_slice::<Value>(&request.body).unwrap();
        match request.path.as_str() {
            "/api/whoami-v2" => json_reply(&json!({"name": "own"})),
            "/api/repos/create" if self.exists => {
                reply("409 Conflict", "", br#"{"error": "You already created this model repo"}"#)
            }
            "/api/repos/create" => {
                self.exists = true;
                self.created.push(body());
                json_reply(&json!({"url": "https://hub.example/own/tiny"}))
            }
            "/api/models/own/tiny/preupload/main" => self.preupload(&body()),
            "/own/tiny.git/info/lfs/objects/batch" => self.batch(request, &body()),
            "/verify" => {
                let oid = body()["oid"].as_str().unwrap().to_string();
                let found = self.objects.contains_key(&oid);
                reply(if found { "200 OK" } else { "404 Not Found" }, "", b"{}")
            }
            "/api/models/own/tiny/commit/main" => self.commit(&request.body),
            _ => reply("404 Not Found", "", b"{}"),
        }
    }

    fn preupload(&self, body: &Value) -> Reply {
        let files = body["files"].as_array().unwrap().iter().map(|file| {
            let path = file["path"].as_str().unwrap();
            let sample = BASE64.decode(file["sample"].as_str().unwrap()).unwrap();
            assert!(sample.len() <= 512 && sample.len() as u64 <= file["size"].as_u64().unwrap());
            let mode = if path.ends_with(".safetensors") { "lfs" } else { "regular" };
            let oid = self.files.get(path).map(|(_, hash)| hash);
            json!({"path": path, "uploadMode": mode, "shouldIgnore": false, "oid": oid})
        });
        json_reply(&json!({"files": files.collect::<Vec<_>>()}))
    }

    fn batch(&self, request: &Request, body: &Value) -> Reply {
        let lfs = "application/vnd.git-lfs+json";
        for header in ["accept", "content-type"] {
            assert!(request.headers.contains(&format!("{header}: {lfs}")), "{:?}", request.headers);
        }
        assert_eq!((&body["operation"], &body["hash_algo"]), (&json!("upload"), &json!("sha256")));
        let server = format!("http://127.0.0.1:{}", self.storage_port);
        let objects = body["objects"].as_array().unwrap().iter().map(|object| {
            let (oid, size) = (object["oid"].as_str().unwrap(), object["size"].as_u64().unwrap());
            if self.objects.contains_key(oid) {
                return json!({"oid": oid, "size": size});
            }
            let header = match self.chunk {
                None => json!({"x-amz-storage": "fast"}),
                Some(chunk) => {
                    let parts = size.div_ceil(chunk as u64);
                    let parts = (1..=parts).map(|part| {
                        let url = format!("{server}/part/{part}?signature=secret");
                        (format!("{part:05}"), Value::from(url))
                    });
                    let chunk = ("chunk_size".to_string(), Value::from(chunk.to_string()));
                    Value::Object(parts.rev().chain([chunk]).collect())
                }
            };
            json!({"oid": oid, "size": size, "actions": {
                "upload": {"href": format!("{server}/whole/{oid}?signature=secret"), "header": header},
                // The address is relative to the hub.
                "verify": {"href": "/verify"},
            }})
        });
        json_reply(&json!({"transfer": "basic", "objects": objects.collect::<Vec<_>>()}))
    }

    fn commit(&mut self, body: &[u8]) -> Reply {
        let text = std::str::from_utf8(body).unwrap();
        let lines: Vec<Value> =
            text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        for line in &lines {
            let value = &line["value"];
            let path = value["path"].as_str().unwrap_or_default().to_string();
            match line["key"].as_str().unwrap() {
                "header" => assert!(value["summary"].is_string()),
                "file" => {
                    assert_eq!(value["encoding"], "base64");
                    let bytes = BASE64.decode(value["content"].as_str().unwrap()).unwrap();
                    let hash = git_hash(&bytes);
                    self.files.insert(path, (bytes, hash));
                }
                "lfsFile" => {
                    assert_eq!(value["algo"], "sha256");
                    let oid = value["oid"].as_str().unwrap().to_string();
                    let bytes = self.objects[&oid].clone();
                    assert_eq!(value["size"], bytes.len());
                    self.files.insert(path, (bytes, oid));
                }
                key => panic!("{key}"),
            }
        }
        self.commits.push(lines);
        if self.lost_answers > 0 {
            self.lost_answers -= 1;
            return Reply::Bytes(Vec::new());
        }
        json_reply(
            &json!({"success": true, "commitOid": COMMIT, "commitUrl": "https://hub.example"}),
        )
    }

    /// Answers a request to the storage.
    fn store(&mut self, request: &Request) -> Reply {
        let (path, query) = request.path.split_once('?').unwrap();
        assert_eq!(query, "signature=secret");
        let (kind, name) = path[1..].split_once('/').unwrap();
        match (request.method.as_str(), kind) {
            ("PUT", "whole") => {
                assert!(request.headers.contains(&"x-amz-storage: fast".to_string()));
                assert_eq!(sha256(&request.body), name);
                self.objects.insert(name.to_string(), request.body.clone());
                reply("200 OK", "", b"")
            }
            ("PUT", "part") => {
                let number: u64 = name.parse().unwrap();
                self.parts.insert(number, request.body.clone());
                reply("200 OK", &format!("etag: \"tag{number}\"\r\n"), b"")
            }
            ("POST", "whole") => {
                let body: Value = serde_json::from_slice(&request.body).unwrap();
                let numbers = self.parts.keys().map(
                    |number| json!({"partNumber": number, "etag": format!("\"tag{number}\"")}),
                );
                let expected = json!({"oid": name, "parts": numbers.collect::<Vec<_>>()});
                assert_eq!(body, expected);
                let parts = std::mem::take(&mut self.parts);
                let bytes: Vec<u8> = parts.into_values().flatten().collect();
                assert_eq!(sha256(&bytes), name);
                self.objects.insert(name.to_string(), bytes);
                reply("200 OK", "", b"{}")
            }
            other => panic!("{other:?}"),
        }
    }
}

/// The files of an adapter's folder, with weights of 20,000 bytes.
pub(crate) const FILES: [&str; 4] =
    ["README.md", "adapter_config.json", "adapter_model.safetensors", "tokenizer.json"];

/// Writes the files of an adapter into `folder`, and others that are not pushed.
pub(crate) fn write_adapter(folder: &Path) -> PathBuf {
    fs::create_dir_all(folder).unwrap();
    for name in FILES.into_iter().chain(["notes.txt", ".arithmo-files.json"]) {
        fs::write(folder.join(name), format!("{{\"name\": \"{name}\"}}")).unwrap();
    }
    let weights: Vec<u8> = (0..20_000_u32).map(|i| (i % 251) as u8).collect();
    fs::write(folder.join("adapter_model.safetensors"), weights).unwrap();
    folder.to_path_buf()
}

/// Panics unless the hub has exactly the files of the adapter in `folder`.
#[track_caller]
pub(crate) fn check_files(state: &State, folder: &Path) {
    assert_eq!(state.files.keys().collect::<Vec<_>>(), FILES);
    for (name, (bytes, _)) in &state.files {
        assert!(fs::read(folder.join(name)).unwrap() == *bytes, "{name}");
    }
}

/// Panics if `text` contains the token or a signature.
#[track_caller]
pub(crate) fn check_secrets(text: &str) {
    assert!(!text.contains(TOKEN) && !text.contains("signature"), "{text}");
}
