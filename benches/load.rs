//! Compares loading a model with reading its file into memory, with the file in the page cache.
//!
//!     cargo bench --bench load
//!
//! Writes a random model of 268 million weights, in f32 and in bf16, to a temporary folder (1.6
//! GB). Each way of loading it alternates with `std::fs::read` of the same file, and the best of
//! several rounds counts. One way loads a copy in 4 bits from the cache, whose files are verified
//! first. Prints a table, then one line of JSON.

#![allow(clippy::unwrap_used, reason = "a benchmark may stop at the first surprise")]
#![allow(clippy::print_stdout, reason = "the table is the result")]

#[allow(dead_code, reason = "only its model shape is used")]
#[path = "../tests/fixtures/tiny/mod.rs"]
mod tiny;

use std::fs;
use std::hint::black_box;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use arithmo::model::config::DecoderConfig;
use arithmo::model::load::{load, load_as};
use arithmo::model::names::ModelTensor;
use arithmo::model::quantize::Quantization;
use arithmo::model::quantize::cache::Cache;
use arithmo::model::save::{ModelFolder, OutTensor};
use arithmo::model::weights::WeightFiles;
use arithmo::progress::ProgressMode;
use arithmo_backends::Format;
use burn::tensor::DType;
use burn_ndarray::NdArray;
use serde_json::json;

/// If set, this program only loads the model in that folder and prints by how many bytes its peak
/// memory rose.
const LOAD_ONLY: &str = "ARITHMO_LOAD_ONLY";
const ROUNDS: usize = 7;
const MIB: f64 = 1024.0 * 1024.0;

fn config() -> DecoderConfig {
    DecoderConfig {
        vocab_size: 32000,
        hidden_size: 1024,
        intermediate_size: 3584,
        num_hidden_layers: 15,
        num_attention_heads: 16,
        num_key_value_heads: 4,
        head_dim: None,
        max_position_embeddings: 1024,
        sliding_window: None,
        tie_word_embeddings: false,
        ..tiny::config()
    }
}

fn main() {
    if let Some(folder) = std::env::var_os(LOAD_ONLY) {
        return print_peak(Path::new(&folder));
    }
    let work = tempfile::tempdir().unwrap();
    let (single, half) = (work.path().join("f32"), work.path().join("bf16"));
    write_model(&single, DType::F32);
    write_model(&half, DType::BF16);
    let weights: usize = config().weights();
    let over = peak_while_loading(&half) - 4.0 * weights as f64;
    println!(
        "{weights} weights; peak of loading bf16 as f32: {:.0} MiB above the model",
        over / MIB
    );
    println!(
        "{:>14} {:>10} {:>10} {:>10} {:>8}",
        "stored -> loaded", "file MiB", "read s", "load s", "ratio"
    );
    let mut rows = Vec::new();
    for (name, folder, load) in [
        ("f32 -> f32", &single, load_model as fn(&Path) -> Box<dyn Send>),
        ("bf16 -> bf16", &half, |folder| tensors(folder, DType::BF16)),
        ("bf16 -> f32", &half, load_model),
        ("bf16 -> nf4", &half, load_quantized),
    ] {
        let mut file = folder.join("model.safetensors");
        if name.ends_with("nf4") {
            // Quantized and cached now; later rounds find it in the cache.
            load(folder);
            file = cached_file(folder);
        }
        let bytes = fs::metadata(&file).unwrap().len();
        let [mut read_s, mut load_s] = [f64::INFINITY; 2];
        for _ in 0..ROUNDS {
            read_s = read_s.min(seconds(|| fs::read(&file).unwrap()));
            load_s = load_s.min(seconds(|| load(folder)));
        }
        let ratio = load_s / read_s;
        println!(
            "{name:>14} {:>10.0} {read_s:>10.3} {load_s:>10.3} {ratio:>8.2}",
            bytes as f64 / MIB
        );
        rows.push(json!({"case": name, "file_bytes": bytes, "read_s": read_s, "load_s": load_s, "ratio": ratio}));
    }
    println!(
        "{}",
        json!({"benchmark": "load", "weights": weights, "peak_above_model_bytes": over, "rows": rows})
    );
}

/// Loads the whole model on the CPU backend, which computes in f32.
fn load_model(folder: &Path) -> Box<dyn Send> {
    Box::new(load::<NdArray>(folder, DType::F32, &Default::default()).unwrap())
}

/// Loads the model in 4 bits from the cache in its folder.
fn load_quantized(folder: &Path) -> Box<dyn Send> {
    let to = Quantization { format: Format::Nf4, double_quant: true };
    let cache =
        Cache { folder: Some(folder.join("kept")), worth: 0, progress: ProgressMode::Quiet };
    let device = Default::default();
    let model = load_as::<NdArray>(folder, DType::BF16, Some(to), &cache, &device);
    Box::new(model.unwrap())
}

/// Returns the weights file of the only model in that cache.
fn cached_file(folder: &Path) -> PathBuf {
    let mut entries = fs::read_dir(folder.join("kept")).unwrap();
    let model = entries.next().unwrap().unwrap().path();
    model.join("model.safetensors")
}

/// Reads every tensor as a device would receive it.
fn tensors(folder: &Path, dtype: DType) -> Box<dyn Send> {
    let files = WeightFiles::open(folder).unwrap();
    let all: Vec<_> = files.names().map(|name| files.tensor_data(name, dtype).unwrap()).collect();
    Box::new(all)
}

fn write_model(folder: &Path, dtype: DType) {
    let config = config();
    let mut state = 1u32;
    let tensors = config.tensors().into_iter().map(|ModelTensor { name, shape, .. }| {
        let count = shape.iter().product();
        state = state.wrapping_add(1);
        let mut state = state;
        OutTensor::new(name, shape, dtype, move || {
            let value = |_| {
                state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                (state >> 8) as f32 / (1 << 24) as f32 - 0.5
            };
            Ok((0..count).map(value).collect())
        })
    });
    ModelFolder::new(folder, &config).with_max_shard_bytes(u64::MAX).save(tensors).unwrap();
}

fn print_peak(folder: &Path) {
    let before = peak_bytes();
    let model = load_model(folder);
    println!("{}", peak_bytes() - before);
    drop(model);
}

/// Returns by how many bytes the peak memory of a process rises when it loads the model.
fn peak_while_loading(folder: &Path) -> f64 {
    let mut this = Command::new(std::env::current_exe().unwrap());
    let output = this.env(LOAD_ONLY, folder).output().unwrap();
    String::from_utf8(output.stdout).unwrap().trim().parse().unwrap()
}

/// Returns the seconds that `make` takes, without dropping its result.
fn seconds<T>(make: impl FnOnce() -> T) -> f64 {
    let start = Instant::now();
    let made = black_box(make());
    let taken = start.elapsed().as_secs_f64();
    drop(made);
    taken
}

/// Returns this process's largest resident set if Linux reports it, otherwise 0.
fn peak_bytes() -> usize {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    line.and_then(|rest| rest.split_whitespace().next()?.parse::<usize>().ok())
        .map_or(0, |kib| kib * 1024)
}
