//! `y = x / rms * weight` with `rms = sqrt(mean(x^2) + epsilon)`, for each head of queries and keys; values are copied.

use burn::backend::Autodiff;
use burn::tensor::{DType, Tensor};

use super::{Checker, Expected, Gradients, Host, Operation, Place, Rule, Source};
use crate::ops::head_norm::{head_norm, reference};
use crate::{HeadNorm as Norm, TrainBackend};

/// Large enough to affect the norm of heads of width one.
const EPSILON: f64 = 1e-3;

/// The normalization of heads.
#[derive(Clone, Debug)]
pub struct HeadNorm {
    heads: [usize; 2],
    x: Host,
    weights: [Host; 2],
    dy: Host,
    y: Expected,
    d_x: Expected,
    d_weights: [Expected; 2],
}

impl HeadNorm {
    fn norm<B: TrainBackend>(&self, weights: [Tensor<B, 1>; 2]) -> Norm<B> {
        Norm { weights, heads: self.heads, epsilon: EPSILON }
    }
}

impl Operation for HeadNorm {
    /// Tokens, query heads, key heads, width of a head.
    type Case = [usize; 4];

    fn quick() -> Vec<Self::Case> {
        vec![[1, 1, 1, 4], [5, 3, 1, 24], [67, 4, 2, 50], [33, 2, 2, 128]]
    }

    fn all() -> Vec<Self::Case> {
        [Self::quick(), vec![[9, 6, 2, 2], [3, 5, 5, 7], [130, 4, 1, 64]]].concat()
    }

    fn new([tokens, queries, keys, head_dim]: &Self::Case, dtype: DType) -> Self {
        let (shape, width) = ([*tokens, (queries + 2 * keys) * head_dim], *head_dim);
        let mut source = Source::new(tokens + head_dim, dtype);
        let [x, dy] = [(); 2].map(|()| source.matrix(shape));
        let weights = [(); 2].map(|()| source.matrix([1, width]));
        // Values are copied.
        let (mut y, mut d_x) = (x.clone(), dy.clone());
        let mut d_weights = [(); 2].map(|()| Host::zeros([1, width]));
        for token in 0..*tokens {
            for head in 0..queries + keys {
                let side = usize::from(head >= *queries);
                let (first, weight) = (head * width, &weights[side].values);
                let (x, dy) = (&x.row(token)[first..][..width], &dy.row(token)[first..][..width]);
                let mean = |value: &dyn Fn(usize) -> f64| {
                    (0..width).map(value).sum::<f64>() / width as f64
                };
                let rms = (mean(&|i| x[i] * x[i]) + EPSILON).sqrt();
                let grad = |i: usize| dy[i] * weight[i];
                let projection = mean(&|i| grad(i) * x[i] / rms);
                for (i, x) in x.iter().enumerate() {
                    y.row_mut(token)[first + i] = x / rms * weight[i];
                    d_x.row_mut(token)[first + i] = (grad(i) - x / rms * projection) / rms;
                    d_weights[side].values[i] += dy[i] * x / rms;
                }
            }
        }
        let expected = |values| Expected::new(values, dtype);
        // A sum over all tokens and heads of terms that are rounded.
        let d_weights = d_weights.map(|values| expected(values).slack(4.0));
        let (y, d_x, heads) = (expected(y), expected(d_x), [*queries, *keys]);
        Self { heads, x, weights, dy, y, d_x, d_weights }
    }

    fn check<B: TrainBackend>(&self, place: &Place<B::Device>, checker: &mut impl Checker<B>) {
        let (x, dy) = (place.matrix::<B>(&self.x), place.matrix::<B>(&self.dy));
        let norm = self.norm(self.weights.each_ref().map(|weight| place.vector::<B>(weight)));
        checker.compare("head_norm", || vec![B::head_norm(x.clone(), &norm)], &[&self.y]);
        let compute = || vec![B::head_norm_backward(x.clone(), &norm, dy.clone())];
        checker.compare("head_norm backward", compute, &[&self.d_x]);
    }

    fn gradients<B: TrainBackend>(&self, place: &Place<B::Device>, rule: Rule) -> Gradients<'_, B> {
        let x = place.leaf::<Autodiff<B>>(&self.x);
        let leaf = |weight: &Host| place.vector::<Autodiff<B>>(weight).detach().require_grad();
        let weights = self.weights.each_ref().map(leaf);
        let norm = self.norm(weights.clone());
        let y = match rule {
            Rule::Operation => head_norm(x.clone(), &norm),
            Rule::Reference => reference(x.clone(), &norm),
        };
        let grads = (y.clone() * place.matrix(&self.dy)).sum().backward();
        let mut results = vec![y.inner()];
        results.extend(x.grad(&grads));
        results.extend(weights.iter().filter_map(|weight| Some(weight.grad(&grads)?.unsqueeze())));
        let [d_queries, d_keys] = &self.d_weights;
        (results, vec![&self.y, &self.d_x, d_queries, d_keys])
    }
}
