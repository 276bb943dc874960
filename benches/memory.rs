//! Measures the peak memory of `arithmo train` on a model of 112 million f32 weights, to detect a
//! second copy of anything.
//!
//!     cargo bench --bench memory
//!
//! Writes a random model to a temporary folder and trains two steps at each sequence length. The peak is the process's
//! largest resident set (`VmHWM`), which counts everything: weights, activations, the program and its tokenizer. Prints
//! a table, then one line of JSON.

#![allow(clippy::unwrap_used, reason = "a benchmark may stop at the first surprise")]
#![allow(clippy::print_stdout, reason = "the table is the result")]

#[path = "../tests/fixtures/tiny/mod.rs"]
mod tiny;

use std::fs;
use std::path::Path;
use std::process::Command;

use arithmo::model::config::DecoderConfig;
use serde_json::{Value, json};

/// Tokens of a sequence; a step has two sequences.
const LENGTHS: [usize; 3] = [32, 128, 512];
const MIB: f64 = 1024.0 * 1024.0;

fn config() -> DecoderConfig {
    DecoderConfig {
        vocab_size: 32000,
        hidden_size: 768,
        intermediate_size: 2048,
        num_hidden_layers: 10,
        num_attention_heads: 12,
        num_key_value_heads: 4,
        head_dim: None,
        max_position_embeddings: 1024,
        sliding_window: None,
        tie_word_embeddings: false,
        initializer_range: 0.02,
        ..tiny::config()
    }
}

fn main() {
    let work = tempfile::tempdir().unwrap();
    let (model, config) = (work.path().join("model"), config());
    tiny::write_model(&model, &config, 1);
    let weights: usize = config.weights();
    let (bytes, largest) = (weights * 4, config.vocab_size * config.hidden_size * 4);
    println!(
        "model: {weights} weights, {:.0} MiB in f32, largest tensor {:.0} MiB",
        mib(bytes),
        mib(largest)
    );
    println!("{:>8} {:>10} {:>12} {:>16}", "tokens", "recompute", "peak MiB", "over model MiB");
    let mut runs = Vec::new();
    for recompute in [false, true] {
        for tokens in LENGTHS {
            let peak = peak(work.path(), &model, tokens, recompute);
            let over = peak as i64 - bytes as i64;
            println!("{tokens:>8} {recompute:>10} {:>12.0} {:>16.0}", mib(peak), over as f64 / MIB);
            runs.push(json!({"tokens": tokens, "recompute": recompute, "peak_bytes": peak, "over_model_bytes": over}));
        }
    }
    println!(
        "{}",
        json!({"benchmark": "memory", "weights": weights, "model_bytes": bytes, "runs": runs})
    );
}

/// Returns the peak bytes of two steps over pairs with `tokens` tokens per side.
fn peak(work: &Path, model: &Path, tokens: usize, recompute: bool) -> usize {
    // The byte-level tokenizer turns each of these letters into one token, and TRL's rules add one
    // </s>.
    let text = |seed: usize| -> String {
        (0..tokens - 2).map(|at| char::from(b'A' + ((at * 7 + seed) % 5) as u8)).collect()
    };
    let pair =
        |seed| json!({"prompt": "Q", "chosen": text(seed), "rejected": text(seed + 1)}).to_string();
    let pairs = work.join("pairs.jsonl");
    fs::write(&pairs, (0..4).map(|seed| pair(seed) + "\n").collect::<String>()).unwrap();
    let run = work.join("run");
    let toml = format!(
        "output_dir = {run:?}\n[model]\nmodel_name_or_path = {model:?}\n[data]\ntrain_file = {pairs:?}\n\
         max_length = {tokens}\n[lora]\ntarget_modules = \"all-linear\"\n[train]\nmax_steps = 2\nwarmup_steps = 0\n\
         gradient_accumulation_steps = 1\ngradient_checkpointing = {recompute}\n"
    );
    let file = work.join("run.toml");
    fs::write(&file, toml).unwrap();
    let arithmo = env!("CARGO_BIN_EXE_arithmo");
    let output = Command::new(arithmo)
        .args(["--backend", "ndarray", "train", "--overwrite", "--config"])
        .arg(&file)
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let metrics = fs::read_to_string(run.join("metrics.jsonl")).unwrap();
    let last: Value = serde_json::from_str(metrics.lines().last().unwrap()).unwrap();
    let per_step = last["num_tokens"].as_f64().unwrap() / 2.0;
    assert_eq!(per_step, 2.0 * tokens as f64, "the sides do not have the intended length");
    last["peak_memory_bytes"]
        .as_u64()
        .or(last["peak_memory_bytes"].as_f64().map(|b| b as u64))
        .unwrap() as usize
}

fn mib(bytes: usize) -> f64 {
    bytes as f64 / MIB
}
