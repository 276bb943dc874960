//! Tests of kernels on rows with gaps between them, as CUDA allocates them and wgpu never does: the gaps hold what must
//! not be read, and the results must be the same.

#![allow(clippy::unwrap_used, reason = "a test may stop at the first surprise")]

use burn::tensor::DType;
use burn_cubecl::{CubeRuntime, tensor::CubeTensor};
use burn_wgpu::WgpuRuntime;
use cubecl::Runtime;
use cubecl::prelude::ComputeClient;

use super::queue::Kernel;

/// An input of a kernel.
pub(crate) enum Given {
    /// Some numbers, rows by columns.
    Floats([usize; 2]),
    /// A vector of numbers.
    Vector(usize),
    /// Rows by columns.
    Ints(Vec<i32>, [usize; 2]),
    IntVector(Vec<i32>),
}

/// Runs `kernel` on dense rows and on rows with gaps, unless there is no driver.
pub(crate) fn same_when_pitched(kernel: &impl Kernel, inputs: &[Given]) {
    if crate::wgpu::start(None).is_err() {
        return;
    }
    let device = Default::default();
    let client = WgpuRuntime::client(&device);
    let run = |gap: fn(usize) -> usize| {
        let on_device = |(seed, given): (usize, &Given)| tensor(&client, given, seed, gap);
        let inputs = inputs.iter().enumerate().map(on_device).collect();
        let outputs = kernel.run::<WgpuRuntime>(inputs);
        outputs.into_iter().map(values).collect::<Vec<_>>()
    };
    let dense = run(|_| 0);
    assert!(dense.iter().flatten().any(|value| *value != 0.0));
    for gap in [|width: usize| width.next_multiple_of(8) - width, |_| 3] {
        for (ours, dense) in run(gap).iter().flatten().zip(dense.iter().flatten()) {
            // Where gaps end vectors, sums are taken in another order.
            assert!((ours - dense).abs() <= 1e-5 * dense.abs().max(1.0), "{ours}, not {dense}");
        }
    }
}

fn tensor(
    client: &ComputeClient<WgpuRuntime>,
    given: &Given,
    seed: usize,
    gap: fn(usize) -> usize,
) -> CubeTensor<WgpuRuntime> {
    let float = |i: usize| {
        let mixed = (i + 1 + 1000 * seed).wrapping_mul(2_654_435_761) >> 7;
        ((mixed % 2001) as f32 / 1000.0 - 1.0).to_bits()
    };
    let (shape, numbers): (Vec<usize>, Vec<u32>) = match given {
        Given::Floats([rows, width]) => {
            (vec![*rows, *width], (0..rows * width).map(float).collect())
        }
        Given::Vector(width) => (vec![*width], (0..*width).map(float).collect()),
        Given::Ints(values, shape) => (shape.to_vec(), bits(values)),
        Given::IntVector(values) => (vec![values.len()], bits(values)),
    };
    let (dtype, unread) = match given {
        Given::Floats(_) | Given::Vector(_) => (DType::F32, f32::NAN.to_bits()),
        Given::Ints(..) | Given::IntVector(_) => (DType::I32, 1 << 20),
    };
    let width = shape.last().copied().unwrap();
    let gap = if shape.len() == 1 { 0 } else { gap(width) };
    let bytes: Vec<u8> = numbers
        .chunks(width)
        .flat_map(|row| row.iter().copied().chain(std::iter::repeat_n(unread, gap)))
        .flat_map(u32::to_ne_bytes)
        .collect();
    let handle = client.create_from_slice(&bytes);
    let mut tensor =
        CubeTensor::new_contiguous(client.clone(), Default::default(), shape.into(), handle, dtype);
    if tensor.meta.num_dims() == 2 {
        tensor.meta.strides_mut()[0] = width + gap;
    }
    tensor
}

fn bits(values: &[i32]) -> Vec<u32> {
    values.iter().map(|value| value.cast_unsigned()).collect()
}

fn values<R: CubeRuntime>(tensor: CubeTensor<R>) -> Vec<f32> {
    let tensor = burn_cubecl::kernel::into_contiguous(tensor);
    let bytes = tensor.client.read_one(tensor.handle).unwrap();
    let floats = bytes.chunks_exact(4);
    floats.map(|four| f32::from_ne_bytes(four.try_into().unwrap())).collect()
}
