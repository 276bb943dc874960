//! AdamW's step of many tensors in one launch. See [`crate::ops::adamw`].

use burn::tensor::DType;
use burn_cubecl::tensor::CubeTensor;
use cubecl::prelude::*;

use super::launch::{THREADS, empty};
use super::many::{BLOCKS, every, grid, place, prepare, tensors_per_launch};
use super::queue::{CubeGpu, Kernel, burn_tensor, into_array, queue, queued_tensor};
use super::runtime::GpuRuntime;
use crate::{AdamWFactors, AdamWTensor, AdamWUpdate};

/// The matrices of a tensor that the kernel reads: parameter, gradient and both moments.
const READ: usize = 4;

/// Those that it writes: parameter and both moments.
const WRITTEN: usize = 3;

/// Queues the kernels: see [`crate::TrainBackend::adamw`]. Tensors with other factors, which weight decay leaves out, are in
/// launches of their own.
pub(crate) fn adamw<B: CubeGpu>(tensors: Vec<AdamWTensor<B>>) -> Vec<AdamWUpdate<B>> {
    let Some(first) = tensors.first() else {
        return Vec::new();
    };
    let per_launch = tensors_per_launch::<B>(&first.param.device(), READ + WRITTEN);
    let runs = tensors.chunk_by(|one, next| one.factors == next.factors);
    runs.flat_map(|run| run.chunks(per_launch)).flat_map(update).collect()
}

/// Queues the kernel for tensors with the same factors.
fn update<B: CubeGpu>(tensors: &[AdamWTensor<B>]) -> Vec<AdamWUpdate<B>> {
    let inputs = tensors.iter().flat_map(|tensor| {
        let AdamWTensor { param, grad, exp_avg, exp_avg_sq, factors: _ } = tensor;
        [param, grad, exp_avg, exp_avg_sq].map(queued_tensor)
    });
    let outputs = tensors.iter().map(|tensor| (tensor.param.shape(), DType::F32));
    let outputs: Vec<_> = outputs.flat_map(|output| std::iter::repeat_n(output, WRITTEN)).collect();
    let kernel = AdamW { factors: tensors[0].factors };
    let mut updated = queue(kernel, inputs.collect(), &outputs).into_iter().map(burn_tensor);
    let updates = tensors.iter().map(|_| {
        let [param, exp_avg, exp_avg_sq] = into_array(updated.by_ref().take(WRITTEN).collect());
        AdamWUpdate { param, exp_avg, exp_avg_sq }
    });
    updates.collect()
}

#[derive(Debug)]
struct AdamW {
    factors: AdamWFactors,
}

impl Kernel for AdamW {
    const NAME: &'static str = "adamw";

    fn run<R: GpuRuntime>(&self, inputs: Vec<CubeTensor<R>>) -> Vec<CubeTensor<R>> {
        let (tensors, vector_size) = prepare(inputs);
        let outputs: Vec<_> = (tensors.chunks(READ))
            .flat_map(|tensor| std::iter::repeat_n(&tensor[0], WRITTEN))
            .map(|param| empty(param, param.meta.shape().clone(), DType::F32))
            .collect();
        let [params, grads, exp_avgs, exp_avg_sqs] =
            [0, 1, 2, 3].map(|first| every(&tensors, first, READ));
        let [new_params, new_exp_avgs, new_exp_avg_sqs] =
            [0, 1, 2].map(|first| every(&outputs, first, WRITTEN));
        let factors = self.factors;
        step::launch::<R>(
            &tensors[0].client,
            grid(tensors.len() / READ),
            CubeDim::new_1d(THREADS as u32),
            vector_size,
            params,
            grads,
            exp_avgs,
            exp_avg_sqs,
            new_params,
            new_exp_avgs,
            new_exp_avg_sqs,
            FactorsLaunch::new(
                (1.0 - factors.beta1) as f32,
                factors.beta2 as f32,
                (1.0 - factors.beta2) as f32,
                factors.epsilon as f32,
                factors.shrink as f32,
                factors.step_size as f32,
                factors.root_correction as f32,
            ),
        );
        outputs
    }
}

/// The constants of a step: see [`AdamWFactors`].
#[derive(CubeType, CubeLaunch, Clone, Copy)]
struct Factors {
    /// `1 - b1`
    new_exp_avg: f32,
    /// `b2`
    old_exp_avg_sq: f32,
    /// `1 - b2`
    new_exp_avg_sq: f32,
    epsilon: f32,
    shrink: f32,
    step_size: f32,
    root_correction: f32,
}

/// Updates every tensor.
#[cube(launch)]
fn step<N: Size>(
    params: &Sequence<Tensor<Vector<f32, N>>>,
    grads: &Sequence<Tensor<Vector<f32, N>>>,
    exp_avgs: &Sequence<Tensor<Vector<f32, N>>>,
    exp_avg_sqs: &Sequence<Tensor<Vector<f32, N>>>,
    new_params: &mut Sequence<Tensor<Vector<f32, N>>>,
    new_exp_avgs: &mut Sequence<Tensor<Vector<f32, N>>>,
    new_exp_avg_sqs: &mut Sequence<Tensor<Vector<f32, N>>>,
    factors: Factors,
) {
    #[unroll]
    for tensor in 0..params.len() {
        if CUBE_POS_Y as usize == tensor {
            step_of_block(
                params.index(tensor),
                grads.index(tensor),
                exp_avgs.index(tensor),
                exp_avg_sqs.index(tensor),
                new_params.index_mut(tensor),
                new_exp_avgs.index_mut(tensor),
                new_exp_avg_sqs.index_mut(tensor),
                factors,
            );
        }
    }
}

/// Updates the values that a thread reads.
#[cube]
fn step_of_block<N: Size>(
    param: &Tensor<Vector<f32, N>>,
    grad: &Tensor<Vector<f32, N>>,
    exp_avg: &Tensor<Vector<f32, N>>,
    exp_avg_sq: &Tensor<Vector<f32, N>>,
    new_param: &mut Tensor<Vector<f32, N>>,
    new_exp_avg: &mut Tensor<Vector<f32, N>>,
    new_exp_avg_sq: &mut Tensor<Vector<f32, N>>,
    factors: Factors,
) {
    let count = param.shape(0) * param.shape(1) / N::value();
    let mut i = CUBE_POS_X as usize * THREADS + UNIT_POS as usize;
    while i < count {
        let g = grad[place(grad, i)];
        let old = exp_avg[place(exp_avg, i)];
        let m = old + (g - old) * Vector::<f32, N>::new(factors.new_exp_avg);
        let v = exp_avg_sq[place(exp_avg_sq, i)] * Vector::<f32, N>::new(factors.old_exp_avg_sq)
            + g * g * Vector::<f32, N>::new(factors.new_exp_avg_sq);
        let root = v.sqrt() / Vector::<f32, N>::new(factors.root_correction);
        let change = m / (root + Vector::<f32, N>::new(factors.epsilon));
        let shrunk = param[place(param, i)] * Vector::<f32, N>::new(factors.shrink);
        new_param[i] = shrunk - change * Vector::<f32, N>::new(factors.step_size);
        new_exp_avg[i] = m;
        new_exp_avg_sq[i] = v;
        i += BLOCKS * THREADS;
    }
}

#[cfg(all(test, feature = "wgpu"))]
mod tests {
    use super::*;
    use crate::cubecl::pitched::{KernelInput, assert_same_when_pitched};

    #[test]
    fn pitched_rows_give_the_same_values() {
        let factors = AdamWFactors {
            beta1: 0.9,
            beta2: 0.99,
            epsilon: 10.0,
            shrink: 0.9,
            step_size: 0.1,
            root_correction: 0.5,
        };
        for widths in [[5, 100], [48, 16]] {
            let mut inputs = Vec::new();
            for width in widths {
                inputs.extend([(); 3].map(|()| KernelInput::Floats([7, width])));
                inputs.push(KernelInput::Positive([7, width]));
            }
            assert_same_when_pitched(&AdamW { factors }, &inputs);
        }
    }
}
