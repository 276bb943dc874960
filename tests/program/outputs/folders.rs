//! Checks that commands remove and replace only files that this program wrote.

use std::fs;
use std::os::unix::fs::symlink;

use super::{TRAIN, Workshop, contents};
use crate::support::copy;

/// Writes the file `name`, which does not belong to this program.
fn write(workshop: &Workshop, name: &str) {
    let path = workshop.at(name);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, "mine").unwrap();
}

#[test]
fn training_is_refused_if_it_would_write_among_its_inputs() {
    for manifest in [false, true] {
        let workshop = Workshop::new();
        if manifest {
            workshop.done(TRAIN);
        }
        workshop.done("train --config run.toml --set output_dir=other");
        copy(&workshop.at("model"), &workshop.at("run/model"));
        copy(&workshop.at("other/adapter"), &workshop.at("run/adapter/start"));
        symlink("../run/model", workshop.at("other/link")).unwrap();
        fs::copy(workshop.at("pairs.jsonl"), workshop.at("run/report.jsonl")).unwrap();
        fs::create_dir_all(workshop.at("run/report")).unwrap();
        fs::copy(workshop.at("pairs.jsonl"), workshop.at("run/report/pairs.jsonl")).unwrap();
        for input in [
            "model.model_name_or_path=run/model",
            "model.model_name_or_path=other/link",
            "lora.adapter=run/adapter/start",
            "data.train_file=run/report/pairs.jsonl",
            "data.eval_file=run/report/pairs.jsonl",
        ] {
            for flag in ["", "--overwrite", "--resume"] {
                // A folder without a manifest is refused for that reason, whatever the input is.
                let part = if manifest && !flag.is_empty() {
                    input.split('=').next().unwrap()
                } else {
                    "run"
                };
                workshop.refused(&format!("{TRAIN} {flag} --set {input}"), &[part, "output_dir"]);
            }
        }
    }
}

#[test]
fn folders_without_a_manifest_are_refused_with_every_flag() {
    for name in ["model/a", "report/a", "runs/a", "checkpoints/a", "adapter/a", "metrics.jsonl"] {
        let workshop = Workshop::new();
        write(&workshop, &format!("run/{name}"));
        for flag in ["", "--overwrite", "--resume"] {
            let line = format!("{TRAIN} {flag}");
            workshop.refused(&line, &["no manifest.json", "choose another output_dir"]);
            let stderr = workshop.command(&line).output().unwrap().stderr;
            assert!(!String::from_utf8(stderr).unwrap().contains("--overwrite"));
        }
    }
    let workshop = Workshop::new();
    workshop.done(TRAIN);
    fs::rename(workshop.at("run/adapter"), workshop.at("precious")).unwrap();
    symlink("../precious", workshop.at("run/adapter")).unwrap();
    workshop.refused(&format!("{TRAIN} --overwrite"), &["run/adapter: is a link"]);
    fs::write(workshop.at("run/manifest.json"), "{}").unwrap();
    workshop.refused(&format!("{TRAIN} --overwrite"), &["is not a run manifest"]);
}

const FOREIGN: [&str; 10] = [
    "run/checkpoints/step-4/notes.json",
    "run/notes.txt",
    "run/adapter/README.md",
    "run/adapter/.git/HEAD",
    "run/checkpoints/mine/state.json",
    "run/checkpoints/step-2/notes.txt",
    "run/checkpoints/.part-mine",
    "run/runs/notes.txt",
    "run/runs/events.out.tfevents.1700000000.elsewhere.7.0",
    "run/report/notes.txt",
];

/// Checks a run with a list of its files, and a run of an older version, which wrote no list.
#[test]
fn overwriting_a_run_keeps_foreign_files() {
    for listed in [true, false] {
        let workshop = Workshop::new();
        workshop.done(TRAIN);
        workshop.done("report --run run");
        let adapter = "run/adapter/adapter_model.safetensors";
        let expected = fs::read(workshop.at(adapter)).unwrap();
        FOREIGN.iter().for_each(|name| write(&workshop, name));
        if !listed {
            fs::remove_file(workshop.at("run/.arithmo-files.json")).unwrap();
            fs::remove_file(workshop.at("run/report/.arithmo-files.json")).unwrap();
        }
        workshop.done(&format!("{TRAIN} --overwrite --set train.save_steps=3"));
        for name in FOREIGN {
            assert_eq!(fs::read(workshop.at(name)).unwrap(), b"mine", "{name}");
        }
        assert!(fs::read(workshop.at(adapter)).unwrap() == expected);
        assert!(!workshop.at("run/report/index.html").exists(), "{listed}");
        assert!(!workshop.at("run/checkpoints/step-2/state.json").exists());
        let events = fs::read_dir(workshop.at("run/runs")).unwrap().count();
        assert_eq!(events, 3, "one file of this run and two others: {listed}");
    }
}

#[test]
fn merging_again_keeps_foreign_files() {
    let workshop = Workshop::new();
    workshop.done(TRAIN);
    let merge = "merge --model model --adapter run/adapter --output merged";
    workshop.done(merge);
    let expected = contents(&workshop.at("merged"));
    workshop.refused(merge, &["exists already", "--overwrite"]);
    for name in ["merged/.git/HEAD", "merged/sub/a", "merged/notes.txt"] {
        write(&workshop, name);
    }
    workshop.done(&format!("{merge} --overwrite"));
    for name in ["merged/.git/HEAD", "merged/sub/a", "merged/notes.txt"] {
        assert_eq!(fs::read(workshop.at(name)).unwrap(), b"mine", "{name}");
    }
    for (path, bytes) in expected {
        assert!(fs::read(&path).unwrap() == bytes, "{}", path.display());
    }
    // A model that no merge of this program wrote is not replaced.
    copy(&workshop.at("model"), &workshop.at("theirs"));
    fs::remove_file(workshop.at("theirs/.arithmo-files.json")).unwrap();
    let theirs = "merge --model model --adapter run/adapter --output theirs";
    for flag in ["", "--overwrite"] {
        workshop.refused(&format!("{theirs} {flag}"), &["choose a new folder"]);
    }
}

#[test]
fn evaluations_reports_and_comparisons_replace_their_own_files_only() {
    let evaluate = "evaluate gsm8k --model model --data gsm8k.jsonl --max-new-tokens 2 --output e";
    for foreign in ["index.html", "results.json", "predictions.json"] {
        let workshop = Workshop::new();
        write(&workshop, &format!("e/{foreign}"));
        for flag in ["", "--overwrite"] {
            workshop.refused(&format!("{evaluate} {flag}"), &[foreign, "give another --output"]);
        }
    }
    let workshop = Workshop::new();
    workshop.done(evaluate);
    write(&workshop, "e/notes.txt");
    workshop.done(&format!("{evaluate} --overwrite"));
    assert!(workshop.at("e/notes.txt").is_file());

    let other = "evaluate gsm8k --model model --data gsm8k.jsonl --max-new-tokens 3 --output f";
    workshop.done(other);
    // Scoring the same predictions again replaces the results. Other predictions need --overwrite.
    let again = "evaluate gsm8k --predictions f/predictions.json --output e";
    workshop.refused(again, &["exists already", "--overwrite"]);
    workshop.done("evaluate gsm8k --predictions e/predictions.json");
    workshop.done(&format!("{again} --overwrite"));
    workshop.done(again);

    let compare = "compare e f --output c";
    workshop.done(compare);
    workshop.refused(compare, &["exists already", "--overwrite"]);
    workshop.done(&format!("{compare} --overwrite"));
    for place in ["e", "model"] {
        let line = format!("compare e f --output {place} --overwrite");
        if place == "e" {
            workshop.refused(&line, &["belongs to the input e"]);
        }
    }
    write(&workshop, "site/index.html");
    for flag in ["", "--overwrite"] {
        let line = format!("compare e f --output site {flag}");
        workshop.refused(&line, &["site/index.html", "give another --output"]);
    }

    workshop.done(TRAIN);
    write(&workshop, "run/report/index.html");
    workshop.refused("report --run run", &["run/report/index.html"]);
    fs::remove_file(workshop.at("run/report/index.html")).unwrap();
    workshop.done("report --run run");
    workshop.done("report --run run");
}

#[test]
fn targets_of_links_among_checkpoints_are_kept() {
    let workshop = Workshop::new();
    workshop.done(TRAIN);
    let model = contents(&workshop.at("model"));
    assert!(!model.is_empty());
    let link = |name: &str| {
        let place = workshop.at("run/checkpoints").join(name);
        symlink("../../model", place).unwrap();
    };
    link("step-1");
    link(".part-step-3");
    workshop.done(&format!("{TRAIN} --overwrite"));
    assert!(contents(&workshop.at("model")) == model);
    // A checkpoint that was moved elsewhere and replaced by a link is not removed.
    let steps = || fs::read_dir(workshop.at("run/checkpoints")).unwrap();
    let is_step = |path: &std::path::PathBuf| path.join("state.json").is_file();
    let step = steps().map(|entry| entry.unwrap().path()).find(is_step);
    let step = step.unwrap();
    fs::rename(&step, workshop.at("elsewhere")).unwrap();
    symlink("../../elsewhere", &step).unwrap();
    let kept = contents(&workshop.at("elsewhere"));
    workshop.done(&format!("{TRAIN} --overwrite"));
    assert!(contents(&workshop.at("elsewhere")) == kept);
}

#[test]
fn a_model_merged_into_the_folder_of_a_run_is_kept() {
    for listed in [true, false] {
        let workshop = Workshop::new();
        workshop.done(TRAIN);
        workshop.done("merge --model model --adapter run/adapter --output run/model");
        if !listed {
            fs::remove_file(workshop.at("run/.arithmo-files.json")).unwrap();
        }
        let merged = contents(&workshop.at("run/model"));
        workshop.done(&format!("{TRAIN} --overwrite"));
        assert!(contents(&workshop.at("run/model")) == merged);
    }
}

/// Checks an input folder of links to files in the output, like the snapshots in a hub's cache.
#[test]
fn inputs_that_are_links_into_the_output_are_refused() {
    let workshop = Workshop::new();
    workshop.done(TRAIN);
    workshop.done("merge --model model --adapter run/adapter --output merged");
    let links_to = |folder: &str, links: &str| {
        fs::create_dir_all(workshop.at(links)).unwrap();
        for entry in fs::read_dir(workshop.at(folder)).unwrap() {
            let path = entry.unwrap().path();
            symlink(&path, workshop.at(links).join(path.file_name().unwrap())).unwrap();
        }
    };
    links_to("run/adapter", "start");
    links_to("merged", "base");
    let adapter = contents(&workshop.at("run/adapter"));
    let merged = contents(&workshop.at("merged"));
    workshop.refused(
        &format!("{TRAIN} --overwrite --set lora.adapter=start"),
        &["lora.adapter", "run/adapter", "output_dir"],
    );
    workshop.refused(
        "merge --model base --adapter run/adapter --output merged --overwrite",
        &["belongs to the input"],
    );
    workshop.refused(
        "score --model base --data pairs.jsonl --output merged/config.json --overwrite",
        &["belongs to the input"],
    );
    assert!(contents(&workshop.at("run/adapter")) == adapter);
    assert!(contents(&workshop.at("merged")) == merged);
}

#[test]
fn foreign_files_and_links_with_the_programs_names_are_kept() {
    for name in ["run/.arithmo-lock", "run/.arithmo-files.json"] {
        let workshop = Workshop::new();
        workshop.done(TRAIN);
        let _ = fs::remove_file(workshop.at(name));
        let precious = "a text of somebody, longer than the number of a process";
        fs::write(workshop.at("precious"), precious).unwrap();
        symlink("../precious", workshop.at(name)).unwrap();
        workshop.refused(&format!("{TRAIN} --overwrite"), &[name, "move it elsewhere"]);
        assert_eq!(fs::read_to_string(workshop.at("precious")).unwrap(), precious);
        assert!(workshop.at("run/adapter/adapter_model.safetensors").is_file());
    }
    let workshop = Workshop::new();
    write(&workshop, "run/.arithmo-lock");
    let text = "somebody's notes, which are longer than any lock";
    fs::write(workshop.at("run/.arithmo-lock"), text).unwrap();
    workshop.refused(TRAIN, &["is not a lock of this program"]);
    assert_eq!(fs::read_to_string(workshop.at("run/.arithmo-lock")).unwrap(), text);
}

#[test]
fn an_output_that_is_the_template_file_is_refused() {
    let workshop = Workshop::new();
    fs::write(workshop.at("template.jsonl"), "Q: {prompt} A:").unwrap();
    let template = "--prompt-template-file template.jsonl --overwrite";
    for command in [
        "score --model model --data pairs.jsonl",
        "generate --model model --prompt a",
        "sample-pairs --model model --data gsm8k.jsonl",
    ] {
        let line = format!("{command} --output template.jsonl {template}");
        workshop.refused(&line, &["is an input too"]);
    }
    assert_eq!(fs::read_to_string(workshop.at("template.jsonl")).unwrap(), "Q: {prompt} A:");
}
