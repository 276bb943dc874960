//! `y = x / rms * weight` with `rms = sqrt(mean(x^2) + epsilon)`.

use burn::backend::Autodiff;
use burn::tensor::DType;

use super::{Checker, Expected, Gradients, Host, Operation, Place, Rule, Source, backpropagate};
use crate::{TrainBackend, ops};

/// Large enough to affect the norm of rows of size one.
const EPSILON: f64 = 1e-3;

/// The normalization of rows.
#[derive(Clone, Debug)]
pub struct RmsNorm {
    x: Host,
    weight: Host,
    dy: Host,
    y: Expected,
    d_x: Expected,
    /// `y + 3 x` and its gradient, which reaches `x` on two ways.
    with_residual: [Expected; 2],
}

impl Operation for RmsNorm {
    /// `[T, D]`
    type Case = [usize; 2];

    fn quick() -> Vec<Self::Case> {
        vec![[1, 5], [5, 48], [67, 100], [130, 774]]
    }

    fn all() -> Vec<Self::Case> {
        // A single value, every vector width, and more rows than a grid dimension allows.
        let more = [[1, 1], [7, 5], [3, 48], [33, 100], [2, 1000], [5, 4097], [70_000, 3]];
        let even = [[1, 6], [5, 144], [67, 300], [7, 12]];
        [Self::quick(), more.into(), even.into()].concat()
    }

    fn new(shape: &Self::Case, dtype: DType) -> Self {
        let [tokens, width] = *shape;
        let mut source = Source::new(tokens + width, dtype);
        let [x, weight, dy] = [*shape, [1, width], *shape].map(|shape| source.matrix(shape));
        let (mut y, mut d_x) = (Host::zeros(*shape), Host::zeros(*shape));
        for token in 0..tokens {
            let (x, dy) = (x.row(token), dy.row(token));
            let mean =
                |value: &dyn Fn(usize) -> f64| (0..width).map(value).sum::<f64>() / width as f64;
            let rms = (mean(&|i| x[i] * x[i]) + EPSILON).sqrt();
            let grad = |i: usize| dy[i] * weight.values[i];
            let projection = mean(&|i| grad(i) * x[i] / rms);
            for (i, x) in x.iter().enumerate() {
                y.row_mut(token)[i] = x / rms * weight.values[i];
                d_x.row_mut(token)[i] = (grad(i) - x / rms * projection) / rms;
            }
        }
        let with_residual = [y.zip(&x, |y, x| y + 3.0 * x), d_x.zip(&dy, |d_x, dy| d_x + 3.0 * dy)];
        let expected = |values| Expected::new(values, dtype);
        let with_residual = with_residual.map(expected);
        Self { x, weight, dy, y: expected(y), d_x: expected(d_x), with_residual }
    }

    fn check<B: TrainBackend>(&self, place: &Place<B::Device>, checker: &mut impl Checker<B>) {
        let (x, dy) = (place.matrix::<B>(&self.x), place.matrix::<B>(&self.dy));
        let weight = place.vector::<B>(&self.weight);
        let compute = || vec![B::rms_norm(x.clone(), weight.clone(), EPSILON)];
        checker.compare("rms_norm", compute, &[&self.y]);
        let compute = || vec![B::rms_norm_backward(x.clone(), weight.clone(), EPSILON, dy.clone())];
        checker.compare("rms_norm backward", compute, &[&self.d_x]);
    }

    fn gradients<B: TrainBackend>(&self, place: &Place<B::Device>, rule: Rule) -> Gradients<'_, B> {
        let norm = |with_residual: bool| {
            let x = place.leaf::<Autodiff<B>>(&self.x);
            let weight = place.vector(&self.weight);
            let y = match rule {
                Rule::Operation => ops::rms_norm::rms_norm(x.clone(), weight, EPSILON),
                Rule::Reference => ops::rms_norm::reference(x.clone(), weight, EPSILON),
            };
            let y = if with_residual { y + x.clone() * 3.0 } else { y };
            backpropagate(y, place.matrix(&self.dy), &[x])
        };
        let [y, d_x] = &self.with_residual;
        ([norm(false), norm(true)].concat(), vec![&self.y, &self.d_x, y, d_x])
    }
}
