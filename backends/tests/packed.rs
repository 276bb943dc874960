//! Packed weights: unpacked by the definition, on every format, odd sizes, and blocks that span rows.
#![allow(clippy::unwrap_used, reason = "a test may stop at the first surprise, in its helpers too")]

use arithmo_backends::ops::packed::{BLOCK, NESTED_BLOCK, dynamic_code};
use arithmo_backends::{
    Adapter, Format, LogProbStats, PackedWeight, Projection, Scales, TrainBackend, Weight, ops,
};
use burn::backend::Autodiff;
use burn::module::AutodiffModule;
use burn::tensor::backend::Backend;
use burn::tensor::{DType, Int, Tensor, TensorData};
use burn_ndarray::NdArray;

type Cpu = NdArray<f32>;

/// A packed weight's parts as numbers.
struct Host {
    format: Format,
    dims: [usize; 2],
    words: Vec<u32>,
    plain: Vec<f32>,
    double: Option<(Vec<u32>, Vec<f32>, f32)>,
}

fn random(seed: &mut u64) -> u64 {
    *seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
    *seed >> 33
}

impl Host {
    /// Random indices and scales.
    fn random(format: Format, dims: [usize; 2], double: bool) -> Self {
        let seed = &mut ((dims[0] * 31 + dims[1]) as u64);
        let count = dims[0] * dims[1];
        let mut words: Vec<u32> = (0..count.div_ceil(format.per_word()))
            .map(|_| (random(seed) ^ (random(seed) << 20)) as u32)
            .collect();
        if format == Format::Bf16 {
            // Exponents near 0: numbers between 2^-7 and 2^8.
            let tame = |half: u32| (half & 0x83ff) | 0x3c00;
            words = words.iter().map(|w| (tame(w >> 16) << 16) | tame(w & 0xffff)).collect();
        }
        let blocks = count.div_ceil(BLOCK);
        let positive = |seed: &mut u64| (random(seed) % 1000 + 1) as f32 / 777.0;
        let plain = (0..blocks).map(|_| positive(seed)).collect();
        let double = double.then(|| {
            let words = (0..blocks.div_ceil(4)).map(|_| random(seed) as u32).collect();
            let absmax = (0..blocks.div_ceil(NESTED_BLOCK)).map(|_| positive(seed)).collect();
            (words, absmax, 1.25)
        });
        Self { format, dims, words, plain, double }
    }

    fn on<B: Backend>(&self) -> PackedWeight<B> {
        fn ints<B: Backend>(values: &[u32]) -> Tensor<B, 1, Int> {
            let data = TensorData::new(values.to_vec(), [values.len()]);
            Tensor::from_data(data, (&Default::default(), DType::U32))
        }
        fn floats<B: Backend>(values: &[f32]) -> Tensor<B, 1> {
            let data = TensorData::new(values.to_vec(), [values.len()]);
            Tensor::from_data(data, (&Default::default(), DType::F32))
        }
        let scales = match (&self.double, self.format) {
            (_, Format::Bf16) => None,
            (None, _) => Some(Scales::Plain(floats(&self.plain))),
            (Some((words, absmax, offset)), _) => {
                Some(Scales::Double { words: ints(words), absmax: floats(absmax), offset: *offset })
            }
        };
        PackedWeight { format: self.format, dims: self.dims, words: ints(&self.words), scales }
    }

    /// The value at a place of the flattened weight, by way of bytes.
    fn value(&self, place: usize) -> f32 {
        let byte = |words: &[u32], at: usize| words[at / 4].to_le_bytes()[at % 4];
        let block = place / BLOCK;
        let scale = match &self.double {
            None => self.plain[block],
            Some((words, absmax, offset)) => {
                let code = dynamic_code()[usize::from(byte(words, block))];
                code * absmax[block / NESTED_BLOCK] + offset
            }
        };
        match self.format {
            Format::Nf4 | Format::Fp4 => {
                let pair = byte(&self.words, place / 2);
                let index = if place.is_multiple_of(2) { pair >> 4 } else { pair & 15 };
                self.format.code()[usize::from(index)] * scale
            }
            Format::Int8 => dynamic_code()[usize::from(byte(&self.words, place))] * scale,
            Format::Bf16 => {
                let half = [0, 1].map(|i| byte(&self.words, 2 * place + i));
                f32::from_le_bytes([0, 0, half[0], half[1]])
            }
        }
    }

    fn row(&self, row: usize) -> Vec<f32> {
        let [_, d_in] = self.dims;
        (row * d_in..(row + 1) * d_in).map(|place| self.value(place)).collect()
    }
}

fn values<B: Backend>(tensor: Tensor<B, 2>) -> Vec<f32> {
    tensor.into_data().iter::<f32>().collect()
}

fn all_cases() -> Vec<Host> {
    let mut cases = Vec::new();
    for format in [Format::Nf4, Format::Fp4, Format::Int8, Format::Bf16] {
        for dims in [[1, 1], [3, 5], [7, 96], [5, 64], [12, 129], [40, 1000]] {
            cases.push(Host::random(format, dims, false));
            if format != Format::Bf16 {
                cases.push(Host::random(format, dims, true));
            }
        }
    }
    cases
}

fn unpacks<B: TrainBackend>(dtype: DType) {
    for case in all_cases() {
        let (packed, [d_out, d_in]) = (case.on::<B>(), case.dims);
        packed.check();
        let rows = |rows: &[usize]| rows.iter().flat_map(|row| case.row(*row)).collect::<Vec<_>>();
        for range in [0..d_out, 0..1, d_out / 2..d_out] {
            let ours = B::unpack(&packed, range.clone(), dtype);
            assert_eq!((ours.dims(), ours.dtype()), ([range.len(), d_in], dtype));
            let what = format!("{:?} {:?} {range:?}", case.format, case.dims);
            assert_eq!(values(ours), rows(&range.collect::<Vec<_>>()), "{what}");
        }
        let ids = [d_out - 1, 0, d_out / 2, 0];
        let data = TensorData::new(ids.map(|id| id as i64).to_vec(), [4]);
        let ours = B::unpack_rows(&packed, Tensor::from_data(data, &Default::default()), dtype);
        assert_eq!(ours.dtype(), dtype);
        assert_eq!(values(ours), rows(&ids), "{:?} {:?}", case.format, case.dims);
    }
}

#[test]
fn unpacked_values_are_the_definition() {
    unpacks::<Cpu>(DType::F32);
    unpacks::<NdArray<f64>>(DType::F64);
    unpacks::<Autodiff<Cpu>>(DType::F32);
}

/// Bytes as bitsandbytes writes them: 0x0f is the lowest and the highest value, 0x74 zero and the one below -0.25.
#[test]
fn bytes_and_halves_stand_in_order() {
    let host = Host {
        format: Format::Nf4,
        dims: [2, 3],
        words: vec![u32::from_le_bytes([0x0f, 0x74, 0xe8, 0])],
        plain: vec![2.0],
        double: None,
    };
    let ours = values(Cpu::unpack(&host.on(), 0..2, DType::F32));
    let expected = [-2.0, 2.0, 0.0, -0.568_882_76, 1.445_913_7, 0.159_160_6];
    assert_eq!(ours, expected);
}

/// Moved under autodiff and back, all parts stay.
#[test]
fn a_packed_weight_goes_through_autodiff() {
    let host = Host::random(Format::Nf4, [7, 96], true);
    let there = PackedWeight::<Autodiff<Cpu>>::from_inner(host.on());
    let ours = Cpu::unpack(&there.valid(), 0..7, DType::F32);
    assert_eq!(values(ours), values(Cpu::unpack(&host.on(), 0..7, DType::F32)));
}

#[test]
#[should_panic(expected = "packed: words of Nf4")]
fn parts_that_do_not_fit_are_refused() {
    let mut packed = Host::random(Format::Nf4, [7, 96], false).on::<Cpu>();
    packed.dims = [8, 96];
    packed.check();
}

/// The map's ends, its steps, and that it is in order.
#[test]
fn the_dynamic_map_has_a_power_of_ten_for_each_exponent() {
    let code = dynamic_code();
    assert_eq!((code.len(), code[127], code[255]), (256, 0.0, 1.0));
    assert!(code.is_sorted_by(|a, b| a < b));
    assert_eq!(code[128], 5.500_000_4e-7);
    assert_eq!((code[0], code[254]), (-0.992_968_74, 0.992_968_74));
    assert_eq!(Format::Fp4.code()[..4], [0.0, 0.005_208_333_5, 2.0 / 3.0, 1.0]);
    assert_eq!(Format::Fp4.code()[10], -2.0 / 3.0);
}

/// Numbers from -1 to 1.
fn floats<B: Backend>(shape: [usize; 2], seed: u64, dtype: DType) -> Tensor<B, 2> {
    let seed = &mut (seed + 1);
    let value = |_| (random(seed) % 2001) as f32 / 1000.0 - 1.0;
    let values: Vec<f32> = (0..shape[0] * shape[1]).map(value).collect();
    let data = TensorData::new(values, shape).convert_dtype(dtype);
    Tensor::from_data(data, (&Default::default(), dtype))
}

#[track_caller]
fn close<B: Backend>(what: &str, ours: Tensor<B, 2>, exact: Tensor<Exact, 2>) {
    assert_eq!(ours.dims(), exact.dims(), "{what}");
    let (ours, exact) = (ours.into_data(), exact.into_data());
    let exact: Vec<f64> = exact.iter().collect();
    let scale = exact.iter().fold(1.0, |max: f64, v| max.max(v.abs()));
    for (at, (ours, exact)) in ours.iter::<f64>().zip(exact).enumerate() {
        assert!(
            (ours - exact).abs() <= 1e-5 * scale,
            "{what}: value {at} is {ours}, not {exact} (scale {scale})"
        );
    }
}

type Exact = NdArray<f64>;

/// Weights that are packed, and one that is not.
fn projections<B: TrainBackend>(
    weights: &[(Weight<B>, usize)],
    dtype: DType,
) -> Vec<Projection<B>> {
    let of = |(weight, rank): &(Weight<B>, usize)| {
        let [d_out, d_in] = weight.dims();
        Projection {
            weight: weight.clone(),
            adapter: (*rank > 0).then(|| Adapter {
                a: floats([*rank, d_in], 5, dtype),
                b: floats([d_out, *rank], 6, dtype),
                scaling: 0.75,
                dropout_mask: None,
            }),
        }
    };
    weights.iter().map(of).collect()
}

/// Packed projections beside a float one against the reference in f64 with the same values: few rows and many, rows that
/// begin within words and blocks, beyond a tile.
#[test]
fn products_are_those_of_the_unpacked_values() {
    for format in [Format::Nf4, Format::Fp4, Format::Int8, Format::Bf16] {
        for (double, d_in, widths) in [
            (false, 5, [3, 2]),
            (true, 96, [7, 20]),
            (false, 129, [12, 5]),
            (true, 320, [33, 70]),
            (false, 1100, [600, 40]),
            (true, 64, [1, 1030]),
        ] {
            let hosts = widths.map(|d_out| Host::random(format, [d_out, d_in], double));
            for tokens in [1, 3, 7, 129, 200] {
                let what = format!("{format:?} {tokens}x{d_in}x{widths:?}");
                check_products(&what, &hosts, tokens);
            }
        }
    }
}

fn check_products(what: &str, hosts: &[Host; 2], tokens: usize) {
    let d_in = hosts[0].dims[1];
    let plain = Host::random(Format::Nf4, [4, d_in], false);
    let unpacked = |host: &Host| Exact::unpack(&host.on(), 0..host.dims[0], DType::F64);
    let ours = [
        (hosts[0].on::<Cpu>().into(), 3),
        (Cpu::unpack(&plain.on(), 0..4, DType::F32).into(), 2),
        (hosts[1].on::<Cpu>().into(), 0),
    ];
    let exact = [
        (unpacked(&hosts[0]).into(), 3),
        (unpacked(&plain).into(), 2),
        (unpacked(&hosts[1]).into(), 0),
    ];
    let width = hosts[0].dims[0] + 4 + hosts[1].dims[0];
    let (ours, exact) = (projections(&ours, DType::F32), projections(&exact, DType::F64));
    let x = || floats::<Cpu>([tokens, d_in], 1, DType::F32);
    let exact_x = || floats::<Exact>([tokens, d_in], 1, DType::F64);
    for residual in [false, true] {
        let y = Cpu::adapted_linear(
            x(),
            &ours,
            residual.then(|| floats([tokens, width], 2, DType::F32)),
        );
        let expected = ops::adapted_linear::reference(
            exact_x(),
            &exact,
            residual.then(|| floats([tokens, width], 2, DType::F64)),
        );
        close(what, y.output, expected.output);
        let grad = floats([tokens, width], 3, DType::F32);
        let d = Cpu::adapted_linear_backward(Some(x()), &ours, y.low, grad, true);
        let grad = floats([tokens, width], 3, DType::F64);
        let expected = ops::adapted_linear::reference_backward(
            Some(exact_x()),
            &exact,
            expected.low,
            grad,
            true,
        );
        close(&format!("{what}: dx"), d.x.unwrap(), expected.x.unwrap());
        for (ours, exact) in d.adapters.into_iter().zip(expected.adapters) {
            for (ours, exact) in ours.into_iter().zip(exact) {
                close(&format!("{what}: d adapter"), ours, exact);
            }
        }
    }
    check_linear(what, &ours[0].weight, &exact[0].weight, tokens);
}

/// A projection alone, forward and back.
fn check_linear(what: &str, ours: &Weight<Cpu>, exact: &Weight<Exact>, tokens: usize) {
    let [d_out, d_in] = ours.dims();
    let x = [tokens, d_in];
    close(
        &format!("{what}: linear"),
        Cpu::frozen_linear(floats(x, 1, DType::F32), ours.clone()),
        ops::linear::reference(floats(x, 1, DType::F64), exact.clone()),
    );
    let grad = [tokens, d_out];
    close(
        &format!("{what}: linear backward"),
        Cpu::frozen_linear_backward(floats(grad, 4, DType::F32), ours.clone()),
        ops::linear::reference_backward(floats(grad, 4, DType::F64), exact.clone()),
    );
}

/// A packed head: log-probabilities and slopes.
#[test]
fn log_probs_are_those_of_the_unpacked_head() {
    for format in [Format::Nf4, Format::Int8, Format::Bf16] {
        for [vocabulary, d_in] in [[11, 5], [301, 64], [1030, 96]] {
            let head = Host::random(format, [vocabulary, d_in], false);
            let exact = Exact::unpack(&head.on(), 0..vocabulary, DType::F64);
            let targets: Vec<i64> = (0..77).map(|at| at * 5 % vocabulary as i64).collect();
            fn on<B: Backend>(targets: &[i64]) -> Tensor<B, 1, Int> {
                let data = TensorData::new(targets.to_vec(), [targets.len()]);
                Tensor::from_data(data, &Default::default())
            }
            let hidden = [77, d_in];
            let (ours, expected) = (
                Cpu::completion_log_probs(
                    floats(hidden, 1, DType::F32),
                    head.on::<Cpu>().into(),
                    on(&targets),
                    LogProbStats::None,
                    true,
                ),
                ops::log_probs::reference(
                    floats::<Exact>(hidden, 1, DType::F64),
                    exact.into(),
                    on(&targets),
                    LogProbStats::None,
                    true,
                ),
            );
            let what = format!("{format:?} {vocabulary}x{d_in}");
            close(&what, ours.columns, expected.columns);
            close(&format!("{what}: slopes"), ours.slopes.unwrap(), expected.slopes.unwrap());
        }
    }
}
