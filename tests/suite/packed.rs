//! Packed weights on a backend: bitsandbytes' own values, and projections with their gradient against f64 on the CPU.

use arithmo_backends::ops::packed::{BLOCK, NESTED_BLOCK, dynamic_code};
use arithmo_backends::ops::{accumulator, adapted_linear, linear};
use arithmo_backends::{
    Adapter, Format, PackedWeight, Projection, Scales, TrainBackend, Weight, graph_lock,
};
use burn::backend::Autodiff;
use burn::tensor::backend::{AutodiffBackend, Backend};
use burn::tensor::{DType, Int, Tensor, TensorData};

use super::golden::{Tensors, assert_close, reference};
use super::ops::{Exact, Host, Layout, Results, Source, check, exact_device, numbers};

/// Words from packed bytes.
fn words<B: Backend>(bytes: &[u8], device: &B::Device) -> Tensor<B, 1, Int> {
    let word = |four: &[u8]| {
        let mut all = [0; 4];
        all[..four.len()].copy_from_slice(four);
        u32::from_le_bytes(all)
    };
    let words: Vec<u32> = bytes.chunks(4).map(word).collect();
    let count = words.len();
    Tensor::from_data(TensorData::new(words, [count]), (device, DType::U32))
}

fn floats<B: Backend>(values: &[f32], device: &B::Device) -> Tensor<B, 1> {
    let data = TensorData::new(values.to_vec(), [values.len()]);
    Tensor::from_data(data, (device, DType::F32))
}

/// What bitsandbytes packed, with its own scales and with scales of 8 bits, is what it unpacks.
pub fn golden<B: TrainBackend>(device: &B::Device) {
    let Some(path) = reference("nf4/matrix.safetensors") else {
        return;
    };
    let file = Tensors::open(&path);
    assert_eq!(Format::Nf4.code(), file.f32("nf4_code").1);
    assert_eq!(dynamic_code(), file.f32("double.nested_code").1);
    let plain = PackedWeight::<B> {
        format: Format::Nf4,
        dims: [128, 256],
        words: words(&file.u8("packed").1, device),
        scales: Some(Scales::Plain(floats(&file.f32("absmax").1, device))),
    };
    let double = PackedWeight::<B> {
        format: Format::Nf4,
        dims: [128, 256],
        words: words(&file.u8("double.packed").1, device),
        scales: Some(Scales::Double {
            words: words(&file.u8("double.absmax_u8").1, device),
            absmax: floats(&file.f32("double.nested_absmax").1, device),
            offset: file.f32("double.offset").1[0],
        }),
    };
    for (packed, name) in [(plain, "dequantised"), (double, "double.dequantised")] {
        packed.check();
        let expected = file.f32(name).1;
        let ours = B::unpack(&packed, 0..128, DType::F32).into_data();
        let ours: Vec<f32> = ours.iter().collect();
        assert_close(name, &ours, &expected, 1e-7);
        let ids = Tensor::from_data(TensorData::new(vec![127i64, 3], [2]), device);
        let rows = B::unpack_rows(&packed, ids, DType::F32).into_data();
        let rows: Vec<f32> = rows.iter().collect();
        let expected = [&expected[127 * 256..], &expected[3 * 256..4 * 256]].concat();
        assert_close(name, &rows, &expected, 1e-7);
    }
}

/// Random indices and scales; of 16 bits no huge numbers.
fn random<B: Backend>(
    (format, double): (Format, bool),
    dims: [usize; 2],
    source: &mut Source,
    device: &B::Device,
) -> PackedWeight<B> {
    let count = dims[0] * dims[1];
    let blocks = count.div_ceil(BLOCK);
    let mut bytes = |count: usize| -> Vec<u8> {
        let bytes = source.ints(count, 256).into_iter().map(|byte| byte as u8);
        match format {
            Format::Bf16 => bytes.map(|byte| byte & 0xbf).collect(),
            _ => bytes.collect(),
        }
    };
    let words_of_values = words(&bytes(4 * count.div_ceil(format.per_word())), device);
    let of_scales = words(&bytes(4 * blocks.div_ceil(4)), device);
    let mut absmax = |count: usize| {
        let scales = source.floats(&[count]).values;
        let scales: Vec<f32> = scales.iter().map(|scale| scale.abs() as f32).collect();
        floats(&scales, device)
    };
    let scales = match (format, double) {
        (Format::Bf16, _) => None,
        (_, false) => Some(Scales::Plain(absmax(blocks))),
        (_, true) => Some(Scales::Double {
            words: of_scales,
            absmax: absmax(blocks.div_ceil(NESTED_BLOCK)),
            offset: 0.5,
        }),
    };
    PackedWeight { format, dims, words: words_of_values, scales }
}

/// Frozen projections, one with a branch, under autodiff.
pub fn projections<B: TrainBackend>(device: &B::Device) {
    for format in [
        (Format::Nf4, false),
        (Format::Nf4, true),
        (Format::Fp4, false),
        (Format::Int8, true),
        (Format::Bf16, false),
    ] {
        for [tokens, d_in, d_out] in [[1, 1, 1], [7, 96, 20], [33, 129, 35], [140, 192, 70]] {
            let case = Case {
                format,
                d_in,
                d_out,
                hosts: {
                    let mut source = Source::new((tokens * d_in + d_out) as u64);
                    let shapes = [[tokens, d_in], [2, d_in], [d_out, 2], [tokens, 2 * d_out]];
                    shapes.map(|shape| source.floats(&shape))
                },
            };
            let place = (exact_device(), DType::F64, Layout::Contiguous);
            let floats = |packed: PackedWeight<Exact>| {
                let rows = packed.dims[0];
                Weight::Float(Exact::unpack(&packed, 0..rows, DType::F64))
            };
            let exact = case.run::<Exact>(place, floats);
            check::<B>(
                &format!("packed {format:?} {tokens}x{d_in}x{d_out}"),
                device,
                |dtype, layout| {
                    let place = (device.clone(), dtype, layout);
                    case.run::<Autodiff<B>>(place, Weight::Packed)
                },
                &exact,
            );
        }
    }
}

struct Case {
    format: (Format, bool),
    d_in: usize,
    d_out: usize,
    /// `x`, `a`, `b` and the gradient of the output.
    hosts: [Host; 4],
}

impl Case {
    /// Two projections side by side, the first with a branch, and the first alone.
    fn run<A: TrainBackend + AutodiffBackend>(
        &self,
        (device, dtype, layout): (A::Device, DType, Layout),
        weight: impl Fn(PackedWeight<A>) -> Weight<A>,
    ) -> Results {
        let _only_graph = graph_lock();
        let dims = [self.d_out, self.d_in];
        let mut source = Source::new(9);
        let [first, second] =
            [(); 2].map(|()| weight(random(self.format, dims, &mut source, &device)));
        let [x, a, b, dy] = &self.hosts;
        let x = x.on::<A, 2>(dtype, layout, &device).detach().require_grad();
        let [a, b] = [a, b].map(|host| {
            let branch = host.on::<A, 2>(accumulator(dtype), Layout::Contiguous, &device);
            branch.detach().require_grad()
        });
        let adapter = Adapter { a: a.clone(), b: b.clone(), scaling: 1.75, dropout_mask: None };
        let projections = [(first.clone(), Some(adapter)), (second, None)];
        let projections = projections.map(|(weight, adapter)| Projection { weight, adapter });
        let y = adapted_linear::adapted_linear(x.clone(), &projections, None);
        let alone = linear::linear(x.clone(), first);
        let dy = dy.on::<A, 2>(dtype, layout, &device);
        let of_first = dy.clone().narrow(1, 0, self.d_out);
        let grads = ((y.clone() * dy).sum() + (alone.clone() * of_first).sum()).backward();
        let leaves = [x, a, b].map(|leaf| numbers(leaf.grad(&grads).unwrap()));
        [numbers(y), numbers(alone)].into_iter().chain(leaves).collect()
    }
}
