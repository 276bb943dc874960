//! Checks that names from a malicious hub or mirror never lead out of the cache.

use std::fs;

use arithmo::model::hub::Hub;

use super::COMMIT;
use super::server::{Hostile, Place, Tiny};

#[test]
fn an_invalid_commit_is_used_in_no_path() {
    let place = Place::new();
    let victim = place.0.path().join("victim").to_str().unwrap().to_string();
    let long = "x".repeat(300);
    for bad in [
        "../../../../../../victim",
        &victim,
        "..",
        ".",
        "",
        "a/b",
        "main",
        "unknown",
        "ffff",
        &COMMIT[1..],
        &format!("{COMMIT}0"),
        &long,
        "..\\x",
    ] {
        for (listing, sha) in [(true, Some(bad)), (true, None), (false, None)] {
            let tiny = Tiny {
                sha: sha.map(str::to_string),
                listing,
                commit: Some(bad.into()),
                ..Tiny::new()
            };
            for etag in ["x", "../x"] {
                let tiny = Tiny { etag: etag.into(), ..tiny.clone() };
                let server = Hostile::start(move |request| tiny.respond(request));
                let error = server.refused(&place.cache());
                // An empty header counts as absent.
                let expected = ["40 hexadecimal digits", "has no commit"];
                assert!(expected.iter().any(|message| error.contains(message)), "{error}");
                place.check(bad);
            }
        }
    }
}

#[test]
fn a_server_that_names_no_commit_is_refused() {
    let place = Place::new();
    let tiny = Tiny { sha: None, listing: false, commit: None, ..Tiny::new() };
    let server = Hostile::start(move |request| tiny.respond(request));
    let error = server.refused(&place.cache());
    assert!(error.contains("X-Repo-Commit") && error.contains("into a folder"), "{error}");
    // If the revision is a commit, the server need not name it.
    let hub = Hub::new(server.config(&place.cache()));
    let folder = hub.resolve("own/tiny", COMMIT).unwrap();
    assert!(folder.ends_with(format!("snapshots/{COMMIT}")));
    place.check("no commit");
}

#[test]
fn another_commit_than_requested_is_refused() {
    let place = Place::new();
    for listing in [true, false] {
        let tiny = Tiny { listing, ..Tiny::new() };
        let server = Hostile::start(move |request| tiny.respond(request));
        let hub = Hub::new(server.config(&place.cache()));
        let other = COMMIT.replace('0', "1");
        let error = hub.resolve("own/tiny", &other).unwrap_err().to_string();
        assert!(error.contains("another commit than asked for"), "{error}");
        // A commit in upper case is the same commit.
        let folder = hub.resolve("own/tiny", &COMMIT.to_uppercase()).unwrap();
        assert!(folder.ends_with(format!("snapshots/{COMMIT}")));
    }
}

#[test]
fn revisions_and_ids_are_checked_before_any_request() {
    let place = Place::new();
    let server = Hostile::start(|request| Tiny::new().respond(request));
    let hub = Hub::new(server.config(&place.cache()));
    let absolute = place.0.path().join("victim/ref");
    for bad in [
        "../../../../../../victim/ref",
        absolute.to_str().unwrap(),
        "",
        "..",
        "a/../b",
        "/main",
        "-main",
        "ma in",
        "main\n",
        "a\\b",
        "..\\x",
        "C:\\x",
        "a.lock",
        "@{1}",
        &"x".repeat(300),
    ] {
        for error in [
            hub.resolve("own/tiny", bad).unwrap_err(),
            hub.config_folder("own/tiny", bad).unwrap_err(),
        ] {
            assert!(error.to_string().contains("is not a revision"), "{error}");
        }
        if !bad.contains('/') || bad.starts_with("..") {
            let address = format!("hf://datasets/own/data@{}/x.jsonl", bad.replace('/', "%2F"));
            assert!(hub.fetch_files(&address).is_err(), "{address}");
        }
    }
    for bad in [
        "hf://datasets/../x/y.jsonl",
        "hf://datasets/a--b/c/x.jsonl",
        "hf://datasets/a/b/./x.jsonl",
    ] {
        assert!(hub.fetch_files(bad).is_err(), "{bad}");
    }
    assert_eq!(server.requests(), [""; 0]);
    place.check("revisions");
    // Names of git may have slashes.
    let folder = hub.resolve("own/tiny", "refs/pr/1").unwrap();
    assert!(folder.ends_with(format!("snapshots/{COMMIT}")));
    let written = place.cache().join("models--own--tiny/refs/refs/pr/1");
    assert_eq!(fs::read_to_string(written).unwrap(), COMMIT);
    assert!(
        server.requests()[0].starts_with("GET /api/models/own/tiny/revision/refs%2Fpr%2F1"),
        "{:?}",
        server.requests()
    );
}

#[test]
fn etags_stay_in_the_cache() {
    let place = Place::new();
    for etag in ["../../../../x", "..", ".", "/abs", "", &"a".repeat(400), "%2e%2e%2f", "..\\x"] {
        let tiny = Tiny { etag: etag.to_string(), ..Tiny::new() };
        let server = Hostile::start(move |request| tiny.respond(request));
        let hub = Hub::new(server.config(&place.cache()));
        assert!(hub.resolve("own/tiny", "main").is_ok(), "{etag}");
        place.check(etag);
        fs::remove_dir_all(place.cache().join("models--own--tiny")).unwrap();
    }
}

#[test]
fn file_names_stay_in_the_cache() {
    let place = Place::new();
    for name in [
        "../../x.jsonl",
        "/x.jsonl",
        "a/../../x.jsonl",
        "..\\x.jsonl",
        "C:\\x.jsonl",
        "a//b.jsonl",
        "./x.jsonl",
        "\n.jsonl",
    ] {
        let tiny = Tiny {
            files: [(name, b"{}".to_vec()), ("good.jsonl", b"{}".to_vec())].into(),
            ..Tiny::new()
        };
        let server = Hostile::start(move |request| tiny.respond(request));
        let hub = Hub::new(server.config(&place.cache()));
        let error = hub.fetch_files("hf://datasets/own/data").unwrap_err();
        assert!(error.to_string().contains("names the file"), "{error}");
        place.check(name);
    }
}

#[test]
fn shard_names_stay_in_the_cache() {
    let place = Place::new();
    for shard in ["../../../../victim/config.json", "/etc/passwd", "..", "a/../b", "", "..\\x"] {
        let index = serde_json::json!({ "weight_map": { "a": shard } }).to_string();
        let tiny = Tiny {
            files: [
                ("config.json", b"{}".to_vec()),
                ("model.safetensors.index.json", index.into_bytes()),
            ]
            .into(),
            ..Tiny::new()
        };
        let server = Hostile::start(move |request| tiny.respond(request));
        let error = server.refused(&place.cache());
        assert!(error.contains("names the shard"), "{error}");
        place.check(shard);
        fs::remove_dir_all(place.cache().join("models--own--tiny")).unwrap();
    }
}

#[test]
#[cfg(unix)]
fn symlinks_in_the_cache_are_not_written_through() {
    use std::os::unix::fs::symlink;
    let place = Place::new();
    let victim = place.0.path().join("victim");
    let server = Hostile::start(|request| Tiny::new().respond(request));
    let repo = place.cache().join("models--own--tiny");
    for link in ["blobs", "snapshots", "refs", &format!("snapshots/{COMMIT}")] {
        fs::create_dir_all(repo.join(link).parent().unwrap()).unwrap();
        symlink(&victim, repo.join(link)).unwrap();
        // Through `snapshots/<commit>`, config.json seems to be cached. The weights are not, so the link is noticed.
        let error = server.refused(&place.cache());
        assert!(error.contains("leads out of the cache"), "{error}");
        assert_eq!(fs::read_dir(&victim).unwrap().count(), 1, "{link}");
        fs::remove_dir_all(&repo).unwrap();
    }
}

#[test]
#[cfg(unix)]
fn a_symlink_in_place_of_an_unfinished_download_is_not_written_through() {
    let place = Place::new();
    let etag = "a".repeat(40);
    let tiny = Tiny { etag: etag.clone(), ..Tiny::new() };
    let server = Hostile::start(move |request| tiny.respond(request));
    let blobs = place.cache().join("models--own--tiny/blobs");
    fs::create_dir_all(&blobs).unwrap();
    let victim = place.0.path().join("victim/config.json");
    std::os::unix::fs::symlink(&victim, blobs.join(format!("{etag}.incomplete"))).unwrap();
    let hub = Hub::new(server.config(&place.cache()));
    hub.resolve("own/tiny", "main").unwrap();
    place.check("a link");
}
