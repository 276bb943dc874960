//! How fast the device multiplies and copies.

use std::time::Instant;

use arithmo_backends::TrainBackend;
use burn::tensor::{DType, Distribution, Tensor};
use serde_json::{Value, json};

use super::Out;
use super::checks::TYPES;
use crate::error::{Error, Result};
use crate::interrupt;

/// The products of a Mistral-7B layer: `D_out`, `D_in`, and the projections of that shape; the largest weight last.
const SHAPES: [([usize; 2], &[&str]); 4] = [
    ([1024, 4096], &["k_proj", "v_proj"]),
    ([4096, 4096], &["q_proj", "o_proj"]),
    ([14336, 4096], &["gate_proj", "up_proj"]),
    ([4096, 14336], &["down_proj"]),
];

/// Tokens a product may have at most.
const MOST_TOKENS: usize = 4096;

/// A product that takes this long is timed; a shorter one is tried with four times the tokens, unless there are
/// [`MOST_TOKENS`].
const LONG_ENOUGH: f64 = 0.3;

/// Floats that are copied: at first as many as any device takes in one piece and more than most caches hold, then four
/// times as many, as long as a copy takes less than [`LONG_COPY`].
const COPIED: [usize; 3] = [24 << 20, 96 << 20, 384 << 20];

/// Seconds, beside which the start of a copy is nothing.
const LONG_COPY: f64 = 1e-3;

/// What was measured.
#[derive(Clone, Debug, Default)]
pub(super) struct Speed {
    pub(super) products: Vec<Product>,
    /// Bytes read and written a second.
    pub(super) copy: f64,
}

/// The speed of one shape in one type.
#[derive(Clone, Debug)]
pub(super) struct Product {
    shape: [usize; 2],
    projections: &'static [&'static str],
    dtype: DType,
    tokens: usize,
    /// FLOP a second of `x W^T`, and of its gradient `dy W`.
    rates: [f64; 2],
}

impl Product {
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

/// Measures and writes the lines. A device that stops, because a weight is larger than what it takes in one piece for
/// instance, ends the measurement: what was measured until then is the result.
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
    fn measure<B: TrainBackend>(&mut self, device: &B::Device, out: &mut Out<'_>) -> Result<()> {
        let mut mebibytes = 0;
        for floats in COPIED {
            mebibytes = (floats * size_of::<f32>()) >> 20;
            let x = random::<B>([floats / 4096, 4096], DType::F32, device);
            // Scaled, because a plain copy would be a second handle.
            let seconds = median_seconds::<B, _>(device, || x.clone() * 1.5)?;
            self.copy = 2.0 * (floats * size_of::<f32>()) as f64 / seconds;
            if seconds > LONG_COPY {
                break;
            }
        }
        let rate = self.copy / 1e9;
        out(&format!("\nMemory: {rate:.1} GB/s, read and written, in copies of {mebibytes} MiB"))?;
        out("\nProducts at the shapes of Mistral-7B, in GFLOP/s")?;
        out(&format!(
            "  {:<22}{:<16}{:<6}{:>8}{:>12}{:>12}",
            "projections", "weight", "type", "tokens", "x W^T", "dy W"
        ))?;
        let types = TYPES.into_iter();
        for dtype in types.filter(|d| *d == DType::F32 || B::computes_in(device, *d)) {
            for (shape, projections) in SHAPES {
                let product = product::<B>(shape, projections, dtype, device)?;
                out(&product.line())?;
                self.products.push(product);
            }
        }
        Ok(())
    }
}

fn product<B: TrainBackend>(
    shape: [usize; 2],
    projections: &'static [&'static str],
    dtype: DType,
    device: &B::Device,
) -> Result<Product> {
    let [d_out, d_in] = shape;
    let weight = random::<B>(shape, dtype, device);
    let mut tokens = 16;
    let x = loop {
        let x = random::<B>([tokens, d_in], dtype, device);
        let forward = || B::frozen_linear(x.clone(), weight.clone().into());
        forward();
        let (seconds, _) = timed::<B, _>(device, forward)?;
        if seconds > LONG_ENOUGH || tokens >= MOST_TOKENS {
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
    Ok(Product { shape, projections, dtype, tokens, rates: [flop / forward, flop / backward] })
}

/// Random numbers made on the device, of size one: equal ones would draw less power, and run faster, than real weights.
fn random<B: TrainBackend>(shape: [usize; 2], dtype: DType, device: &B::Device) -> Tensor<B, 2> {
    Tensor::random(shape, Distribution::Uniform(-1.0, 1.0), (device, dtype))
}

/// Seconds that `compute` takes until the device is done, and what it gives.
///
/// # Errors
/// The device fails.
pub fn timed<B: TrainBackend, T>(
    device: &B::Device,
    compute: impl FnOnce() -> T,
) -> Result<(f64, T)> {
    wait::<B>(device)?;
    let start = Instant::now();
    let result = compute();
    wait::<B>(device)?;
    Ok((start.elapsed().as_secs_f64(), result))
}

/// The median time of `compute`, once it has run: up to five times, or half a second.
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

/// The middle of `values`, or the mean of the two in the middle; 0 of none.
pub fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    let count = values.len();
    match count % 2 {
        _ if count == 0 => 0.0,
        1 => values[count / 2],
        _ => (values[count / 2 - 1] + values[count / 2]) / 2.0,
    }
}

fn wait<B: TrainBackend>(device: &B::Device) -> Result<()> {
    B::sync(device).map_err(|error| {
        let error = format!("{error:?}");
        let first = error.lines().next().unwrap_or_default();
        Error::run(
            format!("the device stopped: {first}"),
            "see what its driver logs, and what `arithmo doctor` says",
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
