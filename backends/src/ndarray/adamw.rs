//! AdamW on slices (see [`crate::ops::adamw`]).

use rayon::prelude::*;

use super::vector::vectorized;
use crate::ops::adamw::AdamWFactors;

/// Number of values that a thread updates at a time.
const CHUNK: usize = 1 << 15;

/// Updates a parameter and its moments in place.
pub(super) fn step(
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
