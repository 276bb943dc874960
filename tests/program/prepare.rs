//! Tests of `prepare`, from its arguments to its files.

use crate::support;
use std::fs;
use std::path::{Path, PathBuf};

use arithmo::cli::prepare::{PrepareArgs, run};
use arithmo::data::pair::PreferencePair;
use arithmo::data::prepare::{
    PrepareOptions, PrepareSummary, Preset, Reason, Rules, Source, prepare,
};
use arithmo::progress::ProgressMode;
use clap::Parser;
use tempfile::TempDir;

#[derive(Parser)]
struct Program {
    #[command(flatten)]
    args: PrepareArgs,
}

fn fixture(name: &str) -> String {
    format!("{}/tests/fixtures/stack_exchange/{name}", env!("CARGO_MANIFEST_DIR"))
}

/// Runs `prepare` with `arguments` and `--output <folder>/pairs.jsonl`.
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

/// Checks that the counts in the summary and in the stats file add up to the rows read.
fn assert_adds_up(summary: &PrepareSummary) {
    let stats = &summary.stats;
    let lost: u64 = stats.not_kept.values().map(|lost| lost.count).sum();
    assert_eq!(stats.rows_read, stats.kept + stats.held_out + lost, "{stats:?}");
    let file = support::json_file(&summary.stats_file);
    assert_eq!(file["rows_read"], stats.rows_read);
    assert_eq!(file["kept"], pairs(&summary.output).len());
    let histogram = file["lengths_in_characters"]["prompt"].as_array().unwrap();
    let binned: u64 = histogram.iter().map(|bin| bin["count"].as_u64().unwrap()).sum();
    assert_eq!(binned, stats.kept + stats.held_out);
}

/// Compares the output with that of the original's procedure in Python (tests/fixtures/stack_exchange/make.py), byte
/// for byte.
#[test]
fn the_original_preset_equals_the_original_program() {
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
#[ignore = "compares with data that are not in the tree"]
fn a_real_dump_is_read() {
    let Some(path) = support::shared("data/stackexchange/Posts.xml") else { return };
    let folder = TempDir::new().unwrap();
    let config = folder.path().join("prepare.toml");
    fs::write(&config, "question_filters = []").unwrap();
    let (config, path) = (config.display().to_string(), path.display().to_string());
    let summary = run_in(&folder, &["--input", &path, "--config", &config]).unwrap();
    assert_adds_up(&summary);
    let posts = summary.stats.posts.unwrap();
    // The dump's README has these counts.
    assert_eq!((posts.questions, posts.answers, summary.stats.rows_read), (257, 341, 257));
    assert!(summary.stats.kept > 20, "{summary}");
}

#[test]
fn existing_outputs_are_kept_by_default() {
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

/// Checks the error for a bad file, and the number of rows that are read from it with --skip-bad-rows.
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
    let bad = stats.rejected(Reason::UnreadableRow) + stats.rejected(Reason::UnreadableRest);
    assert!(rows.contains(&stats.rows_read) && bad >= 1, "{name}: {summary}");
}

#[test]
fn bad_parquet_is_an_error_or_is_counted() {
    let whole = fs::read(fixture("rows.parquet")).unwrap();
    check_bad("cut.parquet", &whole[..whole.len() - 9], "cut.parquet: footer", 1..2);
    let mut corrupt = whole.clone();
    corrupt[200..900].fill(0xa5);
    check_bad("corrupt.parquet", &corrupt, "row group 0", 20..41);
    let other = fs::read(fixture("no-question.parquet")).unwrap();
    check_bad("other.parquet", &other, "no column question", 1..2);
}

/// Checks that the maximum size of a row applies to every format and can be changed.
#[test]
fn rows_above_the_maximum_size_are_refused() {
    for name in ["rows.jsonl", "rows.parquet", "Posts.xml"] {
        let folder = TempDir::new().unwrap();
        let output = folder.path().join("pairs.jsonl");
        let prepare = |bytes: &str| {
            std::process::Command::new(env!("CARGO_BIN_EXE_arithmo"))
                .args(["prepare", "--input", &fixture(name), "--max-row-bytes", bytes])
                .arg("--output")
                .arg(&output)
                .output()
                .unwrap()
        };
        let refused = prepare("40");
        let message = String::from_utf8_lossy(&refused.stderr);
        assert!(!refused.status.success() && !output.exists(), "{name}: {message}");
        assert!(
            message.contains("the limit of 40 bytes") && message.contains("raise --max-row-bytes"),
            "{name}: {message}"
        );
        assert!(prepare("10000").status.success(), "{name}");
    }
}

/// Reads the usual compression of polars and pandas.
#[test]
fn zstd_is_read() {
    let folder = TempDir::new().unwrap();
    let summary = run_in(&folder, &["--input", &fixture("zstd.parquet")]).unwrap();
    assert_adds_up(&summary);
    assert_eq!(summary.stats.rows_read, 2);
}

/// Checks that the question is title and body by default, and the body alone with `title = "drop"`.
#[test]
fn titles_are_part_of_the_question() {
    let folder = TempDir::new().unwrap();
    let input = fixture("titles.xml");
    let mut prompts = Vec::new();
    for rules in ["", "title = \"drop\"\nquestion_filters = []"] {
        let config = folder.path().join("prepare.toml");
        fs::write(&config, format!("held_out_fraction = 0.0\n{rules}")).unwrap();
        let config = config.display().to_string();
        let summary =
            run_in(&folder, &["--input", &input, "--config", &config, "--overwrite"]).unwrap();
        assert_adds_up(&summary);
        assert_eq!(summary.stats.rows_with_title, 1);
        prompts.push((pairs(&summary.output).remove(0).prompt, summary.stats.pairs_with_title));
    }
    let body = "I tried substitution and got stuck. Any hints?";
    let title = "Calculate $\\int_0^1 x^2 dx$ & \"explain\"";
    assert_eq!(prompts, [(format!("{title}\n\n{body}"), 1), (body.into(), 0)]);
}

#[test]
fn outputs_with_unknown_extensions_are_refused() {
    for name in ["t.csv", "pairs", "pairs.jsonl.gz"] {
        let folder = TempDir::new().unwrap();
        let options =
            PrepareOptions { output: folder.path().join(name), ..PrepareOptions::default() };
        let error = prepare(&options, ProgressMode::Quiet).unwrap_err().to_string();
        assert!(error.starts_with("--output: ") && error.contains(".jsonl"), "{error}");
        assert_nothing_left(&folder);
    }
}

#[test]
fn bad_text_is_an_error_or_is_counted() {
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

/// Checks that random damage in a parquet file causes no panic, and that a failed command leaves no files.
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
fn the_split_depends_on_the_question_and_keeps_duplicates_together() {
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
        let ids = |path: &Path| pairs(path).iter().map(|p| p.id.clone()).collect::<Vec<_>>();
        (ids(&summary.output), ids(summary.held_out.as_ref().unwrap()))
    };
    let (kept, held_out) = split(&rows(0..200));
    assert_eq!(kept.len() + held_out.len(), 400);
    assert!((80..160).contains(&held_out.len()), "{}", held_out.len());
    assert!(kept.iter().all(|id| !held_out.contains(id)));
    // The side of a question does not depend on other questions.
    let (_, fewer) = split(&rows(0..50));
    assert_eq!(fewer, held_out[..fewer.len()]);
}

#[test]
fn test_questions_are_excluded() {
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
fn the_shipped_configs_equal_the_presets() {
    for (name, preset) in [("default", Preset::Default), ("original", Preset::Original)] {
        let path = format!("{}/configs/prepare-{name}.toml", env!("CARGO_MANIFEST_DIR"));
        assert_eq!(Rules::load(Path::new(&path), None).unwrap(), Rules::preset(preset), "{path}");
        // The file lists every rule.
        let text = fs::read_to_string(&path).unwrap();
        let rules = serde_json::to_value(Rules::preset(preset)).unwrap();
        for key in rules.as_object().unwrap().keys() {
            assert!(text.contains(&format!("\n{key} = ")), "{path} lacks {key}");
        }
    }
}
