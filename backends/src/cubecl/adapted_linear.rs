//! Projections with their low-rank branches: products by a library or the kernels that Burn finds best, everything beside
//! them by one of ours. See [`crate::ops::adapted_linear`].

use burn::tensor::{DType, Shape, Tensor as BurnTensor};
use burn_cubecl::kernel::{cast, slice};
use burn_cubecl::ops::numeric::{mul, mul_scalar};
use burn_cubecl::{CubeRuntime, tensor::CubeTensor};
use cubecl::prelude::InputScalar;

use super::branch::{Branch, put};
use super::launch::{empty, transposed};
use super::queue::{CubeGpu, Kernel, Queued, queue, queued, taken, tensor};
use super::weight::{PartWeight, WeightShape, times, times_transposed, weight_tensors};
use crate::{Adapted, AdaptedGrads, Adapter, Projection, Weight};

/// [`crate::TrainBackend::adapted_linear`].
pub(crate) fn adapted_linear<B: CubeGpu>(
    x: BurnTensor<B, 2>,
    projections: &[Projection<B>],
    residual: Option<BurnTensor<B, 2>>,
) -> Adapted<B> {
    let [tokens, _] = x.dims();
    let shape = Shapes::of(projections);
    let mut outputs = vec![([tokens, shape.width()].into(), x.dtype())];
    if shape.rank() > 0 {
        outputs.push(([tokens, shape.rank()].into(), DType::F32));
    }
    let mut inputs = vec![queued(&x)];
    inputs.extend(tensors(projections));
    // One product for all branches, unless dropout gives each an input of its own.
    let many: Vec<_> = adapters(projections).map(|adapter| adapter.a.clone()).collect();
    let dropout = adapters(projections).any(|adapter| adapter.dropout_mask.is_some());
    let stacked = (many.len() > 1 && !dropout).then(|| BurnTensor::cat(many, 0));
    inputs.extend(stacked.as_ref().map(queued));
    inputs.extend(residual.as_ref().map(queued));
    let kernel = Forward { shape, stacked: stacked.is_some() };
    let mut outputs = queue(kernel, inputs, &outputs).into_iter().map(tensor);
    let (output, low) = (outputs.next(), outputs.next());
    Adapted { output: output.unwrap_or_else(|| unreachable!("an operation without output")), low }
}

/// [`crate::TrainBackend::frozen_linear`].
pub(crate) fn frozen_linear<B: CubeGpu>(
    x: BurnTensor<B, 2>,
    weight: Weight<B>,
) -> BurnTensor<B, 2> {
    let adapter = None;
    adapted_linear(x, &[Projection { weight, adapter }], None).output
}

/// [`crate::TrainBackend::frozen_linear_backward`].
pub(crate) fn frozen_linear_backward<B: CubeGpu>(
    grad: BurnTensor<B, 2>,
    weight: Weight<B>,
) -> BurnTensor<B, 2> {
    let adapter = None;
    let projections = [Projection { weight, adapter }];
    let grads = adapted_linear_backward(None, &projections, None, grad, true);
    grads.x.unwrap_or_else(|| unreachable!("an operation without output"))
}

/// [`crate::TrainBackend::adapted_linear_backward`].
pub(crate) fn adapted_linear_backward<B: CubeGpu>(
    x: Option<BurnTensor<B, 2>>,
    projections: &[Projection<B>],
    low: Option<BurnTensor<B, 2>>,
    grad: BurnTensor<B, 2>,
    needs_x: bool,
) -> AdaptedGrads<B> {
    let shape = Shapes::of(projections);
    let mut outputs = Vec::new();
    if let (true, Some(first)) = (needs_x, projections.first()) {
        let of_x = [grad.dims()[0], first.weight.dims()[1]];
        outputs.push((Shape::from(of_x), grad.dtype()));
    }
    let adapters: Vec<_> = adapters(projections).collect();
    for adapter in &adapters {
        outputs.extend([&adapter.a, &adapter.b].map(|t| (t.shape(), t.dtype())));
    }
    if outputs.is_empty() {
        return AdaptedGrads { x: None, adapters: Vec::new() };
    }
    let mut inputs = vec![queued(&grad)];
    if let Some((x, low)) = x.as_ref().zip(low.as_ref()) {
        inputs.extend([queued(x), queued(low)]);
    }
    inputs.extend(tensors(projections));
    let kernel = BackwardPass { shape, needs_x };
    let mut outputs = queue(kernel, inputs, &outputs).into_iter().map(tensor);
    let x = if needs_x { outputs.next() } else { None };
    let outputs: Vec<_> = outputs.collect();
    AdaptedGrads {
        x,
        adapters: outputs.chunks(2).map(|ab| [ab[0].clone(), ab[1].clone()]).collect(),
    }
}

fn adapters<B: CubeGpu>(projections: &[Projection<B>]) -> impl Iterator<Item = &Adapter<B>> {
    projections.iter().filter_map(|p| p.adapter.as_ref())
}

/// The tensors of all projections, in the order in which [`Shapes::parts`] takes them.
fn tensors<B: CubeGpu>(projections: &[Projection<B>]) -> Vec<Queued<B::Runtime>> {
    let mut tensors = Vec::new();
    for projection in projections {
        weight_tensors(&projection.weight, &mut tensors);
        if let Some(adapter) = &projection.adapter {
            tensors.extend([queued(&adapter.a), queued(&adapter.b)]);
            tensors.extend(adapter.dropout_mask.as_ref().map(queued));
        }
    }
    tensors
}

/// What is known of the projections before their tensors are there.
#[derive(Clone, Debug)]
struct Shapes(Vec<ProjectionShape>);

#[derive(Clone, Debug)]
struct ProjectionShape {
    d_out: usize,
    weight: WeightShape,
    adapter: Option<AdapterShape>,
}

#[derive(Clone, Debug)]
struct AdapterShape {
    rank: usize,
    scaling: f32,
    dropout: bool,
}

/// A projection on the device.
struct Part<R: CubeRuntime> {
    weight: PartWeight<R>,
    d_out: usize,
    adapter: Option<PartAdapter<R>>,
}

struct PartAdapter<R: CubeRuntime> {
    a: CubeTensor<R>,
    b: CubeTensor<R>,
    mask: Option<CubeTensor<R>>,
    scaling: f32,
    rank: usize,
}

impl Shapes {
    fn of<B: CubeGpu>(projections: &[Projection<B>]) -> Self {
        let of = |projection: &Projection<B>| ProjectionShape {
            d_out: projection.weight.dims()[0],
            weight: WeightShape::of(&projection.weight),
            adapter: projection.adapter.as_ref().map(|adapter| AdapterShape {
                rank: adapter.a.dims()[0],
                scaling: adapter.scaling as f32,
                dropout: adapter.dropout_mask.is_some(),
            }),
        };
        Self(projections.iter().map(of).collect())
    }

    /// Columns of the output.
    fn width(&self) -> usize {
        self.0.iter().map(|projection| projection.d_out).sum()
    }

    /// Ranks of all branches.
    fn rank(&self) -> usize {
        let adapters = self.0.iter().filter_map(|p| p.adapter.as_ref());
        adapters.map(|adapter| adapter.rank).sum()
    }

    /// Takes the tensors of all projections.
    fn parts<R: CubeRuntime>(
        &self,
        from: &mut impl Iterator<Item = CubeTensor<R>>,
    ) -> Vec<Part<R>> {
        let mut part = |shape: &ProjectionShape| Part {
            weight: shape.weight.part(from),
            d_out: shape.d_out,
            adapter: shape.adapter.as_ref().map(|adapter| PartAdapter {
                a: taken(from),
                b: taken(from),
                mask: adapter.dropout.then(|| taken(from)),
                scaling: adapter.scaling,
                rank: adapter.rank,
            }),
        };
        self.0.iter().map(&mut part).collect()
    }
}

#[derive(Debug)]
struct Forward {
    shape: Shapes,
    /// Whether all `A` come below each other, too.
    stacked: bool,
}

impl Kernel for Forward {
    const NAME: &'static str = "adapted_linear";

    fn run<R: CubeRuntime>(&self, inputs: Vec<CubeTensor<R>>) -> Vec<CubeTensor<R>> {
        let mut inputs = inputs.into_iter();
        let x = inputs.next().unwrap_or_else(|| unreachable!("no input"));
        let parts = self.shape.parts(&mut inputs);
        let stacked = self.stacked.then(|| inputs.next()).flatten();
        let residual = inputs.next();
        let low = low_rank(&x, &parts, stacked, self.shape.rank());
        let alone = parts.len() == 1 && low.is_none() && residual.is_none();
        if alone {
            return parts.into_iter().map(|part| part.weight.times_transposed(&x)).collect();
        }
        let [tokens, _] = x.meta.shape().dims();
        let output = empty(&x, [tokens, self.shape.width()], x.dtype);
        let (mut column, mut next) = (0, 0);
        for part in parts {
            let (base, d_out) = (part.weight.times_transposed(&x), part.d_out);
            let branch = part.adapter.zip(low.as_ref()).map(|(adapter, low)| {
                let first = next;
                next += adapter.rank;
                Branch {
                    low: slice(low.clone(), &[0..tokens, first..next]),
                    right: adapter.b,
                    scaling: adapter.scaling,
                    factor: None,
                }
            });
            put(base, branch, residual.clone(), &output, column);
            column += d_out;
        }
        std::iter::once(output).chain(low).collect()
    }
}

/// `x A_i^T` of all branches side by side, in f32.
fn low_rank<R: CubeRuntime>(
    x: &CubeTensor<R>,
    parts: &[Part<R>],
    stacked: Option<CubeTensor<R>>,
    rank: usize,
) -> Option<CubeTensor<R>> {
    let adapters: Vec<_> = parts.iter().filter_map(|part| part.adapter.as_ref()).collect();
    let [tokens, _] = x.meta.shape().dims();
    let wide = (!adapters.is_empty()).then(|| cast(x.clone(), DType::F32))?;
    if let [adapter] = adapters.as_slice() {
        return Some(times_transposed(&dropped(&wide, adapter), adapter.a.clone()));
    }
    if let Some(stacked) = stacked {
        return Some(times_transposed(&wide, stacked));
    }
    let low = empty(x, [tokens, rank], DType::F32);
    let mut first = 0;
    for adapter in &adapters {
        let part = times_transposed(&dropped(&wide, adapter), adapter.a.clone());
        put(part, None, None, &low, first);
        first += adapter.rank;
    }
    Some(low)
}

#[derive(Debug)]
struct BackwardPass {
    shape: Shapes,
    needs_x: bool,
}

impl Kernel for BackwardPass {
    const NAME: &'static str = "adapted_linear_backward";

    fn run<R: CubeRuntime>(&self, inputs: Vec<CubeTensor<R>>) -> Vec<CubeTensor<R>> {
        let mut inputs = inputs.into_iter();
        let mut next = || inputs.next().unwrap_or_else(|| unreachable!("fewer than queued"));
        let grad = next();
        let wide = (self.shape.rank() > 0).then(|| cast(next(), DType::F32));
        let low = (self.shape.rank() > 0).then(&mut next);
        let parts = self.shape.parts(&mut inputs);
        let [tokens, _] = grad.meta.shape().dims();
        let (mut column, mut first) = (0, 0);
        let (mut d_x, mut outputs) = (None, Vec::new());
        for part in parts {
            let d_out = part.d_out;
            let dy = slice(grad.clone(), &[0..tokens, column..column + d_out]);
            column += d_out;
            let of_branch = part.adapter.as_ref().zip(low.as_ref()).zip(wide.as_ref());
            let branch = of_branch.map(|((adapter, low), wide)| {
                let end = first + adapter.rank;
                let low = slice(low.clone(), &[0..tokens, first..end]);
                first = end;
                let of = adapter_gradients(dy.clone(), adapter, low, wide);
                outputs.extend(of.gradients);
                of.through
            });
            if self.needs_x {
                d_x = Some(add_to(d_x, part.weight.times(&dy), branch));
            }
        }
        d_x.into_iter().chain(outputs).collect()
    }
}

struct OfAdapter<R: CubeRuntime> {
    /// Of `a` and `b`.
    gradients: [CubeTensor<R>; 2],
    /// What the branch adds to the gradient of its input.
    through: Branch<R>,
}

/// `dl = s dy B`, `dB = s dy^T low`, `dA = dl^T x`.
fn adapter_gradients<R: CubeRuntime>(
    dy: CubeTensor<R>,
    adapter: &PartAdapter<R>,
    low: CubeTensor<R>,
    x: &CubeTensor<R>,
) -> OfAdapter<R> {
    let scaled = |t| mul_scalar(t, InputScalar::new(adapter.scaling, DType::F32));
    let dy = cast(dy, DType::F32);
    let d_low = scaled(times(&dy, adapter.b.clone()));
    let d_b = scaled(times(&transposed(dy), low));
    let d_a = times(&transposed(d_low.clone()), dropped(x, adapter));
    OfAdapter {
        gradients: [d_a, d_b],
        through: Branch {
            low: d_low,
            right: transposed(adapter.a.clone()),
            scaling: 1.0,
            factor: adapter.mask.clone(),
        },
    }
}

/// `base + branch`, on top of what other projections gave.
fn add_to<R: CubeRuntime>(
    sum: Option<CubeTensor<R>>,
    base: CubeTensor<R>,
    branch: Option<Branch<R>>,
) -> CubeTensor<R> {
    if sum.is_none() && branch.is_none() {
        return base;
    }
    let shape: [usize; 2] = base.meta.shape().dims();
    let output = empty(&base, shape, base.dtype);
    put(base, branch, sum, &output, 0);
    output
}

/// `x` times the branch's dropout mask, if it has one.
fn dropped<R: CubeRuntime>(x: &CubeTensor<R>, adapter: &PartAdapter<R>) -> CubeTensor<R> {
    match &adapter.mask {
        Some(mask) => mul(x.clone(), mask.clone()),
        None => x.clone(),
    }
}

#[cfg(all(test, feature = "wgpu"))]
mod tests {
    use super::*;
    use crate::cubecl::pitched::{Given, same_when_pitched};

    #[test]
    fn on_pitched_rows() {
        let shape = Shapes(vec![
            ProjectionShape {
                d_out: 48,
                weight: WeightShape::Float,
                adapter: Some(AdapterShape { rank: 5, scaling: 0.5, dropout: true }),
            },
            ProjectionShape {
                d_out: 5,
                weight: WeightShape::Split(vec![
                    (0..2, WeightShape::Float),
                    (2..5, WeightShape::Float),
                ]),
                adapter: None,
            },
        ]);
        let projections = || {
            let shapes = [[48, 100], [5, 100], [48, 5], [9, 100], [2, 100], [3, 100]];
            shapes.map(Given::Floats)
        };
        let forward = Forward { shape: shape.clone(), stacked: false };
        let mut inputs = vec![Given::Floats([9, 100])];
        inputs.extend(projections());
        inputs.push(Given::Floats([9, 53]));
        same_when_pitched(&forward, &inputs);
        let backward = BackwardPass { shape, needs_x: true };
        let mut inputs =
            vec![[9, 53], [9, 100], [9, 5]].into_iter().map(Given::Floats).collect::<Vec<_>>();
        inputs.extend(projections());
        same_when_pitched(&backward, &inputs);
    }
}
