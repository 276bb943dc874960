//! Rotary position embedding and its inverse. See [`crate::ops::rope`].

use burn::tensor::Tensor as BurnTensor;
use burn_cubecl::tensor::CubeTensor;
use cubecl::prelude::*;

use super::launch::{THREADS, block_grid, dense_rows, empty, vector_size};
use super::queue::{CubeGpu, Kernel, burn_tensor, into_array, queue, queued_tensor};
use super::runtime::GpuRuntime;
use crate::{RotaryAngles, Rotation};

/// Queues the rotation kernel: see [`crate::TrainBackend::rope`].
pub(crate) fn rope<B: CubeGpu>(
    x: BurnTensor<B, 2>,
    angles: &RotaryAngles<B>,
    rotated_heads: usize,
    rotation: Rotation,
) -> BurnTensor<B, 2> {
    let output = (x.shape(), x.dtype());
    let inputs = vec![queued_tensor(&x), queued_tensor(&angles.cos), queued_tensor(&angles.sin)];
    let [y] = into_array(queue(Rope { rotated_heads, rotation }, inputs, &[output]));
    burn_tensor(y)
}

#[derive(Debug)]
struct Rope {
    rotated_heads: usize,
    rotation: Rotation,
}

impl Kernel for Rope {
    const NAME: &'static str = "rope";

    fn run<R: GpuRuntime>(&self, inputs: Vec<CubeTensor<R>>) -> Vec<CubeTensor<R>> {
        let [x, cos, sin] = into_array(inputs).map(dense_rows);
        let [tokens, width] = x.meta.shape().dims();
        let [_, half] = cos.meta.shape().dims();
        let output = empty(&x, [tokens, width], x.dtype);
        let vector = vector_size(&[&x, &cos, &sin], &[half]);
        let dtypes = [x.dtype.into(), cos.dtype.into()];
        rotate_heads::launch::<R>(
            &output.client,
            block_grid((tokens * width / 2 / vector).div_ceil(THREADS)),
            CubeDim::new_1d(THREADS as u32),
            vector,
            x.into_tensor_arg(),
            cos.into_tensor_arg(),
            sin.into_tensor_arg(),
            output.clone().into_tensor_arg(),
            self.rotated_heads,
            self.rotation == Rotation::Inverse,
            THREADS,
            dtypes,
        );
        vec![output]
    }
}

/// Rotates the first `rotated_heads` heads of each row and copies the others; each thread processes a vector of the
/// first half of a head and its partner in the second half.
#[cube(launch)]
fn rotate_heads<F: Float, A: Float, N: Size>(
    x: &Tensor<Vector<F, N>>,
    cos: &Tensor<Vector<A, N>>,
    sin: &Tensor<Vector<A, N>>,
    output: &mut Tensor<Vector<F, N>>,
    rotated_heads: usize,
    #[comptime] inverse: bool,
    #[comptime] threads: usize,
    #[define(F, A)] _dtypes: [StorageType; 2],
) {
    let index = CUBE_POS * threads + UNIT_POS as usize;
    let half = cos.shape(1) / N::value();
    let pairs = x.shape(1) / 2 / N::value();
    let row = index / pairs;
    if row >= x.shape(0) {
        terminate!();
    }
    let head = index % pairs / half;
    let feature = index % half;
    let column = head * 2 * half + feature;
    let x_start = row * x.stride(0) / N::value() + column;
    let output_start = row * 2 * pairs + column;
    let first = x[x_start];
    let second = x[x_start + half];
    if head < rotated_heads {
        // The angles are rounded to the dtype, as Hugging Face does.
        let cosine = cos[row * cos.stride(0) / N::value() + feature];
        let sine = sin[row * sin.stride(0) / N::value() + feature];
        let cosine = Vector::<f32, N>::cast_from(Vector::<F, N>::cast_from(cosine));
        let mut sine = Vector::<f32, N>::cast_from(Vector::<F, N>::cast_from(sine));
        if comptime!(inverse) {
            // CubeCL 0.10 translates the negation of a vector to C++ that CUDA's compiler refuses.
            sine *= Vector::new(-1.0f32);
        }
        let a = Vector::<f32, N>::cast_from(first);
        let b = Vector::<f32, N>::cast_from(second);
        output[output_start] = Vector::<F, N>::cast_from(a * cosine - b * sine);
        output[output_start + half] = Vector::<F, N>::cast_from(b * cosine + a * sine);
    } else {
        output[output_start] = first;
        output[output_start + half] = second;
    }
}

#[cfg(all(test, feature = "wgpu"))]
mod tests {
    use super::*;
    use crate::cubecl::pitched::{KernelInput, assert_same_when_pitched};

    #[test]
    fn pitched_rows_give_the_same_values() {
        for half in [5, 24, 50] {
            for rotation in [Rotation::Forward, Rotation::Inverse] {
                let angles = || KernelInput::Floats([9, half]);
                let x = KernelInput::Floats([9, 3 * 2 * half]);
                assert_same_when_pitched(
                    &Rope { rotated_heads: 2, rotation },
                    &[x, angles(), angles()],
                );
            }
        }
    }
}
