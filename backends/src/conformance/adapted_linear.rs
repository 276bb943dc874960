//! `y_i = x W_i^T + s_i (x A_i^T) B_i^T`, side by side, with dropout before `A_i` and a residual.

use burn::backend::Autodiff;
use burn::tensor::DType;

use super::weight::{extent, packed_gemms};
use super::{
    Checker, Expected, Extent, Gradients, Host, HostWeight, Kind, Operation, Place, Rule, Source,
    backpropagate, linear,
};
use crate::ops::accumulator;
use crate::{Adapter, Projection, TrainBackend, ops};

const SCALING: f64 = 1.75;

/// The sizes of projections of one input.
#[derive(Clone, Debug)]
pub struct Case {
    tokens: usize,
    d_in: usize,
    /// The width of each projection, the rank of its branch (0 for none), and the kind of its weight.
    projections: Vec<(usize, usize, Kind)>,
    dropout: bool,
    residual: bool,
}

/// A projection on the host.
#[derive(Clone, Debug)]
struct HostProjection {
    weight: HostWeight,
    branch: Option<Branch>,
}

/// A low-rank branch on the host.
#[derive(Clone, Debug)]
struct Branch {
    a: Host,
    b: Host,
    dropout_mask: Option<Host>,
}

/// Projections of one input, with and without branches.
#[derive(Clone, Debug)]
pub struct AdaptedLinear {
    x: Host,
    projections: Vec<HostProjection>,
    residual: Option<Host>,
    dy: Host,
    expected: Results,
}

/// The expected results.
#[derive(Clone, Debug)]
struct Results {
    y: Expected,
    low: Option<Expected>,
    d_x: Expected,
    /// The gradients of `a` and `b` of each branch.
    d_branches: Vec<[Expected; 2]>,
    d_residual: Expected,
}

impl Branch {
    /// Returns the branch's input.
    fn drop(&self, x: &Host) -> Host {
        self.dropout_mask.as_ref().map_or_else(|| x.clone(), |mask| x.zip(mask, |a, b| a * b))
    }
}

impl Results {
    /// Computes the results: `dB = s dy^T (x A^T)`, `dA = (s dy B)^T x`, `dx = sum of dy W + s dy B A`.
    fn new(
        x: &Host,
        projections: &[HostProjection],
        residual: Option<&Host>,
        dy: &Host,
        dtype: DType,
    ) -> Self {
        let (mut outputs, mut lows, mut d_branches) = (Vec::new(), Vec::new(), Vec::new());
        let (mut d_x, mut column) = (Host::zeros(x.shape), 0);
        for HostProjection { weight, branch } in projections {
            let weight = weight.values();
            let dy = dy.columns(column, weight.shape[0]);
            column += weight.shape[0];
            let mut y = linear::forward(x, &weight);
            d_x = d_x.zip(&linear::backward(&dy, &weight), |a, b| a + b);
            if let Some(branch) = branch {
                let input = branch.drop(x);
                let low = linear::forward(&input, &branch.a);
                y = y.zip(&linear::forward(&low, &branch.b), |y, delta| y + SCALING * delta);
                let d_low = linear::backward(&dy, &branch.b);
                let through = branch.drop(&linear::backward(&d_low, &branch.a));
                d_x = d_x.zip(&through, |a, b| a + SCALING * b);
                let both =
                    [linear::weight_gradient(&input, &d_low), linear::weight_gradient(&low, &dy)];
                d_branches.push(both.map(|mut grad| {
                    grad.values.iter_mut().for_each(|value| *value *= SCALING);
                    Expected::new(grad, accumulator(dtype))
                }));
                lows.push(low);
            }
            outputs.push(y);
        }
        let y = Host::side_by_side(&outputs);
        let y = residual.map_or_else(|| y.clone(), |residual| y.zip(residual, |a, b| a + b));
        let low = (!lows.is_empty()).then(|| Host::side_by_side(&lows));
        Self {
            y: Expected::new(y, dtype),
            low: low.map(|low| Expected::new(low, accumulator(dtype))),
            d_x: Expected::new(d_x, dtype),
            d_branches,
            d_residual: Expected::new(dy.clone(), dtype),
        }
    }
}

impl AdaptedLinear {
    fn projections_on<B: TrainBackend>(&self, place: &Place<B::Device>) -> Vec<Projection<B>> {
        let adapter = |branch: &Branch| Adapter {
            a: place.wide::<B>(&branch.a),
            b: place.wide::<B>(&branch.b),
            scaling: SCALING,
            dropout_mask: branch.dropout_mask.as_ref().map(|mask| place.wide::<B>(mask)),
        };
        let projections = self.projections.iter();
        let projections = projections.map(|projection| Projection {
            weight: projection.weight.on::<B>(place),
            adapter: projection.branch.as_ref().map(adapter),
        });
        projections.collect()
    }
}

/// Creates a case of float weights with the width and the rank of each.
fn floats(
    [tokens, d_in]: [usize; 2],
    projections: &[[usize; 2]],
    dropout: bool,
    residual: bool,
) -> Case {
    let projections = projections.iter().map(|[width, rank]| (*width, *rank, Kind::Float));
    Case { tokens, d_in, projections: projections.collect(), dropout, residual }
}

impl Operation for AdaptedLinear {
    type Case = Case;

    fn quick() -> Vec<Case> {
        vec![
            floats([7, 5], &[[3, 2], [4, 0], [6, 5]], false, true),
            floats([45, 64], &[[96, 16], [32, 0], [32, 16]], false, true),
            floats([33, 48], &[[100, 16]], false, true),
            floats([65, 100], &[[48, 7], [31, 4]], true, true),
            floats([70, 129], &[[64, 0], [33, 0]], false, true),
        ]
    }

    fn all() -> Vec<Case> {
        let mut cases = Self::quick();
        cases.extend([
            floats([1, 1], &[[1, 1]], false, false),
            floats([7, 5], &[[3, 2], [4, 0], [6, 5]], false, false),
            floats([7, 5], &[[3, 2], [4, 0], [6, 4]], false, false),
            floats([130, 65], &[[31, 4], [31, 4]], true, false),
            floats([70, 129], &[[64, 0], [33, 0]], false, false),
            floats([65, 40], &[[40, 7]], true, true),
            floats([7, 5], &[[3, 0]], false, false),
            floats([70, 65], &[[48, 4], [20, 0], [36, 7]], false, false),
            floats([5, 100], &[[48, 0], [5, 0]], false, true),
            floats([130, 31], &[[70, 40], [5, 3]], true, true),
            floats([66, 40], &[[9, 8], [9, 8], [9, 8]], false, false),
            floats([7, 5], &[[13, 3]], true, true),
        ]);
        for kind in Kind::SPLIT {
            let projections = vec![(53, 3, kind), (7, 0, Kind::Float)];
            cases.extend([[3, 96], [33, 70]].map(|[tokens, d_in]| {
                let projections = projections.clone();
                Case { tokens, d_in, projections, dropout: false, residual: true }
            }));
        }
        // `Linear` has all of them. Five shares no factor with the number of formats, so that each is among these.
        for gemm in packed_gemms().into_iter().step_by(5) {
            let [first, second] = gemm.widths;
            let (kind, tokens, d_in) = (gemm.kind, gemm.tokens, gemm.d_in);
            let [first, float, second] = [(first, 3, kind), (4, 2, Kind::Float), (second, 0, kind)];
            for residual in [false, true] {
                let projections =
                    if residual { vec![first, float, second] } else { vec![first, second] };
                cases.push(Case { tokens, d_in, projections, dropout: false, residual });
            }
        }
        cases
    }

    fn extent(case: &Case) -> Extent {
        let width = case.projections.iter().map(|(width, _, _)| width).sum();
        extent(case.projections[0].2, [case.tokens, case.d_in, width])
    }

    fn new(case: &Case, dtype: DType) -> Self {
        let width = case.projections.iter().map(|(width, _, _)| width).sum();
        let mut source = Source::new(case.tokens * case.d_in + width, dtype);
        let x_shape = [case.tokens, case.d_in];
        let x = source.matrix(x_shape);
        let projection = |(index, (d_out, rank, kind)): (usize, &(usize, usize, Kind))| {
            let weight = HostWeight::random(*kind, [*d_out, case.d_in], &mut source);
            // Every third element is dropped, a different one for each branch.
            let mask = |row, column| match (row * case.d_in + column + index) % 3 {
                0 => 0.0,
                _ => 1.5,
            };
            let branch = (*rank > 0).then(|| Branch {
                a: source.matrix([*rank, case.d_in]),
                b: source.matrix([*d_out, *rank]),
                dropout_mask: case.dropout.then(|| Host::from_fn(x_shape, mask)),
            });
            HostProjection { weight, branch }
        };
        let projections: Vec<_> = case.projections.iter().enumerate().map(projection).collect();
        let residual = case.residual.then(|| source.matrix([case.tokens, width]));
        let dy = source.matrix([case.tokens, width]);
        let expected = Results::new(&x, &projections, residual.as_ref(), &dy, dtype);
        Self { x, projections, residual, dy, expected }
    }

    fn check<B: TrainBackend>(&self, place: &Place<B::Device>, checker: &mut impl Checker<B>) {
        let (x, dy) = (place.matrix::<B>(&self.x), place.matrix::<B>(&self.dy));
        let projections = self.projections_on::<B>(place);
        let residual = self.residual.as_ref().map(|residual| place.matrix::<B>(residual));
        let branch_dtype = accumulator(place.dtype);
        let compute = || {
            let y = B::adapted_linear(x.clone(), &projections, residual.clone());
            assert!(y.low.iter().all(|low| low.dtype() == branch_dtype));
            std::iter::once(y.output).chain(y.low).collect()
        };
        let Results { y, low, d_x, d_branches, .. } = &self.expected;
        let expected: Vec<_> = std::iter::once(y).chain(low).collect();
        checker.compare("adapted_linear", compute, &expected);

        let low = B::adapted_linear(x.clone(), &projections, None).low;
        for needs_x in [true, false] {
            let compute = || {
                let (x, low, dy) = (Some(x.clone()), low.clone(), dy.clone());
                let d = B::adapted_linear_backward(x, &projections, low, dy, needs_x);
                let d_branches: Vec<_> = d.adapters.into_iter().flatten().collect();
                assert!(d_branches.iter().all(|grad| grad.dtype() == branch_dtype));
                d.x.into_iter().chain(d_branches).collect()
            };
            let d_x = needs_x.then_some(d_x);
            let expected: Vec<_> = d_x.into_iter().chain(d_branches.iter().flatten()).collect();
            checker.compare("adapted_linear backward", compute, &expected);
        }
    }

    fn gradients<B: TrainBackend>(&self, place: &Place<B::Device>, rule: Rule) -> Gradients<'_, B> {
        let x = place.leaf::<Autodiff<B>>(&self.x);
        let mut leaves = vec![x.clone()];
        let mut projections = self.projections_on::<Autodiff<B>>(place);
        for adapter in projections.iter_mut().filter_map(|p| p.adapter.as_mut()) {
            adapter.a = adapter.a.clone().require_grad();
            adapter.b = adapter.b.clone().require_grad();
            leaves.extend([adapter.a.clone(), adapter.b.clone()]);
        }
        let residual = self.residual.as_ref().map(|residual| place.leaf(residual));
        leaves.extend(residual.clone());
        let y = match rule {
            Rule::Operation => ops::adapted_linear::adapted_linear(x, &projections, residual),
            Rule::Reference => ops::adapted_linear::reference(x, &projections, residual).output,
        };
        let Results { y: output, d_x, d_branches, d_residual, .. } = &self.expected;
        let mut expected = vec![output, d_x];
        expected.extend(d_branches.iter().flatten());
        expected.extend(self.residual.as_ref().map(|_| d_residual));
        (backpropagate(y, place.matrix(&self.dy), &leaves), expected)
    }
}
