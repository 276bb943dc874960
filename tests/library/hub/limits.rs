//! Checks that a malicious or broken hub or mirror gets no token for another host, and that every download ends.

use std::fs;
use std::process::{Command, Stdio};
use std::thread;
use std::time::Duration;

use arithmo::model::hub::{Hub, HubConfig};

use super::COMMIT;
use super::server::{Hostile, Place, Reply, Request, Tiny, is_weights, open_ended, reply};
use crate::signal::interrupted;

#[test]
fn the_token_is_not_sent_to_another_port() {
    let place = Place::new();
    let other = Hostile::start(|request| Tiny::new().respond(request));
    let port = other.port;
    for host in ["127.0.0.1", "localhost"] {
        for part in ["/api/", "config.json", "model.safetensors"] {
            for method in ["HEAD", "GET"] {
                let server = Hostile::start(move |request| {
                    if request.path.contains(part) && request.method == method {
                        let target = format!("location: http://{host}:{port}{}\r\n", request.path);
                        return reply("302 Found", &target, b"");
                    }
                    Tiny::new().respond(request)
                });
                let _ = Hub::new(server.config(&place.cache())).resolve("own/tiny", "main");
                assert!(server.requests().iter().all(|line| line.ends_with(" token")));
                let _ = fs::remove_dir_all(place.cache().join("models--own--tiny"));
            }
        }
    }
    let requests = other.requests();
    assert!(requests.len() >= 4, "{requests:?}");
    assert!(requests.iter().all(|line| !line.ends_with(" token")), "{requests:?}");
}

#[test]
fn bad_redirects_are_not_retried() {
    let place = Place::new();
    for location in [
        "file:///etc/passwd",
        "gopher://127.0.0.1/",
        "javascript:alert(1)",
        "ftp://127.0.0.1/x",
        "http://",
        "///",
        "http://[::1",
        "http://127.0.0.1:99999/",
    ] {
        let server = Hostile::start(move |request| {
            if is_weights(request) && request.method == "GET" {
                return reply("302 Found", &format!("location: {location}\r\n"), b"");
            }
            Tiny::new().respond(request)
        });
        let error = server.refused(&place.cache());
        assert!(error.contains("redirects to"), "{error}");
        let gets = server
            .requests()
            .iter()
            .filter(|line| line.contains("GET") && line.contains("model.safetensors"))
            .count();
        assert_eq!(gets, 1, "{location}");
    }
    // A redirect loop ends after the maximum number of redirects and is not retried.
    for head in [true, false] {
        let server = Hostile::start(move |request| {
            if is_weights(request) && (head || request.method == "GET") {
                return reply("302 Found", &format!("location: {}\r\n", request.path), b"");
            }
            Tiny::new().respond(request)
        });
        let error = server.refused(&place.cache());
        assert!(error.contains("in a circle"), "{error}");
        assert!(server.requests().len() < 20);
    }
}

#[test]
fn responses_without_a_file_are_refused() {
    let place = Place::new();
    for status in [
        "204 No Content",
        "206 Partial Content",
        "301 Moved",
        "304 Not Modified",
        "400 Bad",
        "410 Gone",
        "416 Range",
        "700 Odd",
    ] {
        let server = Hostile::start(move |request| {
            if is_weights(request) && request.method == "GET" {
                return reply(status, "", b"");
            }
            Tiny::new().respond(request)
        });
        let error = server.refused(&place.cache());
        assert!(error.contains(&status[..3]) || status.starts_with("206"), "{error}");
        let few = if status.starts_with("206") { 5 } else { 2 };
        let gets = server.requests().iter().filter(|line| line.starts_with("GET /own")).count();
        assert!(gets <= few + 2, "{status}: {gets}");
    }
}

#[test]
fn a_download_without_progress_ends() {
    let place = Place::new();
    for ranges in [true, false] {
        let server = Hostile::start(move |request| {
            if !is_weights(request) || request.method != "GET" {
                return Tiny::new().respond(request);
            }
            // Each connection sends one byte with ranges, and 100 to 250 bytes without.
            let start = request.range.filter(|_| ranges).unwrap_or(0);
            let length = if ranges { 1 } else { 100 + start as usize % 4 * 50 };
            let left = 20_000 - start;
            let status = if start > 0 {
                format!("206 Partial\r\ncontent-range: bytes {start}-19999/20000")
            } else {
                "200 OK".to_string()
            };
            let mut bytes =
                format!("HTTP/1.1 {status}\r\ncontent-length: {left}\r\n\r\n").into_bytes();
            bytes.extend(vec![7; length]);
            Reply::Bytes(bytes)
        });
        let error = server.refused(&place.cache());
        assert!(error.contains("cannot be reached"), "{error}");
        let requests = server.requests();
        let gets = requests.iter().filter(|line| line.starts_with("GET /own")).count();
        // These are config.json, tokenizer.json and five attempts.
        assert!(gets <= 8, "{gets}");
        fs::remove_dir_all(place.cache().join("models--own--tiny")).unwrap();
    }
}

#[test]
fn response_bodies_have_a_size_limit() {
    let place = Place::new();
    // The listing never ends.
    let server =
        Hostile::start(|_| Reply::Endless(open_ended(""), vec![b' '; 1 << 20], Duration::ZERO));
    let error = server.refused(&place.cache());
    assert!(error.contains("a listing of more than 64 MiB"), "{error}");
    // A JSON file of the model has no length and never ends.
    let endless = |request: &Request| {
        if request.path.ends_with("config.json") {
            let head = open_ended(&format!("x-repo-commit: {COMMIT}\r\n"));
            match request.method.as_str() {
                "HEAD" => Reply::Bytes(head),
                _ => Reply::Endless(head, vec![b' '; 1 << 20], Duration::ZERO),
            }
        } else {
            Tiny::new().respond(request)
        }
    };
    let server = Hostile::start(endless);
    let error = server.refused(&place.cache());
    assert!(error.contains("sends more than 67108864 bytes"), "{error}");
    // A file is longer than the HEAD response says. The response has no length, or a larger one.
    for (head, expected) in [
        (open_ended(""), "sends more than 20000 bytes"),
        (
            open_ended("content-length: 30000\r\n"),
            "announces 30000 bytes, at most 20000 are accepted",
        ),
    ] {
        let server = Hostile::start(move |request| {
            if is_weights(request) && request.method == "GET" {
                return Reply::Bytes([head.clone(), vec![7; 30_000]].concat());
            }
            Tiny::new().respond(request)
        });
        let error = server.refused(&place.cache());
        assert!(error.contains(expected), "{error}");
        place.check(expected);
    }
    // A file's size differs from the listing.
    let server = Hostile::start(|request| {
        if request.path.starts_with("/api/") {
            let listing = format!(
                r#"{{"sha": "{COMMIT}", "siblings": [{{"rfilename": "config.json", "size": 3}}]}}"#
            );
            return reply("200 OK", "", listing.as_bytes());
        }
        Tiny::new().respond(request)
    });
    fs::remove_dir_all(place.cache().join("models--own--tiny")).unwrap();
    let error = server.refused(&place.cache());
    assert!(error.contains("has 3 bytes in the listing, and 2 by itself"), "{error}");
}

#[test]
fn stalled_and_slow_downloads_end() {
    let place = Place::new();
    let head = || open_ended("content-length: 20000\r\n");
    let server = Hostile::start(move |request| {
        if is_weights(request) && request.method == "GET" {
            return Reply::Silence(head());
        }
        Tiny::new().respond(request)
    });
    let error = server.refused_within(&place.cache(), Duration::from_secs(2));
    assert!(error.contains("nothing came for 2 s"), "{error}");
    assert!(server.requests().len() < 12);

    let server = Hostile::start(move |request| {
        if is_weights(request) && request.method == "GET" {
            return Reply::Endless(head(), b"x".to_vec(), Duration::from_millis(20));
        }
        Tiny::new().respond(request)
    });
    let error = server.refused_within(&place.cache(), Duration::from_secs(2));
    for expected in [
        "fewer than 1000 bytes per second",
        "run the same command again",
        "HF_HUB_DOWNLOAD_TIMEOUT",
    ] {
        assert!(error.contains(expected), "{error}");
    }

    // The server sends no response, or one whose headers never end.
    for trickle in [false, true] {
        let server = Hostile::start(move |request| match (is_weights(request), trickle) {
            (true, false) => Reply::Silence(Vec::new()),
            (true, true) => Reply::Endless(
                b"HTTP/1.1 200 OK\r\n".to_vec(),
                b"x-a: b\r\n".to_vec(),
                Duration::from_millis(20),
            ),
            (false, _) => Tiny::new().respond(request),
        });
        let error = server.refused_within(&place.cache(), Duration::from_secs(2));
        assert!(error.contains("cannot be reached"), "{error}");
        assert!(server.requests().len() < 12);
    }
}

#[test]
fn invalid_tokens_and_endpoints_are_refused_before_any_request() {
    let place = Place::new();
    let server = Hostile::start(|request| Tiny::new().respond(request));
    let config =
        HubConfig { token: Some("a\nX-Evil: 1".to_string()), ..server.config(&place.cache()) };
    let error = Hub::new(config).resolve("own/tiny", "main").unwrap_err();
    assert!(error.to_string().contains("HF_TOKEN: holds a character"), "{error}");
    assert_eq!(server.requests().len(), 0);
    for endpoint in [
        "x",
        "http://",
        "ftp://127.0.0.1",
        "file:///etc",
        "http://127.0.0.1:99999",
        "http://me:hunter2@[::1",
    ] {
        let config = HubConfig { endpoint: endpoint.to_string(), ..server.config(&place.cache()) };
        let error = Hub::new(config).resolve("own/tiny", "main").unwrap_err().to_string();
        assert!(error.contains("check HF_ENDPOINT") && !error.contains("hunter2"), "{error}");
    }
}

/// Checks that Ctrl-C ends the wait for a response, and for more bytes of one. Without it, the timeout is a day.
#[test]
#[cfg(unix)]
fn ctrl_c_ends_a_wait_at_once() {
    for head in [Vec::new(), open_ended("content-length: 1000\r\n")] {
        let place = Place::new();
        let server = Hostile::start(move |_| Reply::Silence(head.clone()));
        let mut child = Command::new(env!("CARGO_BIN_EXE_arithmo"))
            .args(["generate", "--model", "own/tiny", "--prompt", "x"])
            .args(["--backend", "ndarray"])
            .env_clear()
            .env("HF_HOME", place.cache())
            .env("HF_ENDPOINT", server.config(&place.cache()).endpoint)
            .env("HF_HUB_DOWNLOAD_TIMEOUT", "86400")
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        while server.requests().is_empty() {
            assert!(child.try_wait().unwrap().is_none());
            thread::sleep(Duration::from_millis(10));
        }
        let output = interrupted(child);
        let message = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(130), "{message}");
        assert!(message.contains("the same command is run again"), "{message}");
    }
}
