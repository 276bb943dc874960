//! Attention on tensor cores, for 16-bit types (the gradient in bf16 alone): the same sums as those of the parent module's kernels,
//! which compute in f32 units. A tile's probabilities and gradients are rounded to the 16-bit type before they are multiplied.

mod backward;
mod forward;
mod tiles;

use std::sync::OnceLock;

use burn::tensor::DType;
use burn_cubecl::tensor::CubeTensor;
use cubecl::ir::features::MmaConfig;
use cubecl::ir::{ElemType, FloatKind};
use cubecl::prelude::*;

use super::tiles::{Plan, TILE_COLUMNS};
use super::{BackwardInputs, Launch};
use crate::cubecl::launch::{THREADS, vector_size_up_to};
use crate::cubecl::runtime::GpuRuntime;
use tiles::{PLANE, ROWS, SUM_PITCH, WEIGHT_PITCH, head_pitch};

/// The environment variable that switches these kernels off (`0`).
const SWITCH_VARIABLE: &str = "ARITHMO_TENSOR_CORES";

/// The most values that a thread loads at once: 16 bytes.
const MAX_VECTOR: usize = 8;

/// Which kernel is launched.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Pass {
    Forward,
    Backward,
}

/// Returns whether the kernels of a pass can compute `launch` on the device of `tensor`, whose dtype is that of the activations.
pub(super) fn fit<R: GpuRuntime>(
    tensor: &CubeTensor<R>,
    launch: &Launch,
    plan: &Plan,
    pass: Pass,
) -> bool {
    static SWITCHED_OFF: OnceLock<bool> = OnceLock::new();
    let read = || std::env::var(SWITCH_VARIABLE).is_ok_and(|value| value == "0");
    let kind = match (tensor.dtype, pass) {
        (DType::BF16, _) => FloatKind::BF16,
        // Gradients of scores may be less than f16's smallest value, and their sums much more.
        (DType::F16, Pass::Forward) => FloatKind::F16,
        _ => return false,
    };
    // A tile of few rows, as in decoding, would be mostly empty.
    if *SWITCHED_OFF.get_or_init(read) || plan.tile_rows() != ROWS {
        return false;
    }
    let properties = tensor.client.properties();
    let hardware = &properties.hardware;
    let plane = PLANE as u32;
    let product = MmaConfig {
        a_type: ElemType::Float(kind).into(),
        b_type: ElemType::Float(kind).into(),
        cd_type: ElemType::Float(FloatKind::F32).into(),
        m: 16,
        n: 16,
        k: 16,
    };
    (hardware.plane_size_min, hardware.plane_size_max) == (plane, plane)
        && properties.features.matmul.cmma.contains(&product)
        && shared_bytes(launch.config.head_dim, pass) <= hardware.max_shared_memory_size
}

/// Returns the bytes of shared memory of a block, with room for alignment.
fn shared_bytes(head_dim: usize, pass: Pass) -> usize {
    let heads = |rows: usize| 2 * rows * head_pitch(head_dim);
    let sums = 4 * ROWS * SUM_PITCH;
    let weights = 2 * ROWS * WEIGHT_PITCH;
    let tiles = heads(ROWS) + heads(TILE_COLUMNS) + sums + weights;
    // Ranges, flags of keys, bounds, and statistics of rows.
    let small = 4 * (4 * ROWS + ROWS + 4 + 2 * ROWS) + 256;
    match pass {
        Pass::Forward => tiles + small,
        Pass::Backward => 2 * tiles + small,
    }
}

/// Computes the output and the log-sum-exp. `qkv` are the queries, keys and values, `indices` the ranges, hidden keys and query indices.
pub(super) fn attend<R: GpuRuntime>(
    launch: &Launch,
    plan: Plan,
    grid: CubeCount,
    qkv: [CubeTensor<R>; 3],
    indices: [CubeTensor<R>; 3],
    output: CubeTensor<R>,
    lse: CubeTensor<R>,
) {
    let [query, key, value] = qkv;
    let [ranges, hidden, queries] = indices;
    let vectors = vector_size_up_to(MAX_VECTOR, &[&query, &key, &value, &output], &[plan.head_dim]);
    let dtypes = [query.dtype.into(), ranges.dtype.into()];
    forward::attend::launch::<R>(
        &output.client.clone(),
        grid,
        CubeDim::new_1d(THREADS as u32),
        vectors,
        query.into_tensor_arg(),
        key.into_tensor_arg(),
        value.into_tensor_arg(),
        ranges.into_tensor_arg(),
        hidden.into_tensor_arg(),
        queries.into_tensor_arg(),
        output.into_tensor_arg(),
        lse.into_tensor_arg(),
        launch.config.scale as f32,
        plan,
        dtypes,
    );
}

impl<R: GpuRuntime> BackwardInputs<R> {
    /// Writes the gradient of the queries into their columns of `d_qkv`.
    pub(super) fn write_query_gradient_by_cores(
        &self,
        launch: &Launch,
        plan: Plan,
        grid: CubeCount,
        d_qkv: CubeTensor<R>,
    ) {
        let vectors = self.vectors(&d_qkv, plan);
        backward::query_gradient::launch::<R>(
            &self.qkv.client,
            grid,
            CubeDim::new_1d(THREADS as u32),
            vectors,
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
    pub(super) fn write_key_value_gradient_by_cores(
        &self,
        launch: &Launch,
        plan: Plan,
        grid: CubeCount,
        d_qkv: CubeTensor<R>,
    ) {
        let vectors = self.vectors(&d_qkv, plan);
        backward::key_value_gradient::launch::<R>(
            &self.qkv.client,
            grid,
            CubeDim::new_1d(THREADS as u32),
            vectors,
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

    fn vectors(&self, d_qkv: &CubeTensor<R>, plan: Plan) -> usize {
        vector_size_up_to(MAX_VECTOR, &[&self.qkv, &self.grad, d_qkv], &[plan.head_dim])
    }
}
