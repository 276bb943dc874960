//! The operations that wgpu and cuda override, named once.

/// The overrides, inside `impl TrainBackend for` a [`CubeGpu`](super::queue::CubeGpu). What kernels would compute with
/// less than its own precision (f64) goes to the reference.
macro_rules! cube_operations {
    () => {
        fn unpack(
            weight: &$crate::PackedWeight<Self>,
            rows: std::ops::Range<usize>,
            dtype: burn::tensor::DType,
        ) -> Tensor<Self, 2> {
            match $crate::cubecl::launch::accumulates_in_f32(dtype) {
                true => $crate::cubecl::packed::unpack(weight, rows, dtype),
                false => $crate::ops::packed::reference(weight, rows, dtype),
            }
        }

        fn unpack_rows(
            weight: &$crate::PackedWeight<Self>,
            ids: Tensor<Self, 1, burn::tensor::Int>,
            dtype: burn::tensor::DType,
        ) -> Tensor<Self, 2> {
            match $crate::cubecl::launch::accumulates_in_f32(dtype) {
                true => $crate::cubecl::packed::unpack_rows(weight, ids, dtype),
                false => $crate::ops::packed::reference_rows(weight, ids, dtype),
            }
        }

        fn rms_norm(x: Tensor<Self, 2>, weight: Tensor<Self, 1>, epsilon: f64) -> Tensor<Self, 2> {
            match $crate::cubecl::launch::accumulates_in_f32(x.dtype()) {
                true => $crate::cubecl::rms_norm::rms_norm(x, weight, epsilon),
                false => $crate::ops::rms_norm::reference(x, weight, epsilon),
            }
        }

        fn rms_norm_backward(
            x: Tensor<Self, 2>,
            weight: Tensor<Self, 1>,
            epsilon: f64,
            grad: Tensor<Self, 2>,
        ) -> Tensor<Self, 2> {
            match $crate::cubecl::launch::accumulates_in_f32(x.dtype()) {
                true => $crate::cubecl::rms_norm::rms_norm_backward(x, weight, epsilon, grad),
                false => $crate::ops::rms_norm::reference_backward(x, weight, epsilon, grad),
            }
        }

        fn rope(
            x: Tensor<Self, 2>,
            angles: &$crate::RotaryAngles<Self>,
            turned: usize,
            turn: $crate::Turn,
        ) -> Tensor<Self, 2> {
            match $crate::cubecl::launch::accumulates_in_f32(x.dtype()) {
                true => $crate::cubecl::rope::rope(x, angles, turned, turn),
                false => $crate::ops::rope::reference(x, angles, turned, turn),
            }
        }

        fn swiglu(gate_up: Tensor<Self, 2>) -> Tensor<Self, 2> {
            match $crate::cubecl::launch::accumulates_in_f32(gate_up.dtype()) {
                true => $crate::cubecl::swiglu::swiglu(gate_up),
                false => $crate::ops::swiglu::reference(gate_up),
            }
        }

        fn swiglu_backward(gate_up: Tensor<Self, 2>, grad: Tensor<Self, 2>) -> Tensor<Self, 2> {
            match $crate::cubecl::launch::accumulates_in_f32(gate_up.dtype()) {
                true => $crate::cubecl::swiglu::swiglu_backward(gate_up, grad),
                false => $crate::ops::swiglu::reference_backward(gate_up, grad),
            }
        }

        fn masked_attention(
            query: Tensor<Self, 2>,
            key: Tensor<Self, 2>,
            value: Tensor<Self, 2>,
            mask: &$crate::AttentionMask<Self>,
            config: &$crate::AttentionConfig,
        ) -> $crate::Attended<Self> {
            match $crate::cubecl::launch::accumulates_in_f32(query.dtype()) {
                true => {
                    $crate::cubecl::attention::masked_attention(query, key, value, mask, config)
                }
                false => $crate::ops::attention::reference(query, key, value, mask, config),
            }
        }

        fn self_attention(
            qkv: Tensor<Self, 2>,
            mask: &$crate::AttentionMask<Self>,
            config: &$crate::AttentionConfig,
        ) -> $crate::Attended<Self> {
            match $crate::cubecl::launch::accumulates_in_f32(qkv.dtype()) {
                true => $crate::cubecl::attention::self_attention(qkv, mask, config),
                false => $crate::ops::attention::reference_self(qkv, mask, config),
            }
        }

        fn self_attention_backward(
            qkv: Tensor<Self, 2>,
            attended: $crate::Attended<Self>,
            grad: Tensor<Self, 2>,
            mask: &$crate::AttentionMask<Self>,
            config: &$crate::AttentionConfig,
        ) -> Tensor<Self, 2> {
            use $crate::{cubecl::attention as ours, ops::attention as reference};
            match $crate::cubecl::launch::accumulates_in_f32(qkv.dtype()) {
                true => ours::self_attention_backward(qkv, attended, grad, mask, config),
                false => reference::reference_self_backward(qkv, attended, grad, mask, config),
            }
        }

        fn completion_log_probs(
            hidden: Tensor<Self, 2>,
            lm_head: $crate::Weight<Self>,
            targets: Tensor<Self, 1, burn::tensor::Int>,
            stats: $crate::LogProbStats,
            with_slopes: bool,
        ) -> $crate::LogProbs<Self> {
            use $crate::{cubecl::log_probs as ours, ops::log_probs as reference};
            match $crate::cubecl::launch::accumulates_in_f32(hidden.dtype()) {
                true => ours::completion_log_probs(hidden, lm_head, targets, stats, with_slopes),
                false => reference::reference(hidden, lm_head, targets, stats, with_slopes),
            }
        }

        /// Floats are left to Burn, which fuses what follows, where no library multiplies them.
        fn frozen_linear(x: Tensor<Self, 2>, weight: $crate::Weight<Self>) -> Tensor<Self, 2> {
            use $crate::{cubecl::adapted_linear as ours, ops::linear as reference};
            let floats = matches!(weight, $crate::Weight::Float(_));
            let queued =
                !floats || <Self as $crate::cubecl::queue::CubeGpu>::has_library(&x.device());
            match queued && $crate::cubecl::launch::accumulates_in_f32(x.dtype()) {
                true => ours::frozen_linear(x, weight),
                false => reference::reference(x, weight),
            }
        }

        /// As [`Self::frozen_linear`].
        fn frozen_linear_backward(
            grad: Tensor<Self, 2>,
            weight: $crate::Weight<Self>,
        ) -> Tensor<Self, 2> {
            use $crate::{cubecl::adapted_linear as ours, ops::linear as reference};
            let library = <Self as $crate::cubecl::queue::CubeGpu>::has_library(&grad.device());
            match library && $crate::cubecl::launch::accumulates_in_f32(grad.dtype()) {
                true => ours::frozen_linear_backward(grad, weight),
                false => reference::reference_backward(grad, weight),
            }
        }

        fn adapted_linear(
            x: Tensor<Self, 2>,
            projections: &[$crate::Projection<Self>],
            residual: Option<Tensor<Self, 2>>,
        ) -> $crate::Adapted<Self> {
            use $crate::{cubecl::adapted_linear as ours, ops::adapted_linear as reference};
            match $crate::cubecl::launch::accumulates_in_f32(x.dtype()) {
                true => ours::adapted_linear(x, projections, residual),
                false => reference::reference(x, projections, residual),
            }
        }

        fn adapted_linear_backward(
            x: Option<Tensor<Self, 2>>,
            projections: &[$crate::Projection<Self>],
            low: Option<Tensor<Self, 2>>,
            grad: Tensor<Self, 2>,
            needs_x: bool,
        ) -> $crate::AdaptedGrads<Self> {
            use $crate::{cubecl::adapted_linear as ours, ops::adapted_linear as reference};
            match $crate::cubecl::launch::accumulates_in_f32(grad.dtype()) {
                true => ours::adapted_linear_backward(x, projections, low, grad, needs_x),
                false => reference::reference_backward(x, projections, low, grad, needs_x),
            }
        }
    };
}

pub(crate) use cube_operations;
