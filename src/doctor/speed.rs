//! Measures how fast the device computes GEMMs and copies memory.

use std::time::Instant;

use arithmo_backends::TrainBackend;
use burn::tensor::{DType, Distribution, Tensor};
use serde_json::{Value, json};

use super::Out;
use super::checks::TYPES;
use crate::error::{Error, Result};
use crate::interrupt;

/// The GEMM shapes of a Mistral-7B layer: `D_out`, `D_in`, and the projections of that shape, with
/// the largest weight last.
const SHAPES: [([usize; 2], &[&str]); 4] = [
    ([1024, 4096], &["k_proj", "v_proj"]),
    ([4096, 4096], &["q_proj", "o_proj"]),
    ([14336, 4096], &["gate_proj", "up_proj"]),
    ([4096, 14336], &["down_proj"]),
];

/// The largest number of tokens in a GEMM.
const MAX_TOKENS: usize = 4096;

/// A GEMM that takes at least this many seconds is timed; a shorter one is repeated with four times
/// the tokens, up to [`MAX_TOKENS`].
const MIN_SECONDS: f64 = 0.3;

/// Numbers of floats that are copied. The first fits into one buffer of any device and exceeds most
/// caches; the next, four times as large, is used while a copy takes less than
/// [`MIN_COPY_SECONDS`].
const COPY_SIZES: [usize; 3] = [24 << 20, 96 << 20, 384 << 20];

/// Seconds compared with which the start of a copy is negligible.
const MIN_COPY_SECONDS: f64 = 1e-3;

/// The measured speed.
#[derive(Clone, Debug, Default)]
pub(super) struct Speed {
    pub(super) gemms: Vec<GemmSpeed>,
    /// Bytes read and written per second.
    pub(super) copy: f64,
}

/// The GEMM speed of one shape in one type.
#[derive(Clone, Debug)]
pub(super) struct GemmSpeed {
    shape: [usize; 2],
    projections: &'static [&'static str],
    dtype: DType,
    tokens: usize,
    /// FLOP per second of `x W^T`, and of its gradient `dy W`.
    rates: [f64; 2],
}

impl GemmSpeed {
    /// Returns the speed as a JSON object.
    pub(super) fn json(&self) -> Value {
        json!({
            "projections": self.projections,
            "d_out": self.shape[0],
            "d_in": self.shape[1],
            "dtype": self.dtype.name(),
            "tokens": self.tokens,
            "forward_flop_per_second": self.rates[0],
            "backward_flop_per_second": self.rates[1],
        })
    }

    /// Returns the speed as a line of the table.
    fn line(&self) -> String {
        let [d_out, d_in] = self.shape.map(|width| width.to_string());
        let shape = format!("[{d_out}, {d_in}]");
        let [forward, backward] = self.rates.map(|rate| rate / 1e9);
        format!(
            "  {:<22}{shape:<16}{:<6}{:>8}{forward:>12.1}{backward:>12.1}",
            self.projections.join(", "),
            self.dtype.name(),
            self.tokens
        )
    }
}

/// Measures the speed and writes the table. A device that stops, for instance because a weight
/// exceeds its buffer limit, ends the measurement, and the result is what was measured until then.
///
/// # Errors
/// The user interrupts, or a line cannot be written.
pub(super) fn measure<B: TrainBackend>(device: &B::Device, out: &mut Out<'_>) -> Result<Speed> {
    let mut speed = Speed::default();
    match speed.measure::<B>(device, out) {
        Err(Error::Run { problem, .. }) => out(&format!("  not measured further: {problem}"))?,
        result => result?,
    }
    Ok(speed)
}

impl Speed {
    /// Measures copies, then GEMMs, and writes each result as soon as it is known.
    fn measure<B: TrainBackend>(&mut self, device: &B::Device, out: &mut Out<'_>) -> Result<()> {
        let mut mebibytes = 0;
        for floats in COPY_SIZES {
            mebibytes = (floats * size_of::<f32>()) >> 20;
            let x = random::<B>([floats / 4096, 4096], DType::F32, device);
            // Multiplied, because a plain clone would share the memory.
            let seconds = median_seconds::<B, _>(device, || x.clone() * 1.5)?;
            self.copy = 2.0 * (floats * size_of::<f32>()) as f64 / seconds;
            if seconds > MIN_COPY_SECONDS {
                break;
            }
        }
        let rate = self.copy / 1e9;
        out(&format!("\nMemory: {rate:.1} GB/s, read and written, in copies of {mebibytes} MiB"))?;
        out("\nGEMM at the shapes of Mistral-7B, in GFLOP/s")?;
        out(&format!(
            "  {:<22}{:<16}{:<6}{:>8}{:>12}{:>12}",
            "projections", "weight", "type", "tokens", "x W^T", "dy W"
        ))?;
        let limit = B::buffer_limits(device).map(|limits| limits.binding);
        let types = TYPES.into_iter();
        for dtype in types.filter(|d| *d == DType::F32 || B::computes_in(device, *d)) {
            for (shape, projections) in SHAPES {
                let bytes = (shape[0] * shape[1] * dtype.size()) as u64;
                if limit.is_some_and(|limit| bytes > limit) {
                    let (names, dtype) = (projections.join(", "), dtype.name());
                    out(&format!(
                        "  {names}: left out in {dtype}, larger than a tensor may be here"
                    ))?;
                    continue;
                }
                let gemm = measure_gemm::<B>(shape, projections, dtype, device)?;
                out(&gemm.line())?;
                self.gemms.push(gemm);
            }
        }
        Ok(())
    }
}

/// Measures the GEMM of one shape in one type.
fn measure_gemm<B: TrainBackend>(
    shape: [usize; 2],
    projections: &'static [&'static str],
    dtype: DType,
    device: &B::Device,
) -> Result<GemmSpeed> {
    let [d_out, d_in] = shape;
    let weight = random::<B>(shape, dtype, device);
    let mut tokens = 16;
    let x = loop {
        let x = random::<B>([tokens, d_in], dtype, device);
        let forward = || B::frozen_linear(x.clone(), weight.clone().into());
        forward();
        let (seconds, _) = timed::<B, _>(device, forward)?;
        if seconds > MIN_SECONDS || tokens >= MAX_TOKENS {
            break x;
        }
        tokens *= 4;
    };
    let tokens = x.dims()[0];
    let forward = || B::frozen_linear(x.clone(), weight.clone().into());
    let forward = median_seconds::<B, _>(device, forward)?;
    let dy = random::<B>([tokens, d_out], dtype, device);
    let backward = || B::frozen_linear_backward(dy.clone(), weight.clone().into());
    let backward = median_seconds::<B, _>(device, backward)?;
    let flop = 2.0 * (tokens * d_in * d_out) as f64;
    Ok(GemmSpeed { shape, projections, dtype, tokens, rates: [flop / forward, flop / backward] })
}

/// Returns uniform random values generated on the device; a constant would need less power, and run
/// faster, than real weights.
fn random<B: TrainBackend>(shape: [usize; 2], dtype: DType, device: &B::Device) -> Tensor<B, 2> {
    Tensor::random(shape, Distribution::Uniform(-1.0, 1.0), (device, dtype))
}

/// Returns the seconds that `compute` takes until the device is done, and its result.
///
/// # Errors
/// The device fails.
pub fn timed<B: TrainBackend, T>(
    device: &B::Device,
    compute: impl FnOnce() -> T,
) -> Result<(f64, T)> {
    synchronize::<B>(device)?;
    let start = Instant::now();
    let result = compute();
    synchronize::<B>(device)?;
    Ok((start.elapsed().as_secs_f64(), result))
}

/// Returns the median time of `compute` after a first run: up to five times, or half a second.
///
/// # Errors
/// The device fails, or the user interrupts.
pub fn median_seconds<B: TrainBackend, T>(
    device: &B::Device,
    compute: impl Fn() -> T,
) -> Result<f64> {
    compute();
    let mut times = Vec::new();
    while times.len() < 5 && times.iter().sum::<f64>() < 0.5 {
        if interrupt::requested() {
            let note = "the measurement was not finished".into();
            return Err(Error::Interrupted { note });
        }
        times.push(timed::<B, _>(device, &compute)?.0);
    }
    Ok(median(times))
}

/// Returns the median, or the mean of the two middle values; 0 for an empty vector.
pub fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    let count = values.len();
    match count % 2 {
        _ if count == 0 => 0.0,
        1 => values[count / 2],
        _ => (values[count / 2 - 1] + values[count / 2]) / 2.0,
    }
}

/// Waits until the device is done.
fn synchronize<B: TrainBackend>(device: &B::Device) -> Result<()> {
    B::sync(device).map_err(|error| {
        let error = format!("{error:?}");
        let first = error.lines().next().unwrap_or_default();
        Error::run(
            format!("the device stopped: {first}"),
            "see the log of its driver, and run `arithmo doctor`",
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_in_the_middle() {
        assert_eq!(median(vec![3.0, 1.0, 9.0]), 3.0);
        assert_eq!(median(vec![4.0, 1.0, 2.0, 9.0]), 3.0);
        assert_eq!(median(Vec::new()), 0.0);
    }
}
