//! Packed weights: unpacked values, and products with them.

use arithmo_backends::ops::packed::{BLOCK, NESTED_BLOCK};
use arithmo_backends::{
    Adapter, Format, LogProbStats, PackedWeight, Projection, Scales, TrainBackend, Weight, ops,
};
use burn::tensor::{DType, Int, Tensor, TensorData, backend::Backend};

use super::host::{Cpu, Gpu, Host, Layout, Source, close, ints, starts, tolerance, variants};

/// A packed weight's parts.
pub(crate) struct Packed {
    format: Format,
    dims: [usize; 2],
    words: Vec<u32>,
    absmax: Host,
    double: Option<Vec<u32>>,
}

impl Packed {
    pub(crate) fn random(
        format: Format,
        dims: [usize; 2],
        double: bool,
        source: &mut Source,
    ) -> Self {
        let count = dims[0] * dims[1];
        let blocks = count.div_ceil(BLOCK);
        let words = |count: usize, mask: u32, source: &mut Source| {
            (0..count).map(|_| source.next() as u32 & mask).collect::<Vec<_>>()
        };
        // Of 16 bits no huge numbers.
        let mask = if format == Format::Bf16 { 0xbfff_bfff } else { u32::MAX };
        let of_double = double.then(|| words(blocks.div_ceil(4), u32::MAX, source));
        let scales = if double { blocks.div_ceil(NESTED_BLOCK) } else { blocks };
        Self {
            format,
            dims,
            words: words(count.div_ceil(format.per_word()), mask, source),
            absmax: source.floats([1, scales]),
            double: of_double,
        }
    }

    pub(crate) fn on<B: Backend>(&self) -> PackedWeight<B> {
        fn words<B: Backend>(values: &[u32]) -> Tensor<B, 1, Int> {
            let data = TensorData::new(values.to_vec(), [values.len()]);
            Tensor::from_data(data, (&Default::default(), DType::U32))
        }
        let absmax = self.absmax.on::<B>(DType::F32, Layout::Contiguous).squeeze_dim(0);
        let scales = match (self.format, &self.double) {
            (Format::Bf16, _) => None,
            (_, None) => Some(Scales::Plain(absmax)),
            (_, Some(double)) => {
                Some(Scales::Double { words: words(double), absmax, offset: 0.375 })
            }
        };
        PackedWeight { format: self.format, dims: self.dims, words: words(&self.words), scales }
    }
}

const FORMATS: [(Format, bool); 6] = [
    (Format::Nf4, false),
    (Format::Nf4, true),
    (Format::Fp4, false),
    (Format::Int8, false),
    (Format::Int8, true),
    (Format::Bf16, false),
];

fn dtypes() -> Vec<DType> {
    let f16 = Gpu::supports_dtype(&Default::default(), DType::F16);
    std::iter::once(DType::F32).chain(f16.then_some(DType::F16)).collect()
}

/// Bit for bit in f32; the reference body too, which runs on the device.
#[test]
fn unpacked_values() {
    if !starts() {
        return;
    }
    for (format, double) in FORMATS {
        for dims in [[1, 1], [3, 5], [7, 96], [12, 129], [40, 1000], [300, 512]] {
            let mut source = Source::new(dims[0] * dims[1]);
            let packed = Packed::random(format, dims, double, &mut source);
            let (ours, exact) = (packed.on::<Gpu>(), packed.on::<Cpu>());
            let [d_out, _] = dims;
            for rows in [0..d_out, d_out / 3..d_out, d_out / 2..d_out / 2 + 1] {
                let what = format!("{format:?} {dims:?} {rows:?}");
                let expected = Cpu::unpack(&exact, rows.clone(), DType::F32);
                for dtype in dtypes() {
                    let tolerance = if dtype == DType::F32 { 1e-6 } else { tolerance(dtype) };
                    let values = Gpu::unpack(&ours, rows.clone(), dtype);
                    assert_eq!(values.dtype(), dtype);
                    close(&what, values, expected.clone(), tolerance);
                }
                let values = ops::packed::reference(&ours, rows, DType::F32);
                close(&format!("{what}: reference"), values, expected, 1e-6);
            }
            let ids = [d_out - 1, 0, d_out / 2, 0, d_out - 1].map(|id| id as i64);
            let expected = Cpu::unpack_rows(&exact, ints(&ids, [5]), DType::F32);
            let values = Gpu::unpack_rows(&ours, ints(&ids, [5]), DType::F32);
            close(&format!("{format:?} {dims:?} rows"), values, expected, 1e-6);
        }
    }
}

/// Two projections, the first with a branch.
pub(crate) fn projections<B: TrainBackend>(
    [first, second]: [Weight<B>; 2],
    [a, b]: &[Host; 2],
) -> [Projection<B>; 2] {
    let adapter = Adapter {
        a: a.on(DType::F32, Layout::Contiguous),
        b: b.on(DType::F32, Layout::Contiguous),
        scaling: 0.375,
        dropout_mask: None,
    };
    [
        Projection { weight: first, adapter: Some(adapter) },
        Projection { weight: second, adapter: None },
    ]
}

/// Packed weights on a backend.
fn both<B: TrainBackend>(packed: &[Packed; 2]) -> [Weight<B>; 2] {
    packed.each_ref().map(|packed| packed.on::<B>().into())
}

#[test]
fn products() {
    if !starts() {
        return;
    }
    for (format, double) in FORMATS {
        for (tokens, d_in, widths) in
            [(1, 64, [9, 5]), (7, 96, [48, 20]), (33, 129, [5, 100]), (8, 1088, [9, 12])]
        {
            let mut source = Source::new(tokens + d_in);
            let packed =
                widths.map(|d_out| Packed::random(format, [d_out, d_in], double, &mut source));
            let adapter = [[3, d_in], [widths[0], 3]].map(|shape| source.floats(shape));
            let width = widths[0] + widths[1];
            let [x, grad] = [[tokens, d_in], [tokens, width]].map(|shape| source.floats(shape));
            let exact = projections(both::<Cpu>(&packed), &adapter);
            let expected = ops::adapted_linear::reference(x.exact(), &exact, None);
            let of_expected = ops::adapted_linear::reference_backward(
                Some(x.exact()),
                &exact,
                expected.low.clone(),
                grad.exact(),
                true,
            );
            for dtype in dtypes() {
                let what = format!("{format:?} {tokens}x{d_in} {dtype:?}");
                let ours = projections(both::<Gpu>(&packed), &adapter);
                let on = |host: &Host| host.on::<Gpu>(dtype, Layout::Contiguous);
                let y = Gpu::adapted_linear(on(&x), &ours, None);
                close(&what, y.output, expected.output.clone(), tolerance(dtype));
                let d = Gpu::adapted_linear_backward(Some(on(&x)), &ours, y.low, on(&grad), true);
                let d_x = of_expected.x.clone().unwrap();
                close(&format!("{what}: d x"), d.x.unwrap(), d_x, tolerance(dtype));
                let one = ours[1].weight.clone();
                let columns = grad.exact().narrow(1, widths[0], widths[1]);
                let expected = ops::linear::reference_backward(columns, exact[1].weight.clone());
                let columns = on(&grad).narrow(1, widths[0], widths[1]);
                let values = Gpu::frozen_linear_backward(columns, one);
                close(&format!("{what}: linear"), values, expected, tolerance(dtype));
            }
        }
    }
}

/// Rows as decoding has them, and one more: projections with a branch and a residual, and one alone. Rows of weights begin
/// within a block and within a word, and end before all units of a cube have a word.
#[test]
fn few_rows() {
    if !starts() {
        return;
    }
    for (format, double) in FORMATS {
        let all = (1..=9).collect::<Vec<_>>();
        for (d_in, widths, rows) in [
            (8, [1, 2], [1, 8].as_slice()),
            (96, [17, 20], &all),
            (129, [5, 3], &[1, 6]),
            (1160, [33, 7], &[2, 3]),
        ] {
            let mut source = Source::new(d_in);
            let packed =
                widths.map(|d_out| Packed::random(format, [d_out, d_in], double, &mut source));
            let adapter = [[3, d_in], [widths[0], 3]].map(|shape| source.floats(shape));
            let exact = projections(both::<Cpu>(&packed), &adapter);
            let ours = projections(both::<Gpu>(&packed), &adapter);
            for &tokens in rows {
                let x = source.floats([tokens, d_in]);
                let residual = source.floats([tokens, widths[0] + widths[1]]);
                let together =
                    ops::adapted_linear::reference(x.exact(), &exact, Some(residual.exact()));
                let alone = ops::linear::reference(x.exact(), exact[1].weight.clone());
                let every = if tokens == 3 { usize::MAX } else { 1 };
                for (dtype, layout) in variants().into_iter().take(every) {
                    let what = format!("{format:?} {tokens}x{d_in} {dtype:?} {layout:?}");
                    let (x, given) = (x.on(dtype, layout), residual.on(dtype, layout));
                    let y = Gpu::adapted_linear(x.clone(), &ours, Some(given)).output;
                    close(&what, y, together.output.clone(), tolerance(dtype));
                    let y = Gpu::frozen_linear(x, ours[1].weight.clone());
                    close(&format!("{what}: alone"), y, alone.clone(), tolerance(dtype));
                }
            }
        }
    }
}

#[test]
fn log_probs_of_a_packed_head() {
    if !starts() {
        return;
    }
    let mut source = Source::new(3);
    let head = Packed::random(Format::Bf16, [301, 40], false, &mut source);
    let hidden = source.floats([9, 40]);
    let targets: Vec<i64> = (0..9).map(|at| at * 33).collect();
    let exact = ops::log_probs::reference(
        hidden.exact(),
        Weight::from(head.on::<Cpu>()),
        ints(&targets, [9]),
        LogProbStats::All,
        true,
    );
    let ours = Gpu::completion_log_probs(
        hidden.on(DType::F32, Layout::Contiguous),
        head.on::<Gpu>().into(),
        ints(&targets, [9]),
        LogProbStats::All,
        true,
    );
    close("packed head", ours.columns, exact.columns, 2e-5);
    close("packed head: slopes", ours.slopes.unwrap(), exact.slopes.unwrap(), 2e-5);
}
