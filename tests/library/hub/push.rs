//! Tests of pushes to a small hub on loopback: fresh, repeated, interrupted, refused ones, and hostile answers.

use std::fs;
use std::path::Path;
use std::sync::atomic::Ordering;
use std::time::Duration;

use arithmo::model::hub::{Destination, Hub, HubConfig, PushTarget, Pushed};
use arithmo::train::push::result_files;
use serde_json::json;

use super::server::{Hostile, Place, Reply, open_ended, reply};
use super::storage::{
    FILES, PushHub, check_files, check_secrets, json_reply, sha256, write_adapter,
};
use super::{COMMIT, TOKEN};

fn target() -> PushTarget {
    PushTarget::main("own/tiny", "--push-to-hub")
}

/// Pushes the adapter in `folder`.
fn push(config: HubConfig, folder: &Path) -> Result<Pushed, String> {
    let hub = Hub::new(config);
    let pushed = hub
        .create_repository(&target())
        .and_then(|to| hub.push(&to, &result_files(folder)?.files, "Upload adapter"));
    pushed.map_err(|error| {
        check_secrets(&error.to_string());
        error.to_string()
    })
}

/// A hub, a folder for its cache, and an adapter's folder.
struct Scene {
    hub: PushHub,
    place: Place,
    adapter: tempfile::TempDir,
}

impl Scene {
    fn new(hub: PushHub) -> Self {
        let adapter = tempfile::tempdir().unwrap();
        write_adapter(adapter.path());
        Self { hub, place: Place::new(), adapter }
    }

    fn config(&self) -> HubConfig {
        self.hub.hub.config(&self.place.cache())
    }

    fn push(&self) -> Result<Pushed, String> {
        push(self.config(), self.adapter.path())
    }

    /// Panics unless the push is refused with an error that has each of `parts`.
    #[track_caller]
    fn refused(&self, parts: &[&str]) {
        let error = self.push().unwrap_err();
        for part in parts {
            assert!(error.contains(part), "no {part:?} in {error}");
        }
    }
}

#[test]
fn a_push_makes_one_commit_of_all_files() {
    let scene = Scene::new(PushHub::start());
    let pushed = scene.push().unwrap();
    let url = format!("{}/own/tiny", scene.config().endpoint);
    assert_eq!(pushed, Pushed { url, commit: Some(COMMIT.into()), files: 4, sent: 1 });
    scene.hub.check_tokens();
    let state = scene.hub.state.lock().unwrap();
    check_files(&state, scene.adapter.path());
    let created = json!({"name": "tiny", "organization": "own", "type": "model"});
    assert_eq!(state.created, [created]);
    let keys: Vec<_> = state.commits[0].iter().map(|line| line["key"].as_str().unwrap()).collect();
    assert_eq!(keys, ["header", "file", "file", "lfsFile", "file"]);
    assert_eq!(state.commits[0][0]["value"]["summary"], "Upload adapter");
    scene.place.check("a push writes nothing");
}

#[test]
fn a_second_push_sends_only_what_changed() {
    let scene = Scene::new(PushHub::start());
    scene.push().unwrap();
    let pushed = scene.push().unwrap();
    assert_eq!((pushed.commit, pushed.files, pushed.sent), (None, 0, 0));
    assert_eq!((scene.hub.count("/batch"), scene.hub.count("/commit/")), (1, 1));

    fs::write(scene.adapter.path().join("README.md"), "# Changed").unwrap();
    let pushed = scene.push().unwrap();
    assert_eq!((pushed.files, pushed.sent), (1, 0));
    assert_eq!((scene.hub.count("PUT"), scene.hub.count("/batch")), (1, 1));
    let state = scene.hub.state.lock().unwrap();
    assert_eq!(state.commits[1][1]["value"]["path"], "README.md");
    check_files(&state, scene.adapter.path());
}

#[test]
fn files_in_the_storage_are_not_sent_again() {
    let scene = Scene::new(PushHub::start());
    let weights = fs::read(scene.adapter.path().join("adapter_model.safetensors")).unwrap();
    scene.hub.set(|state| drop(state.objects.insert(sha256(&weights), weights)));
    let pushed = scene.push().unwrap();
    assert_eq!((pushed.files, pushed.sent, scene.hub.count("PUT")), (4, 0, 0));
    check_files(&scene.hub.state.lock().unwrap(), scene.adapter.path());
}

#[test]
fn a_broken_upload_is_sent_again() {
    let scene = Scene::new(PushHub::start());
    scene.hub.storage.cuts.store(2, Ordering::SeqCst);
    assert_eq!(scene.push().unwrap().sent, 1);
    assert_eq!(scene.hub.count("PUT"), 3);
    scene.hub.check_tokens();
    check_files(&scene.hub.state.lock().unwrap(), scene.adapter.path());
}

#[test]
fn a_storage_that_always_breaks_is_given_up_and_the_push_continues_later() {
    let scene = Scene::new(PushHub::start());
    scene.hub.storage.cuts.store(1000, Ordering::SeqCst);
    scene.refused(&["cannot be reached", "run it again"]);
    assert_eq!(scene.hub.count("PUT"), 5);
    assert_eq!(scene.hub.count("/commit/"), 0);
    scene.hub.storage.cuts.store(0, Ordering::SeqCst);
    assert_eq!(scene.push().unwrap().files, 4);
}

/// A commit whose answer is lost is not made twice.
#[test]
fn a_lost_answer_to_a_commit_is_asked_for() {
    let scene = Scene::new(PushHub::start());
    scene.hub.set(|state| state.lost_answers = 1);
    assert_eq!(scene.push().unwrap().commit, None);
    let state = scene.hub.state.lock().unwrap();
    assert_eq!(state.commits.len(), 1);
    check_files(&state, scene.adapter.path());
}

#[test]
fn large_files_are_sent_in_parts() {
    // Parts of 20,000 bytes: several with a shorter last one, several of equal length, and a single one.
    for (chunk, parts) in [(6000, 4), (5000, 4), (20_000, 1), (1 << 20, 1)] {
        let scene = Scene::new(PushHub::start());
        scene.hub.set(|state| state.chunk = Some(chunk));
        scene.hub.storage.cuts.store(1, Ordering::SeqCst);
        assert_eq!(scene.push().unwrap().sent, 1, "{chunk}");
        assert_eq!(scene.hub.count("PUT /part/"), parts + 1, "{chunk}");
        assert_eq!(scene.hub.count("POST /whole/"), 1, "{chunk}");
        scene.hub.check_tokens();
        check_files(&scene.hub.state.lock().unwrap(), scene.adapter.path());
    }
}

#[test]
fn parts_that_do_not_fit_the_file_are_refused() {
    for (header, expected) in [
        (json!({"chunk_size": "6000", "00001": "/part/1"}), "describes 1 parts of 6000 bytes"),
        (json!({"chunk_size": "0", "00001": "/part/1"}), "describes 1 parts of 0 bytes"),
        (json!({"chunk_size": "x"}), "describes 0 parts of 0 bytes"),
        (json!({"chunk_size": "10000", "2": "/part/2", "3": "/part/3"}), "describes 2 parts"),
        (json!({"chunk_size": "10000", "1": "ftp://a/b", "2": "/"}), "has the scheme \"ftp\""),
    ] {
        let hub = PushHub::with(move |request, _| {
            let body: serde_json::Value = serde_json::from_slice(&request.body).ok()?;
            let oid = &body["objects"][0]["oid"];
            let upload = json!({"href": "/whole", "header": header.clone()});
            let objects = json!([{"oid": oid, "size": 20_000, "actions": {"upload": upload}}]);
            request.path.ends_with("/batch").then(|| json_reply(&json!({"objects": objects})))
        });
        Scene::new(hub).refused(&[expected, "check HF_ENDPOINT"]);
    }
    let hub = PushHub::with(|request, _| {
        request.path.starts_with("/part/").then(|| reply("200 OK", "", b""))
    });
    let scene = Scene::new(hub);
    scene.hub.set(|state| state.chunk = Some(6000));
    scene.refused(&["part 1 was answered without an ETag"]);
}

#[test]
fn refusals_have_a_remedy() {
    for (path, status, headers, body, parts) in [
        ("create", "401 Unauthorized", "", "Invalid token", ["token", "HF_TOKEN", "Invalid token"]),
        ("preupload", "401 Unauthorized", "", "hf_secret no", ["token", "HF_TOKEN", "*** no"]),
        (
            "commit",
            "403 Forbidden",
            "x-error-message: Private storage limit reached\r\n",
            "",
            ["may not write", "repositories of own", "Private storage limit reached"],
        ),
        ("preupload", "404 Not Found", "", "", ["does not exist", "OWNER/NAME", "404"]),
        (
            "preupload",
            "404 Not Found",
            "x-error-code: RevisionNotFound\r\n",
            "",
            ["has no branch \"main\"", "create the branch", "404"],
        ),
        (
            "commit",
            "413 Too Large",
            "",
            "big",
            ["too large for the account", "free storage", "big"],
        ),
        ("commit", "400 Bad", "", "license: a\\nb", ["refuses the push", "400", "license: a b"]),
        ("batch", "422 No", "", "", ["refuses the push", "422", "own/tiny"]),
        ("whole", "403 Forbidden", "", "Expired", ["storage refuses", "push again", "Expired"]),
    ] {
        let hub = PushHub::with(move |request, _| {
            let body = format!("{{\"error\": \"{body}\"}}");
            request.path.contains(path).then(|| reply(status, headers, body.as_bytes()))
        });
        let scene = Scene::new(hub);
        scene.refused(&parts);
        // A refusal is final.
        assert_eq!(scene.hub.count(path), 1, "{path}");
    }
}

#[test]
fn an_object_that_the_hub_refuses_is_named() {
    let hub = PushHub::with(|request, _| {
        let body: serde_json::Value = serde_json::from_slice(&request.body).ok()?;
        let error = json!({"code": 422, "message": "quota\nexceeded"});
        let objects = json!([{"oid": body["objects"][0]["oid"], "size": 20_000, "error": error}]);
        request.path.ends_with("/batch").then(|| json_reply(&json!({"objects": objects})))
    });
    Scene::new(hub).refused(&["adapter_model.safetensors: is refused (422): quota exceeded"]);
}

/// A token that may write only to some repositories cannot create one, not even one that exists.
#[test]
fn a_repository_that_exists_need_not_be_created() {
    let hub = PushHub::with(|request, _| match request.path.as_str() {
        "/api/repos/create" => Some(reply("403 Forbidden", "", b"{}")),
        "/api/models/own/tiny" => Some(json_reply(&json!({"id": "own/tiny"}))),
        _ => None,
    });
    assert_eq!(Scene::new(hub).push().unwrap().files, 4);
}

#[test]
fn busy_hubs_are_asked_again() {
    for path in ["create", "preupload", "batch", "verify", "whole", "/commit/"] {
        let hub = PushHub::with(move |request, state| {
            let first = request.path.contains(path) && state.chunk.is_none();
            // The chunk is as good a mark as any other that the first request came.
            first.then(|| {
                state.chunk = Some(1 << 20);
                reply("503 Busy", "", b"")
            })
        });
        let scene = Scene::new(hub);
        let pushed = scene.push();
        assert!(pushed.is_ok(), "{path}: {pushed:?}");
    }
}

#[test]
fn a_push_follows_its_repository_but_no_other_server() {
    let hub = PushHub::with(|request, state| {
        let renamed = request.path.replace("own/old", "own/tiny");
        let moved = request.path.contains("own/old");
        if request.path == "/api/repos/create" {
            state.exists = true;
        }
        moved.then(|| reply("307 Moved", &format!("location: {renamed}\r\n"), b""))
    });
    let scene = Scene::new(hub);
    let hub = Hub::new(scene.config());
    let to = Destination { repo: "own/old".into(), revision: "main".into() };
    let files = result_files(scene.adapter.path()).unwrap().files;
    assert_eq!(hub.push(&to, &files, "x").unwrap().files, 4);
    scene.hub.check_tokens();

    let other = Hostile::start(|_| reply("200 OK", "", b"{}"));
    let port = other.port;
    for host in ["127.0.0.1", "localhost"] {
        for path in ["create", "preupload", "/batch", "/commit/", "verify", "whole"] {
            for status in ["302 Found", "307 Moved", "308 Moved"] {
                let hub = PushHub::with(move |request, _| {
                    let target = format!("location: http://{host}:{port}{}\r\n", request.path);
                    request.path.contains(path).then(|| reply(status, &target, b""))
                });
                Scene::new(hub).refused(&["redirects", "check HF_ENDPOINT"]);
            }
        }
    }
    assert_eq!(other.requests(), [""; 0]);
}

/// The storage of a hub may be anywhere; neither it nor a foreign address for verification gets the token.
#[test]
fn the_token_stays_with_the_hub() {
    let other = Hostile::start(|_| reply("200 OK", "", b"{}"));
    let port = other.port;
    let hub = PushHub::with(move |request, _| {
        let body: serde_json::Value = serde_json::from_slice(&request.body).ok()?;
        let oid = &body["objects"][0]["oid"];
        let href = format!("http://localhost:{port}/x");
        let action =
            json!({"href": href, "header": {"authorization": "Basic own", "host": "evil"}});
        let actions = json!({"upload": {"href": href}, "verify": action});
        let objects = json!([{"oid": oid, "size": 20_000, "actions": actions}]);
        request.path.ends_with("/batch").then(|| json_reply(&json!({"objects": objects})))
    });
    let scene = Scene::new(hub);
    // The commit fails, because the object is not in this hub's storage.
    assert!(scene.push().is_err());
    let requests = other.requests();
    assert_eq!(
        requests,
        ["PUT /x", "POST /x token"],
        "the second has the header that the hub gave"
    );
}

#[test]
fn answers_of_no_hub_are_refused() {
    type Answer = fn() -> Reply;
    let cases: [(&str, Answer, &str); 7] = [
        ("preupload", || reply("200 OK", "", b"<html>"), "another answer than a hub's"),
        ("preupload", || reply("200 OK", "", b"{\"files\": []}"), "does not say how to upload"),
        (
            "preupload",
            || Reply::Endless(open_ended(""), vec![b' '; 1 << 20], Duration::ZERO),
            "an answer of more than 64 MiB",
        ),
        ("batch", || reply("200 OK", "", b"{}"), "another answer than a hub's"),
        ("/commit/", || reply("200 OK", "", b"{\"commitOid\": \"../x\"}"), "names the commit"),
        ("/commit/", || reply("200 OK", "", b""), "another answer than a hub's"),
        (
            "/commit/",
            || {
                Reply::Endless(
                    b"HTTP/1.1 400 Bad\r\n\r\n".to_vec(),
                    vec![b' '; 1 << 20],
                    Duration::ZERO,
                )
            },
            "refuses the push (status 400)",
        ),
    ];
    for (path, answer, expected) in cases {
        let hub = PushHub::with(move |request, _| request.path.contains(path).then(answer));
        Scene::new(hub).refused(&[expected]);
    }
}

#[test]
fn a_silent_hub_is_given_up() {
    for path in ["preupload", "whole"] {
        let hub = PushHub::with(move |request, _| {
            request.path.contains(path).then(|| Reply::Silence(Vec::new()))
        });
        let scene = Scene::new(hub);
        let config = HubConfig { timeout: Duration::from_millis(50), retries: 2, ..scene.config() };
        let error = push(config, scene.adapter.path()).unwrap_err();
        assert!(error.contains("cannot be reached"), "{path}: {error}");
        assert_eq!(scene.hub.count(path), 2);
    }
}

#[test]
fn what_can_be_checked_is_checked_before_any_request() {
    let hub = PushHub::start();
    let place = Place::new();
    let config = || hub.hub.config(&place.cache());
    let check = |config: HubConfig, target: PushTarget| {
        let error = Hub::new(config.clone()).check_push(&target).unwrap_err().to_string();
        let created = Hub::new(config).create_repository(&target).unwrap_err().to_string();
        assert_eq!(error, created);
        error
    };
    for bad in ["", "a/b/c", "own/", "../x", "own/a b", "own/é", "own/a..b", "own/-x"] {
        let error = check(config(), PushTarget { repo: bad.into(), ..target() });
        assert!(error.starts_with("--push-to-hub: ") && error.contains("OWNER/NAME"), "{error}");
    }
    let error = check(config(), PushTarget { revision: "a b".into(), ..target() });
    assert!(error.contains("is not a branch"), "{error}");
    let error = check(HubConfig { offline: true, ..config() }, target());
    assert!(error.contains("HF_HUB_OFFLINE") && error.contains("arithmo push"), "{error}");
    let error = check(HubConfig { token: None, ..config() }, target());
    assert!(error.contains("HF_TOKEN") && error.contains("/settings/tokens"), "{error}");
    assert_eq!(hub.hub.requests(), [""; 0]);
}

#[test]
fn a_name_alone_belongs_to_the_user_of_the_token() {
    let scene = Scene::new(PushHub::start());
    let hub = Hub::new(scene.config());
    let private = Some(true);
    let target = PushTarget { repo: "tiny".into(), private, ..target() };
    assert_eq!(hub.create_repository(&target).unwrap().repo, "own/tiny");
    let created = json!({"name": "tiny", "organization": "own", "type": "model", "private": true});
    assert_eq!(scene.hub.state.lock().unwrap().created, [created]);
    for name in ["a/b", "", "../x", "x\\ny"] {
        let hub = PushHub::with(move |request, _| {
            let user = format!("{{\"name\": \"{name}\"}}");
            request.path.contains("whoami").then(|| reply("200 OK", "", user.as_bytes()))
        });
        let error = Hub::new(hub.hub.config(&scene.place.cache())).create_repository(&target);
        let error = error.unwrap_err().to_string();
        assert!(error.contains("does not name the token's user"), "{error}");
        assert_eq!(hub.hub.requests().len(), 1);
    }
}

#[test]
fn files_that_change_meanwhile_are_noticed() {
    let scene = Scene::new(PushHub::start());
    let weights = scene.adapter.path().join("adapter_model.safetensors");
    let hub = PushHub::with(move |request, _| {
        if request.path.ends_with("/batch") {
            fs::write(&weights, "shorter").unwrap();
        }
        None
    });
    let error = push(hub.hub.config(&scene.place.cache()), scene.adapter.path()).unwrap_err();
    assert!(error.contains("changed while it was pushed"), "{error}");
    assert_eq!(hub.count("/commit/"), 0);
    assert_eq!(FILES.len(), 4);
    assert!(!error.contains(TOKEN));
}
