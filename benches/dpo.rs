//! Compares DPO training with TRL + PEFT on the same inputs: pairs per second, peak memory, losses.
//!
//!     ARITHMO_PEER_PYTHON=python3 cargo bench --bench dpo -- INPUTS [--rounds 2] [--steps 12] [--scenario 0|1|2|3]
//!
//! Scenarios: 1 adapters on every projection, 2 on q and v, 3 as 1 with a precomputed reference; 0
//! all three. INPUTS is a folder written by `../shared/bench/make_inputs.py`: a model in `model`,
//! pairs in `pairs.jsonl`. The peer runs `../shared/bench/trl_dpo.py`; without
//! `ARITHMO_PEER_PYTHON`, a Python with torch, trl and peft, only arithmo runs.
//!
//! Both train in f32 with rank 16 from the same adapter on the same pairs in the same order, with
//! batch size 4 and one update per step. The peer also runs with batch size 1, and its better
//! result counts. The runs alternate; the first two steps are not timed. Memory is the process's
//! peak resident set. Prints a table, then one line of JSON.

#![allow(clippy::unwrap_used, reason = "a benchmark may stop at the first surprise")]
#![allow(clippy::print_stdout, reason = "the table is the result")]

mod peer;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::{Value, json};

const MIB: f64 = 1024.0 * 1024.0;

/// The settings of a comparison.
#[derive(Clone, Copy)]
struct Scenario {
    name: &'static str,
    /// Adapters on every projection, otherwise on q and v.
    all_linear: bool,
    precompute: bool,
}

const SCENARIOS: [Scenario; 3] = [
    Scenario { name: "all linears", all_linear: true, precompute: false },
    Scenario { name: "q and v", all_linear: false, precompute: false },
    Scenario { name: "all linears, precomputed reference", all_linear: true, precompute: true },
];

struct Settings {
    inputs: PathBuf,
    rounds: usize,
    steps: usize,
    /// Number of the scenario, from 1; 0 for all.
    scenario: usize,
    peer: Option<String>,
}

/// The result of a run: pairs per second, peak bytes, the loss of each step.
#[derive(Clone, Debug)]
struct Run {
    pairs_per_second: f64,
    peak_bytes: f64,
    losses: Vec<f64>,
}

fn main() {
    let settings = settings();
    println!("inputs: {}", settings.inputs.display());
    let mut results = Vec::new();
    let chosen = |number: &usize| [0, *number].contains(&settings.scenario);
    let scenarios = (1..).zip(SCENARIOS).filter(|(number, _)| chosen(number));
    for (_, scenario) in scenarios {
        let (mut ours, mut peers) = (Vec::new(), Vec::new());
        for _ in 0..settings.rounds {
            let start = tempfile::tempdir().unwrap();
            for batch in [4, 1] {
                let run = peer_run(&settings, scenario, batch, start.path());
                peers.extend(run.map(|run| (batch, run)));
            }
            ours.push(our_run(&settings, scenario, start.path()));
        }
        results.push(report(scenario, &ours, &peers));
    }
    println!("{}", json!({"benchmark": "dpo", "scenarios": results}));
}

fn settings() -> Settings {
    let (arguments, inputs) = peer::Arguments::read(file!());
    Settings {
        inputs,
        rounds: arguments.number("--rounds", 2),
        steps: arguments.number("--steps", 12),
        scenario: arguments.number("--scenario", 0),
        peer: peer::python(),
    }
}

/// Prints our best round, the peer's best, and their ratios; memory and losses are compared at the
/// peer's batch size of 4.
fn report(scenario: Scenario, ours: &[Run], peers: &[(usize, Run)]) -> Value {
    let best = |runs: &[Run]| {
        let fastest = |a: &&Run, b: &&Run| a.pairs_per_second.total_cmp(&b.pairs_per_second);
        runs.iter().max_by(fastest).cloned()
    };
    println!("\n{}", scenario.name);
    println!("{:>22} {:>12} {:>10}", "", "pairs/s", "peak MiB");
    let show = |name: &str, run: &Run| {
        let peak = run.peak_bytes / MIB;
        println!("{name:>22} {:>12.2} {peak:>10.0}", run.pairs_per_second);
    };
    let ours = best(ours).unwrap();
    show("arithmo", &ours);
    let best_of_batch = |batch: usize| {
        let runs: Vec<Run> =
            peers.iter().filter(|(size, _)| *size == batch).map(|(_, run)| run.clone()).collect();
        best(&runs)
    };
    let (Some(four), Some(one)) = (best_of_batch(4), best_of_batch(1)) else {
        return json!({"scenario": scenario.name, "pairs_per_second": ours.pairs_per_second, "peak_bytes": ours.peak_bytes});
    };
    show("TRL + PEFT, batch 4", &four);
    show("TRL + PEFT, batch 1", &one);
    let peer = four.pairs_per_second.max(one.pairs_per_second);
    let (speed, memory) = (ours.pairs_per_second / peer, ours.peak_bytes / four.peak_bytes);
    let differences = ours.losses.iter().zip(&four.losses).map(|(a, b)| (a - b).abs());
    let worst = differences.fold(0.0, f64::max);
    println!(
        "{speed:.2} times the peer's best speed, {memory:.2} of its memory at batch 4; losses within {worst:.1e}"
    );
    json!({
        "scenario": scenario.name,
        "pairs_per_second": ours.pairs_per_second, "peak_bytes": ours.peak_bytes,
        "peer_batch_4": four.pairs_per_second, "peer_batch_1": one.pairs_per_second,
        "peer_peak_bytes": four.peak_bytes,
        "speed_ratio": speed, "memory_ratio": memory, "largest_loss_difference": worst,
    })
}

/// Runs arithmo with the settings of trl_dpo.py, from the peer's adapter in `start` if there is
/// one.
fn our_run(settings: &Settings, scenario: Scenario, start: &Path) -> Run {
    let work = tempfile::tempdir().unwrap();
    let (model, pairs) = (settings.inputs.join("model"), settings.inputs.join("pairs.jsonl"));
    let targets = if scenario.all_linear { "\"all-linear\"" } else { "[\"q_proj\", \"v_proj\"]" };
    let lora = if start.join("adapter_config.json").is_file() {
        format!("adapter = {start:?}\n[dpo]\nreference = \"base\"")
    } else {
        format!("r = 16\nlora_alpha = 32\ntarget_modules = {targets}\n[dpo]")
    };
    let Settings { steps, .. } = settings;
    let toml = format!(
        "output_dir = {output:?}\nseed = 0\n[model]\nmodel_name_or_path = {model:?}\ndtype = \"f32\"\n\
         [data]\ntrain_file = {pairs:?}\nmax_length = 1024\nshuffle = false\n\
         [lora]\n{lora}\nbeta = 0.1\nprecompute_ref_log_probs = {precompute}\n\
         [train]\nper_device_train_batch_size = 4\ngradient_accumulation_steps = 1\nmax_steps = {steps}\n\
         learning_rate = 5e-5\nlr_scheduler_type = \"cosine\"\nwarmup_steps = 2\n",
        output = work.path().join("run"),
        precompute = scenario.precompute,
    );
    let config = work.path().join("run.toml");
    fs::write(&config, toml).unwrap();
    let run = Command::new(env!("CARGO_BIN_EXE_arithmo"))
        .args(["--backend", "ndarray", "--quiet", "train", "--config"])
        .arg(&config)
        .output()
        .unwrap();
    assert!(run.status.success(), "{}", String::from_utf8_lossy(&run.stderr));
    let metrics = fs::read_to_string(work.path().join("run/metrics.jsonl")).unwrap();
    let lines: Vec<Value> =
        metrics.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let number = |line: &Value, key: &str| line[key].as_f64().unwrap();
    let (second, last) = (&lines[1], lines.last().unwrap());
    let seconds = number(last, "seconds") - number(second, "seconds");
    Run {
        pairs_per_second: 4.0 * (lines.len() - 2) as f64 / seconds,
        peak_bytes: number(last, "peak_memory_bytes"),
        losses: lines.iter().map(|line| number(line, "loss")).collect(),
    }
}

/// Runs the peer with a batch size over the same pairs and saves its initial adapter to `start`;
/// `None` if the peer is not available.
fn peer_run(settings: &Settings, scenario: Scenario, batch: usize, start: &Path) -> Option<Run> {
    let python = settings.peer.as_ref()?;
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../shared/bench/trl_dpo.py");
    if !script.is_file() {
        println!("{} is absent: the peer was not measured", script.display());
        return None;
    }
    let trace = tempfile::NamedTempFile::new().unwrap();
    let mut command = Command::new(python);
    let saving = Path::new(env!("CARGO_MANIFEST_DIR")).join("benches/with_initial_adapter.py");
    command.arg(saving).arg(start);
    command.arg(script).arg(&settings.inputs);
    command.args(["--targets", if scenario.all_linear { "all" } else { "qv" }]);
    let steps = settings.steps * 4 / batch;
    command.args(["--steps", &steps.to_string()]);
    command.args(["--batch", &batch.to_string()]);
    command.arg("--trace").arg(trace.path());
    if scenario.precompute {
        command.arg("--precompute");
    }
    let run = command.output().unwrap();
    assert!(run.status.success(), "{}", String::from_utf8_lossy(&run.stderr));
    let out = String::from_utf8(run.stdout).unwrap();
    let result: Value = serde_json::from_str(out.lines().last().unwrap()).unwrap();
    let trace = fs::read_to_string(trace.path()).unwrap();
    let losses = trace
        .lines()
        .map(|line| serde_json::from_str::<Value>(line).unwrap())
        .filter_map(|line| line["loss"].as_f64());
    Some(Run {
        pairs_per_second: result["pairs_per_second"].as_f64().unwrap(),
        peak_bytes: result["peak_memory_bytes"].as_f64().unwrap(),
        losses: losses.collect(),
    })
}
