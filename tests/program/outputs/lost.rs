//! Checks that a refused or failed command keeps all files and leaves nothing that hinders the next one.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};

use super::{TRAIN, Workshop, contents};
use crate::support::{copy, json_file};

/// Flags of full fine-tuning.
const FULL: &str = "--set model.use_peft=false";

#[test]
fn a_failed_evaluation_leaves_no_files() {
    let workshop = Workshop::new();
    copy(&workshop.at("model"), &workshop.at("broken"));
    // The last weights become NaN, so that all results are NaN.
    let path = workshop.at("broken/model.safetensors");
    let mut bytes = fs::read(&path).unwrap();
    let from = bytes.len() - 64;
    bytes[from..].fill(0xff);
    fs::write(path, bytes).unwrap();
    for task in ["preference --data pairs.jsonl", "gsm8k --max-new-tokens 2 --data gsm8k.jsonl"] {
        let line = format!("evaluate {task} --output e --model");
        let output = workshop.command(&format!("{line} broken")).output().unwrap();
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{stderr}");
        assert!(!workshop.at("e").exists(), "{task}: {stderr}");
        workshop.done(&format!("{line} model"));
        // Results are not replaced if the model cannot be loaded. This one has fewer layers than its config says.
        let config = workshop.at("model/config.json");
        let text = fs::read_to_string(&config).unwrap();
        let mut more = json_file(&config);
        more["num_hidden_layers"] = (more["num_hidden_layers"].as_u64().unwrap() + 1).into();
        fs::write(&config, more.to_string()).unwrap();
        workshop.refused(&format!("{line} model --overwrite"), &["model"]);
        fs::write(&config, text).unwrap();
        fs::remove_dir_all(workshop.at("e")).unwrap();
    }
}

/// Gives the configuration's path directly and as a link.
#[test]
fn a_configuration_that_the_run_would_remove_is_refused() {
    let workshop = Workshop::new();
    workshop.done(TRAIN);
    let toml = fs::read_to_string(workshop.at("run.toml")).unwrap();
    for place in ["run/metrics.jsonl", "run/report/run.toml", "run/adapter/run.toml"] {
        fs::create_dir_all(workshop.at(place).parent().unwrap()).unwrap();
        fs::write(workshop.at(place), &toml).unwrap();
        symlink(place, workshop.at("link.toml")).unwrap();
        for config in [place, "link.toml"] {
            for flag in ["--overwrite", "--resume"] {
                let line = format!("train --config {config} {flag}");
                workshop.refused(&line, &["--config", config, "where a run in this output_dir"]);
            }
        }
        fs::remove_file(workshop.at("link.toml")).unwrap();
    }
    // A configuration in the run's folder is fine if the run does not write a file of its name.
    fs::write(workshop.at("run/run.toml"), &toml).unwrap();
    workshop.done("train --config run/run.toml --overwrite");
    assert_eq!(fs::read_to_string(workshop.at("run/run.toml")).unwrap(), toml);
}

#[test]
fn full_fine_tuning_checks_the_model_folder_before_training() {
    for name in ["config.json", "model.safetensors", "tokenizer.json", ".arithmo-files.json"] {
        let workshop = Workshop::new();
        workshop.done(TRAIN);
        fs::create_dir(workshop.at("run/model")).unwrap();
        fs::write(workshop.at("run/model").join(name), "mine").unwrap();
        let parts = ["run/model", name, "this program did not write it"];
        workshop.refused(&format!("{TRAIN} {FULL} --overwrite"), &parts);
        fs::remove_dir_all(workshop.at("run")).unwrap();
        workshop.done(&format!("{TRAIN} {FULL}"));
        fs::remove_file(workshop.at("run/model/.arithmo-files.json")).unwrap();
        if name != ".arithmo-files.json" {
            workshop.refused(&format!("{TRAIN} {FULL} --resume"), &parts[..1]);
        }
    }
    // Files that do not belong to a model are kept.
    let workshop = Workshop::new();
    workshop.done(TRAIN);
    fs::create_dir(workshop.at("run/model")).unwrap();
    fs::write(workshop.at("run/model/notes.txt"), "mine").unwrap();
    workshop.done(&format!("{TRAIN} {FULL} --overwrite"));
    assert_eq!(fs::read_to_string(workshop.at("run/model/notes.txt")).unwrap(), "mine");
    workshop.done(&format!("{TRAIN} {FULL} --resume --set train.max_steps=8"));
}

#[test]
fn a_file_where_a_run_writes_a_folder_is_refused_before_it_trains() {
    for (name, folder) in
        [("adapter", true), ("runs", true), ("checkpoints", true), ("metrics.jsonl", false)]
    {
        let workshop = Workshop::new();
        workshop.done(TRAIN);
        let place = workshop.at("run").join(name);
        fs::rename(&place, workshop.at("aside")).unwrap();
        if folder {
            fs::write(&place, "mine").unwrap()
        } else {
            fs::create_dir(&place).unwrap()
        }
        for flag in ["--resume", "--overwrite"] {
            workshop.refused(&format!("{TRAIN} {flag}"), &[name, "the run writes there"]);
        }
        let _ = fs::remove_file(&place);
        let _ = fs::remove_dir(&place);
        symlink("nowhere", &place).unwrap();
        workshop.refused(&format!("{TRAIN} --resume"), &[name, "leads nowhere"]);
        workshop.refused(&format!("{TRAIN} --overwrite"), &[name, "is a link"]);
    }
}

/// Checks that a command does not treat another command's files as its own, although their lists of files have the same
/// name.
#[test]
fn a_merge_and_a_run_in_one_folder_keep_each_others_files() {
    let workshop = Workshop::new();
    workshop.done(TRAIN);
    let merge = "merge --model model --adapter run/adapter --output";
    workshop.done("train --config run.toml --set output_dir=other");
    let parts = ["other", "holds other files of this program than a model's"];
    for flag in ["", "--overwrite"] {
        workshop.refused(&format!("{merge} other {flag}"), &parts);
    }
    workshop.done(&format!("{merge} merged"));
    let merged = contents(&workshop.at("merged"));
    for flag in ["", "--overwrite"] {
        workshop.done(&format!("{TRAIN} --set output_dir=merged {flag}"));
        for (path, bytes) in
            merged.iter().filter(|(path, _)| !path.ends_with(".arithmo-files.json"))
        {
            assert!(fs::read(path).is_ok_and(|now| now == *bytes), "{}", path.display());
        }
    }
}

#[test]
fn a_read_only_folder_is_refused_before_the_work() {
    let workshop = Workshop::new();
    workshop.done(TRAIN);
    fs::create_dir(workshop.at("merged")).unwrap();
    for (folder, line) in [
        ("run/adapter", format!("{TRAIN} --resume --set train.max_steps=8")),
        ("run/checkpoints", format!("{TRAIN} --resume --set train.max_steps=8")),
        ("merged", "merge --model model --adapter run/adapter --output merged".to_string()),
    ] {
        let folder = workshop.at(folder);
        let mode = |mode| fs::set_permissions(&folder, fs::Permissions::from_mode(mode)).unwrap();
        mode(0o555);
        if fs::write(folder.join("probe"), "").is_ok() {
            eprintln!("SKIPPED: this user may write to read-only folders");
            mode(0o755);
            return;
        }
        workshop.refused(&line, &["cannot write in the folder", "Permission denied"]);
        mode(0o755);
    }
}
