//! Projections with their low-rank branches. The GEMMs run in a vendor library or in the kernels that Burn finds
//! fastest; one kernel of this crate adds branch and residual. See [`crate::ops::adapted_linear`].

use burn::tensor::{DType, Shape, Tensor as BurnTensor};
use burn_cubecl::kernel::cast;
use burn_cubecl::ops::numeric::mul;
use burn_cubecl::tensor::CubeTensor;

use super::branch::{Branch, write_columns};
use super::launch::{columns, empty, transposed};
use super::queue::{CubeGpu, Kernel, QueuedTensor, burn_tensor, next_input, queue, queued_tensor};
use super::runtime::GpuRuntime;
use super::weight::{
    DeviceWeight, WeightSpec, matmul, matmul_transposed, scaled_matmul, weight_tensors,
};
use crate::{Adapted, AdaptedGrads, Adapter, Projection, Weight};

/// Queues the forward kernels: see [`crate::TrainBackend::adapted_linear`].
pub(crate) fn adapted_linear<B: CubeGpu>(
    x: BurnTensor<B, 2>,
    projections: &[Projection<B>],
    residual: Option<BurnTensor<B, 2>>,
) -> Adapted<B> {
    let [tokens, _] = x.dims();
    let specs = ProjectionSpecs::new(projections);
    let mut outputs = vec![([tokens, specs.width()].into(), x.dtype())];
    if specs.rank() > 0 {
        outputs.push(([tokens, specs.rank()].into(), DType::F32));
    }
    let mut inputs = vec![queued_tensor(&x)];
    inputs.extend(projection_tensors(projections));
    // One GEMM serves all branches, unless dropout gives each of them its own input.
    let a_matrices: Vec<_> = adapters(projections).map(|adapter| adapter.a.clone()).collect();
    let dropout = adapters(projections).any(|adapter| adapter.dropout_mask.is_some());
    let stacked = (a_matrices.len() > 1 && !dropout).then(|| BurnTensor::cat(a_matrices, 0));
    inputs.extend(stacked.as_ref().map(queued_tensor));
    inputs.extend(residual.as_ref().map(queued_tensor));
    let kernel = Forward { specs, stacked: stacked.is_some() };
    let mut outputs = queue(kernel, inputs, &outputs).into_iter().map(burn_tensor);
    let (output, low) = (outputs.next(), outputs.next());
    Adapted { output: output.unwrap_or_else(|| unreachable!("an operation without output")), low }
}

/// Projects by a weight without a branch: see [`crate::TrainBackend::frozen_linear`].
pub(crate) fn frozen_linear<B: CubeGpu>(
    x: BurnTensor<B, 2>,
    weight: Weight<B>,
) -> BurnTensor<B, 2> {
    adapted_linear(x, &[Projection { weight, adapter: None }], None).output
}

/// Returns the input gradient of [`frozen_linear`]: see [`crate::TrainBackend::frozen_linear_backward`].
pub(crate) fn frozen_linear_backward<B: CubeGpu>(
    grad: BurnTensor<B, 2>,
    weight: Weight<B>,
) -> BurnTensor<B, 2> {
    let projections = [Projection { weight, adapter: None }];
    let grads = adapted_linear_backward(None, &projections, None, grad, true);
    grads.x.unwrap_or_else(|| unreachable!("an operation without output"))
}

/// Queues the backward kernels: see [`crate::TrainBackend::adapted_linear_backward`].
pub(crate) fn adapted_linear_backward<B: CubeGpu>(
    x: Option<BurnTensor<B, 2>>,
    projections: &[Projection<B>],
    low: Option<BurnTensor<B, 2>>,
    grad: BurnTensor<B, 2>,
    needs_x: bool,
) -> AdaptedGrads<B> {
    let specs = ProjectionSpecs::new(projections);
    let mut outputs = Vec::new();
    if let (true, Some(first)) = (needs_x, projections.first()) {
        let shape = [grad.dims()[0], first.weight.dims()[1]];
        outputs.push((Shape::from(shape), grad.dtype()));
    }
    let adapters: Vec<_> = adapters(projections).collect();
    for adapter in &adapters {
        outputs.extend([&adapter.a, &adapter.b].map(|t| (t.shape(), t.dtype())));
    }
    if outputs.is_empty() {
        return AdaptedGrads { x: None, adapters: Vec::new() };
    }
    let mut inputs = vec![queued_tensor(&grad)];
    if let Some((x, low)) = x.as_ref().zip(low.as_ref()) {
        inputs.extend([queued_tensor(x), queued_tensor(low)]);
    }
    inputs.extend(projection_tensors(projections));
    let kernel = BackwardPass { specs, needs_x };
    let mut outputs = queue(kernel, inputs, &outputs).into_iter().map(burn_tensor);
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

/// Returns the tensors of all projections, in the order in which [`ProjectionSpecs::take_tensors`] reads them.
fn projection_tensors<B: CubeGpu>(projections: &[Projection<B>]) -> Vec<QueuedTensor<B::Runtime>> {
    let mut tensors = Vec::new();
    for projection in projections {
        weight_tensors(&projection.weight, &mut tensors);
        if let Some(adapter) = &projection.adapter {
            tensors.extend([queued_tensor(&adapter.a), queued_tensor(&adapter.b)]);
            tensors.extend(adapter.dropout_mask.as_ref().map(queued_tensor));
        }
    }
    tensors
}

/// The metadata of the projections, known before their tensors are on the device.
#[derive(Clone, Debug)]
struct ProjectionSpecs(Vec<ProjectionSpec>);

#[derive(Clone, Debug)]
struct ProjectionSpec {
    d_out: usize,
    weight: WeightSpec,
    adapter: Option<AdapterSpec>,
}

#[derive(Clone, Debug)]
struct AdapterSpec {
    rank: usize,
    scaling: f32,
    dropout: bool,
}

/// A projection whose tensors are on the device.
struct DeviceProjection<R: GpuRuntime> {
    weight: DeviceWeight<R>,
    d_out: usize,
    adapter: Option<DeviceAdapter<R>>,
}

struct DeviceAdapter<R: GpuRuntime> {
    a: CubeTensor<R>,
    b: CubeTensor<R>,
    mask: Option<CubeTensor<R>>,
    scaling: f32,
    rank: usize,
}

impl ProjectionSpecs {
    fn new<B: CubeGpu>(projections: &[Projection<B>]) -> Self {
        let spec = |projection: &Projection<B>| ProjectionSpec {
            d_out: projection.weight.dims()[0],
            weight: WeightSpec::new(&projection.weight),
            adapter: projection.adapter.as_ref().map(|adapter| AdapterSpec {
                rank: adapter.a.dims()[0],
                scaling: adapter.scaling as f32,
                dropout: adapter.dropout_mask.is_some(),
            }),
        };
        Self(projections.iter().map(spec).collect())
    }

    /// Returns the number of columns of the output.
    fn width(&self) -> usize {
        self.0.iter().map(|projection| projection.d_out).sum()
    }

    /// Returns the sum of the ranks of all branches.
    fn rank(&self) -> usize {
        let adapters = self.0.iter().filter_map(|p| p.adapter.as_ref());
        adapters.map(|adapter| adapter.rank).sum()
    }

    /// Takes the tensors of all projections from a kernel's inputs.
    fn take_tensors<R: GpuRuntime>(
        &self,
        from: &mut impl Iterator<Item = CubeTensor<R>>,
    ) -> Vec<DeviceProjection<R>> {
        let mut take = |spec: &ProjectionSpec| DeviceProjection {
            weight: spec.weight.take_tensors(from),
            d_out: spec.d_out,
            adapter: spec.adapter.as_ref().map(|adapter| DeviceAdapter {
                a: next_input(from),
                b: next_input(from),
                mask: adapter.dropout.then(|| next_input(from)),
                scaling: adapter.scaling,
                rank: adapter.rank,
            }),
        };
        self.0.iter().map(&mut take).collect()
    }
}

#[derive(Debug)]
struct Forward {
    specs: ProjectionSpecs,
    /// Whether the inputs also hold all `A` matrices stacked below each other.
    stacked: bool,
}

impl Kernel for Forward {
    const NAME: &'static str = "adapted_linear";

    fn run<R: GpuRuntime>(&self, inputs: Vec<CubeTensor<R>>) -> Vec<CubeTensor<R>> {
        let mut inputs = inputs.into_iter();
        let x = inputs.next().unwrap_or_else(|| unreachable!("no input"));
        let projections = self.specs.take_tensors(&mut inputs);
        let stacked = self.stacked.then(|| inputs.next()).flatten();
        let residual = inputs.next();
        let low = low_rank(&x, &projections, stacked, self.specs.rank());
        if projections.len() == 1 && low.is_none() && residual.is_none() {
            return projections.into_iter().map(|p| p.weight.project(&x)).collect();
        }
        let [tokens, _] = x.meta.shape().dims();
        let output = empty(&x, [tokens, self.specs.width()], x.dtype);
        let (mut column, mut next_rank) = (0, 0);
        for projection in projections {
            let weight = projection.weight;
            if let Some((adapter, low)) = projection.adapter.zip(low.as_ref()) {
                let first_rank = next_rank;
                next_rank += adapter.rank;
                let branch = Branch {
                    low: columns(low.clone(), first_rank..next_rank),
                    right: adapter.b,
                    scaling: adapter.scaling,
                    factor: None,
                };
                let base = weight.project(&x);
                write_columns(base, Some(branch), residual.clone(), &output, column);
            } else {
                weight.project_into(&x, residual.as_ref(), &output, column);
            }
            column += projection.d_out;
        }
        std::iter::once(output).chain(low).collect()
    }
}

/// Computes `x A_i^T` of all branches side by side, in f32. Returns `None` without branches.
fn low_rank<R: GpuRuntime>(
    x: &CubeTensor<R>,
    projections: &[DeviceProjection<R>],
    stacked: Option<CubeTensor<R>>,
    rank: usize,
) -> Option<CubeTensor<R>> {
    let adapters: Vec<_> = projections.iter().filter_map(|p| p.adapter.as_ref()).collect();
    let [tokens, _] = x.meta.shape().dims();
    let x_f32 = (!adapters.is_empty()).then(|| cast(x.clone(), DType::F32))?;
    if let [adapter] = adapters.as_slice() {
        return Some(matmul_transposed(&apply_dropout(&x_f32, adapter), adapter.a.clone()));
    }
    if let Some(stacked) = stacked {
        return Some(matmul_transposed(&x_f32, stacked));
    }
    let low = empty(x, [tokens, rank], DType::F32);
    let mut first = 0;
    for adapter in &adapters {
        let part = matmul_transposed(&apply_dropout(&x_f32, adapter), adapter.a.clone());
        write_columns(part, None, None, &low, first);
        first += adapter.rank;
    }
    Some(low)
}

#[derive(Debug)]
struct BackwardPass {
    specs: ProjectionSpecs,
    needs_x: bool,
}

impl Kernel for BackwardPass {
    const NAME: &'static str = "adapted_linear_backward";

    fn run<R: GpuRuntime>(&self, inputs: Vec<CubeTensor<R>>) -> Vec<CubeTensor<R>> {
        let mut inputs = inputs.into_iter();
        let mut next = || inputs.next().unwrap_or_else(|| unreachable!("fewer than queued"));
        let grad = next();
        let x_f32 = (self.specs.rank() > 0).then(|| cast(next(), DType::F32));
        let low = (self.specs.rank() > 0).then(&mut next);
        let projections = self.specs.take_tensors(&mut inputs);
        let (mut column, mut first) = (0, 0);
        let (mut d_x, mut outputs) = (None, Vec::new());
        for projection in projections {
            let d_out = projection.d_out;
            let dy = columns(grad.clone(), column..column + d_out);
            column += d_out;
            let adapter = projection.adapter.as_ref().zip(low.as_ref()).zip(x_f32.as_ref());
            let branch = adapter.map(|((adapter, low), x)| {
                let end = first + adapter.rank;
                let low = columns(low.clone(), first..end);
                first = end;
                let grads = adapter_gradients(dy.clone(), adapter, low, x);
                outputs.extend(grads.gradients);
                grads.input_branch
            });
            if self.needs_x {
                let (base, sum) = projection.weight.add_backward(&dy, d_x);
                d_x = Some(add_branch(sum, base, branch));
            }
        }
        d_x.into_iter().chain(outputs).collect()
    }
}

/// The gradients of a branch.
struct AdapterGradients<R: GpuRuntime> {
    /// The gradients of `a` and `b`.
    gradients: [CubeTensor<R>; 2],
    /// The branch's term of the input gradient.
    input_branch: Branch<R>,
}

/// Computes the gradients of a branch: `dl = s dy B`, `dB = s dy^T low`, `dA = dl^T x`.
fn adapter_gradients<R: GpuRuntime>(
    dy: CubeTensor<R>,
    adapter: &DeviceAdapter<R>,
    low: CubeTensor<R>,
    x: &CubeTensor<R>,
) -> AdapterGradients<R> {
    let dy = cast(dy, DType::F32);
    let d_low = scaled_matmul(&dy, adapter.b.clone(), adapter.scaling);
    let d_b = scaled_matmul(&transposed(dy), low, adapter.scaling);
    let d_a = matmul(&transposed(d_low.clone()), apply_dropout(x, adapter));
    AdapterGradients {
        gradients: [d_a, d_b],
        input_branch: Branch {
            low: d_low,
            right: transposed(adapter.a.clone()),
            scaling: 1.0,
            factor: adapter.mask.clone(),
        },
    }
}

/// Returns `base + branch + sum`, where `sum` is the input gradient of the projections so far unless `base` contains it.
fn add_branch<R: GpuRuntime>(
    sum: Option<CubeTensor<R>>,
    base: CubeTensor<R>,
    branch: Option<Branch<R>>,
) -> CubeTensor<R> {
    if sum.is_none() && branch.is_none() {
        return base;
    }
    let shape: [usize; 2] = base.meta.shape().dims();
    let output = empty(&base, shape, base.dtype);
    write_columns(base, branch, sum, &output, 0);
    output
}

/// Multiplies `x` by the branch's dropout mask, if it has one.
fn apply_dropout<R: GpuRuntime>(x: &CubeTensor<R>, adapter: &DeviceAdapter<R>) -> CubeTensor<R> {
    match &adapter.mask {
        Some(mask) => mul(x.clone(), mask.clone()),
        None => x.clone(),
    }
}

#[cfg(all(test, feature = "wgpu"))]
mod tests {
    use super::*;
    use crate::cubecl::pitched::{KernelInput, assert_same_when_pitched};

    #[test]
    fn pitched_rows_give_the_same_values() {
        let specs = ProjectionSpecs(vec![
            ProjectionSpec {
                d_out: 48,
                weight: WeightSpec::Float,
                adapter: Some(AdapterSpec { rank: 5, scaling: 0.5, dropout: true }),
            },
            ProjectionSpec {
                d_out: 5,
                weight: WeightSpec::Split(vec![
                    (0..2, WeightSpec::Float),
                    (2..5, WeightSpec::Float),
                ]),
                adapter: None,
            },
        ]);
        let projections = || {
            let shapes = [[48, 100], [5, 100], [48, 5], [9, 100], [2, 100], [3, 100]];
            shapes.map(KernelInput::Floats)
        };
        let forward = Forward { specs: specs.clone(), stacked: false };
        let mut inputs = vec![KernelInput::Floats([9, 100])];
        inputs.extend(projections());
        inputs.push(KernelInput::Floats([9, 53]));
        assert_same_when_pitched(&forward, &inputs);
        let backward = BackwardPass { specs, needs_x: true };
        let mut inputs = vec![[9, 53], [9, 100], [9, 5]]
            .into_iter()
            .map(KernelInput::Floats)
            .collect::<Vec<_>>();
        inputs.extend(projections());
        assert_same_when_pitched(&backward, &inputs);
    }
}
