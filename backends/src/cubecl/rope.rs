//! Rotary position embedding, both ways. See [`crate::ops::rope`].

use burn::tensor::Tensor as BurnTensor;
use burn_cubecl::{CubeRuntime, tensor::CubeTensor};
use cubecl::prelude::*;

use super::launch::{UNITS, cubes, empty, rows, vector_size};
use super::queue::{CubeGpu, Kernel, fixed, queue, queued, tensor};
use crate::{RotaryAngles, Turn};

/// [`crate::TrainBackend::rope`].
pub(crate) fn rope<B: CubeGpu>(
    x: BurnTensor<B, 2>,
    angles: &RotaryAngles<B>,
    turned: usize,
    turn: Turn,
) -> BurnTensor<B, 2> {
    let output = (x.shape(), x.dtype());
    let inputs = vec![queued(&x), queued(&angles.cos), queued(&angles.sin)];
    let [y] = fixed(queue(Rope { turned, turn }, inputs, &[output]));
    tensor(y)
}

#[derive(Debug)]
struct Rope {
    turned: usize,
    turn: Turn,
}

impl Kernel for Rope {
    const NAME: &'static str = "rope";

    fn run<R: CubeRuntime>(&self, inputs: Vec<CubeTensor<R>>) -> Vec<CubeTensor<R>> {
        let [x, cos, sin] = fixed(inputs).map(rows);
        let [tokens, width] = x.meta.shape().dims();
        let [_, half] = cos.meta.shape().dims();
        let output = empty(&x, [tokens, width], x.dtype);
        let vector = vector_size(&[&x, &cos, &sin], &[half]);
        let dtypes = [x.dtype.into(), cos.dtype.into()];
        turn_heads::launch::<R>(
            &output.client,
            cubes((tokens * width / 2 / vector).div_ceil(UNITS)),
            CubeDim::new_1d(UNITS as u32),
            vector,
            x.into_tensor_arg(),
            cos.into_tensor_arg(),
            sin.into_tensor_arg(),
            output.clone().into_tensor_arg(),
            self.turned,
            self.turn == Turn::Back,
            UNITS,
            dtypes,
        );
        vec![output]
    }
}

/// A unit takes a vector of the first half of a head, and its partner in the second.
#[cube(launch)]
fn turn_heads<F: Float, A: Float, N: Size>(
    x: &Tensor<Vector<F, N>>,
    cos: &Tensor<Vector<A, N>>,
    sin: &Tensor<Vector<A, N>>,
    output: &mut Tensor<Vector<F, N>>,
    turned: usize,
    #[comptime] back: bool,
    #[comptime] units: usize,
    #[define(F, A)] _dtypes: [StorageType; 2],
) {
    let index = CUBE_POS * units + UNIT_POS as usize;
    let half = cos.shape(1) / N::value();
    let pairs = x.shape(1) / 2 / N::value();
    let row = index / pairs;
    if row >= x.shape(0) {
        terminate!();
    }
    let head = index % pairs / half;
    let feature = index % half;
    let column = head * 2 * half + feature;
    let from = row * x.stride(0) / N::value() + column;
    let to = row * 2 * pairs + column;
    let first = x[from];
    let second = x[from + half];
    if head < turned {
        // Angles are rounded to the dtype, as Hugging Face does.
        let c = cos[row * cos.stride(0) / N::value() + feature];
        let s = sin[row * sin.stride(0) / N::value() + feature];
        let c = Vector::<f32, N>::cast_from(Vector::<F, N>::cast_from(c));
        let mut s = Vector::<f32, N>::cast_from(Vector::<F, N>::cast_from(s));
        if comptime!(back) {
            s = -s;
        }
        let a = Vector::<f32, N>::cast_from(first);
        let b = Vector::<f32, N>::cast_from(second);
        output[to] = Vector::<F, N>::cast_from(a * c - b * s);
        output[to + half] = Vector::<F, N>::cast_from(b * c + a * s);
    } else {
        output[to] = first;
        output[to + half] = second;
    }
}

#[cfg(all(test, feature = "wgpu"))]
mod tests {
    use super::*;
    use crate::cubecl::pitched::{Given, same_when_pitched};

    #[test]
    fn on_pitched_rows() {
        for half in [5, 24, 50] {
            for turn in [Turn::Forward, Turn::Back] {
                let angles = || Given::Floats([9, half]);
                let x = Given::Floats([9, 3 * 2 * half]);
                same_when_pitched(&Rope { turned: 2, turn }, &[x, angles(), angles()]);
            }
        }
    }
}
