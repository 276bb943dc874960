//! Attention by index ranges with its log-sum-exp, and its gradient: see [`crate::ops::attention`]. Scores exist only
//! tile by tile in shared memory; tiles of keys that no row of a tile sees are skipped. 16-bit types are multiplied on
//! [tensor cores](tensor_cores) where the device has them, everything else on f32 units.

mod backward;
mod forward;
mod mask;
mod tensor_cores;
mod tiles;

use burn::tensor::{DType, Int, Tensor as BurnTensor};
use burn_cubecl::ops::numeric::zeros;
use burn_cubecl::tensor::CubeTensor;
use cubecl::prelude::*;

use super::launch::{THREADS, block_grid, dense_rows, empty};
use super::queue::{
    CubeGpu, Kernel, QueuedTensor, burn_tensor, into_array, queue, queued_int_tensor, queued_tensor,
};
use super::runtime::GpuRuntime;
use crate::{Attended, AttentionConfig, AttentionMask};
use tensor_cores::Pass;
use tiles::{Plan, TILE_COLUMNS};

/// Queues the forward kernel for separate queries, keys and values: see [`crate::TrainBackend::masked_attention`].
pub(crate) fn masked_attention<B: CubeGpu>(
    query: BurnTensor<B, 2>,
    key: BurnTensor<B, 2>,
    value: BurnTensor<B, 2>,
    mask: &AttentionMask<B>,
    config: &AttentionConfig,
) -> Attended<B> {
    let qkv = vec![queued_tensor(&query), queued_tensor(&key), queued_tensor(&value)];
    queue_forward(qkv, query.dtype(), [0; 3], mask, config)
}

/// Queues the forward kernel for queries, keys and values in one tensor: see [`crate::TrainBackend::self_attention`].
pub(crate) fn self_attention<B: CubeGpu>(
    qkv: BurnTensor<B, 2>,
    mask: &AttentionMask<B>,
    config: &AttentionConfig,
) -> Attended<B> {
    let dtype = qkv.dtype();
    let qkv = vec![queued_tensor(&qkv), queued_tensor(&qkv), queued_tensor(&qkv)];
    queue_forward(qkv, dtype, qkv_columns(config), mask, config)
}

/// Queues the backward kernels: see [`crate::TrainBackend::self_attention_backward`].
pub(crate) fn self_attention_backward<B: CubeGpu>(
    qkv: BurnTensor<B, 2>,
    attended: Attended<B>,
    grad: BurnTensor<B, 2>,
    mask: &AttentionMask<B>,
    config: &AttentionConfig,
) -> BurnTensor<B, 2> {
    let output = (qkv.shape(), qkv.dtype());
    let tensors = [&qkv, &attended.output, &attended.lse, &grad];
    let inputs = tensors.map(queued_tensor).into_iter().chain(mask_tensors(mask));
    let kernel = BackwardPass(Launch::new(qkv_columns(config), mask, config));
    let [d_qkv] = into_array(queue(kernel, inputs.collect(), &[output]));
    burn_tensor(d_qkv)
}

/// Queues the forward kernel. `first_columns` says where queries, keys and values begin in `qkv`.
fn queue_forward<B: CubeGpu>(
    qkv: Vec<QueuedTensor<B::Runtime>>,
    dtype: DType,
    first_columns: [usize; 3],
    mask: &AttentionMask<B>,
    config: &AttentionConfig,
) -> Attended<B> {
    let [queries, _] = mask.ranges.dims();
    let output = ([queries, config.heads * config.head_dim].into(), dtype);
    let lse = ([queries, config.heads].into(), DType::F32);
    let inputs = qkv.into_iter().chain(mask_tensors(mask)).collect();
    let kernel = Forward(Launch::new(first_columns, mask, config));
    let [output, lse] = into_array(queue(kernel, inputs, &[output, lse]));
    Attended { output: burn_tensor(output), lse: burn_tensor(lse) }
}

/// Returns the ranges, the hidden keys and the query indices of a mask. Absent ones are bound to the ranges; the
/// kernels never read them.
fn mask_tensors<B: CubeGpu>(mask: &AttentionMask<B>) -> [QueuedTensor<B::Runtime>; 3] {
    let ranges = || queued_int_tensor(&mask.ranges);
    let or_ranges =
        |part: &Option<BurnTensor<B, 1, Int>>| part.as_ref().map_or_else(ranges, queued_int_tensor);
    [ranges(), or_ranges(&mask.hidden), or_ranges(&mask.queries)]
}

/// Returns the first columns of the queries, keys and values when they lie side by side.
fn qkv_columns(config: &AttentionConfig) -> [usize; 3] {
    let (heads, kv_heads) = (config.heads, config.kv_heads);
    [0, heads, heads + kv_heads].map(|head| head * config.head_dim)
}

/// The parameters of a launch that do not depend on the number of rows.
#[derive(Clone, Debug)]
struct Launch {
    config: AttentionConfig,
    plan: Plan,
}

impl Launch {
    fn new<B: CubeGpu>(
        first_columns: [usize; 3],
        mask: &AttentionMask<B>,
        config: &AttentionConfig,
    ) -> Self {
        let group = config.heads / config.kv_heads;
        let plan = Plan {
            group,
            head_dim: config.head_dim,
            first_columns,
            hidden: mask.hidden.is_some(),
            gather: mask.queries.is_some(),
            rows_per_thread: 0,
            keys_as_rows: false,
        };
        Self { config: *config, plan }
    }

    /// Returns the plan for `count` rows. Tiles are small where there are few rows, as in decoding.
    fn plan(&self, count: usize) -> Plan {
        let rows_per_thread = if count <= 16 { 1 } else { 4 };
        Plan { rows_per_thread, ..self.plan }
    }

    /// Returns the grid for `count` rows: tiles of rows by key heads.
    fn grid(&self, plan: &Plan, count: usize) -> CubeCount {
        let tiles = count.div_ceil(plan.tile_rows());
        CubeCount::Static(tiles as u32, self.config.kv_heads as u32, 1)
    }
}

#[derive(Debug)]
struct Forward(Launch);

impl Kernel for Forward {
    const NAME: &'static str = "attention";

    fn run<R: GpuRuntime>(&self, inputs: Vec<CubeTensor<R>>) -> Vec<CubeTensor<R>> {
        let [query, key, value, ranges, hidden, queries] = into_array(inputs).map(dense_rows);
        let (launch, config) = (&self.0, &self.0.config);
        let [count, _] = ranges.meta.shape().dims();
        let output = empty(&query, [count, config.heads * config.head_dim], query.dtype);
        let lse = empty(&query, [count, config.heads], DType::F32);
        let folded = count * launch.plan.group;
        let plan = launch.plan(folded);
        let grid = launch.grid(&plan, folded);
        if tensor_cores::fit(&query, launch, &plan, Pass::Forward) {
            let (qkv, indices) = ([query, key, value], [ranges, hidden, queries]);
            tensor_cores::attend(launch, plan, grid, qkv, indices, output.clone(), lse.clone());
            return vec![output, lse];
        }
        let dtypes = [query.dtype.into(), ranges.dtype.into()];
        forward::attend::launch::<R>(
            &output.client,
            grid,
            CubeDim::new_1d(THREADS as u32),
            query.into_tensor_arg(),
            key.into_tensor_arg(),
            value.into_tensor_arg(),
            ranges.into_tensor_arg(),
            hidden.into_tensor_arg(),
            queries.into_tensor_arg(),
            output.clone().into_tensor_arg(),
            lse.clone().into_tensor_arg(),
            config.scale as f32,
            plan,
            dtypes,
        );
        vec![output, lse]
    }
}

#[derive(Debug)]
struct BackwardPass(Launch);

impl Kernel for BackwardPass {
    const NAME: &'static str = "attention_backward";

    fn run<R: GpuRuntime>(&self, inputs: Vec<CubeTensor<R>>) -> Vec<CubeTensor<R>> {
        let [qkv, output, lse, grad, ranges, hidden, queries] = into_array(inputs).map(dense_rows);
        let launch = &self.0;
        let row_sum = row_sums(&grad, &output, &launch.config);
        let [tokens, width] = qkv.meta.shape().dims();
        let d_qkv = if launch.plan.gather {
            // Tokens that are not queries have a gradient too: zero in the query columns.
            zeros(qkv.device.clone(), [tokens, width].into(), qkv.dtype)
        } else {
            empty(&qkv, [tokens, width], qkv.dtype)
        };
        let inputs = BackwardInputs { qkv, grad, lse, row_sum, ranges, hidden, queries };
        inputs.write_query_gradient(launch, d_qkv.clone());
        inputs.write_key_value_gradient(launch, d_qkv.clone());
        vec![d_qkv]
    }
}

/// Computes `rowsum(grad * output)` of each head, `[Q, H]`.
fn row_sums<R: GpuRuntime>(
    grad: &CubeTensor<R>,
    output: &CubeTensor<R>,
    config: &AttentionConfig,
) -> CubeTensor<R> {
    let [count, _] = grad.meta.shape().dims();
    let sums = empty(grad, [count, config.heads], DType::F32);
    backward::row_sums::launch::<R>(
        &sums.client,
        block_grid((count * config.heads).div_ceil(THREADS)),
        CubeDim::new_1d(THREADS as u32),
        grad.clone().into_tensor_arg(),
        output.clone().into_tensor_arg(),
        sums.clone().into_tensor_arg(),
        config.head_dim,
        grad.dtype.into(),
    );
    sums
}

/// The inputs of both backward kernels.
struct BackwardInputs<R: GpuRuntime> {
    qkv: CubeTensor<R>,
    grad: CubeTensor<R>,
    lse: CubeTensor<R>,
    row_sum: CubeTensor<R>,
    ranges: CubeTensor<R>,
    hidden: CubeTensor<R>,
    queries: CubeTensor<R>,
}

impl<R: GpuRuntime> BackwardInputs<R> {
    /// Writes the gradient of the queries into their columns of `d_qkv`.
    fn write_query_gradient(&self, launch: &Launch, d_qkv: CubeTensor<R>) {
        let [count, _] = self.ranges.meta.shape().dims();
        let folded = count * launch.plan.group;
        let plan = launch.plan(folded);
        let grid = launch.grid(&plan, folded);
        if tensor_cores::fit(&self.qkv, launch, &plan, Pass::Backward) {
            return self.write_query_gradient_by_cores(launch, plan, grid, d_qkv);
        }
        backward::query_gradient::launch::<R>(
            &self.qkv.client,
            grid,
            CubeDim::new_1d(THREADS as u32),
            self.qkv.clone().into_tensor_arg(),
            self.grad.clone().into_tensor_arg(),
            self.lse.clone().into_tensor_arg(),
            self.row_sum.clone().into_tensor_arg(),
            self.ranges.clone().into_tensor_arg(),
            self.hidden.clone().into_tensor_arg(),
            self.queries.clone().into_tensor_arg(),
            d_qkv.into_tensor_arg(),
            launch.config.scale as f32,
            plan,
            [self.qkv.dtype.into(), self.ranges.dtype.into()],
        );
    }

    /// Writes the gradients of the keys and values into their columns of `d_qkv`.
    fn write_key_value_gradient(&self, launch: &Launch, d_qkv: CubeTensor<R>) {
        let [tokens, _] = self.qkv.meta.shape().dims();
        let plan = Plan { keys_as_rows: true, ..launch.plan(tokens) };
        let grid = launch.grid(&plan, tokens);
        if tensor_cores::fit(&self.qkv, launch, &plan, Pass::Backward) {
            return self.write_key_value_gradient_by_cores(launch, plan, grid, d_qkv);
        }
        backward::key_value_gradient::launch::<R>(
            &self.qkv.client,
            grid,
            CubeDim::new_1d(THREADS as u32),
            self.qkv.clone().into_tensor_arg(),
            self.grad.clone().into_tensor_arg(),
            self.lse.clone().into_tensor_arg(),
            self.row_sum.clone().into_tensor_arg(),
            self.ranges.clone().into_tensor_arg(),
            self.tile_bounds(launch.plan.group).into_tensor_arg(),
            self.hidden.clone().into_tensor_arg(),
            self.queries.clone().into_tensor_arg(),
            d_qkv.into_tensor_arg(),
            launch.config.scale as f32,
            plan,
            [self.qkv.dtype.into(), self.ranges.dtype.into()],
        );
    }

    /// Computes the bounds of the ranges of each tile of folded rows, `[tiles, 4]`.
    fn tile_bounds(&self, group: usize) -> CubeTensor<R> {
        let [count, _] = self.ranges.meta.shape().dims();
        let tiles = (count * group).div_ceil(TILE_COLUMNS);
        let tile_bounds = empty(&self.ranges, [tiles, 4], DType::I32);
        backward::compute_tile_bounds::launch::<R>(
            &tile_bounds.client,
            CubeCount::Static(tiles as u32, 1, 1),
            CubeDim::new_1d(THREADS as u32),
            self.ranges.clone().into_tensor_arg(),
            tile_bounds.clone().into_tensor_arg(),
            group,
            self.ranges.dtype.into(),
        );
        tile_bounds
    }
}

#[cfg(all(test, feature = "wgpu"))]
mod tests {
    use super::*;
    use crate::cubecl::pitched::{KernelInput, assert_same_when_pitched};

    #[test]
    fn pitched_rows_give_the_same_values() {
        for (head_dim, gather) in [(5, false), (48, true), (100, false)] {
            let config = AttentionConfig { heads: 4, kv_heads: 2, head_dim, scale: 0.3 };
            let launch = Launch {
                config,
                plan: Plan {
                    group: 2,
                    head_dim,
                    first_columns: qkv_columns(&config),
                    hidden: true,
                    gather,
                    rows_per_thread: 0,
                    keys_as_rows: false,
                },
            };
            let ranges = (0..9).flat_map(|query| [0, 0, 0, query + 1]).collect::<Vec<_>>();
            let indices = || {
                [
                    KernelInput::Ints(ranges.clone(), [9, 4]),
                    KernelInput::IntVector(vec![0, 0, 1, 0, 0, 0, 1, 0, 0]),
                    KernelInput::IntVector((0..9).collect()),
                ]
            };
            let qkv = || KernelInput::Floats([9, 8 * head_dim]);
            let mut inputs = vec![qkv(), qkv(), qkv()];
            inputs.extend(indices());
            assert_same_when_pitched(&Forward(launch.clone()), &inputs);
            let heads = || KernelInput::Floats([9, 4 * head_dim]);
            let mut inputs = vec![qkv(), heads(), KernelInput::Floats([9, 4]), heads()];
            inputs.extend(indices());
            assert_same_when_pitched(&BackwardPass(launch), &inputs);
        }
    }
}
