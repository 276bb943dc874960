//! Tests of `arithmo report` on complete, broken and real run folders.

use crate::support;
use std::fs;
use std::path::{Path, PathBuf};

use arithmo::cli;
use arithmo::report::{ReportPaths, write_report};
use arithmo::train::logger::{MetricsLog, Record};
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};

/// Returns a random number in 0..=1.
fn uniform(random: &mut ChaCha8Rng) -> f64 {
    f64::from(random.next_u32()) / f64::from(u32::MAX)
}

/// Logs `steps` steps of a made-up run whose chosen completions end at the reward `chosen_end`.
fn log_run(dir: &Path, steps: u64, chosen_end: f64) {
    let mut random = ChaCha8Rng::seed_from_u64(steps);
    let mut log = MetricsLog::create(dir, None).unwrap();
    for step in 1..=steps {
        let progress = step as f64 / steps as f64;
        let noise = 0.02 * (uniform(&mut random) - 0.5);
        let chosen = chosen_end * progress + noise;
        let record = Record::new(step)
            .with("loss", std::f64::consts::LN_2 - 0.3 * progress)
            .with("learning_rate", 5e-5 * (1.0 - progress))
            .with("grad_norm", 3.0 * uniform(&mut random))
            .with("rewards/chosen", chosen)
            .with("rewards/rejected", chosen - progress)
            .with("rewards/accuracies", uniform(&mut random).round())
            .with("rewards/margins", progress)
            .with("logps/chosen", -250.0 + chosen)
            .with("logps/rejected", -260.0 + chosen - progress)
            .with("tokens_per_second", 1000.0 + noise);
        log.log(&record).unwrap();
    }
    let evaluation = Record::new(steps).with("eval_loss", 0.5).with("eval_rewards/margins", 0.75);
    log.log(&evaluation).unwrap();
}

/// Writes a report and reads its page. Panics unless the page's elements are closed and it needs no other files.
fn report(dir: &Path) -> (String, ReportPaths) {
    let paths = write_report(dir).unwrap();
    let page = fs::read_to_string(&paths.index).unwrap();
    for (open, close) in
        [("<svg", "</svg>"), ("<figure", "</figure>"), ("<table", "</table>"), ("<tr>", "</tr>")]
    {
        assert_eq!(page.matches(open).count(), page.matches(close).count(), "{open}");
    }
    assert!(
        !page.contains("<script")
            && !page.contains("NaN")
            && !page.contains("src=")
            && !page.contains("href=\"http"),
        "the page is not self-contained"
    );
    (page, paths)
}

fn names(paths: &[PathBuf]) -> Vec<String> {
    let name = |path: &PathBuf| path.file_name().unwrap().to_string_lossy().into_owned();
    paths.iter().map(name).collect()
}

fn report_error(dir: &Path) -> String {
    write_report(dir).unwrap_err().to_string()
}

const MANIFEST: &str = r#"{
    "version": "9.9.9", "command": ["arithmo", "train", "--config", "<run>.toml"],
    "config": {
        "method": "dpo", "dpo": {"loss_type": "sigmoid"}, "train": {"max_grad_norm": 2.0},
        "model": {"model_name_or_path": "some/<b>model</b>"}, "lora": {"target_modules": ["q_proj", "v_proj"]}
    },
    "data": {
        "train": {
            "pairs": 17950, "dropped": ["a", "b"], "refused": [], "truncated_chosen": [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12]
        },
        "lengths": {"bucket_size": 64, "prompt": [5, 9], "chosen": [1, 2, 3], "rejected": [4]}
    }
}"#;

/// Both rewards fall by more than half a unit, or the chosen one rises.
#[test]
fn alarms_are_on_the_page() {
    let dir = tempfile::tempdir().unwrap();
    log_run(dir.path(), 40, -2.0);
    let (page, _) = report(dir.path());
    let alarm = "The chosen completions become less likely together with the rejected ones";
    assert!(page.contains("<h2 id=\"alarms\">Alarms</h2>") && page.contains(alarm));
    log_run(dir.path(), 40, 2.0);
    let (page, _) = report(dir.path());
    assert!(!page.contains("alarms") && !page.contains(alarm));
}

/// The evaluation before the first step does not count, and of equal ones the first is the best.
#[test]
fn the_best_evaluation_is_on_the_page() {
    let dir = tempfile::tempdir().unwrap();
    let mut log = MetricsLog::create(dir.path(), None).unwrap();
    for (step, margin) in [(0, 3.0), (10, 0.25), (20, 0.875), (30, 0.875), (40, 0.5)] {
        let record = Record::new(step).with("eval_loss", 0.5).with("eval_rewards/margins", margin);
        log.log(&record).unwrap();
    }
    let page_with = |train: &str| {
        let manifest = format!("{{\"config\": {{\"method\": \"dpo\", \"train\": {{{train}}}}}}}");
        fs::write(dir.path().join("manifest.json"), manifest).unwrap();
        report(dir.path()).0
    };
    let page = page_with("\"metric_for_best_model\": \"eval_rewards/margins\"");
    assert!(page.contains("<dt>Best held-out rewards/margins, step 20</dt><dd>0.8750</dd>"));
    let page =
        page_with("\"metric_for_best_model\": \"rewards/margins\", \"greater_is_better\": false");
    assert!(page.contains("<dt>Best held-out rewards/margins, step 10</dt><dd>0.2500</dd>"));
    assert!(!page_with("\"metric_for_best_model\": null").contains("Best held-out"));
}

/// Checks that the page of an SFT run uses the terms examples and completions, draws both lengths, and shows a template
/// with its line breaks.
#[test]
fn the_page_of_an_sft_run_uses_its_terms() {
    let dir = tempfile::tempdir().unwrap();
    let mut log = MetricsLog::create(dir.path(), None).unwrap();
    for step in 1..=6 {
        let record =
            Record::new(step).with("loss", 1.0 / step as f64).with("mean_token_accuracy", 0.5);
        log.log(&record).unwrap();
        if step == 5 {
            let record = Record::new(step).with("eval_loss", 0.25);
            log.log(&record.with("eval_mean_token_accuracy", 0.625)).unwrap();
        }
    }
    let manifest = r#"{
        "config": {"method": "sft", "dpo": {"loss_type": ["sigmoid"], "beta": 0.1},
                   "data": {"prompt_template": "Question: {prompt}\n\nAnswer:"}},
        "data": {
            "train": {"pairs_read": 200, "pairs_kept": 199, "chosen_truncated": ["7"], "rejected_truncated": [],
                      "identical_after_truncation": []},
            "lengths": {"bucket_size": 64, "prompt": [88, 111, 1], "completion": [19, 87, 66, 22, 4, 2]}
        }
    }"#;
    fs::write(dir.path().join("manifest.json"), manifest).unwrap();
    let (page, _) = report(dir.path());
    for part in [
        "Lengths of the training examples",
        ">completion</text>",
        ">prompt</text>",
        "Token accuracy</text>",
        "<td>train.examples_read</td><td>200</td>",
        "<td>train.completion_truncated</td>",
        "Held-out loss, step 5</dt><dd>0.2500<",
        "Held-out token accuracy, step 5</dt><dd>0.625<",
        "Question: {prompt}\n\nAnswer:</td>",
        "white-space: pre-wrap",
    ] {
        assert!(page.contains(part), "no {part}: {page}");
    }
    for word in ["chosen", "rejected", "pairs", "dpo.", "identical_after"] {
        assert!(!page.contains(word), "{word}: {page}");
    }
}

/// Writes scores of three pairs whose margin grows from -0.5 to 0.5.
fn write_scores(dir: &Path) {
    let score = |id: u32, chosen: f64| {
        format!(
            "{{\"id\":\"{id}\",\"logps/chosen\":{chosen},\"logps/rejected\":-9.5,\
             \"tokens/chosen\":4,\"tokens/rejected\":5}}\n"
        )
    };
    for (when, chosen) in [("before", -10.0), ("after", -9.0)] {
        let lines: String = (0..3).map(|id| score(id, chosen)).collect();
        fs::write(dir.join(format!("scores-{when}.jsonl")), lines).unwrap();
    }
}

#[test]
fn a_complete_run_gets_a_page_and_its_plots() {
    let dir = tempfile::tempdir().unwrap();
    log_run(dir.path(), 997, -0.5);
    fs::write(dir.path().join("manifest.json"), MANIFEST).unwrap();
    write_scores(dir.path());
    let (page, paths) = report(dir.path());
    let expected = [
        "loss",
        "rewards",
        "margins",
        "accuracies",
        "logps",
        "learning-rate",
        "grad-norm",
        "tokens-per-second",
        "lengths",
    ];
    let files: Vec<String> = expected.iter().map(|name| format!("{name}.svg")).collect();
    assert_eq!(names(&paths.plots), files);
    for path in &paths.plots {
        let bytes = fs::read(path).unwrap();
        assert!(bytes.starts_with(b"<svg "), "{}", path.display());
    }
    for needle in [
        "ln 2 = 0.6931",
        "DPO of some/&lt;b&gt;model&lt;/b&gt;",
        "became less likely than under the reference",
        "Above max_grad_norm = 2, and so clipped, at",
        "<td>train.pairs</td><td>17950</td>",
        "<td>train.dropped</td><td>2: a, b</td>",
        "<td>train.refused</td><td>0</td>",
        "<td>train.truncated_chosen</td><td>12: 1, 2, 3,",
        "<td>lora.target_modules</td><td>q_proj, v_proj</td>",
        "<td>command</td><td>arithmo train --config &lt;run&gt;.toml</td>",
        "grew in 3 of them (100 %)",
        "held out",
    ] {
        assert!(page.contains(needle), "missing: {needle}");
    }
    assert!(!page.contains("<b>model"), "text of the manifest is not escaped");
    assert!(page.len() < 400_000, "{}", page.len());
}

#[test]
fn falling_likelihood_is_reported_only_if_it_falls() {
    let dir = tempfile::tempdir().unwrap();
    log_run(dir.path(), 300, 0.5);
    assert!(!report(dir.path()).0.contains("became less likely"));
}

#[test]
fn runs_of_one_step_and_of_one_metric() {
    let dir = tempfile::tempdir().unwrap();
    log_run(dir.path(), 1, 0.0);
    let (page, paths) = report(dir.path());
    assert!(page.contains("<dt>Steps</dt><dd>1</dd>") && paths.plots.len() == 8);
    // A second report, of a run with fewer metrics, removes older plots.
    fs::write(dir.path().join("metrics.jsonl"), "{\"step\":4,\"loss\":0.5}").unwrap();
    let (page, paths) = report(dir.path());
    assert_eq!(names(&paths.plots), ["loss.svg"]);
    // The folder has the page, its plot and the list of these files.
    assert_eq!(fs::read_dir(dir.path().join("report")).unwrap().count(), 3);
    assert!(!page.contains("ln 2"), "without preference data, no loss begins at ln 2");
}

#[test]
fn values_that_are_not_finite_are_gaps_and_reported() {
    let dir = tempfile::tempdir().unwrap();
    let line =
        |step: u32, loss: &str| format!("{{\"step\":{step},\"loss\":{loss},\"grad_norm\":null}}\n");
    let text: String =
        (1..=9).map(|s| line(s, if s % 4 == 3 { "null" } else { "1e308" })).collect();
    fs::write(dir.path().join("metrics.jsonl"), text).unwrap();
    let (page, paths) = report(dir.path());
    assert!(page.contains("loss: 2 of 9 values are not finite, the first at step 3."), "{page}");
    assert!(page.contains("grad_norm: 9 of 9 values are not finite"));
    assert_eq!(names(&paths.plots), ["loss.svg"]);
}

#[test]
fn an_incomplete_last_line_is_left_out_and_reported() {
    let dir = tempfile::tempdir().unwrap();
    log_run(dir.path(), 20, 0.1);
    let path = dir.path().join("metrics.jsonl");
    let whole = fs::read(&path).unwrap();
    for cut in [1, 2, 9, 40] {
        fs::write(&path, &whole[..whole.len() - cut]).unwrap();
        write_report(dir.path()).unwrap();
    }
    let (page, _) = report(dir.path());
    assert!(page.contains("The last line of metrics.jsonl is incomplete"));
}

#[test]
fn errors_name_the_broken_file_and_line() {
    let dir = tempfile::tempdir().unwrap();
    let error = report_error(dir.path());
    assert!(error.contains("metrics.jsonl: no such file") && error.contains("help:"), "{error}");
    let metrics = dir.path().join("metrics.jsonl");
    for empty in ["", "\n", "{\"step\":1}\n", "{\"st"] {
        fs::write(&metrics, empty).unwrap();
        assert!(report_error(dir.path()).contains("holds no metric yet"), "{empty:?}");
    }
    for broken in [
        "{\"step\":1,\"loss\":1}\n{\"step\":\n{\"step\":3}\n",
        "{\"step\":1,\"loss\":2}\n[7]\n",
        "{\"step\":1,\"loss\":2}\n{\"loss\":1}",
    ] {
        fs::write(&metrics, broken).unwrap();
        assert!(report_error(dir.path()).contains("metrics.jsonl:2"), "{broken}");
    }
    assert!(!dir.path().join("report").exists());
    log_run(dir.path(), 3, 0.0);
    let manifest = dir.path().join("manifest.json");
    for broken in [
        "{",
        "{\"data\":{\"lengths\":{\"bucket_size\":0}}}",
        "{\"data\":{\"lengths\":{\"bucket_size\":8,\"chosen\":[-1]}}}",
    ] {
        fs::write(&manifest, broken).unwrap();
        assert!(report_error(dir.path()).contains("manifest.json"), "{broken}");
    }
    assert!(report_error(Path::new("no/such/run")).contains("no/such/run/metrics.jsonl"));
}

#[test]
fn the_command_writes_the_report() {
    let dir = tempfile::tempdir().unwrap();
    log_run(dir.path(), 5, 0.0);
    let run = dir.path().to_path_buf();
    cli::report::run(&cli::report::ReportArgs { run }).unwrap();
    assert!(dir.path().join("report/index.html").is_file());
}

#[test]
fn golden_runs_are_reported() {
    let runs = fs::read_dir(support::whole_reference("trl")).unwrap();
    let traces =
        runs.map(|run| run.unwrap().path().join("trace.jsonl")).filter(|trace| trace.is_file());
    let mut count = 0;
    for trace in traces.take(12) {
        let dir = tempfile::tempdir().unwrap();
        fs::copy(&trace, dir.path().join("metrics.jsonl")).unwrap();
        let (page, paths) = report(dir.path());
        assert!(
            page.contains("mean_token_accuracy") && paths.plots.len() >= 8,
            "{}",
            trace.display()
        );
        count += 1;
    }
    assert!(count > 0, "no trace was found");
}
