//! Quantized weights on the CPU compared with floats. Decoding: projections of one row and of a few, in bytes of
//! weights per second and relative to the memory bandwidth. Training: projections of many rows, forward and backward.
//!
//! ```text
//! cargo bench -p arithmo-backends --bench packed -- [--rounds 5] [--decoding]
//! ```
//!
//! The weights are as large as those of a layer of Mistral 7B, so that no cache can hold them. The fastest round
//! counts. `--decoding` leaves training out. The program prints a table, then one line of JSON.

#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a benchmark")]

use std::hint::black_box;
use std::time::Instant;

use arithmo_backends::ndarray::{CacheAligned, Cpu};
use arithmo_backends::{
    Adapter, Format, PackedWeight, Projection, Scales, TrainBackend, Weight, ops,
};
use burn::tensor::{DType, Int, Tensor, TensorData};

#[global_allocator]
static ALLOCATOR: CacheAligned = CacheAligned;

/// `[D_out, D_in]` of a layer's seven projections, grouped by their input.
const LAYER: [&[[usize; 2]]; 4] = [
    &[[4096, 4096], [1024, 4096], [1024, 4096]],
    &[[4096, 4096]],
    &[[14336, 4096], [14336, 4096]],
    &[[4096, 14336]],
];

/// The numbers of rows in decoding.
const DECODING: [usize; 5] = [1, 2, 4, 8, 32];

/// The numbers of rows in training.
const TRAINING: [usize; 2] = [512, 2048];

/// The formats of the weights, and whether their scales are quantized too; `None` for floats.
const KINDS: [(&str, Option<Format>, bool); 6] = [
    ("f32", None, false),
    ("bf16", Some(Format::Bf16), false),
    ("int8", Some(Format::Int8), false),
    ("nf4", Some(Format::Nf4), false),
    ("nf4 double", Some(Format::Nf4), true),
    ("fp4", Some(Format::Fp4), false),
];

fn main() {
    let rounds = rounds();
    let with_training = !std::env::args().any(|argument| argument == "--decoding");
    let bandwidth = copy_bandwidth(rounds);
    println!("memory bandwidth {bandwidth:.1} GB/s, read and written bytes together");
    let mut lines = Vec::new();
    println!("\ndecoding: ms per layer (GB of weights per second, % of the memory bandwidth)");
    header(&DECODING);
    let mut training = Vec::new();
    for (name, format, double) in KINDS {
        let layer = layer(format, double);
        let bytes: usize = layer.iter().flatten().map(bytes).sum();
        let mut line = format!("{name:>12}");
        for rows in DECODING {
            let inputs = inputs(&layer, rows);
            let seconds = best(rounds, || forward(&layer, &inputs));
            let rate = bytes as f64 / seconds / 1e9;
            let percent = 100.0 * rate / bandwidth;
            line += &format!(" {:>8.2} ({rate:>4.1}, {percent:>3.0} %)", 1e3 * seconds);
            lines.push(json(name, "decode", rows, seconds, bytes));
        }
        println!("{line}");
        if name == "fp4" || !with_training {
            continue;
        }
        for rows in TRAINING {
            let seconds = best(rounds.min(3), || step(&layer[1], rows));
            training.push((name, rows, seconds));
            lines.push(json(name, "train", rows, seconds, bytes));
        }
    }
    if with_training {
        print_training(&training);
    }
    let lines = lines.join(",");
    println!("{{\"copy_gb_s\":{bandwidth:.2},\"results\":[{lines}]}}");
}

fn print_training(training: &[(&str, usize, f64)]) {
    println!(
        "\ntraining: seconds, forward and backward, of a projection [4096, 4096], r = 16 (relative to f32)"
    );
    header(&TRAINING);
    for (name, ..) in KINDS {
        let mut line = format!("{name:>12}");
        for rows in TRAINING {
            let seconds_of = |kind: &str| {
                let found = training.iter().find(|(name, r, _)| (*name, *r) == (kind, rows));
                found.map(|(_, _, seconds)| *seconds)
            };
            if let Some((ours, floats)) = seconds_of(name).zip(seconds_of("f32")) {
                line += &format!(" {ours:>12.3} ({:.3})", ours / floats);
            }
        }
        println!("{line}");
    }
}

fn header(rows: &[usize]) {
    let rows: Vec<String> = rows.iter().map(|rows| format!("{rows:>22}")).collect();
    println!("{:>12}{}", "rows", rows.concat());
}

fn json(name: &str, phase: &str, rows: usize, seconds: f64, bytes: usize) -> String {
    format!(
        "{{\"weights\":\"{name}\",\"what\":\"{phase}\",\"rows\":{rows},\"seconds\":{seconds:.6},\"bytes\":{bytes}}}"
    )
}

fn rounds() -> usize {
    let arguments: Vec<String> = std::env::args().collect();
    let at = arguments.iter().position(|argument| argument == "--rounds");
    at.and_then(|at| arguments.get(at + 1)?.parse().ok()).unwrap_or(5)
}

/// Returns the seconds of the fastest of some rounds, after one warm-up.
fn best(rounds: usize, mut f: impl FnMut()) -> f64 {
    f();
    let round = |_| {
        let start = Instant::now();
        f();
        start.elapsed().as_secs_f64()
    };
    (0..rounds).map(round).fold(f64::INFINITY, f64::min)
}

/// Returns the memory bandwidth of copying with all threads, in GB per second, read and written bytes together.
fn copy_bandwidth(rounds: usize) -> f64 {
    let threads = std::thread::available_parallelism().unwrap().get();
    let chunk = (512 << 20) / threads;
    let from = vec![1u8; chunk * threads];
    let mut to = vec![2u8; chunk * threads];
    let seconds = best(rounds, || {
        std::thread::scope(|scope| {
            for (to, from) in to.chunks_mut(chunk).zip(from.chunks(chunk)) {
                scope.spawn(|| to.copy_from_slice(from));
            }
        });
        black_box(&to);
    });
    2.0 * from.len() as f64 / seconds / 1e9
}

fn random(count: usize) -> impl Iterator<Item = u32> {
    let mut seed = 7u64;
    (0..count).map(move |_| {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        (seed >> 32) as u32
    })
}

fn floats<const D: usize>(shape: [usize; D]) -> Tensor<Cpu, D> {
    let values = random(shape.iter().product()).map(|n| (n >> 8) as f32 / 8_388_608.0 - 1.0);
    Tensor::from_data(TensorData::new(values.collect(), shape), &Default::default())
}

fn words(count: usize, mask: u32) -> Tensor<Cpu, 1, Int> {
    let values: Vec<u32> = random(count).map(|word| word & mask).collect();
    let options = (&Default::default(), DType::U32);
    Tensor::from_data(TensorData::new(values, [count]), options)
}

fn weight(format: Option<Format>, double: bool, dims: [usize; 2]) -> Weight<Cpu> {
    let Some(format) = format else {
        return floats(dims).into();
    };
    let count = dims[0] * dims[1];
    let blocks = count.div_ceil(ops::packed::BLOCK);
    let scales = match (format, double) {
        (Format::Bf16, _) => None,
        (_, false) => Some(Scales::Plain(floats([blocks]))),
        (_, true) => Some(Scales::Double {
            words: words(blocks.div_ceil(4), u32::MAX),
            absmax: floats([blocks.div_ceil(ops::packed::NESTED_BLOCK)]),
            offset: 0.1,
        }),
    };
    // The mask keeps huge numbers out of the 16-bit format.
    let mask = if format == Format::Bf16 { 0xbfff_bfff } else { u32::MAX };
    Weight::Packed(PackedWeight {
        format,
        dims,
        words: words(count.div_ceil(format.per_word()), mask),
        scales,
    })
}

type Layer = Vec<Vec<Weight<Cpu>>>;

fn layer(format: Option<Format>, double: bool) -> Layer {
    let group = |dims: &&[[usize; 2]]| dims.iter().map(|d| weight(format, double, *d)).collect();
    LAYER.iter().map(group).collect()
}

fn bytes(weight: &Weight<Cpu>) -> usize {
    match weight {
        Weight::Float(weight) => 4 * weight.shape().num_elements(),
        Weight::Packed(weight) => weight.bytes(),
        Weight::Split(_) => unreachable!("no weight is split here"),
    }
}

fn projections(group: &[Weight<Cpu>], rank: usize) -> Vec<Projection<Cpu>> {
    let projection = |weight: &Weight<Cpu>| {
        let [d_out, d_in] = weight.dims();
        Projection {
            weight: weight.clone(),
            adapter: (rank > 0).then(|| Adapter {
                a: floats([rank, d_in]),
                b: floats([d_out, rank]),
                scaling: 1.0,
                dropout_mask: None,
            }),
        }
    };
    group.iter().map(projection).collect()
}

/// Returns an input for each group of projections of a layer.
fn inputs(layer: &Layer, rows: usize) -> Vec<Tensor<Cpu, 2>> {
    layer.iter().map(|group| floats([rows, group[0].dims()[1]])).collect()
}

/// Runs every projection of a layer.
fn forward(layer: &Layer, inputs: &[Tensor<Cpu, 2>]) {
    for (group, x) in layer.iter().zip(inputs) {
        black_box(Cpu::adapted_linear(x.clone(), &projections(group, 0), None).output);
    }
}

/// Runs a group of projections with branches forward and backward.
fn step(group: &[Weight<Cpu>], rows: usize) {
    let [_, d_in] = group[0].dims();
    let (x, projections) = (floats([rows, d_in]), projections(group, 16));
    let y = Cpu::adapted_linear(x.clone(), &projections, None);
    let d = Cpu::adapted_linear_backward(Some(x), &projections, y.low, y.output, true);
    black_box(d);
}
