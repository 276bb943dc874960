//! Matrix multiplication by a kernel that is chosen here and not by Burn: on devices on which kernels are not timed, and
//! where Burn's choice would round the factors.

use burn::tensor::{DType, Tensor as BurnTensor};
use burn_cubecl::tensor::CubeTensor;

use super::launch::{empty, has_tf32, matmul_into};
use super::queue::{CubeGpu, Kernel, burn_tensor, into_array, queue, queued_tensor};
use super::runtime::GpuRuntime;

/// Multiplies two tensors of matrices: see [`crate::TrainBackend::matmul`].
pub(crate) fn matmul<B: CubeGpu, const D: usize>(
    left: BurnTensor<B, D>,
    right: BurnTensor<B, D>,
) -> BurnTensor<B, D> {
    let device = left.device();
    // Burn's own matmul is autotuned, and Burn fuses it with the operations after it.
    let by_burn = match left.dtype() {
        DType::F64 => true,
        DType::F32 => B::Runtime::autotunes(&device) && !has_tf32::<B::Runtime>(&device),
        _ => B::Runtime::autotunes(&device),
    };
    if by_burn {
        return left.matmul(right);
    }
    let mut shape = left.shape();
    shape[D - 1] = right.dims()[D - 1];
    let output = (shape, left.dtype());
    let inputs = vec![queued_tensor(&left), queued_tensor(&right)];
    let [output] = into_array(queue(Matmul, inputs, &[output]));
    burn_tensor(output)
}

#[derive(Debug)]
struct Matmul;

impl Kernel for Matmul {
    const NAME: &'static str = "matmul";

    fn run<R: GpuRuntime>(&self, inputs: Vec<CubeTensor<R>>) -> Vec<CubeTensor<R>> {
        let [left, right] = into_array(inputs);
        let mut shape = left.meta.shape().clone();
        let (last, columns) = (shape.num_dims() - 1, right.meta.num_dims() - 1);
        shape[last] = right.meta.shape()[columns];
        let output = empty(&left, shape, left.dtype);
        matmul_into(left, right, output.clone());
        vec![output]
    }
}
