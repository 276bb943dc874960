//! Measures rows per second and peak memory of `arithmo prepare` for each input format and both
//! presets.
//!
//!     cargo bench --bench prepare [-- ROWS]
//!
//! Writes ROWS generated rows (default 40,000; 450,000 make about 2 GB) to a temporary folder, as
//! parquet, JSON Lines and `Posts.xml`, the same rows in every run, one format after the other. The
//! best of several runs counts, and the largest peak, the process's largest resident set (`VmHWM`).
//!
//! With `ARITHMO_PEER_PYTHON`, a Python that has bs4 and pyarrow, the original project's rules with
//! BeautifulSoup (`../shared/bench/prepare_original.py`) run alternately with ours on the parquet
//! file, and both must keep the same number of rows. Prints a table, then one line of JSON.

#![allow(clippy::unwrap_used, reason = "a benchmark may stop at the first surprise")]
#![allow(clippy::print_stdout, reason = "the table is the result")]

#[path = "prepare/rows.rs"]
mod rows;

use std::fs;
use std::path::Path;
use std::process::Command;

use arithmo::data::prepare::{PrepareOptions, Preset, Rules, Source, prepare};
use arithmo::data::stack_exchange::Format;
use arithmo::progress::ProgressMode;
use serde_json::{Value, json};

const ROUNDS: usize = 3;
const PEER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../shared/bench/prepare_original.py");
/// If set, this program only prepares that file and prints the measurements.
const INPUT: &str = "ARITHMO_PREPARE_INPUT";
const PRESET: &str = "ARITHMO_PREPARE_PRESET";

fn main() {
    if let Some(input) = std::env::var_os(INPUT) {
        return print_own_run(Path::new(&input));
    }
    let given = std::env::args().find_map(|argument| argument.parse().ok());
    let count: usize = given.unwrap_or(40_000);
    let python = std::env::var("ARITHMO_PEER_PYTHON").ok();
    let work = tempfile::tempdir().unwrap();
    println!(
        "{:>10} {:>9} {:>8} {:>9} {:>10} {:>8} {:>9}",
        "form", "preset", "MB", "rows", "rows/s", "kept", "peak MiB"
    );
    let mut runs = Vec::new();
    for (form, name, write) in [
        ("parquet", "rows.parquet", rows::parquet as rows::Writer),
        ("jsonl", "rows.jsonl", rows::jsonl),
        ("posts-xml", "Posts.xml", rows::posts_xml),
    ] {
        let file = work.path().join(name);
        write(&file, count);
        let megabytes = fs::metadata(&file).unwrap().len() as f64 / 1e6;
        for preset in ["original", "default"] {
            let compared = form == "parquet" && preset == "original";
            let python = python.as_deref().filter(|_| compared);
            let (ours, peer) = alternate(&file, preset, python);
            for (form, run) in [(form, Some(&ours)), ("peer", peer.as_ref())] {
                let Some(run) = run else { continue };
                println!(
                    "{form:>10} {preset:>9} {megabytes:>8.0} {count:>9} {:>10.0} {:>8} {:>9}",
                    run["rows_per_second"].as_f64().unwrap(),
                    run["kept"],
                    run["peak_bytes"].as_u64().map_or("".into(), |b| (b >> 20).to_string())
                );
            }
            runs.push(
                json!({"form": form, "preset": preset, "megabytes": megabytes, "ours": ours, "peer": peer}),
            );
        }
        fs::remove_file(&file).unwrap();
    }
    match runs[0]["peer"]["rows_per_second"].as_f64() {
        Some(peer) => println!(
            "parquet, original preset: {:.0} times the peer's rows per second",
            runs[0]["ours"]["rows_per_second"].as_f64().unwrap() / peer
        ),
        None => println!(
            "the peer was not run: set ARITHMO_PEER_PYTHON to a Python with bs4 and pyarrow"
        ),
    }
    println!("{}", json!({"benchmark": "prepare", "rows": count, "runs": runs}));
}

/// Runs arithmo, and the peer if there is a Python for it, alternately; returns the best run of
/// each.
fn alternate(file: &Path, preset: &str, python: Option<&str>) -> (Value, Option<Value>) {
    let (mut ours, mut peer) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        let mut this = Command::new(std::env::current_exe().unwrap());
        ours.push(last_json_line(this.env(INPUT, file).env(PRESET, preset)));
        if let Some(python) = python {
            peer.push(last_json_line(Command::new(python).args([PEER, "--run"]).arg(file)));
        }
    }
    let rate = |run: &Value| run["rows_per_second"].as_f64().unwrap();
    let best = |runs: &[Value]| runs.iter().max_by(|a, b| rate(a).total_cmp(&rate(b))).cloned();
    let peak = ours.iter().filter_map(|run| run["peak_bytes"].as_u64()).max();
    let mut ours = best(&ours).unwrap();
    ours["peak_bytes"] = json!(peak);
    let peer = best(&peer);
    if let Some(peer) = &peer {
        assert_eq!(ours["kept"], peer["kept"], "the peer keeps a different number of rows");
    }
    (ours, peer)
}

/// Runs a program and returns the line of JSON that it prints last.
fn last_json_line(command: &mut Command) -> Value {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout).unwrap();
    serde_json::from_str(text.lines().last().unwrap()).unwrap()
}

fn print_own_run(input: &Path) {
    let preset = match std::env::var(PRESET).as_deref() {
        Ok("original") => Preset::Original,
        _ => Preset::Default,
    };
    let folder = tempfile::tempdir_in(input.parent().unwrap()).unwrap();
    let options = PrepareOptions {
        sources: vec![Source::File(input.to_path_buf(), Format::Auto)],
        output: folder.path().join("pairs.jsonl"),
        rules: Rules::preset(preset),
        ..PrepareOptions::default()
    };
    let summary = prepare(&options, ProgressMode::Quiet).unwrap();
    let (stats, seconds) = (&summary.stats, summary.elapsed.as_secs_f64());
    let line = json!({
        "rows": stats.rows_read,
        "kept": stats.kept + stats.held_out,
        "seconds": seconds,
        "rows_per_second": stats.rows_read as f64 / seconds,
        "peak_bytes": peak_bytes(),
    });
    println!("{line}");
}

/// Returns this process's largest resident set, if Linux reports it.
fn peak_bytes() -> Option<usize> {
    let status = fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let kib: usize = line?.split_whitespace().next()?.parse().ok()?;
    Some(kib * 1024)
}
