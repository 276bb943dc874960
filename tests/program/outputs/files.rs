//! Tests of output files that are devices, FIFOs, links, standard output, inputs or existing files.

use std::fs;
use std::io::Read;
use std::os::unix::fs::{FileTypeExt, symlink};
use std::process::{Command, Stdio};

use super::Workshop;

/// Commands that write a stream of lines.
const STREAMS: [&str; 2] = [
    "score --model model --data pairs.jsonl",
    "generate --model model --prompts pairs.jsonl --max-new-tokens 2",
];

fn mkfifo(workshop: &Workshop, name: &str) {
    let made = Command::new("mkfifo").arg(workshop.at(name)).status();
    assert!(made.unwrap().success());
}

#[test]
fn streams_are_written_to_files_pipes_and_devices() {
    for line in STREAMS {
        let workshop = Workshop::new();
        workshop.done(&format!("{line} --output plain"));
        let expected = fs::read(workshop.at("plain")).unwrap();
        assert!(!expected.is_empty());
        for stdout in ["-", "/dev/stdout", "/dev/fd/1"] {
            let printed = workshop.done(&format!("{line} --output {stdout}")).stdout;
            assert!(printed == expected, "{line} {stdout}");
        }
        assert!(!workshop.at("-").exists());
        // If standard output is a file, it is written to, not replaced.
        let redirected = fs::File::create(workshop.at("redirected")).unwrap();
        let mut command = workshop.command(&format!("{line} --output /dev/stdout"));
        assert!(command.stdout(redirected).status().unwrap().success());
        assert_eq!(fs::read(workshop.at("redirected")).unwrap(), expected);

        mkfifo(&workshop, "fifo");
        symlink("fifo", workshop.at("to-fifo")).unwrap();
        for name in ["fifo", "to-fifo"] {
            let mut command = workshop.command(&format!("{line} --output {name}"));
            let mut child = command.stderr(Stdio::null()).spawn().unwrap();
            let mut read = Vec::new();
            let mut fifo = fs::File::open(workshop.at("fifo")).unwrap();
            fifo.read_to_end(&mut read).unwrap();
            assert!(child.wait().unwrap().success());
            assert!(read == expected, "{line} {name}");
            let kind = fs::metadata(workshop.at("fifo")).unwrap().file_type();
            assert!(kind.is_fifo());
        }
        // A device is not replaced by a file. A full device is an error.
        symlink("/dev/null", workshop.at("null")).unwrap();
        workshop.done(&format!("{line} --output null"));
        workshop.refused(&format!("{line} --output /dev/full"), &["No space left"]);
        for device in ["/dev/null", "/dev/full"] {
            let kind = fs::metadata(device).unwrap().file_type();
            assert!(kind.is_char_device(), "{device}");
        }

        fs::write(workshop.at("target"), "old").unwrap();
        symlink("target", workshop.at("link")).unwrap();
        workshop.refused(&format!("{line} --output link"), &["exists already", "--overwrite"]);
        workshop.done(&format!("{line} --output link --overwrite"));
        assert!(fs::symlink_metadata(workshop.at("link")).unwrap().is_symlink());
        assert!(fs::read(workshop.at("target")).unwrap() == expected);
        fs::create_dir(workshop.at("folder")).unwrap();
        workshop.refused(&format!("{line} --output folder"), &["is a folder"]);
    }
}

#[test]
fn an_output_that_is_an_input_is_refused() {
    let workshop = Workshop::new();
    symlink("pairs.jsonl", workshop.at("link.jsonl")).unwrap();
    fs::hard_link(workshop.at("pairs.jsonl"), workshop.at("hard.jsonl")).unwrap();
    fs::write(workshop.at("rules.toml"), "question_filters = []\n").unwrap();
    for output in ["pairs.jsonl", "link.jsonl", "hard.jsonl", "model/../pairs.jsonl"] {
        for line in STREAMS {
            let line = format!("{line} --output {output} --overwrite");
            workshop.refused(&line, &["is an input too"]);
        }
        let line =
            format!("prepare --input pairs.jsonl --format jsonl --output {output} --overwrite");
        workshop.refused(&line, &["is an input too"]);
        let line =
            format!("sample-pairs --model model --data pairs.jsonl --output {output} --overwrite");
        workshop.refused(&line, &["is an input too"]);
    }
    for line in STREAMS {
        let line = format!("{line} --output model/config.json --overwrite");
        workshop.refused(&line, &["belongs to the input model"]);
    }
    let prepare = "prepare --input rows.jsonl --overwrite";
    for rest in [
        "--output out.jsonl --held-out rows.jsonl --config held.toml",
        "--config rules.toml --output rules.toml",
        "--exclude-questions gsm8k.jsonl --output gsm8k.jsonl",
    ] {
        fs::write(workshop.at("held.toml"), "held_out_fraction = 0.2\n").unwrap();
        workshop.refused(&format!("{prepare} {rest}"), &["is an input too"]);
    }
    fs::create_dir(workshop.at("out")).unwrap();
    for name in ["results.json", "verdicts.jsonl", "index.html"] {
        fs::copy(workshop.at("gsm8k.jsonl"), workshop.at("out").join(name)).unwrap();
        let data = format!("evaluate gsm8k --model model --data out/{name} --output out");
        workshop.refused(&format!("{data} --overwrite"), &["is an input too"]);
        let shot = "{\"question\": \"What is 1 + 1?\", \"answer\": \"#### 2\"}\n";
        fs::write(workshop.at("out").join(name), shot).unwrap();
        let shots = "evaluate gsm8k --model model --data gsm8k.jsonl --shots 1 --output out";
        let shots = format!("{shots} --shots-from out/{name} --overwrite");
        workshop.refused(&shots, &["is an input too"]);
        fs::remove_file(workshop.at("out").join(name)).unwrap();
    }
}

#[test]
fn commands_with_several_outputs_need_files() {
    let workshop = Workshop::new();
    for output in ["-", "/dev/null", "/dev/stdout"] {
        for line in ["prepare --input rows.jsonl", "sample-pairs --model model --data gsm8k.jsonl"]
        {
            workshop.refused(&format!("{line} --output {output}"), &["name a file"]);
        }
    }
    workshop.done("prepare --input rows.jsonl --output a.jsonl");
    workshop
        .refused("prepare --input rows.jsonl --output a.jsonl", &["exists already", "--overwrite"]);
}

/// Checks the warning about held-out pairs of an earlier run, which may be among the new training pairs.
#[test]
fn held_out_pairs_of_an_earlier_run_give_a_warning() {
    let workshop = Workshop::new();
    fs::write(workshop.at("held.toml"), "held_out_fraction = 0.5\n").unwrap();
    fs::write(workshop.at("none.toml"), "held_out_fraction = 0.0\n").unwrap();
    let prepare = "prepare --input rows.jsonl --output a.jsonl --config";
    workshop.done(&format!("{prepare} held.toml"));
    let again = workshop.done(&format!("{prepare} none.toml --overwrite"));
    let stderr = String::from_utf8(again.stderr).unwrap();
    assert!(stderr.contains("warning: a.held-out.jsonl: is left from an earlier run"), "{stderr}");
}

/// Checks that a FIFO in place of a regular file is an error. Waiting for it would never end, because nobody writes to
/// it.
#[test]
fn a_fifo_in_place_of_a_file_is_refused() {
    let workshop = Workshop::new();
    workshop.done("train --config run.toml");
    let model = ["config.json", "tokenizer.json", "tokenizer_config.json", "model.safetensors"];
    let model = model.map(|name| (format!("model/{name}"), STREAMS[0]));
    let run = ["metrics.jsonl", "manifest.json"]
        .map(|name| (format!("run/{name}"), "train --config run.toml --resume"));
    let adapter = ["adapter_config.json", "adapter_model.safetensors"].map(|name| {
        let line = "score --model model --adapter run/adapter --data pairs.jsonl";
        (format!("run/adapter/{name}"), line)
    });
    let others = [
        ("gsm8k.jsonl".to_string(), "evaluate gsm8k --model model --data gsm8k.jsonl --output e"),
        ("run.toml".to_string(), "train --config run.toml --resume"),
    ];
    for (name, line) in model.into_iter().chain(run).chain(adapter).chain(others) {
        let aside = workshop.at("aside");
        fs::rename(workshop.at(&name), &aside).unwrap();
        mkfifo(&workshop, &name);
        let line = if line.starts_with("score") {
            format!("{line} --output out.jsonl")
        } else {
            line.to_string()
        };
        let mut command = workshop.command(&line);
        let mut child = command.stderr(Stdio::piped()).spawn().unwrap();
        let mut stderr = String::new();
        child.stderr.take().unwrap().read_to_string(&mut stderr).unwrap();
        assert_eq!(super::wait(&mut child), Some(1), "{name}: {stderr}");
        assert!(
            ["regular file", "holds neither", "no manifest"]
                .iter()
                .any(|part| stderr.contains(part)),
            "{name}: {stderr}"
        );
        fs::remove_file(workshop.at(&name)).unwrap();
        fs::rename(aside, workshop.at(&name)).unwrap();
    }
    // A checkpoint with a FIFO is not complete, so the one before is used.
    let checkpoint = workshop.at("run/checkpoints/step-6/checkpoint.json");
    fs::remove_file(&checkpoint).unwrap();
    mkfifo(&workshop, "run/checkpoints/step-6/checkpoint.json");
    let ended = workshop.done("train --config run.toml --resume");
    let stderr = String::from_utf8(ended.stderr).unwrap();
    assert!(stderr.contains("step-6: skipped") && stderr.contains("FIFO"), "{stderr}");
}

#[test]
fn inputs_that_are_read_once_may_be_pipes() {
    let workshop = Workshop::new();
    let script = "set -e; program=$1
        cat pairs.jsonl | $program generate --model model --prompts /dev/stdin --max-new-tokens 2 --output a
        $program generate --model model --prompts <(cat pairs.jsonl) --max-new-tokens 2 --output b
        $program generate --model model --prompts pairs.jsonl --max-new-tokens 2 --output c
        cmp a c; cmp b c
        cat rows.jsonl | $program prepare --input /dev/stdin --format jsonl --output d.jsonl
        $program prepare --input rows.jsonl --output e.jsonl
        cmp d.jsonl e.jsonl
        $program train --dry-run --no-timing --config <(cat run.toml)";
    let mut bash = Command::new("bash");
    bash.args(["-c", script, "bash", env!("CARGO_BIN_EXE_arithmo")]);
    let output = bash.current_dir(workshop.0.path()).output().unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{stderr}");
}

/// Gives both outputs of `prepare` as one file in several spellings, and names that cannot be written.
#[test]
fn impossible_outputs_are_refused_before_the_work() {
    let workshop = Workshop::new();
    fs::create_dir(workshop.at("d")).unwrap();
    symlink("d", workshop.at("to-d")).unwrap();
    symlink("d/x.jsonl", workshop.at("link.jsonl")).unwrap();
    let config = "held_out_fraction = 0.5\n";
    fs::write(workshop.at("half.toml"), config).unwrap();
    for held_out in ["./d/x.jsonl", "d/../d/x.jsonl", "to-d/x.jsonl", "link.jsonl"] {
        for flag in ["", "--overwrite"] {
            let line = format!(
                "prepare --input rows.jsonl --config half.toml --output d/x.jsonl --held-out {held_out} {flag}"
            );
            workshop.refused(&line, &["two outputs at once"]);
        }
    }
    // The held-out pairs have a derived name: no process waits for a reader of this FIFO.
    mkfifo(&workshop, "y.held-out.jsonl");
    let line = "prepare --input rows.jsonl --config half.toml --output y.jsonl --overwrite";
    workshop.refused(line, &["y.held-out.jsonl", "is not a regular file"]);
    let long = "x".repeat(300);
    for output in ["new/", "pairs.jsonl/x", &long] {
        for line in STREAMS {
            let output = workshop.command(&format!("{line} --output {output}")).output().unwrap();
            let stderr = String::from_utf8_lossy(&output.stderr);
            assert_eq!(output.status.code(), Some(1), "{stderr}");
            assert!(!stderr.contains("0 s left") && stderr.starts_with("error"), "{stderr}");
        }
    }
    let many = "sample-pairs --model model --data gsm8k.jsonl --output p.jsonl --samples";
    workshop.refused(&format!("{many} 1000000000"), &["--samples", "at most 10000"]);
}
