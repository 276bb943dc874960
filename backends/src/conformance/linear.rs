//! `y = x W^T`, with float, quantized and split weights.

use burn::backend::Autodiff;
use burn::tensor::DType;

use super::weight::{extent, packed_gemms};
use super::{
    Checker, Expected, Extent, Gradients, Host, HostWeight, Kind, Operation, Place, Rule, Source,
    backpropagate,
};
use crate::{Format, TrainBackend, ops};

/// Returns `x W^T`, `[T, D_out]`.
pub(super) fn forward(x: &Host, weight: &Host) -> Host {
    Host::from_fn([x.shape[0], weight.shape[0]], |token, row| dot(x.row(token), weight.row(row)))
}

/// Returns `dy W`, `[T, D_in]`.
pub(super) fn backward(dy: &Host, weight: &Host) -> Host {
    let mut d_x = Host::zeros([dy.shape[0], weight.shape[1]]);
    for token in 0..dy.shape[0] {
        for (row, dy) in dy.row(token).iter().enumerate() {
            add_scaled(d_x.row_mut(token), *dy, weight.row(row));
        }
    }
    d_x
}

/// Returns `dy^T x`, `[D_out, D_in]`.
pub(super) fn weight_gradient(x: &Host, dy: &Host) -> Host {
    let mut d_weight = Host::zeros([dy.shape[1], x.shape[1]]);
    for token in 0..x.shape[0] {
        for (row, dy) in dy.row(token).iter().enumerate() {
            add_scaled(d_weight.row_mut(row), *dy, x.row(token));
        }
    }
    d_weight
}

/// Returns the dot product.
pub(super) fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

/// Adds `factor * row` to `sum`.
pub(super) fn add_scaled(sum: &mut [f64], factor: f64, row: &[f64]) {
    sum.iter_mut().zip(row).for_each(|(sum, value)| *sum += factor * value);
}

/// A frozen projection.
#[derive(Clone, Debug)]
pub struct Linear {
    kind: Kind,
    x: Host,
    weight: HostWeight,
    dy: Host,
    y: Expected,
    d_x: Expected,
}

/// Returns the quick cases of quantized weights, with as many tokens as decoding and as training has.
pub fn quick_packed() -> Vec<(Kind, [usize; 3])> {
    let kinds = [Format::Nf4, Format::Fp4, Format::Int8].map(Kind::Double).into_iter();
    let shapes = [[1, 96, 65], [5, 72, 100], [8, 129, 33], [130, 192, 48]];
    kinds.flat_map(|kind| shapes.map(|shape| (kind, shape))).collect()
}

impl Operation for Linear {
    /// The kind of the weight, and `[T, D_in, D_out]`.
    type Case = (Kind, [usize; 3]);

    fn quick() -> Vec<Self::Case> {
        // The last has rows of whole 16 bytes in every dtype, which libraries require.
        let shapes = [[7, 5, 3], [33, 48, 100], [1, 129, 65], [130, 257, 48], [67, 96, 160]];
        shapes.map(|shape| (Kind::Float, shape)).into()
    }

    fn all() -> Vec<Self::Case> {
        let mut cases = [Self::quick(), quick_packed()].concat();
        let more = [[1, 1, 1], [64, 96, 33], [130, 257, 31], [67, 96, 136]];
        cases.extend(more.map(|shape| (Kind::Float, shape)));
        for kind in Kind::SPLIT {
            cases.extend([[3, 96, 53], [33, 70, 53]].map(|shape| (kind, shape)));
        }
        for gemm in packed_gemms() {
            cases.extend(gemm.widths.map(|width| (gemm.kind, [gemm.tokens, gemm.d_in, width])));
        }
        cases
    }

    fn extent((kind, shape): &Self::Case) -> Extent {
        extent(*kind, *shape)
    }

    fn new((kind, [tokens, d_in, d_out]): &Self::Case, dtype: DType) -> Self {
        let mut source = Source::new(tokens * d_in + d_out, dtype);
        let x = source.matrix([*tokens, *d_in]);
        let weight = HostWeight::random(*kind, [*d_out, *d_in], &mut source);
        let dy = source.matrix([*tokens, *d_out]);
        let values = weight.values();
        let y = Expected::new(forward(&x, &values), dtype);
        let d_x = Expected::new(backward(&dy, &values), dtype);
        Self { kind: *kind, x, weight, dy, y, d_x }
    }

    fn check<B: TrainBackend>(&self, place: &Place<B::Device>, checker: &mut impl Checker<B>) {
        let (x, dy) = (place.matrix::<B>(&self.x), place.matrix::<B>(&self.dy));
        let weight = self.weight.on::<B>(place);
        let [forward, backward] = match self.kind {
            Kind::Float => ["frozen_linear", "frozen_linear backward"],
            Kind::Split(_) => ["frozen_linear split", "frozen_linear split backward"],
            _ => ["frozen_linear packed", "frozen_linear packed backward"],
        };
        let compute = || vec![B::frozen_linear(x.clone(), weight.clone())];
        checker.compare(forward, compute, &[&self.y]);
        let compute = || vec![B::frozen_linear_backward(dy.clone(), weight.clone())];
        checker.compare(backward, compute, &[&self.d_x]);
    }

    fn gradients<B: TrainBackend>(&self, place: &Place<B::Device>, rule: Rule) -> Gradients<'_, B> {
        let x = place.leaf::<Autodiff<B>>(&self.x);
        let weight = self.weight.on::<Autodiff<B>>(place);
        let y = match rule {
            Rule::Operation => ops::linear::linear(x.clone(), weight),
            Rule::Reference => ops::linear::reference(x.clone(), weight),
        };
        (backpropagate(y, place.matrix(&self.dy), &[x]), vec![&self.y, &self.d_x])
    }
}
