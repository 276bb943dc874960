//! The CPU backend: f32 operations are loops over slices, and f64 uses the reference operations.

mod adamw;
mod adapted_linear;
mod allocator;
mod attention;
mod awake;
mod dropout;
mod few_rows;
mod gemm;
mod log_probs;
mod matrix;
mod memory;
mod packed;
mod panel;
mod row_wise;
mod sums;
mod tile;
mod transpose;
mod vector;

use std::ops::Range;

use burn::tensor::{DType, Int, Tensor, TensorData};
use burn_ndarray::{
    FloatNdArrayElement, IntNdArrayElement, NdArray, NdArrayTensor, QuantElement, SharedArray,
};

use self::adapted_linear::{HostProjection, HostWeight};
use self::attention::{Attention, Heads, HostMask, Inputs};
use self::gemm::{WriteMode, gemm, rows_mut};
use self::matrix::{Matrix, filled, integers, tensor};
use self::memory::{available_bytes, peak_resident_bytes};
use self::packed::HostPacked;
use self::tile::Rows;
use crate::device_info::CPU_PASS_TOKENS;
use crate::{
    AdamWTensor, AdamWUpdate, Adapted, AdaptedGrads, Attended, AttentionConfig, AttentionMask,
    DropoutMask, HeadNorm, LogProbStats, LogProbs, PackedWeight, Projection, RotaryAngles,
    Rotation, TrainBackend, Weight, ops,
};

pub use self::allocator::CacheAligned;
pub(crate) use self::memory::{devices, name};

/// Training on the CPU in f32.
pub type Cpu = NdArray<f32>;

impl<E: FloatNdArrayElement, I: IntNdArrayElement, Q: QuantElement> TrainBackend
    for NdArray<E, I, Q>
where
    NdArrayTensor: From<SharedArray<E>>,
    NdArrayTensor: From<SharedArray<I>>,
{
    fn peak_memory_bytes(_device: &Self::Device) -> Option<u64> {
        peak_resident_bytes()
    }

    fn available_memory_bytes(_device: &Self::Device) -> Option<u64> {
        available_bytes()
    }

    fn pass_tokens() -> usize {
        CPU_PASS_TOKENS
    }

    fn speculative_tokens() -> usize {
        8
    }

    fn unpack(weight: &PackedWeight<Self>, rows: Range<usize>, dtype: DType) -> Tensor<Self, 2> {
        let shape = [rows.len(), weight.dims[1]];
        match HostPacked::new(weight.clone()) {
            Some(host) => tensor::<Self, 2>(host.unpack_rows(rows), shape).cast(dtype),
            None => ops::packed::reference(weight, rows, dtype),
        }
    }

    fn unpack_rows(
        weight: &PackedWeight<Self>,
        ids: Tensor<Self, 1, Int>,
        dtype: DType,
    ) -> Tensor<Self, 2> {
        let Some(host) = HostPacked::new(weight.clone()) else {
            return ops::packed::reference_rows(weight, ids, dtype);
        };
        let (ids, columns) = (integers(&ids), host.columns);
        let values = filled(ids.len() * columns, |values| {
            for (id, row) in ids.iter().zip(values.chunks_exact_mut(columns.max(1))) {
                host.unpack_row(*id, row);
            }
        });
        tensor::<Self, 2>(values, [ids.len(), columns]).cast(dtype)
    }

    fn frozen_linear(x: Tensor<Self, 2>, weight: Weight<Self>) -> Tensor<Self, 2> {
        let (Some(x_host), Some(w)) = (Matrix::new(x.clone()), host_weight(&weight)) else {
            return ops::linear::reference(x, weight);
        };
        let (rows, width) = (x_host.rows, w.rows());
        let only = [HostProjection { weight: w, adapter: None }];
        let (y, _) = adapted_linear::forward(&x_host, &only, None);
        tensor(y, [rows, width])
    }

    fn frozen_linear_backward(grad: Tensor<Self, 2>, weight: Weight<Self>) -> Tensor<Self, 2> {
        let (Some(g), Some(w)) = (Matrix::new(grad.clone()), host_weight(&weight)) else {
            return ops::linear::reference_backward(grad, weight);
        };
        let columns = w.columns();
        let d_x = filled(g.rows * columns, |d_x| {
            let target = rows_mut(d_x, columns);
            w.times(target, WriteMode::Overwrite, 1.0, Rows::all(g.values(), g.columns));
        });
        tensor(d_x, [g.rows, columns])
    }

    fn adapted_linear(
        x: Tensor<Self, 2>,
        projections: &[Projection<Self>],
        residual: Option<Tensor<Self, 2>>,
    ) -> Adapted<Self> {
        let (Some(host), Some(host_projections)) =
            (Matrix::new(x.clone()), host_projections(projections))
        else {
            return ops::adapted_linear::reference(x, projections, residual);
        };
        let residual = residual.and_then(Matrix::new);
        let (output, low) = adapted_linear::forward(&host, &host_projections, residual);
        let ranks = adapted_linear::ranks(&host_projections);
        Adapted {
            output: tensor(output, [host.rows, adapted_linear::width(&host_projections)]),
            low: (ranks > 0).then(|| tensor(low, [host.rows, ranks])),
        }
    }

    fn adapted_linear_backward(
        x: Option<Tensor<Self, 2>>,
        projections: &[Projection<Self>],
        low: Option<Tensor<Self, 2>>,
        grad: Tensor<Self, 2>,
        needs_x: bool,
    ) -> AdaptedGrads<Self> {
        let host = (Matrix::new(grad.clone()), host_projections(projections));
        let (Some(grad_host), Some(host_projections)) = host else {
            return ops::adapted_linear::reference_backward(x, projections, low, grad, needs_x);
        };
        let inputs = x.and_then(Matrix::new).zip(low.and_then(Matrix::new));
        let d = adapted_linear::backward(inputs.as_ref(), &host_projections, &grad_host, needs_x);
        let shapes = projections.iter().filter_map(|p| p.adapter.as_ref());
        let shapes = shapes.map(|adapter| (adapter.a.dims(), adapter.b.dims()));
        let adapters = shapes.zip(d.adapters);
        AdaptedGrads {
            x: d.x.map(|d_x| {
                let width = d_x.len() / grad_host.rows.max(1);
                tensor(d_x, [grad_host.rows, width])
            }),
            adapters: adapters
                .map(|((a, b), [d_a, d_b])| [tensor(d_a, a), tensor(d_b, b)])
                .collect(),
        }
    }

    fn linear_weight_gradient(x: Tensor<Self, 2>, grad: Tensor<Self, 2>) -> Tensor<Self, 2> {
        let (Some(x_host), Some(g)) = (Matrix::new(x.clone()), Matrix::new(grad.clone())) else {
            return ops::linear::reference_weight_gradient(x, grad);
        };
        let d_weight = filled(g.columns * x_host.columns, |d| {
            let target = rows_mut(d, x_host.columns);
            gemm(target, WriteMode::Overwrite, 1.0, g.view().transpose(), x_host.view());
        });
        tensor(d_weight, [g.columns, x_host.columns])
    }

    fn rms_norm(x: Tensor<Self, 2>, weight: Tensor<Self, 1>, epsilon: f64) -> Tensor<Self, 2> {
        let (Some(host), Some(w)) = (Matrix::new(x.clone()), Matrix::new(weight.clone())) else {
            return ops::rms_norm::reference(x, weight, epsilon);
        };
        let y = row_wise::rms_norm(host.values(), w.values(), epsilon as f32);
        tensor(y, x.dims())
    }

    fn rms_norm_backward(
        x: Tensor<Self, 2>,
        weight: Tensor<Self, 1>,
        epsilon: f64,
        grad: Tensor<Self, 2>,
    ) -> Tensor<Self, 2> {
        let (Some(x_host), Some(w)) = (Matrix::new(x.clone()), Matrix::new(weight.clone())) else {
            return ops::rms_norm::reference_backward(x, weight, epsilon, grad);
        };
        norm_backward([x_host, w], epsilon, grad, None)
    }

    fn rms_norm_backward_onto(
        x: Tensor<Self, 2>,
        weight: Tensor<Self, 1>,
        epsilon: f64,
        grad: Tensor<Self, 2>,
        other: Tensor<Self, 2>,
    ) -> Tensor<Self, 2> {
        let host =
            (Matrix::new(x.clone()), Matrix::new(weight.clone()), Matrix::new(other.clone()));
        let (Some(x_host), Some(w), Some(other_host)) = host else {
            return ops::rms_norm::reference_backward(x, weight, epsilon, grad) + other;
        };
        norm_backward([x_host, w], epsilon, grad, Some(other_host))
    }

    fn rms_norm_weight_gradient(
        x: Tensor<Self, 2>,
        epsilon: f64,
        grad: Tensor<Self, 2>,
    ) -> Tensor<Self, 1> {
        let (Some(x_host), Some(g)) = (Matrix::new(x.clone()), Matrix::new(grad.clone())) else {
            return ops::rms_norm::reference_weight_gradient(x, epsilon, grad);
        };
        let columns = x_host.columns;
        let (x, grad) = (x_host.values(), g.values());
        let d_weight = row_wise::rms_norm_weight_gradient(x, columns, epsilon as f32, grad);
        tensor(d_weight, [columns])
    }

    fn head_norm(qkv: Tensor<Self, 2>, norm: &HeadNorm<Self>) -> Tensor<Self, 2> {
        let shape = qkv.dims();
        let weights = norm.weights.clone().map(Matrix::new);
        let [Some(queries), Some(keys)] = weights else {
            return ops::head_norm::reference(qkv, norm);
        };
        // Consumed, so that it is overwritten in place if no one else uses the tensor.
        let mut values = Matrix::new(qkv).map_or(Vec::new(), Matrix::into_values);
        let weights = [queries.values(), keys.values()];
        let epsilon = norm.epsilon as f32;
        row_wise::head_norm(&mut values, shape[1], weights, norm.heads, epsilon);
        tensor(values, shape)
    }

    fn head_norm_backward(
        qkv: Tensor<Self, 2>,
        norm: &HeadNorm<Self>,
        grad: Tensor<Self, 2>,
    ) -> Tensor<Self, 2> {
        let (shape, weights) = (grad.dims(), norm.weights.clone().map(Matrix::new));
        let ([Some(queries), Some(keys)], Some(x)) = (weights, Matrix::new(qkv.clone())) else {
            return ops::head_norm::reference_backward(qkv, norm, grad);
        };
        // Consumed, so that it is overwritten in place if no one else uses the tensor.
        let mut d = Matrix::new(grad).map_or(Vec::new(), Matrix::into_values);
        let weights = [queries.values(), keys.values()];
        let epsilon = norm.epsilon as f32;
        let target = (&mut d[..], shape[1]);
        row_wise::head_norm_backward(x.values(), weights, norm.heads, epsilon, target);
        tensor(d, shape)
    }

    fn rope(
        x: Tensor<Self, 2>,
        angles: &RotaryAngles<Self>,
        rotated_heads: usize,
        rotation: Rotation,
    ) -> Tensor<Self, 2> {
        let shape = x.dims();
        let angles_host = [&angles.cos, &angles.sin].map(|side| Matrix::new(side.clone()));
        let [Some(cos), Some(sin)] = angles_host else {
            return ops::rope::reference(x, angles, rotated_heads, rotation);
        };
        let half = cos.columns;
        // Consumed, so that the rotation is done in place if no one else uses the tensor.
        let mut values = Matrix::new(x).map_or(Vec::new(), Matrix::into_values);
        let angles = [cos.values(), sin.values()];
        row_wise::rope(&mut values, shape[1], angles, half, rotated_heads, rotation);
        tensor(values, shape)
    }

    fn masked_attention(
        query: Tensor<Self, 2>,
        key: Tensor<Self, 2>,
        value: Tensor<Self, 2>,
        mask: &AttentionMask<Self>,
        config: &AttentionConfig,
    ) -> Attended<Self> {
        let sides = [&query, &key, &value].map(|side| Matrix::new(side.clone()));
        let [Some(q), Some(k), Some(v)] = &sides else {
            return ops::attention::reference(query, key, value, mask, config);
        };
        let [query, key, value] =
            [q, k, v].map(|side| Heads { values: side.values(), stride: side.columns, column: 0 });
        let inputs = Inputs { query, key, value };
        attend(inputs, &host_mask(mask), config)
    }

    fn write_rows(
        target: Tensor<Self, 2>,
        rows: &Tensor<Self, 1, Int>,
        new: Tensor<Self, 2>,
    ) -> Tensor<Self, 2> {
        let Some(from) = Matrix::new(new.clone()) else {
            return ops::write_rows::reference(target, rows, new);
        };
        let (shape, width) = (target.dims(), from.columns);
        // Consumed, so that the rows are written in place if no one else uses the tensor.
        let mut values = Matrix::new(target).map_or(Vec::new(), Matrix::into_values);
        for (index, row) in integers(rows).into_iter().enumerate() {
            values[row * width..][..width].copy_from_slice(from.row(index));
        }
        tensor(values, shape)
    }

    fn self_attention(
        qkv: Tensor<Self, 2>,
        mask: &AttentionMask<Self>,
        config: &AttentionConfig,
    ) -> Attended<Self> {
        match Matrix::new(qkv.clone()) {
            Some(host) => attend(qkv_inputs(host.values(), config), &host_mask(mask), config),
            None => ops::attention::reference_self(qkv, mask, config),
        }
    }

    fn self_attention_backward(
        qkv: Tensor<Self, 2>,
        attended: Attended<Self>,
        grad: Tensor<Self, 2>,
        mask: &AttentionMask<Self>,
        config: &AttentionConfig,
    ) -> Tensor<Self, 2> {
        let host = [&qkv, &attended.output, &attended.lse, &grad];
        let host = host.map(|tensor| Matrix::new(tensor.clone()));
        let [Some(host), Some(output), Some(lse), Some(g)] = &host else {
            return ops::attention::reference_self_backward(qkv, attended, grad, mask, config);
        };
        let attention =
            Attention { inputs: qkv_inputs(host.values(), config), mask: &host_mask(mask), config };
        let (output, lse, grad) = (output.values(), lse.values(), g.values());
        tensor(attention.backward(output, lse, grad, host.rows), qkv.dims())
    }

    fn swiglu(gate_up: Tensor<Self, 2>) -> Tensor<Self, 2> {
        match Matrix::new(gate_up.clone()) {
            Some(host) => {
                let half = host.columns / 2;
                tensor(row_wise::swiglu(host.values(), half), [host.rows, half])
            }
            None => ops::swiglu::reference(gate_up),
        }
    }

    fn swiglu_backward(gate_up: Tensor<Self, 2>, grad: Tensor<Self, 2>) -> Tensor<Self, 2> {
        let Some(g) = Matrix::new(grad.clone()) else {
            return ops::swiglu::reference_backward(gate_up, grad);
        };
        let shape = gate_up.dims();
        // Consumed, so that it is overwritten in place if no one else uses the tensor.
        let mut d = Matrix::new(gate_up).map_or(Vec::new(), Matrix::into_values);
        row_wise::swiglu_backward(&mut d, g.columns, g.values());
        tensor(d, shape)
    }

    fn geglu(gate_up: Tensor<Self, 2>) -> Tensor<Self, 2> {
        match Matrix::new(gate_up.clone()) {
            Some(host) => {
                let half = host.columns / 2;
                tensor(row_wise::geglu(host.values(), half), [host.rows, half])
            }
            None => ops::geglu::reference(gate_up),
        }
    }

    fn geglu_backward(gate_up: Tensor<Self, 2>, grad: Tensor<Self, 2>) -> Tensor<Self, 2> {
        let Some(g) = Matrix::new(grad.clone()) else {
            return ops::geglu::reference_backward(gate_up, grad);
        };
        let shape = gate_up.dims();
        // Consumed, so that it is overwritten in place if no one else uses the tensor.
        let mut d = Matrix::new(gate_up).map_or(Vec::new(), Matrix::into_values);
        row_wise::geglu_backward(&mut d, g.columns, g.values());
        tensor(d, shape)
    }

    fn completion_log_probs(
        hidden: Tensor<Self, 2>,
        lm_head: Weight<Self>,
        targets: Tensor<Self, 1, Int>,
        stats: LogProbStats,
        with_slopes: bool,
    ) -> LogProbs<Self> {
        let (Some(h), Some(head)) = (Matrix::new(hidden.clone()), host_weight(&lm_head)) else {
            return ops::log_probs::reference(hidden, lm_head, targets, stats, with_slopes);
        };
        let (rows, width, targets) = (h.rows, h.columns, integers(&targets));
        let (columns, slopes) = log_probs::forward(&h, &head, &targets, stats, with_slopes);
        LogProbs {
            columns: tensor(columns, [rows, stats.columns()]),
            slopes: slopes.map(|slopes| tensor(slopes, [rows, width])),
        }
    }

    fn dropout_mask(mask: &DropoutMask, device: &Self::Device) -> Tensor<Self, 2> {
        let values = TensorData::new(dropout::values(mask), mask.shape);
        Tensor::from_data(values, (device, mask.dtype))
    }

    fn adamw(tensors: Vec<AdamWTensor<Self>>) -> Vec<AdamWUpdate<Self>> {
        tensors.into_iter().map(adamw::update).collect()
    }
}

/// Returns the projections as slices; `None` if some are not f32 or have dropout, which the
/// reference computes.
fn host_projections<E, I, Q>(
    projections: &[Projection<NdArray<E, I, Q>>],
) -> Option<Vec<HostProjection>>
where
    E: FloatNdArrayElement,
    I: IntNdArrayElement,
    Q: QuantElement,
    NdArrayTensor: From<SharedArray<E>> + From<SharedArray<I>>,
{
    let one = |projection: &Projection<_>| {
        let adapter = match &projection.adapter {
            Some(adapter) if adapter.dropout_mask.is_some() => return None,
            Some(adapter) => Some((
                Matrix::new(adapter.a.clone())?,
                Matrix::new(adapter.b.clone())?,
                adapter.scaling as f32,
            )),
            None => None,
        };
        let weight = host_weight(&projection.weight)?;
        Some(HostProjection { weight, adapter })
    };
    projections.iter().map(one).collect()
}

/// Returns a weight as slices; `None` for f64, and for split weights, whose parts are multiplied
/// one by one.
fn host_weight<E, I, Q>(weight: &Weight<NdArray<E, I, Q>>) -> Option<HostWeight>
where
    E: FloatNdArrayElement,
    I: IntNdArrayElement,
    Q: QuantElement,
    NdArrayTensor: From<SharedArray<E>> + From<SharedArray<I>>,
{
    match weight {
        Weight::Float(weight) => Matrix::new(weight.clone()).map(HostWeight::Float),
        Weight::Packed(weight) => {
            HostPacked::new(weight.clone()).map(|host| HostWeight::Packed(Box::new(host)))
        }
        Weight::Split(_) => None,
    }
}

/// Returns the gradient of a norm's input `[T, D]`, plus `other` if it is given.
fn norm_backward<E, I, Q>(
    [x, weight]: [Matrix; 2],
    epsilon: f64,
    grad: Tensor<NdArray<E, I, Q>, 2>,
    other: Option<Matrix>,
) -> Tensor<NdArray<E, I, Q>, 2>
where
    E: FloatNdArrayElement,
    I: IntNdArrayElement,
    Q: QuantElement,
    NdArrayTensor: From<SharedArray<E>> + From<SharedArray<I>>,
{
    let shape = grad.dims();
    // Consumed, so that it is overwritten in place if no one else uses the tensor.
    let mut d = Matrix::new(grad).map_or(Vec::new(), Matrix::into_values);
    let other = other.as_ref().map(Matrix::values);
    row_wise::rms_norm_backward(x.values(), weight.values(), epsilon as f32, &mut d, other);
    tensor(d, shape)
}

/// Copies an attention mask to the host.
fn host_mask<E, I, Q>(mask: &AttentionMask<NdArray<E, I, Q>>) -> HostMask
where
    E: FloatNdArrayElement,
    I: IntNdArrayElement,
    Q: QuantElement,
    NdArrayTensor: From<SharedArray<E>> + From<SharedArray<I>>,
{
    HostMask {
        ranges: integers(&mask.ranges).as_chunks().0.to_vec(),
        hidden: mask
            .hidden
            .as_ref()
            .map_or(Vec::new(), |hidden| integers(hidden).iter().map(|flag| *flag != 0).collect()),
        queries: mask.queries.as_ref().map_or(Vec::new(), integers),
    }
}

/// Returns queries, keys and values that lie side by side in the rows of `qkv`.
fn qkv_inputs<'a>(qkv: &'a [f32], config: &AttentionConfig) -> Inputs<'a> {
    let AttentionConfig { heads, kv_heads, head_dim, .. } = *config;
    let at =
        |head: usize| Heads { values: qkv, stride: config.qkv_width(), column: head * head_dim };
    Inputs { query: at(0), key: at(heads), value: at(heads + kv_heads) }
}

/// Computes attention on slices and returns it as tensors.
fn attend<E, I, Q>(
    inputs: Inputs<'_>,
    mask: &HostMask,
    config: &AttentionConfig,
) -> Attended<NdArray<E, I, Q>>
where
    E: FloatNdArrayElement,
    I: IntNdArrayElement,
    Q: QuantElement,
    NdArrayTensor: From<SharedArray<E>> + From<SharedArray<I>>,
{
    let attention = Attention { inputs, mask, config };
    let (output, lse) = attention.forward();
    let queries = mask.ranges.len();
    Attended {
        output: tensor(output, [queries, config.heads * config.head_dim]),
        lse: tensor(lse, [queries, config.heads]),
    }
}
