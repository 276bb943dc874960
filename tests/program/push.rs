//! Tests of `arithmo push` and `--push-to-hub` as a user calls them, on a hub on loopback.

#[allow(dead_code, reason = "the tests of the library use the rest")]
#[path = "../library/hub/server.rs"]
mod server;
#[allow(dead_code, reason = "the tests of the library use the rest")]
#[path = "../library/hub/storage.rs"]
mod storage;

use std::fs;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::thread;
use std::time::Duration;

use tempfile::TempDir;

use self::server::{Reply, reply};
use self::storage::{PushHub, check_files, check_secrets, write_adapter};
use crate::signal::interrupted;
use crate::tiny;

const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";
const TOKEN: &str = "hf_secret";

/// Returns the program with the environment of a user who is logged in to `hub`.
fn program(hub: &PushHub, home: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_arithmo"));
    command.env_clear().stdin(Stdio::null()).args(["--backend", "ndarray"]);
    command.env("HF_HOME", home).env("HF_TOKEN", TOKEN);
    command.env("HF_ENDPOINT", format!("http://127.0.0.1:{}", hub.hub.port));
    command
}

/// Returns stdout and stderr. Panics unless the program ended with this status, or if it printed a secret.
#[track_caller]
fn ended(output: Output, status: i32) -> (String, String) {
    let [stdout, stderr] =
        [output.stdout, output.stderr].map(|text| String::from_utf8(text).unwrap());
    assert_eq!(output.status.code(), Some(status), "{stderr}");
    check_secrets(&format!("{stdout}{stderr}"));
    (stdout, stderr)
}

/// A folder with a model, pairs and a run.toml of two steps.
fn workshop() -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    tiny::write_model(&at("model"), &tiny::config(), 5);
    fs::copy(tiny::fixture("tiny").join("pairs.jsonl"), at("pairs.jsonl")).unwrap();
    let toml = "output_dir = 'run'\n[model]\nmodel_name_or_path = 'model'\n[data]\ntrain_file = 'pairs.jsonl'\n\
                max_length = 64\n[train]\nmax_steps = 2\ngradient_accumulation_steps = 1\n";
    fs::write(at("run.toml"), toml).unwrap();
    folder
}

#[test]
fn a_folder_is_pushed_and_the_repository_printed() {
    let (hub, home) = (PushHub::start(), tempfile::tempdir().unwrap());
    let adapter = write_adapter(&home.path().join("an adapter"));
    let push = |flags: &[&str]| {
        let mut command = program(&hub, home.path());
        command.arg("push").arg(&adapter).arg("own/tiny").args(flags);
        ended(command.output().unwrap(), 0)
    };
    let (stdout, stderr) = push(&["--private", "--commit-message", "First"]);
    assert_eq!(stdout, format!("http://127.0.0.1:{}/own/tiny\n", hub.hub.port));
    assert!(stderr.contains("not pushed: notes.txt") && stderr.contains("(commit 01234567)"));
    {
        let state = hub.state.lock().unwrap();
        check_files(&state, &adapter);
        assert_eq!(state.created[0]["private"], true);
        assert_eq!(state.commits[0][0]["value"]["summary"], "First");
    }
    let (_, stderr) = push(&[]);
    assert!(stderr.contains("nothing to push"), "{stderr}");
    let (_, stderr) = push(&["--quiet"]);
    assert_eq!(stderr, "");
    hub.check_tokens();
}

#[test]
fn a_run_is_pushed_after_its_last_step() {
    let (hub, folder) = (PushHub::start(), workshop());
    let train = |flags: &[&str]| {
        let mut command = program(&hub, folder.path());
        command.current_dir(folder.path()).args(["train", "--config", "run.toml"]).args(flags);
        command.output().unwrap()
    };
    // Nothing is sent by a dry run, and nothing is trained without a token or with a wrong name.
    ended(train(&["--dry-run", "--no-timing", "--push-to-hub", "own/tiny"]), 0);
    for (flags, parts) in [
        (vec!["--push-to-hub", "own/a b"], ["--push-to-hub: \"own/a b\"", "OWNER/NAME"]),
        (
            vec!["--set", "train.push_to_hub=true", "--set", "train.hub_model_id=a/b/c"],
            ["train.hub_model_id: \"a/b/c\"", "OWNER/NAME"],
        ),
        (
            vec!["--push-to-hub", "own/tiny", "--set", "train.hub_token=hf_secret"],
            ["train.hub_token", "HF_TOKEN"],
        ),
        (
            vec!["--push-to-hub", "own/tiny", "--set", "train.hub_strategy=every_save"],
            ["train.hub_strategy", "every_save"],
        ),
        (vec!["--set", "train.hub_model_id=own/tiny"], ["has no effect", "train.push_to_hub"]),
    ] {
        let (_, stderr) = ended(train(&flags), 1);
        assert!(parts.iter().all(|part| stderr.contains(part)), "{stderr}");
    }
    assert_eq!(hub.hub.requests(), [""; 0]);
    assert!(!folder.path().join("run").exists());

    let (stdout, _) = ended(train(&["--push-to-hub", "own/tiny", "--private"]), 0);
    assert_eq!(stdout, "run/adapter\n");
    {
        let state = hub.state.lock().unwrap();
        assert_eq!(state.created[0]["private"], true);
        let names: Vec<&str> = state.files.keys().map(String::as_str).collect();
        for name in ["README.md", "adapter_config.json", "adapter_model.safetensors"] {
            assert!(names.contains(&name), "{names:?}");
            let file = fs::read(folder.path().join("run/adapter").join(name)).unwrap();
            assert!(file == state.files[name].0, "{name}");
        }
        assert!(names.iter().all(|name| !name.contains("optimizer")), "{names:?}");
    }
    // The run may be continued with or without a push.
    ended(train(&["--resume"]), 0);
    let (_, stderr) = ended(train(&["--resume", "--set", "train.push_to_hub=true"]), 1);
    assert!(stderr.contains("does not exist") || stderr.contains("404"), "{stderr}");
}

#[test]
fn a_run_outlives_a_push_that_fails() {
    let hub = PushHub::with(|request, state| {
        let refused = request.path.contains("/commit/") && state.lost_answers == 0;
        refused.then(|| reply("403 Forbidden", "", br#"{"error": "quota"}"#))
    });
    let folder = workshop();
    let mut command = program(&hub, folder.path());
    command.current_dir(folder.path());
    command.args(["train", "--config", "run.toml", "--push-to-hub", "own/tiny"]);
    let (_, stderr) = ended(command.output().unwrap(), 1);
    for part in [
        "run/adapter is complete, but the push failed",
        "quota",
        "`arithmo push run/adapter own/tiny` pushes it",
    ] {
        assert!(stderr.contains(part), "{stderr}");
    }
    hub.set(|state| state.lost_answers = 1);
    let mut command = program(&hub, folder.path());
    command.current_dir(folder.path()).args(["push", "run", "own/tiny"]);
    let (_, stderr) = ended(command.output().unwrap(), 0);
    assert!(stderr.contains("nothing to push") || stderr.contains("pushed"), "{stderr}");
    assert!(hub.state.lock().unwrap().files.contains_key("adapter_model.safetensors"));
}

/// A token without the right to write is noticed before anything is trained.
#[test]
fn a_refused_token_ends_the_run_before_its_first_step() {
    let hub = PushHub::with(|_, _| Some(reply("401 Unauthorized", "", b"{}")));
    let folder = workshop();
    let mut command = program(&hub, folder.path());
    command.current_dir(folder.path());
    command.args(["train", "--config", "run.toml", "--push-to-hub", "own/tiny"]);
    let (stdout, stderr) = ended(command.output().unwrap(), 1);
    assert!(stdout.is_empty() && stderr.contains("HF_TOKEN"), "{stderr}");
    assert!(!folder.path().join("run").exists());
}

#[test]
fn a_merged_model_is_pushed() {
    let (hub, folder) = (PushHub::start(), workshop());
    let run = |arguments: &[&str]| {
        let mut command = program(&hub, folder.path());
        command.current_dir(folder.path()).args(arguments);
        ended(command.output().unwrap(), 0)
    };
    run(&["train", "--config", "run.toml"]);
    assert_eq!(hub.hub.requests(), [""; 0]);
    let merge = ["merge", "--model", "model", "--adapter", "run/adapter", "--output", "merged"];
    run(&[&merge[..], &["--push-to-hub", "own/tiny"]].concat());
    let state = hub.state.lock().unwrap();
    for name in ["config.json", "model.safetensors", "README.md"] {
        assert!(state.files.contains_key(name), "{:?}", state.files.keys());
    }
    assert!(!state.files.keys().any(|name| name.starts_with('.')));
}

/// Checks that Ctrl-C ends a push whose storage is silent. Without it, the timeout is a day.
#[test]
#[cfg(unix)]
fn ctrl_c_ends_a_push_at_once() {
    let hub = PushHub::with(|request, _| {
        request.path.contains("/whole/").then(|| Reply::Silence(Vec::new()))
    });
    let home = tempfile::tempdir().unwrap();
    let adapter = write_adapter(&home.path().join("adapter"));
    let mut command = program(&hub, home.path());
    command.arg("push").arg(&adapter).arg("own/tiny").env("HF_HUB_DOWNLOAD_TIMEOUT", "86400");
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    while hub.count("PUT") == 0 {
        assert!(child.try_wait().unwrap().is_none());
        thread::sleep(Duration::from_millis(10));
    }
    let (_, stderr) = ended(interrupted(child), 130);
    assert!(stderr.contains("what has arrived is not sent again"), "{stderr}");
    assert_eq!(hub.count("/commit/"), 0);
}
