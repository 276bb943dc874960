//! AdamW: `m <- m + (g - m)(1 - b1)`, `v <- v b2 + g^2 (1 - b2)`,
//! `p <- p shrink - step_size m / (sqrt(v) / root_correction + eps)`.

use burn::tensor::{DType, Tensor};

use super::{Checker, Clip, Expected, Host, Operation, Place, Source};
use crate::ops::accumulator;
use crate::{AdamWFactors, AdamWTensor, AdamWUpdate, TrainBackend};

/// The fifth step of several tensors, in f32 whatever the dtype of the weights.
#[derive(Clone, Debug)]
pub struct AdamW {
    /// Parameter, gradient, first and second moment of each tensor, and its factors.
    tensors: Vec<([Host; 4], AdamWFactors)>,
    /// The new parameter and moments of each tensor.
    expected: Vec<Expected>,
}

impl Operation for AdamW {
    /// The shape of each tensor. They are those of [`Clip`], since both operations are over all tensors of an adapter.
    type Case = Vec<[usize; 2]>;

    fn quick() -> Vec<Self::Case> {
        Clip::quick()
    }

    fn all() -> Vec<Self::Case> {
        Clip::all()
    }

    fn new(shapes: &Self::Case, dtype: DType) -> Self {
        let dtype = accumulator(dtype);
        let decaying = AdamWFactors {
            beta1: 0.9,
            beta2: 0.999,
            epsilon: 1e-8,
            shrink: 1.0 - 1e-3,
            step_size: 1e-2 / (1.0 - 0.9f64.powi(5)),
            root_correction: (1.0 - 0.999f64.powi(5)).sqrt(),
        };
        let mut source = Source::new(1, dtype);
        let (mut tensors, mut expected) = (Vec::new(), Vec::new());
        for (index, shape) in shapes.iter().enumerate() {
            // Weight decay leaves some tensors out.
            let shrink = if index % 7 == 5 { 1.0 } else { decaying.shrink };
            let factors = AdamWFactors { shrink, ..decaying };
            let [param, grad, exp_avg, mut exp_avg_sq] = [(); 4].map(|()| source.matrix(*shape));
            exp_avg_sq.values.iter_mut().for_each(|value| *value = value.abs());
            let m = exp_avg.zip(&grad, |m, g| m + (g - m) * (1.0 - factors.beta1));
            let v = exp_avg_sq.zip(&grad, |v, g| v * factors.beta2 + g * g * (1.0 - factors.beta2));
            let change =
                m.zip(&v, |m, v| m / (v.sqrt() / factors.root_correction + factors.epsilon));
            let p = param.zip(&change, |p, change| p * factors.shrink - factors.step_size * change);
            expected.extend([p, m, v].map(|values| Expected::new(values, dtype)));
            tensors.push(([param, grad, exp_avg, exp_avg_sq], factors));
        }
        Self { tensors, expected }
    }

    fn check<B: TrainBackend>(&self, place: &Place<B::Device>, checker: &mut impl Checker<B>) {
        if accumulator(place.dtype) != place.dtype {
            return;
        }
        let tensors = self.tensors.iter().map(|(tensors, factors)| {
            let [param, grad, exp_avg, exp_avg_sq] =
                tensors.each_ref().map(|host| place.wide::<B>(host));
            AdamWTensor { param, grad, exp_avg, exp_avg_sq, factors: *factors }
        });
        let tensors: Vec<_> = tensors.collect();
        let compute = || -> Vec<Tensor<B, 2>> {
            let updates = B::adamw(tensors.clone()).into_iter();
            updates
                .flat_map(|AdamWUpdate { param, exp_avg, exp_avg_sq }| [param, exp_avg, exp_avg_sq])
                .collect()
        };
        checker.compare("adamw", compute, &self.expected.iter().collect::<Vec<_>>());
    }
}
