//! `prepare` from its arguments to its files.

#![allow(clippy::unwrap_used, reason = "a helper that cannot go on fails its test")]

use std::fs;
use std::path::{Path, PathBuf};

use arithmo::cli::prepare::{PrepareArgs, run};
use arithmo::data::pair::PreferencePair;
use arithmo::data::prepare::{
    PrepareOptions, PrepareSummary, Preset, Reason, Rules, Source, prepare,
};
use arithmo::progress::ProgressMode;
use clap::Parser;
use serde_json::Value;
use tempfile::TempDir;

#[derive(Parser)]
struct Program {
    #[command(flatten)]
    args: PrepareArgs,
}

fn fixture(name: &str) -> String {
    format!("{}/tests/fixtures/stack_exchange/{name}", env!("CARGO_MANIFEST_DIR"))
}

/// Runs `prepare` with `arguments` and `--output FOLDER/pairs.jsonl`.
fn run_in(folder: &TempDir, arguments: &[&str]) -> arithmo::Result<PrepareSummary> {
    let output = folder.path().join("pairs.jsonl").display().to_string();
    let program = Program::parse_from(["prepare", "--output", &output].iter().chain(arguments));
    let fetch = |address: &str| {
        assert_eq!(address, "hf://datasets/o/n/data");
        Ok(vec![PathBuf::from(fixture("rows.parquet"))])
    };
    run(&program.args, ProgressMode::Quiet, &fetch)
}

fn pairs(path: &Path) -> Vec<PreferencePair> {
    fs::read_to_string(path)
        .unwrap()
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect()
}

fn ids(pairs: &[PreferencePair]) -> Vec<&str> {
    pairs.iter().map(|pair| pair.id.as_str()).collect()
}

fn assert_nothing_left(folder: &TempDir) {
    let left: Vec<_> = fs::read_dir(folder.path()).unwrap().map(|e| e.unwrap().path()).collect();
    assert_eq!(left, Vec::<PathBuf>::new());
}

/// Everything read is accounted for, in the summary and in the file.
fn assert_adds_up(summary: &PrepareSummary) {
    let stats = &summary.stats;
    let lost: u64 = stats.not_kept.values().map(|lost| lost.count).sum();
    assert_eq!(stats.rows_read, stats.kept + stats.held_out + lost, "{stats:?}");
    let file: Value = serde_json::from_slice(&fs::read(&summary.stats_file).unwrap()).unwrap();
    assert_eq!(file["rows_read"], stats.rows_read);
    assert_eq!(file["kept"], pairs(&summary.output).len());
    let histogram = file["lengths_in_characters"]["prompt"].as_array().unwrap();
    let binned: u64 = histogram.iter().map(|bin| bin["count"].as_u64().unwrap()).sum();
    assert_eq!(binned, stats.kept + stats.held_out);
}

/// The original's procedure, run in Python over the same rows (tests/fixtures/stack_exchange/make.py), byte for byte.
#[test]
fn the_original_preset_writes_the_originals_file() {
    let expected = fs::read_to_string(fixture("original.json")).unwrap();
    for input in ["rows.jsonl", "rows.parquet", "Posts.xml"] {
        let folder = TempDir::new().unwrap();
        let input = fixture(input);
        let arguments = ["--input", &input, "--preset", "original", "--json-array"];
        let summary = run_in(&folder, &arguments).unwrap();
        assert_eq!(fs::read_to_string(&summary.output).unwrap(), expected, "{input}");
        assert_eq!((summary.stats.rows_read, summary.stats.held_out), (40, 0));
    }
}

#[test]
fn all_three_formats_give_the_same_pairs() {
    let mut all = Vec::new();
    for input in [&fixture("rows.jsonl"), &fixture("Posts.xml"), "hf://datasets/o/n/data"] {
        let folder = TempDir::new().unwrap();
        let summary = run_in(&folder, &["--input", input]).unwrap();
        assert_adds_up(&summary);
        all.push((pairs(&summary.output), pairs(summary.held_out.as_ref().unwrap())));
    }
    assert!(all[0].0.len() > 5, "{}", all[0].0.len());
    assert!(all[0].0.iter().all(|pair| pair.chosen_score >= pair.rejected_score.map(|s| s + 2)));
    assert_eq!(all[0], all[1]);
    assert_eq!(all[0], all[2]);
}

#[test]
fn posts_are_counted_by_kind() {
    let folder = TempDir::new().unwrap();
    let summary = run_in(&folder, &["--input", &fixture("Posts.xml")]).unwrap();
    let posts = summary.stats.posts.unwrap();
    assert_eq!((posts.questions, posts.orphan_answers, posts.other), (40, 1, 1));
}

#[test]
fn a_real_dump_is_read() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../shared/data/stackexchange/Posts.xml");
    if !path.exists() {
        eprintln!("skipped: {} is not there", path.display());
        return;
    }
    let folder = TempDir::new().unwrap();
    let config = folder.path().join("prepare.toml");
    fs::write(&config, "question_filters = []").unwrap();
    let (config, path) = (config.display().to_string(), path.display().to_string());
    let summary = run_in(&folder, &["--input", &path, "--config", &config]).unwrap();
    assert_adds_up(&summary);
    let posts = summary.stats.posts.unwrap();
    // Counts from the dump's own README.
    assert_eq!((posts.questions, posts.answers, summary.stats.rows_read), (257, 341, 257));
    assert!(summary.stats.kept > 20, "{summary}");
}

#[test]
fn existing_outputs_are_kept_unless_told_otherwise() {
    let folder = TempDir::new().unwrap();
    let input = fixture("rows.jsonl");
    run_in(&folder, &["--input", &input]).unwrap();
    fs::write(folder.path().join("pairs.jsonl"), "mine").unwrap();
    let error = run_in(&folder, &["--input", &input]).unwrap_err().to_string();
    assert!(error.contains("exists already") && error.contains("--overwrite"), "{error}");
    assert_eq!(fs::read_to_string(folder.path().join("pairs.jsonl")).unwrap(), "mine");
    run_in(&folder, &["--input", &input, "--overwrite"]).unwrap();
    assert_ne!(fs::read_to_string(folder.path().join("pairs.jsonl")).unwrap(), "mine");
}

/// What the error about a bad file says, and how many rows are read of it under --skip-bad-rows.
fn check_bad(name: &str, bytes: &[u8], expected: &str, rows: std::ops::Range<u64>) {
    let (folder, inputs) = (TempDir::new().unwrap(), TempDir::new().unwrap());
    let path = inputs.path().join(name);
    fs::write(&path, bytes).unwrap();
    let input = path.display().to_string();
    let error = run_in(&folder, &["--input", &input]).unwrap_err();
    let message = error.to_string();
    assert!(message.contains(expected) && message.contains("help:"), "{name}: {message}");
    assert_eq!(error.exit_status(), 1);
    assert_nothing_left(&folder);
    let summary = run_in(&folder, &["--input", &input, "--skip-bad-rows"]).unwrap();
    assert_adds_up(&summary);
    let stats = &summary.stats;
    let bad = stats.lost(Reason::UnreadableRow) + stats.lost(Reason::UnreadableRest);
    assert!(rows.contains(&stats.rows_read) && bad >= 1, "{name}: {summary}");
}

#[test]
fn bad_parquet_is_one_clear_error_or_counted() {
    let whole = fs::read(fixture("rows.parquet")).unwrap();
    check_bad("cut.parquet", &whole[..whole.len() - 9], "cut.parquet: footer", 1..2);
    let mut corrupt = whole.clone();
    corrupt[200..900].fill(0xa5);
    check_bad("corrupt.parquet", &corrupt, "row group 0", 20..41);
    let zstd = fs::read(fixture("zstd.parquet")).unwrap();
    check_bad("zstd.parquet", &zstd, "compressed with ZSTD", 1..2);
    let other = fs::read(fixture("no-question.parquet")).unwrap();
    check_bad("other.parquet", &other, "no column question", 1..2);
}

#[test]
fn bad_text_is_one_clear_error_or_counted() {
    let lines = fs::read(fixture("rows.jsonl")).unwrap();
    check_bad("cut.jsonl", &lines[..lines.len() - 9], "cut.jsonl:40:", 40..41);
    let mut not_utf8 = lines.clone();
    not_utf8[30] = 0xff;
    check_bad("utf8.jsonl", &not_utf8, "utf8.jsonl:1:31: byte 31 of the line is not UTF-8", 40..41);
    let posts = fs::read(fixture("Posts.xml")).unwrap();
    check_bad("cut.xml", &posts[..posts.len() * 9 / 10], "was cut short", 41..42);
    let posts = String::from_utf8(posts).unwrap();
    let bad_score = posts.replacen("Score=\"8\"", "Score=\"eight\"", 1);
    check_bad("score.xml", bad_score.as_bytes(), "score.xml:3 (byte", 41..42);
}

/// Damage anywhere in a parquet file ends in an error or in pairs, never in a panic or a half-written file.
#[test]
fn damaged_parquet_never_panics() {
    let whole = fs::read(fixture("rows.parquet")).unwrap();
    let inputs = TempDir::new().unwrap();
    let path = inputs.path().join("damaged.parquet");
    let mut seed = 1u64;
    for _ in 0..300 {
        let mut bytes = whole.clone();
        for _ in 0..3 {
            seed = seed
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            let at = (seed >> 33) as usize % bytes.len();
            bytes[at] ^= 1 << (seed >> 61);
        }
        fs::write(&path, &bytes).unwrap();
        let folder = TempDir::new().unwrap();
        let input = path.display().to_string();
        if run_in(&folder, &["--input", &input]).is_err() {
            assert_nothing_left(&folder);
        }
    }
}

fn row(qid: u32, question: &str, answers: [(&str, i64); 2]) -> String {
    let answers =
        answers.map(|(text, pm_score)| serde_json::json!({"text": text, "pm_score": pm_score}));
    serde_json::json!({"qid": qid, "question": question, "answers": answers}).to_string() + "\n"
}

fn prepare_text(rows: &str, rules: Rules) -> (TempDir, PrepareSummary) {
    let folder = TempDir::new().unwrap();
    let rows: &'static [u8] = rows.to_string().leak().as_bytes();
    let options = PrepareOptions {
        sources: vec![Source::Memory("rows.jsonl".into(), rows)],
        output: folder.path().join("pairs.jsonl"),
        rules,
        ..PrepareOptions::default()
    };
    let summary = prepare(&options, ProgressMode::Quiet).unwrap();
    assert_adds_up(&summary);
    (folder, summary)
}

#[test]
fn every_rule_has_its_count_and_its_ids() {
    let answers = [("best", 5), ("worst", 1)];
    let long =
        "<p>calculate this: ".to_string() + &(0..99).map(|n| format!("w{n} ")).collect::<String>();
    let mut rows = row(1, &long, answers);
    rows += &row(2, &long.to_uppercase(), answers);
    rows += &row(3, &(long.clone() + "and more"), answers);
    rows += &row(4, "<p>I calculate nothing</p>", [("a", 3), ("b", 2)]);
    rows += &row(5, "<p>I calculate nothing</p>", [("a", 3), ("b", 3)]);
    rows += &row(6, "<p>nothing of this kind</p>", answers);
    rows += &row(7, "<p>calculate this sum</p>", [("<p>", 5), ("worst", 1)]);
    rows += &row(8, "<p>calculate that sum</p>", [("same", 5), ("<p>same", 1)]);
    rows += &row(9, "calculate", answers);
    rows += &row(10, &format!("calculate {}", "x".repeat(8000)), answers);
    rows += &row(11, "<p>calculate my sum</p>", [("a", 5), ("worst", 1)]);
    rows += &row(12, "<p>calculate my sum</p>", [(&"a".repeat(16001), 5), ("worst", 1)]);
    rows += "{\"qid\":13,\"question\":\"\",\"answers\":[]}";
    let rules = Rules { held_out_fraction: 0.0, ..Rules::default() };
    let (_folder, summary) = prepare_text(&rows, rules);
    assert_eq!(ids(&pairs(&summary.output)), ["1"]);
    let lost: Vec<_> =
        summary.stats.not_kept.iter().map(|(reason, lost)| (*reason, &*lost.ids[0])).collect();
    assert_eq!(
        lost,
        [
            (Reason::TooFewAnswers, "13"),
            (Reason::EqualScores, "5"),
            (Reason::SmallScoreGap, "4"),
            (Reason::NotMatched, "6"),
            (Reason::EmptyAnswer, "7"),
            (Reason::IdenticalAnswers, "8"),
            (Reason::QuestionTooShort, "9"),
            (Reason::QuestionTooLong, "10"),
            (Reason::AnswerTooShort, "11"),
            (Reason::AnswerTooLong, "12"),
            (Reason::Duplicate, "2"),
            (Reason::NearDuplicate, "3"),
        ]
    );
}

#[test]
fn the_split_follows_the_question_and_duplicates_do_not_straddle_it() {
    let question = |n: usize| {
        format!("calculate {}", (0..40).map(|k| format!("{} ", n * 100 + k)).collect::<String>())
    };
    let rows = |range: std::ops::Range<usize>| -> String {
        let answers = [("best", 5), ("worst", 1)];
        range
            .flat_map(|n| {
                let more = question(n) + " again";
                [row(n as u32, &question(n), answers), row(n as u32, &more, answers)]
            })
            .collect()
    };
    let rules = Rules {
        drop_duplicates: false,
        drop_near_duplicates: false,
        held_out_fraction: 0.3,
        ..Rules::default()
    };
    let split = |rows: &str| {
        let (_folder, summary) = prepare_text(rows, rules.clone());
        let of = |path: &Path| pairs(path).iter().map(|p| p.id.clone()).collect::<Vec<_>>();
        (of(&summary.output), of(summary.held_out.as_ref().unwrap()))
    };
    let (kept, held_out) = split(&rows(0..200));
    assert_eq!(kept.len() + held_out.len(), 400);
    assert!((80..160).contains(&held_out.len()), "{}", held_out.len());
    assert!(kept.iter().all(|id| !held_out.contains(id)));
    // A question stays where it was when others come or go.
    let (_, fewer) = split(&rows(0..50));
    assert_eq!(fewer, held_out[..fewer.len()]);
}

#[test]
fn test_questions_are_kept_out() {
    let folder = TempDir::new().unwrap();
    let first =
        pairs(&run_in(&folder, &["--input", &fixture("rows.jsonl")]).unwrap().output).remove(0);
    let excluded = folder.path().join("test.jsonl");
    fs::write(&excluded, serde_json::json!({"problem": first.prompt}).to_string()).unwrap();
    let excluded = excluded.display().to_string();
    let arguments =
        ["--input", &fixture("rows.jsonl"), "--exclude-questions", &excluded, "--overwrite"];
    let summary = run_in(&folder, &arguments).unwrap();
    assert!(summary.stats.not_kept[&Reason::ExcludedQuestion].ids.contains(&first.id));
    assert!(!ids(&pairs(&summary.output)).contains(&first.id.as_str()));
}

#[test]
fn the_shipped_configs_are_the_presets() {
    for (name, preset) in [("default", Preset::Default), ("original", Preset::Original)] {
        let path = format!("{}/configs/prepare-{name}.toml", env!("CARGO_MANIFEST_DIR"));
        assert_eq!(Rules::load(Path::new(&path), None).unwrap(), Rules::preset(preset), "{path}");
        // Each rule is there to be seen.
        let text = fs::read_to_string(&path).unwrap();
        let rules = serde_json::to_value(Rules::preset(preset)).unwrap();
        for key in rules.as_object().unwrap().keys() {
            assert!(text.contains(&format!("\n{key} = ")), "{path} lacks {key}");
        }
    }
}
