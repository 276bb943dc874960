//! Clipping: the sum of the squares of many tensors, and many tensors times a factor.

use burn::tensor::{DType, Tensor};

use super::{Checker, Expected, Host, Operation, Place, Source};
use crate::TrainBackend;
use crate::ops::accumulator;

/// Tensors in f32, as gradients are, whatever the dtype of the weights.
#[derive(Clone, Debug)]
pub struct Clip {
    tensors: Vec<Host>,
    /// `[1, 1]`
    factor: Host,
    /// `[1, 1]`
    sum_of_squares: Expected,
    scaled: Vec<Expected>,
}

impl Operation for Clip {
    /// The shape of each tensor.
    type Case = Vec<[usize; 2]>;

    fn quick() -> Vec<Self::Case> {
        vec![vec![[16, 48], [101, 5]], many_shapes()]
    }

    fn all() -> Vec<Self::Case> {
        // More values than the threads of one launch.
        [Self::quick(), vec![vec![[300, 128], [1, 1]]]].concat()
    }

    fn new(shapes: &Self::Case, dtype: DType) -> Self {
        let dtype = accumulator(dtype);
        let mut source = Source::new(3, dtype);
        let factor = source.matrix([1, 1]);
        let tensors: Vec<Host> = shapes.iter().map(|shape| source.matrix(*shape)).collect();
        let squares = tensors.iter().flat_map(|tensor| &tensor.values).map(|value| value * value);
        let sum = Host { shape: [1, 1], values: vec![squares.sum()] };
        let scaled = tensors.iter().map(|tensor| {
            let values = tensor.values.iter().map(|value| value * factor.values[0]).collect();
            Expected::new(Host { shape: tensor.shape, values }, dtype)
        });
        let scaled = scaled.collect();
        Self { tensors, factor, sum_of_squares: Expected::new(sum, dtype), scaled }
    }

    fn check<B: TrainBackend>(&self, place: &Place<B::Device>, checker: &mut impl Checker<B>) {
        if accumulator(place.dtype) != place.dtype {
            return;
        }
        let tensors: Vec<_> = self.tensors.iter().map(|host| place.wide::<B>(host)).collect();
        let factor = || place.wide::<B>(&self.factor).reshape([1]);
        let sum = || vec![B::sum_of_squares(&tensors).unsqueeze()];
        checker.compare("sum_of_squares", sum, &[&self.sum_of_squares]);
        let scaled = || -> Vec<Tensor<B, 2>> { B::scale_all(tensors.clone(), factor()) };
        checker.compare("scale_all", scaled, &self.scaled.iter().collect::<Vec<_>>());
    }
}

/// Returns the shapes of more tensors than one launch takes, as of the branches of an adapter.
fn many_shapes() -> Vec<[usize; 2]> {
    (0..19).map(|i| if i % 2 == 0 { [4, 9 + i] } else { [9 + i, 4] }).collect()
}
