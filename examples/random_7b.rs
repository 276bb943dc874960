//! Writes a model with the exact shape of Mistral-7B and random weights, 14.5 GB of bf16 in shards,
//! for measurements.
//!
//! `cargo run --release --example random_7b -- DIR [config.json]`; with a `config.json`, a model of
//! that shape.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Instant;

use arithmo::Result;
use arithmo::bench::shape;
use arithmo::model::names::{ModelTensor, TensorRole};
use arithmo::model::save::{ModelFolder, OutTensor};
use arithmo::progress::{Progress, ProgressMode};
use burn::tensor::DType;
use rayon::prelude::*;

/// Number of values that a thread generates at once.
const PIECE: usize = 1 << 16;

fn main() -> ExitCode {
    let mut arguments = std::env::args().skip(1);
    let (Some(folder), config) = (arguments.next(), arguments.next()) else {
        eprintln!("usage: cargo run --release --example random_7b -- DIR [config.json]");
        return ExitCode::from(2);
    };
    match write(Path::new(&folder), config.as_deref().unwrap_or("mistral-7b")) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::from(error.exit_status())
        }
    }
}

fn write(folder: &Path, name: &str) -> Result<()> {
    let (config, start) = (shape(name)?, Instant::now());
    let tensors = config.tensors();
    let weights = config.weights();
    let progress =
        Progress::new("write", Some(tensors.len() as u64), "weights", ProgressMode::detect(false));
    let deviation = config.initializer_range as f32;
    let out = (1..).zip(tensors).map(|(seed, tensor)| {
        let ModelTensor { name, shape, role } = tensor;
        let (progress, count) = (&progress, shape.iter().product());
        let is_norm = role == TensorRole::Norm;
        OutTensor::new(name, shape, DType::BF16, move || {
            progress.inc(1);
            if is_norm { Ok(vec![1.0; count]) } else { Ok(normal_values(seed, count, deviation)) }
        })
    });
    // Any tokenizer whose ids are in the vocabulary works.
    let tokenizer =
        PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/tokenizer/byte-level");
    ModelFolder::new(folder, &config).with_tokenizer(&tokenizer).save(out)?;
    progress.println(&format!(
        "{}: {weights} weights, {:.1} GB in {:.0} s",
        folder.display(),
        2.0 * weights as f64 / 1e9,
        start.elapsed().as_secs_f64()
    ));
    progress.finish();
    Ok(())
}

/// Returns nearly normal values with mean 0 and this standard deviation: sums of four uniform
/// ones.
fn normal_values(seed: u64, count: usize, deviation: f32) -> Vec<f32> {
    let mut values = vec![0f32; count];
    // Four integers below 2^16, minus their mean; the variance of a sum is 4 / 12 of the squared
    // range.
    let scale = deviation * 3f32.sqrt() / 65_536.0;
    values.par_chunks_mut(PIECE).enumerate().for_each(|(index, piece)| {
        let mut state = seed << 40 | index as u64;
        for value in piece {
            // SplitMix64.
            state = state.wrapping_add(0x9E37_79B9_7F4A_7C15);
            let mut mixed = (state ^ state >> 30).wrapping_mul(0xBF58_476D_1CE4_E5B9);
            mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94D0_49BB_1331_11EB);
            mixed ^= mixed >> 31;
            let sum =
                (mixed & 0xFFFF) + (mixed >> 16 & 0xFFFF) + (mixed >> 32 & 0xFFFF) + (mixed >> 48);
            *value = (sum as f32 - 131_070.0) * scale;
        }
    });
    values
}
