//! The rotation of the first heads of each token by its angles: feature `i` together with `i + Dh/2`.

use burn::backend::Autodiff;
use burn::tensor::DType;

use super::{Checker, Expected, Gradients, Host, Operation, Place, Rule, Source, backpropagate};
use crate::ops::accumulator;
use crate::{RotaryAngles, Rotation, TrainBackend, ops};

/// The rotary embedding.
#[derive(Clone, Debug)]
pub struct Rope {
    rotated_heads: usize,
    x: Host,
    cos: Host,
    sin: Host,
    forward: Expected,
    inverse: Expected,
}

/// Rotates by the angles whose sines are multiplied by `sign`.
fn rotate(x: &Host, [cos, sin]: [&Host; 2], rotated_heads: usize, sign: f64) -> Host {
    let half = cos.shape[1];
    Host::from_fn(x.shape, |token, column| {
        let (head, feature) = (column / (2 * half), column % (2 * half));
        let (row, i) = (x.row(token), feature % half);
        let at = |feature: usize| row[head * 2 * half + feature];
        let (cos, sin) = (cos.row(token)[i], sign * sin.row(token)[i]);
        match feature {
            _ if head >= rotated_heads => row[column],
            _ if feature < half => at(i) * cos - at(i + half) * sin,
            _ => at(i + half) * cos + at(i) * sin,
        }
    })
}

impl Rope {
    fn angles<B: TrainBackend>(&self, place: &Place<B::Device>) -> RotaryAngles<B> {
        let on = |host: &Host| host.on(accumulator(place.dtype), place.layout, &place.device);
        RotaryAngles { cos: on(&self.cos), sin: on(&self.sin) }
    }
}

impl Operation for Rope {
    /// Tokens, heads, rotated heads, half the width of a head.
    type Case = [usize; 4];

    fn quick() -> Vec<Self::Case> {
        [[1, 5], [5, 24], [67, 50], [130, 129]].map(|[tokens, half]| [tokens, 3, 2, half]).into()
    }

    fn all() -> Vec<Self::Case> {
        let mut cases = Self::quick();
        cases.extend([
            [1, 3, 2, 1],
            [1, 1, 1, 1],
            [9, 3, 2, 5],
            [130, 6, 4, 24],
            [3, 4, 1, 50],
            [17, 5, 5, 64],
            [7, 3, 2, 2],
        ]);
        cases
    }

    fn new([tokens, heads, rotated_heads, half]: &Self::Case, dtype: DType) -> Self {
        let mut source = Source::new(tokens + half, dtype);
        let x = source.matrix([*tokens, heads * 2 * half]);
        let [cos, sin] = [(); 2].map(|()| source.matrix([*tokens, *half]));
        let [forward, inverse] = [1.0, -1.0]
            .map(|sign| Expected::new(rotate(&x, [&cos, &sin], *rotated_heads, sign), dtype));
        Self { rotated_heads: *rotated_heads, x, cos, sin, forward, inverse }
    }

    fn check<B: TrainBackend>(&self, place: &Place<B::Device>, checker: &mut impl Checker<B>) {
        let (x, angles) = (place.matrix::<B>(&self.x), self.angles::<B>(place));
        for (name, rotation, expected) in [
            ("rope", Rotation::Forward, &self.forward),
            ("rope backward", Rotation::Inverse, &self.inverse),
        ] {
            let compute = || vec![B::rope(x.clone(), &angles, self.rotated_heads, rotation)];
            checker.compare(name, compute, &[expected]);
        }
    }

    fn gradients<B: TrainBackend>(&self, place: &Place<B::Device>, rule: Rule) -> Gradients<'_, B> {
        let x = place.leaf::<Autodiff<B>>(&self.x);
        let (angles, heads) = (self.angles::<Autodiff<B>>(place), self.rotated_heads);
        let y = match rule {
            Rule::Operation => ops::rope::rope(x.clone(), &angles, heads),
            Rule::Reference => ops::rope::reference(x.clone(), &angles, heads, Rotation::Forward),
        };
        // The gradient of a rotation is the inverse rotation, here of the same values.
        (backpropagate(y, place.matrix(&self.x), &[x]), vec![&self.forward, &self.inverse])
    }
}
