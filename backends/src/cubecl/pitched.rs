//! Test support: runs kernels on tensors with gaps between their rows, which CUDA allocates and wgpu never does. The
//! gaps hold NaN or a large index, and the results must equal those of contiguous tensors.

#![allow(clippy::unwrap_used, reason = "a test may stop at the first surprise")]

use burn::tensor::DType;
use burn_cubecl::tensor::CubeTensor;
use burn_wgpu::WgpuRuntime;
use cubecl::Runtime;
use cubecl::prelude::ComputeClient;

use super::queue::Kernel;
use super::runtime::GpuRuntime;

/// The bit of the sign of an f32.
const SIGN: u32 = 1 << 31;

/// An input of a kernel.
pub(crate) enum KernelInput {
    /// Pseudo-random floats, rows by columns.
    Floats([usize; 2]),
    /// The absolute values of such floats.
    Positive([usize; 2]),
    /// A vector of pseudo-random floats.
    Vector(usize),
    /// Integers, rows by columns.
    Ints(Vec<i32>, [usize; 2]),
    /// A vector of integers.
    IntVector(Vec<i32>),
}

/// Asserts that `kernel` returns the same values for contiguous rows and for rows with gaps. Does nothing without a
/// driver.
pub(crate) fn assert_same_when_pitched(kernel: &impl Kernel, inputs: &[KernelInput]) {
    if crate::wgpu::start(None).is_err() {
        return;
    }
    let device = Default::default();
    let client = WgpuRuntime::client(&device);
    let run = |gap: fn(usize) -> usize| {
        let on_device = |(seed, input): (usize, &KernelInput)| tensor(&client, input, seed, gap);
        let inputs = inputs.iter().enumerate().map(on_device).collect();
        let outputs = kernel.run::<WgpuRuntime>(inputs);
        outputs.into_iter().map(values).collect::<Vec<_>>()
    };
    let dense = run(|_| 0);
    assert!(dense.iter().flatten().any(|value| *value != 0.0));
    for gap in [|width: usize| width.next_multiple_of(8) - width, |_| 3] {
        for (ours, dense) in run(gap).iter().flatten().zip(dense.iter().flatten()) {
            // Gaps may forbid vector loads, and sums are then taken in another order.
            assert!((ours - dense).abs() <= 1e-5 * dense.abs().max(1.0), "{ours}, not {dense}");
        }
    }
}

/// Uploads `input` with `gap(width)` unread values after each row.
fn tensor(
    client: &ComputeClient<WgpuRuntime>,
    input: &KernelInput,
    seed: usize,
    gap: fn(usize) -> usize,
) -> CubeTensor<WgpuRuntime> {
    let float = |i: usize| {
        let mixed = (i + 1 + 1000 * seed).wrapping_mul(2_654_435_761) >> 7;
        ((mixed % 2001) as f32 / 1000.0 - 1.0).to_bits()
    };
    let (shape, values_bits): (Vec<usize>, Vec<u32>) = match input {
        KernelInput::Floats([rows, width]) => {
            (vec![*rows, *width], (0..rows * width).map(float).collect())
        }
        KernelInput::Positive([rows, width]) => {
            let positive = |i| float(i) & !SIGN;
            (vec![*rows, *width], (0..rows * width).map(positive).collect())
        }
        KernelInput::Vector(width) => (vec![*width], (0..*width).map(float).collect()),
        KernelInput::Ints(values, shape) => (shape.to_vec(), bits(values)),
        KernelInput::IntVector(values) => (vec![values.len()], bits(values)),
    };
    let (dtype, gap_value) = match input {
        KernelInput::Floats(_) | KernelInput::Positive(_) | KernelInput::Vector(_) => {
            (DType::F32, f32::NAN.to_bits())
        }
        KernelInput::Ints(..) | KernelInput::IntVector(_) => (DType::I32, 1 << 20),
    };
    let width = shape.last().copied().unwrap();
    let gap = if shape.len() == 1 { 0 } else { gap(width) };
    let bytes: Vec<u8> = values_bits
        .chunks(width)
        .flat_map(|row| row.iter().copied().chain(std::iter::repeat_n(gap_value, gap)))
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

fn values<R: GpuRuntime>(tensor: CubeTensor<R>) -> Vec<f32> {
    let tensor = burn_cubecl::kernel::into_contiguous(tensor);
    let bytes = tensor.client.read_one(tensor.handle).unwrap();
    let floats = bytes.chunks_exact(4);
    floats.map(|four| f32::from_ne_bytes(four.try_into().unwrap())).collect()
}
