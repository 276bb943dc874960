//! Runs the demo for several seeds, which change problems, samples and training. Reports the
//! accuracy on held-out problems before and after, and whether each gain is at least ten points
//! with p < 0.01.
//!
//! `cargo bench --bench demo [-- SEEDS]`

#![allow(clippy::print_stdout, reason = "the table is the result")]

use std::time::Instant;

use arithmo::Result;
use arithmo::demo::{DemoOptions, DemoSize, demo};
use arithmo::progress::ProgressMode;
use arithmo_backends::ndarray::Cpu;
use serde_json::json;

/// The gain and the significance that every seed must reach.
const GAIN: f64 = 0.10;
const P: f64 = 0.01;

fn main() -> Result<()> {
    let seeds = std::env::args().skip(1).find_map(|word| word.parse().ok()).unwrap_or(5);
    let folder = std::env::temp_dir().join(format!("arithmo-demo-{}", std::process::id()));
    println!(
        "{:>4}{:>9}{:>9}{:>8}{:>12}{:>10}",
        "seed", "before", "after", "gain", "McNemar p", "seconds"
    );
    let mut runs = Vec::new();
    for seed in 1..=seeds {
        let options = DemoOptions {
            output: folder.join(seed.to_string()),
            size: DemoSize { problems: 2000, seed },
            overwrite: false,
            progress: ProgressMode::Quiet,
        };
        let started = Instant::now();
        let ([before, after], p) = demo::<Cpu>(&options, &Default::default())?.accuracies();
        let seconds = started.elapsed().as_secs_f64();
        println!(
            "{seed:>4}{:>7.1} %{:>7.1} %{:>+8.1}{p:>12.1e}{seconds:>10.1}",
            100.0 * before,
            100.0 * after,
            100.0 * (after - before)
        );
        let holds = after - before >= GAIN && p < P;
        runs.push(json!({"seed": seed, "before": before, "after": after, "p_value": p, "holds": holds, "seconds": seconds}));
    }
    arithmo::output::remove(&folder)?;
    let all = runs.iter().all(|run| run["holds"] == true);
    println!("{}", json!({"bench": "demo", "all_hold": all, "runs": runs}));
    Ok(())
}
