//! `gelu(gate) * up`, with `gelu(x) = x / 2 (1 + tanh(u))` and `u = sqrt(2 / pi) (x + 0.044715 x^3)`.

use std::f64::consts::PI;

use burn::backend::Autodiff;
use burn::tensor::DType;

use super::{Checker, Expected, Gradients, Host, Operation, Place, Rule, Source, backpropagate};
use crate::{TrainBackend, ops};

/// The gated activation.
#[derive(Clone, Debug)]
pub struct Geglu {
    gate_up: Host,
    dy: Host,
    y: Expected,
    d_gate_up: Expected,
}

/// Returns GELU and its slope.
fn gelu(x: f64) -> [f64; 2] {
    let root = (2.0 / PI).sqrt();
    let tanh = (root * (x + 0.044715 * x.powi(3))).tanh();
    let slope = root * (1.0 + 3.0 * 0.044715 * x * x);
    [0.5 * x * (1.0 + tanh), 0.5 * (1.0 + tanh) + 0.5 * x * (1.0 - tanh * tanh) * slope]
}

impl Operation for Geglu {
    /// `[T, I]`
    type Case = [usize; 2];

    fn quick() -> Vec<Self::Case> {
        vec![[1, 5], [5, 48], [67, 100], [130, 387]]
    }

    fn all() -> Vec<Self::Case> {
        [Self::quick(), vec![[1, 1], [7, 5], [33, 100], [2, 1000], [5, 4097]]].concat()
    }

    fn new(shape: &Self::Case, dtype: DType) -> Self {
        let [tokens, width] = *shape;
        let mut source = Source::new(tokens + width, dtype);
        let (gate_up, dy) = (source.matrix([tokens, 2 * width]), source.matrix(*shape));
        let y = Host::from_fn(dy.shape, |token, i| {
            let row = gate_up.row(token);
            gelu(row[i])[0] * row[width + i]
        });
        let d_gate_up = Host::from_fn(gate_up.shape, |token, column| {
            let (row, i) = (gate_up.row(token), column % width);
            let ([value, slope], dy) = (gelu(row[i]), dy.row(token)[i]);
            if column < width { dy * row[width + i] * slope } else { dy * value }
        });
        let [y, d_gate_up] = [y, d_gate_up].map(|values| Expected::new(values, dtype));
        Self { gate_up, dy, y, d_gate_up }
    }

    fn check<B: TrainBackend>(&self, place: &Place<B::Device>, checker: &mut impl Checker<B>) {
        let (gate_up, dy) = (place.matrix::<B>(&self.gate_up), place.matrix::<B>(&self.dy));
        checker.compare("geglu", || vec![B::geglu(gate_up.clone())], &[&self.y]);
        let compute = || vec![B::geglu_backward(gate_up.clone(), dy.clone())];
        checker.compare("geglu backward", compute, &[&self.d_gate_up]);
    }

    fn gradients<B: TrainBackend>(&self, place: &Place<B::Device>, rule: Rule) -> Gradients<'_, B> {
        let gate_up = place.leaf::<Autodiff<B>>(&self.gate_up);
        let y = match rule {
            Rule::Operation => ops::geglu::geglu(gate_up.clone()),
            Rule::Reference => ops::geglu::reference(gate_up.clone()),
        };
        (backpropagate(y, place.matrix(&self.dy), &[gate_up]), vec![&self.y, &self.d_gate_up])
    }
}
