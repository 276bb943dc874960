//! The CPU backend, for correctness and small models.

use std::sync::atomic::{AtomicU64, Ordering};

use burn::tensor::{Tensor, TensorPrimitive};
use burn_ndarray::{
    FloatNdArrayElement, IntNdArrayElement, NdArray, NdArrayTensor, QuantElement, SharedArray,
};
use ndarray::{ArrayViewD, Ix2, LinalgScalar};

use crate::TrainBackend;

/// Training on the CPU in f32.
pub type Cpu = NdArray<f32>;

impl<E: FloatNdArrayElement, I: IntNdArrayElement, Q: QuantElement> TrainBackend
    for NdArray<E, I, Q>
where
    NdArrayTensor: From<SharedArray<E>>,
    NdArrayTensor: From<SharedArray<I>>,
{
    fn peak_memory_bytes(_device: &Self::Device) -> Option<u64> {
        peak_resident_bytes()
    }

    fn frozen_linear(x: Tensor<Self, 2>, weight: Tensor<Self, 2>) -> Tensor<Self, 2> {
        product(x, weight, true)
    }

    fn frozen_linear_backward(grad: Tensor<Self, 2>, weight: Tensor<Self, 2>) -> Tensor<Self, 2> {
        product(grad, weight, false)
    }
}

/// `x W^T` if `transposed`, else `x W`, reading the weight where it lies: Burn's matmul copies both sides first, which for
/// the output head is the largest tensor of the model.
fn product<E, I, Q>(
    x: Tensor<NdArray<E, I, Q>, 2>,
    weight: Tensor<NdArray<E, I, Q>, 2>,
    transposed: bool,
) -> Tensor<NdArray<E, I, Q>, 2>
where
    E: FloatNdArrayElement,
    I: IntNdArrayElement,
    Q: QuantElement,
    NdArrayTensor: From<SharedArray<E>> + From<SharedArray<I>>,
{
    let (x, weight) = (
        x.into_primitive().tensor(),
        weight.into_primitive().tensor(),
    );
    let product: NdArrayTensor = match (&x, &weight) {
        (NdArrayTensor::F32(x), NdArrayTensor::F32(weight)) => {
            dot(x.view(), weight.view(), transposed).into()
        }
        (NdArrayTensor::F64(x), NdArrayTensor::F64(weight)) => {
            dot(x.view(), weight.view(), transposed).into()
        }
        _ => unreachable!("`linear` asserts one dtype, and these are the floats of this backend"),
    };
    Tensor::from_primitive(TensorPrimitive::Float(product))
}

fn dot<E: LinalgScalar>(
    x: ArrayViewD<'_, E>,
    weight: ArrayViewD<'_, E>,
    transposed: bool,
) -> SharedArray<E> {
    let matrices = (
        x.into_dimensionality::<Ix2>(),
        weight.into_dimensionality::<Ix2>(),
    );
    let (Ok(x), Ok(weight)) = matrices else {
        unreachable!("a matrix has two dimensions")
    };
    let product = match transposed {
        true => x.dot(&weight.t()),
        false => x.dot(&weight),
    };
    product.into_dyn().into_shared()
}

/// The largest resident set of this process so far (`VmHWM` on Linux).
///
/// The kernel reads it from counters that lag by some pages, so that it can fall a little; what was once reported stays.
fn peak_resident_bytes() -> Option<u64> {
    static PEAK: AtomicU64 = AtomicU64::new(0);
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmHWM:"))?;
    let kibibytes: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    let bytes = kibibytes * 1024;
    Some(PEAK.fetch_max(bytes, Ordering::Relaxed).max(bytes))
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;

    #[test]
    fn the_peak_covers_what_was_touched() {
        let block = vec![1u8; 64 << 20];
        assert!(peak_resident_bytes() >= Some(block.len() as u64));
    }
}
