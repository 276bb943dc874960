//! AdamW on slices (see [`crate::ops::adamw`]).

use burn_ndarray::{
    FloatNdArrayElement, IntNdArrayElement, NdArray, NdArrayTensor, QuantElement, SharedArray,
};
use rayon::prelude::*;

use super::matrix::{Matrix, tensor};
use super::vector::vectorized;
use crate::ops::adamw::{AdamWFactors, AdamWTensor, AdamWUpdate, reference_single};

/// Number of values that a thread updates at a time.
const CHUNK: usize = 1 << 15;

/// Updates one tensor and its moments in a single pass.
pub(super) fn update<E, I, Q>(
    tensor_: AdamWTensor<NdArray<E, I, Q>>,
) -> AdamWUpdate<NdArray<E, I, Q>>
where
    E: FloatNdArrayElement,
    I: IntNdArrayElement,
    Q: QuantElement,
    NdArrayTensor: From<SharedArray<E>> + From<SharedArray<I>>,
{
    let sides = [&tensor_.param, &tensor_.grad, &tensor_.exp_avg, &tensor_.exp_avg_sq];
    let [Some(param), Some(grad), Some(m), Some(v)] = sides.map(|t| Matrix::new(t.clone())) else {
        return reference_single(tensor_);
    };
    let (shape, factors) = ([param.rows, param.columns], tensor_.factors);
    // With a second handle, the moments would be copied instead of updated in place.
    drop(tensor_);
    let [mut param, mut m, mut v] = [param, m, v].map(Matrix::into_values);
    step(&mut param, grad.values(), [&mut m, &mut v], &factors);
    AdamWUpdate {
        param: tensor(param, shape),
        exp_avg: tensor(m, shape),
        exp_avg_sq: tensor(v, shape),
    }
}

/// Updates a parameter and its moments in place.
fn step(
    param: &mut [f32],
    grad: &[f32],
    [exp_avg, exp_avg_sq]: [&mut [f32]; 2],
    factors: &AdamWFactors,
) {
    let [rest1, beta2, rest2] =
        [1.0 - factors.beta1, factors.beta2, 1.0 - factors.beta2].map(|factor| factor as f32);
    let [epsilon, shrink, step_size, root_correction] =
        [factors.epsilon, factors.shrink, factors.step_size, factors.root_correction]
            .map(|factor| factor as f32);
    let params = param.par_chunks_mut(CHUNK).zip(grad.par_chunks(CHUNK));
    let moments = exp_avg.par_chunks_mut(CHUNK).zip(exp_avg_sq.par_chunks_mut(CHUNK));
    params.zip(moments).for_each(|((params, grads), (ms, vs))| {
        vectorized(
            #[inline(always)]
            || {
                let params = params.iter_mut().zip(grads);
                for ((p, g), (m, v)) in params.zip(ms.iter_mut().zip(vs)) {
                    *m += (g - *m) * rest1;
                    *v = *v * beta2 + g * g * rest2;
                    let root = v.sqrt() / root_correction;
                    *p = *p * shrink - *m / (root + epsilon) * step_size;
                }
            },
        );
    });
}

#[cfg(test)]
mod tests {
    use burn::tensor::Tensor;

    use super::*;

    type B = NdArray<f32>;

    /// Returns the address of the first value.
    fn address(tensor: &Tensor<B, 2>) -> *const f32 {
        match tensor.clone().into_primitive().tensor() {
            NdArrayTensor::F32(storage) => storage.view().as_ptr(),
            _ => std::ptr::null(),
        }
    }

    /// The moments of a large matrix are as large as the matrix: a copy would count in the peak of a run.
    #[test]
    fn moments_are_updated_in_place() {
        let ones = || Tensor::<B, 2>::ones([64, 64], &Default::default()) * 1.0;
        let [exp_avg, exp_avg_sq] = [ones(), ones()];
        let before = [address(&exp_avg), address(&exp_avg_sq)];
        let factors = AdamWFactors {
            beta1: 0.9,
            beta2: 0.99,
            epsilon: 1e-8,
            shrink: 1.0,
            step_size: 0.1,
            root_correction: 1.0,
        };
        let tensor = AdamWTensor { param: ones(), grad: ones(), exp_avg, exp_avg_sq, factors };
        let updated = update(tensor);
        assert_eq!([address(&updated.exp_avg), address(&updated.exp_avg_sq)], before);
        assert!(!before[0].is_null());
    }
}
