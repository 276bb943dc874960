//! Compares greedy generation with transformers' `generate`: new tokens per second at several batch
//! sizes, including the time for prompts.
//!
//! ```text
//! ARITHMO_PEER_PYTHON=PYTHON cargo bench --bench generate -- INPUTS [--new 128] [--rounds 2] [--batch N]
//! ```
//!
//! `INPUTS` is a folder written by make_inputs.py (a model with random weights, prompts); the peer
//! runs hf_generate.py on it. Both complete the first prompts of the file, as many as the batch
//! size, in f32 and with a key-value cache; end tokens do not stop them. Ours runs with and without
//! guessing tokens from the text so far. The runs alternate, and the best of each is compared.
//! Prints a table, then one line of JSON.

#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a benchmark")]

mod peer;

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use arithmo::data::tokenizer::Tokenizer;
use arithmo::generate::{GenerateConfig, generate, read_prompts};
use arithmo::model::decoder::Decoder;
use arithmo::model::load::load;
use arithmo::process;
use arithmo_backends::ndarray::CacheAligned;
use burn::tensor::DType;
use serde_json::{Value, json};

type B = burn_ndarray::NdArray<f32>;

#[global_allocator]
static ALLOCATOR: CacheAligned = CacheAligned;

struct Settings {
    inputs: PathBuf,
    new: usize,
    rounds: usize,
    batches: Vec<usize>,
    peer: Option<String>,
}

fn main() {
    let settings = settings();
    process::set_up();
    let folder = settings.inputs.join("model");
    let model = load::<B>(&folder, DType::F32, &Default::default()).unwrap();
    let tokenizer = Tokenizer::from_folder(&folder).unwrap();
    let prompts = read_prompts(&settings.inputs.join("pairs.jsonl")).unwrap();
    let encode = |prompt: &String| tokenizer.encode(prompt, true).unwrap();
    let prompts: Vec<Vec<u32>> = prompts.iter().take(32).map(encode).collect();
    println!("inputs: {}", settings.inputs.display());
    println!(
        "{:>6} {:>12} {:>14} {:>14} {:>7}",
        "batch", "arithmo", "no guessing", "transformers", "times"
    );
    let mut results = Vec::new();
    for &batch in &settings.batches {
        let (mut ours, mut plain, mut peers) = (0f64, 0f64, None::<f64>);
        for _ in 0..settings.rounds {
            let run = |lookup| our_run(&model, &prompts[..batch], settings.new, lookup);
            (ours, plain) = (ours.max(run(true)), plain.max(run(false)));
            if let Some(run) = peer_run(&settings, batch) {
                peers = Some(peers.map_or(run, |best| best.max(run)));
            }
        }
        let show = |value: Option<f64>, digits: usize| {
            value.map_or("-".into(), |value| format!("{value:.digits$}"))
        };
        let times = peers.map(|peer| ours / peer);
        println!(
            "{batch:>6} {ours:>12.1} {plain:>14.1} {:>14} {:>7}",
            show(peers, 1),
            show(times, 2)
        );
        results.push(json!({
            "batch": batch, "tokens_per_second": ours, "without_guessing": plain, "peer": peers,
            "speed_ratio": times,
        }));
    }
    println!(
        "{}",
        json!({"benchmark": "generate", "new_tokens": settings.new, "batches": results})
    );
}

fn settings() -> Settings {
    let (arguments, inputs) = peer::Arguments::read(file!());
    Settings {
        inputs,
        new: arguments.number("--new", 128),
        rounds: arguments.number("--rounds", 2),
        batches: match arguments.number("--batch", 0) {
            0 => vec![1, 8, 32],
            one => vec![one],
        },
        peer: peer::python(),
    }
}

/// Returns the new tokens per second over all `prompts` at once.
fn our_run(model: &Decoder<B>, prompts: &[Vec<u32>], new: usize, lookup: bool) -> f64 {
    let config = |max_new_tokens| GenerateConfig {
        max_new_tokens,
        batch_size: prompts.len(),
        lookup,
        ..GenerateConfig::default()
    };
    generate(model, prompts, &config(4), |_| ()).unwrap();
    let start = Instant::now();
    let all = generate(model, prompts, &config(new), |_| ()).unwrap();
    let seconds = start.elapsed().as_secs_f64();
    let tokens: usize = all.iter().map(|one| one.token_ids.len()).sum();
    assert_eq!(tokens, prompts.len() * new);
    tokens as f64 / seconds
}

/// Returns the same for the peer; `None` if it is not available.
fn peer_run(settings: &Settings, batch: usize) -> Option<f64> {
    let python = settings.peer.as_ref()?;
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../shared/bench/hf_generate.py");
    if !script.is_file() {
        println!("{} is absent: the peer was not measured", script.display());
        return None;
    }
    let run = Command::new(python)
        .arg(script)
        .arg(&settings.inputs)
        .args(["--new", &settings.new.to_string()])
        .args(["--batches", &batch.to_string()])
        .output()
        .unwrap();
    let errors = String::from_utf8_lossy(&run.stderr);
    assert!(run.status.success(), "{errors}");
    let out = String::from_utf8(run.stdout).unwrap();
    let result: Value = serde_json::from_str(out.lines().last().unwrap()).unwrap();
    result["new_tokens_per_second"].as_f64()
}
