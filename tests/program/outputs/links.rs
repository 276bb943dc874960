//! Tests of outputs that are links, or that have hard links, as `cp -al` makes them.

use std::fs;
use std::os::unix::fs::symlink;
use std::process::Command;

use super::{TRAIN, Workshop, contents};
use crate::support::file_names;

const MERGE: &str = "merge --model model --adapter run/adapter";

/// Copies a folder as hard links to the same files.
fn link_copy(workshop: &Workshop, from: &str, to: &str) {
    let copied = Command::new("cp").args(["-al", from, to]).current_dir(workshop.0.path()).status();
    assert!(copied.unwrap().success());
}

#[test]
fn a_model_is_merged_into_the_folder_that_the_output_links_to() {
    let workshop = Workshop::new();
    workshop.done(TRAIN);
    workshop.done(&format!("{MERGE} --output plain"));
    let expected = file_names(&workshop.at("plain"));
    fs::create_dir_all(workshop.at("elsewhere/empty")).unwrap();
    fs::create_dir(workshop.at("given")).unwrap();
    symlink("elsewhere/empty", workshop.at("to-empty")).unwrap();
    symlink("elsewhere/new", workshop.at("to-new")).unwrap();
    for (output, target) in
        [("to-empty", "elsewhere/empty"), ("to-new", "elsewhere/new"), ("given/.", "given")]
    {
        workshop.done(&format!("{MERGE} --output {output}"));
        assert_eq!(file_names(&workshop.at(target)), expected, "{output}");
        workshop.refused(&format!("{MERGE} --output {output}"), &["exists already"]);
        workshop.done(&format!("{MERGE} --output {output} --overwrite"));
        assert_eq!(file_names(&workshop.at(target)), expected, "{output}");
        let weights = fs::read(workshop.at(target).join("model.safetensors")).unwrap();
        assert!(weights == fs::read(workshop.at("plain/model.safetensors")).unwrap());
    }
    assert!(workshop.at("to-empty").is_symlink() && workshop.at("to-new").is_symlink());
    assert_eq!(file_names(&workshop.at("elsewhere")), ["empty", "new"]);
    symlink("circle", workshop.at("circle")).unwrap();
    symlink("run.toml", workshop.at("to-file")).unwrap();
    for (output, part) in
        [("circle", "circle"), ("to-file", "is a file"), ("/dev/null", "is not a folder")]
    {
        for flag in ["", "--overwrite"] {
            workshop.refused(&format!("{MERGE} --output {output} {flag}"), &[output, part]);
        }
    }
}

#[test]
fn hard_linked_backups_are_not_changed() {
    let workshop = Workshop::new();
    workshop.done(TRAIN);
    workshop.done("report --run run");
    fs::write(workshop.at("run/.arithmo-lock"), "4194304\n").unwrap();
    link_copy(&workshop, "run", "backup");
    let before = contents(&workshop.at("backup"));
    workshop.done(&format!("{TRAIN} --resume --set train.max_steps=9"));
    workshop.done("report --run run");
    assert!(contents(&workshop.at("backup")) == before);
    let lines = fs::read_to_string(workshop.at("run/metrics.jsonl")).unwrap().lines().count();
    assert_eq!(lines, 9);
    workshop.done(&format!("{TRAIN} --overwrite"));
    assert!(contents(&workshop.at("backup")) == before);

    // The same holds for a merged model and an evaluation.
    workshop.done(&format!("{MERGE} --output merged"));
    let evaluate = "evaluate preference --model model --data pairs.jsonl --output e";
    workshop.done(&format!("{evaluate} --limit 1"));
    link_copy(&workshop, "merged", "merged-backup");
    link_copy(&workshop, "e", "e-backup");
    let folders = ["merged-backup", "e-backup"].map(|name| workshop.at(name));
    let before = folders.clone().map(|folder| contents(&folder));
    workshop.done(&format!("{MERGE} --output merged --overwrite"));
    workshop.done(&format!("{evaluate} --limit 2"));
    workshop.done(&format!("{evaluate} --overwrite"));
    assert!(folders.map(|folder| contents(&folder)) == before);
}

/// Checks that a foreign file with the name of a lock file is refused. A lock file is truncated and finally removed.
#[test]
fn foreign_files_with_the_name_of_a_lock_are_kept() {
    let workshop = Workshop::new();
    workshop.done(TRAIN);
    fs::write(workshop.at("precious"), "a PIN: 1234\n").unwrap();
    for (lock, line) in [
        ("run/.arithmo-lock", format!("{TRAIN} --overwrite")),
        (".merged.arithmo-lock", format!("{MERGE} --output merged")),
        ("e/.arithmo-lock", "evaluate gsm8k --model model --data gsm8k.jsonl --output e".into()),
        (
            ".o.jsonl.arithmo-lock",
            "sample-pairs --model model --data gsm8k.jsonl --output o.jsonl".into(),
        ),
    ] {
        let lock = workshop.at(lock);
        fs::create_dir_all(lock.parent().unwrap()).unwrap();
        fs::hard_link(workshop.at("precious"), &lock).unwrap();
        workshop.refused(&line, &["is not a lock of this program"]);
        assert_eq!(fs::read_to_string(&lock).unwrap(), "a PIN: 1234\n");
        fs::remove_file(lock).unwrap();
    }
}
