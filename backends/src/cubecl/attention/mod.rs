//! Attention by index ranges, its log-sum-exp and its gradient: see [`crate::ops::attention`]. Scores live tile by tile
//! in shared memory; tiles of keys that no row of a tile sees are not visited.

mod backward;
mod forward;
mod mask;
mod tiles;

use burn::tensor::{DType, Int, Tensor as BurnTensor};
use burn_cubecl::ops::numeric::zeros;
use burn_cubecl::{CubeRuntime, tensor::CubeTensor};
use cubecl::prelude::*;

use super::launch::{UNITS, cubes, empty, rows};
use super::queue::{CubeGpu, Kernel, Queued, fixed, queue, queued, queued_int, tensor};
use crate::{Attended, AttentionConfig, AttentionMask};
use tiles::{ACROSS, Plan};

/// [`crate::TrainBackend::masked_attention`].
pub(crate) fn masked_attention<B: CubeGpu>(
    query: BurnTensor<B, 2>,
    key: BurnTensor<B, 2>,
    value: BurnTensor<B, 2>,
    mask: &AttentionMask<B>,
    config: &AttentionConfig,
) -> Attended<B> {
    let parts = vec![queued(&query), queued(&key), queued(&value)];
    attend(parts, query.dtype(), [0; 3], mask, config)
}

/// [`crate::TrainBackend::self_attention`].
pub(crate) fn self_attention<B: CubeGpu>(
    qkv: BurnTensor<B, 2>,
    mask: &AttentionMask<B>,
    config: &AttentionConfig,
) -> Attended<B> {
    let parts = vec![queued(&qkv), queued(&qkv), queued(&qkv)];
    attend(parts, qkv.dtype(), packed_columns(config), mask, config)
}

/// [`crate::TrainBackend::self_attention_backward`].
pub(crate) fn self_attention_backward<B: CubeGpu>(
    qkv: BurnTensor<B, 2>,
    attended: Attended<B>,
    grad: BurnTensor<B, 2>,
    mask: &AttentionMask<B>,
    config: &AttentionConfig,
) -> BurnTensor<B, 2> {
    let output = (qkv.shape(), qkv.dtype());
    let tensors = [&qkv, &attended.output, &attended.lse, &grad];
    let inputs = tensors.map(queued).into_iter().chain(indices(mask));
    let kernel = BackwardPass(Launch::new(packed_columns(config), mask, config));
    let [d_qkv] = fixed(queue(kernel, inputs.collect(), &[output]));
    tensor(d_qkv)
}

fn attend<B: CubeGpu>(
    parts: Vec<Queued<B::Runtime>>,
    dtype: DType,
    columns: [usize; 3],
    mask: &AttentionMask<B>,
    config: &AttentionConfig,
) -> Attended<B> {
    let [queries, _] = mask.ranges.dims();
    let output = ([queries, config.heads * config.head_dim].into(), dtype);
    let lse = ([queries, config.heads].into(), DType::F32);
    let inputs = parts.into_iter().chain(indices(mask)).collect();
    let kernel = Forward(Launch::new(columns, mask, config));
    let [output, lse] = fixed(queue(kernel, inputs, &[output, lse]));
    Attended { output: tensor(output), lse: tensor(lse) }
}

/// Ranges, hidden keys and chosen queries; where there are none, the ranges stand in for them unread.
fn indices<B: CubeGpu>(mask: &AttentionMask<B>) -> [Queued<B::Runtime>; 3] {
    let ranges = || queued_int(&mask.ranges);
    let or_ranges =
        |part: &Option<BurnTensor<B, 1, Int>>| part.as_ref().map_or_else(ranges, queued_int);
    [ranges(), or_ranges(&mask.hidden), or_ranges(&mask.queries)]
}

/// First columns of queries, keys and values side by side.
fn packed_columns(config: &AttentionConfig) -> [usize; 3] {
    let (heads, kv_heads) = (config.heads, config.kv_heads);
    [0, heads, heads + kv_heads].map(|head| head * config.head_dim)
}

/// What a launch is made from, beside its tensors.
#[derive(Clone, Debug)]
struct Launch {
    config: AttentionConfig,
    plan: Plan,
}

impl Launch {
    fn new<B: CubeGpu>(
        columns: [usize; 3],
        mask: &AttentionMask<B>,
        config: &AttentionConfig,
    ) -> Self {
        let group = config.heads / config.kv_heads;
        let plan = Plan {
            group,
            head_dim: config.head_dim,
            columns,
            hidden: mask.hidden.is_some(),
            chosen: mask.queries.is_some(),
            down: 0,
            keys_down: false,
        };
        Self { config: *config, plan }
    }

    /// The plan for tiles among `count` rows: small ones where there are few, as in decoding.
    fn plan(&self, count: usize) -> Plan {
        let down = if count <= 16 { 1 } else { 4 };
        Plan { down, ..self.plan }
    }

    /// Cubes for `count` rows.
    fn cubes(&self, plan: &Plan, count: usize) -> CubeCount {
        let tiles = count.div_ceil(plan.rows());
        CubeCount::Static(tiles as u32, self.config.kv_heads as u32, 1)
    }
}

#[derive(Debug)]
struct Forward(Launch);

impl Kernel for Forward {
    const NAME: &'static str = "attention";

    fn run<R: CubeRuntime>(&self, inputs: Vec<CubeTensor<R>>) -> Vec<CubeTensor<R>> {
        let [query, key, value, ranges, hidden, queries] = fixed(inputs).map(rows);
        let (launch, config) = (&self.0, &self.0.config);
        let [count, _] = ranges.meta.shape().dims();
        let output = empty(&query, [count, config.heads * config.head_dim], query.dtype);
        let lse = empty(&query, [count, config.heads], DType::F32);
        let folded = count * launch.plan.group;
        let plan = launch.plan(folded);
        let dtypes = [query.dtype.into(), ranges.dtype.into()];
        forward::attend::launch::<R>(
            &output.client,
            launch.cubes(&plan, folded),
            CubeDim::new_1d(UNITS as u32),
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

    fn run<R: CubeRuntime>(&self, inputs: Vec<CubeTensor<R>>) -> Vec<CubeTensor<R>> {
        let [qkv, output, lse, grad, ranges, hidden, queries] = fixed(inputs).map(rows);
        let launch = &self.0;
        let row_sum = row_sums(&grad, &output, &launch.config);
        let [tokens, width] = qkv.meta.shape().dims();
        let d_qkv = match launch.plan.chosen {
            // Queries that nobody chose have a gradient too.
            true => zeros(qkv.device.clone(), [tokens, width].into(), qkv.dtype),
            false => empty(&qkv, [tokens, width], qkv.dtype),
        };
        let of = Backpropagated { qkv, grad, lse, row_sum, ranges, hidden, queries };
        of.queries(launch, d_qkv.clone());
        of.keys(launch, d_qkv.clone());
        vec![d_qkv]
    }
}

/// `rowsum(grad * output)` of each head, `[Q, H]`.
fn row_sums<R: CubeRuntime>(
    grad: &CubeTensor<R>,
    output: &CubeTensor<R>,
    config: &AttentionConfig,
) -> CubeTensor<R> {
    let [count, _] = grad.meta.shape().dims();
    let sums = empty(grad, [count, config.heads], DType::F32);
    backward::row_sums::launch::<R>(
        &sums.client,
        cubes((count * config.heads).div_ceil(UNITS)),
        CubeDim::new_1d(UNITS as u32),
        grad.clone().into_tensor_arg(),
        output.clone().into_tensor_arg(),
        sums.clone().into_tensor_arg(),
        config.head_dim,
        grad.dtype.into(),
    );
    sums
}

/// What both backward kernels read.
struct Backpropagated<R: CubeRuntime> {
    qkv: CubeTensor<R>,
    grad: CubeTensor<R>,
    lse: CubeTensor<R>,
    row_sum: CubeTensor<R>,
    ranges: CubeTensor<R>,
    hidden: CubeTensor<R>,
    queries: CubeTensor<R>,
}

impl<R: CubeRuntime> Backpropagated<R> {
    fn queries(&self, launch: &Launch, d_qkv: CubeTensor<R>) {
        let [count, _] = self.ranges.meta.shape().dims();
        let folded = count * launch.plan.group;
        let plan = launch.plan(folded);
        backward::of_queries::launch::<R>(
            &self.qkv.client,
            launch.cubes(&plan, folded),
            CubeDim::new_1d(UNITS as u32),
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

    fn keys(&self, launch: &Launch, d_qkv: CubeTensor<R>) {
        let [tokens, _] = self.qkv.meta.shape().dims();
        let plan = Plan { keys_down: true, ..launch.plan(tokens) };
        backward::of_keys::launch::<R>(
            &self.qkv.client,
            launch.cubes(&plan, tokens),
            CubeDim::new_1d(UNITS as u32),
            self.qkv.clone().into_tensor_arg(),
            self.grad.clone().into_tensor_arg(),
            self.lse.clone().into_tensor_arg(),
            self.row_sum.clone().into_tensor_arg(),
            self.ranges.clone().into_tensor_arg(),
            self.hulls(launch.plan.group).into_tensor_arg(),
            self.hidden.clone().into_tensor_arg(),
            self.queries.clone().into_tensor_arg(),
            d_qkv.into_tensor_arg(),
            launch.config.scale as f32,
            plan,
            [self.qkv.dtype.into(), self.ranges.dtype.into()],
        );
    }

    /// Which keys the rows of each tile see, `[tiles, 4]`.
    fn hulls(&self, group: usize) -> CubeTensor<R> {
        let [count, _] = self.ranges.meta.shape().dims();
        let tiles = (count * group).div_ceil(ACROSS);
        let hulls = empty(&self.ranges, [tiles, 4], DType::I32);
        backward::tile_hulls::launch::<R>(
            &hulls.client,
            CubeCount::Static(tiles as u32, 1, 1),
            CubeDim::new_1d(UNITS as u32),
            self.ranges.clone().into_tensor_arg(),
            hulls.clone().into_tensor_arg(),
            group,
            self.ranges.dtype.into(),
        );
        hulls
    }
}

#[cfg(all(test, feature = "wgpu"))]
mod tests {
    use super::*;
    use crate::cubecl::pitched::{Given, same_when_pitched};

    #[test]
    fn on_pitched_rows() {
        for (head_dim, chosen) in [(5, false), (48, true), (100, false)] {
            let config = AttentionConfig { heads: 4, kv_heads: 2, head_dim, scale: 0.3 };
            let launch = Launch {
                config,
                plan: Plan {
                    group: 2,
                    head_dim,
                    columns: packed_columns(&config),
                    hidden: true,
                    chosen,
                    down: 0,
                    keys_down: false,
                },
            };
            let ranges = (0..9).flat_map(|query| [0, 0, 0, query + 1]).collect::<Vec<_>>();
            let indices = || {
                [
                    Given::Ints(ranges.clone(), [9, 4]),
                    Given::IntVector(vec![0, 0, 1, 0, 0, 0, 1, 0, 0]),
                    Given::IntVector((0..9).collect()),
                ]
            };
            let qkv = || Given::Floats([9, 8 * head_dim]);
            let mut inputs = vec![qkv(), qkv(), qkv()];
            inputs.extend(indices());
            same_when_pitched(&Forward(launch.clone()), &inputs);
            let heads = || Given::Floats([9, 4 * head_dim]);
            let mut inputs = vec![qkv(), heads(), Given::Floats([9, 4]), heads()];
            inputs.extend(indices());
            same_when_pitched(&BackwardPass(launch), &inputs);
        }
    }
}
