//! Times the GEMMs of a layer and the head, each alone, by a library and by the backend's own
//! kernels.

use arithmo_backends::{MatmulProvider, TrainBackend};
use burn::tensor::{DType, Distribution, Tensor};
use serde_json::{Value, json};

use crate::doctor::Out;
use crate::doctor::speed::{median_seconds, timed};
use crate::error::Result;
use crate::model::config::DecoderConfig;
use crate::model::names::{HEAD, projections};

/// Seconds compared with which synchronizing with the device is negligible; shorter GEMMs are
/// repeated without synchronizing in between.
const MIN_SECONDS: f64 = 0.02;

/// The largest number of repetitions.
const MAX_REPETITIONS: f64 = 64.0;

/// The shape of a weight and the speed of its GEMMs in FLOP per second.
#[derive(Clone, Debug)]
pub(super) struct GemmSpeed {
    weights: Vec<&'static str>,
    /// `[D_out, D_in]`
    shape: [usize; 2],
    tokens: usize,
    dtype: DType,
    /// Speed of `x W^T`, and of its gradient `dy W`; `None` without a library.
    library: Option<[f64; 2]>,
    kernels: [f64; 2],
}

/// Times the GEMMs of every shape with `tokens` rows and writes a table: by the current library
/// `by`, and by the backend's kernels. Returns nothing if the backend cannot use a library.
///
/// # Errors
/// The device fails, the user interrupts, or a line cannot be written.
pub(super) fn measure<B: TrainBackend>(
    by: &MatmulProvider,
    config: &DecoderConfig,
    tokens: usize,
    dtype: DType,
    device: &B::Device,
    out: &mut Out<'_>,
) -> Result<Vec<GemmSpeed>> {
    let kernels = "the backend's kernels";
    let compared = match by {
        MatmulProvider::Backend => return Ok(Vec::new()),
        MatmulProvider::Library(name) => {
            format!("{name} compared with {kernels}, which reach the given percentage")
        }
        MatmulProvider::Fallback(reason) => format!("{kernels} ({reason})"),
    };
    let dtype_name = dtype.name();
    out(&format!(
        "\nGEMM with {tokens} tokens in {dtype_name}, each alone, in TFLOP/s: {compared}"
    ))?;
    out(&GemmSpeed::header())?;
    let mut speeds = Vec::new();
    for (weights, shape) in shapes(config) {
        let kernels = B::without_library(device, || rates::<B>(shape, tokens, dtype, device))?;
        let library = match by {
            MatmulProvider::Library(_) => Some(rates::<B>(shape, tokens, dtype, device)?),
            _ => None,
        };
        let speed = GemmSpeed { weights, shape, tokens, dtype, library, kernels };
        out(&speed.line())?;
        speeds.push(speed);
    }
    Ok(speeds)
}

/// Returns the shapes of a layer's projections and of the head, each once, with the names of its
/// weights.
fn shapes(config: &DecoderConfig) -> Vec<(Vec<&'static str>, [usize; 2])> {
    let name = |path: &'static str| path.split('.').nth(1).unwrap_or(path);
    let projections = projections(config).into_iter().map(|p| (name(p.path), p.dims));
    let head = (HEAD, [config.vocab_size, config.hidden_size]);
    let mut shapes: Vec<(Vec<_>, _)> = Vec::new();
    for (name, shape) in projections.chain([head]) {
        match shapes.iter_mut().find(|(_, known)| *known == shape) {
            Some((names, _)) => names.push(name),
            None => shapes.push((vec![name], shape)),
        }
    }
    shapes
}

/// Returns FLOP per second of `x W^T` and of `dy W`, by the backend's current choice.
fn rates<B: TrainBackend>(
    shape: [usize; 2],
    tokens: usize,
    dtype: DType,
    device: &B::Device,
) -> Result<[f64; 2]> {
    let [d_out, d_in] = shape;
    // Constant values would need less power, and run faster, than real ones.
    let random = |shape: [usize; 2]| -> Tensor<B, 2> {
        Tensor::random(shape, Distribution::Uniform(-1.0, 1.0), (device, dtype))
    };
    let (x, dy, weight) = (random([tokens, d_in]), random([tokens, d_out]), random(shape));
    let forward = || B::frozen_linear(x.clone(), weight.clone().into());
    let backward = || B::frozen_linear_backward(dy.clone(), weight.clone().into());
    let flop = 2.0 * (tokens * d_in * d_out) as f64;
    Ok([flop / seconds::<B>(device, forward)?, flop / seconds::<B>(device, backward)?])
}

/// Returns the seconds of one `gemm` among several: results are dropped at once, and the device is
/// synchronized at the end.
fn seconds<B: TrainBackend>(device: &B::Device, gemm: impl Fn() -> Tensor<B, 2>) -> Result<f64> {
    // The first call may select a kernel, which takes long.
    gemm();
    let (once, _) = timed::<B, _>(device, &gemm)?;
    let times = (MIN_SECONDS / once).ceil().clamp(1.0, MAX_REPETITIONS);
    let repeated = || {
        for _ in 0..times as usize {
            gemm();
        }
    };
    Ok(median_seconds::<B, _>(device, repeated)? / times)
}

impl GemmSpeed {
    /// Returns the header of the table.
    fn header() -> String {
        let direction = |name: &str| format!("{name:>12}{:>18}", "kernels");
        let directions = ["x W^T", "dy W"].map(direction).concat();
        format!("  {:<22}{:<16}{directions}", "weights", "shape")
    }

    /// Returns the speeds as a line of the table.
    fn line(&self) -> String {
        let [d_out, d_in] = self.shape;
        let shape = format!("[{d_out}, {d_in}]");
        let directions = [0, 1].map(|way| {
            let kernels = self.kernels[way];
            let (library, share) = match self.library {
                Some(rates) => (
                    format!("{:.1}", rates[way] / 1e12),
                    format!("{:.0} %", 100.0 * kernels / rates[way]),
                ),
                None => ("-".to_string(), "-".to_string()),
            };
            format!("{library:>12}{:>10.1}{share:>8}", kernels / 1e12)
        });
        let weights = self.weights.join(", ");
        format!("  {weights:<22}{shape:<16}{}", directions.concat())
    }

    /// Returns the speeds as a JSON object.
    pub(super) fn json(&self) -> Value {
        let rates = |[forward, backward]: [f64; 2]| {
            json!({
                "forward_flop_per_second": forward,
                "backward_flop_per_second": backward,
            })
        };
        json!({
            "weights": self.weights,
            "d_out": self.shape[0],
            "d_in": self.shape[1],
            "tokens": self.tokens,
            "dtype": self.dtype.name(),
            "library": self.library.map(rates),
            "kernels": rates(self.kernels),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::shape;

    #[test]
    fn every_weight_of_a_layer_and_the_head_is_in_one_shape() {
        let shapes = shapes(&shape("mistral-7b").unwrap());
        let expected: [(&[&str], [usize; 2]); 5] = [
            (&["q_proj", "o_proj"], [4096, 4096]),
            (&["k_proj", "v_proj"], [1024, 4096]),
            (&["gate_proj", "up_proj"], [14336, 4096]),
            (&["down_proj"], [4096, 14336]),
            (&["lm_head"], [32000, 4096]),
        ];
        let expected = expected.map(|(names, shape)| (names.to_vec(), shape));
        assert_eq!(shapes, expected);
    }

    #[test]
    fn gemms_are_timed_in_both_directions() {
        type Cpu = burn_ndarray::NdArray<f32>;
        let rates = rates::<Cpu>([48, 20], 16, DType::F32, &Default::default()).unwrap();
        assert!(rates.iter().all(|rate| rate.is_finite() && *rate > 0.0));
    }

    #[test]
    fn the_table_has_every_shape_where_there_is_a_choice() {
        type Cpu = burn_ndarray::NdArray<f32>;
        let config = shape("tests/fixtures/tiny/config.json").unwrap();
        let table = |by: MatmulProvider| {
            let (mut lines, device) = (Vec::new(), Default::default());
            let mut out = |line: &str| {
                lines.push(line.to_string());
                Ok(())
            };
            let speeds = measure::<Cpu>(&by, &config, 16, DType::F32, &device, &mut out);
            (speeds.unwrap(), lines)
        };
        let (speeds, lines) = table(MatmulProvider::Library("fast 1.2".to_string()));
        assert_eq!(lines.len(), 2 + speeds.len());
        assert!(
            lines[0].contains("16 tokens in f32") && lines[0].contains("fast 1.2 compared with")
        );
        assert!(speeds.iter().all(|speed| speed.library.is_some()));
        let (speeds, lines) = table(MatmulProvider::Fallback("not found".to_string()));
        assert!(lines[0].ends_with("kernels (not found)"), "{}", lines[0]);
        assert!(speeds.iter().all(|speed| speed.library.is_none()));
        let (speeds, lines) = table(MatmulProvider::Backend);
        assert!(speeds.is_empty() && lines.is_empty());
    }

    #[test]
    fn a_line_has_both_speeds_and_their_ratio() {
        let speed = GemmSpeed {
            weights: vec!["down_proj"],
            shape: [4096, 14336],
            tokens: 8192,
            dtype: DType::BF16,
            library: Some([700e12, 600e12]),
            kernels: [350e12, 150e12],
        };
        let words = |speed: &GemmSpeed| -> Vec<String> {
            let line = speed.line();
            line.split_whitespace().skip(3).map(String::from).collect()
        };
        assert_eq!(speed.line().len(), GemmSpeed::header().len());
        assert_eq!(words(&speed), ["700.0", "350.0", "50", "%", "600.0", "150.0", "25", "%"]);
        assert_eq!(speed.json()["library"]["backward_flop_per_second"], 600e12);
        let alone = GemmSpeed { library: None, ..speed };
        assert_eq!(words(&alone), ["-", "350.0", "-", "-", "150.0", "-"]);
        assert_eq!(alone.json()["library"], Value::Null);
    }
}
