//! The list of operations that both wgpu and cuda override.

/// Implements the overridden operations inside `impl TrainBackend for` a [`CubeGpu`](super::queue::CubeGpu).
///
/// The kernels accumulate in f32, so inputs in f64 are left to the reference implementations.
macro_rules! cubecl_operations {
    () => {
        fn matmul<const D: usize>(
            left: Tensor<Self, D>,
            right: Tensor<Self, D>,
        ) -> Tensor<Self, D> {
            $crate::cubecl::matmul::matmul(left, right)
        }

        fn unpack(
            weight: &$crate::PackedWeight<Self>,
            rows: std::ops::Range<usize>,
            dtype: burn::tensor::DType,
        ) -> Tensor<Self, 2> {
            if $crate::cubecl::launch::accumulates_in_f32(dtype) {
                $crate::cubecl::packed::unpack(weight, rows, dtype)
            } else {
                $crate::ops::packed::reference(weight, rows, dtype)
            }
        }

        fn unpack_rows(
            weight: &$crate::PackedWeight<Self>,
            ids: Tensor<Self, 1, burn::tensor::Int>,
            dtype: burn::tensor::DType,
        ) -> Tensor<Self, 2> {
            if $crate::cubecl::launch::accumulates_in_f32(dtype) {
                $crate::cubecl::packed::unpack_rows(weight, ids, dtype)
            } else {
                $crate::ops::packed::reference_rows(weight, ids, dtype)
            }
        }

        fn sum_of_squares(tensors: &[Tensor<Self, 2>]) -> Tensor<Self, 1> {
            if $crate::cubecl::many::are_f32(tensors) {
                $crate::cubecl::clip::sum_of_squares(tensors)
            } else {
                $crate::ops::clip::reference(tensors)
            }
        }

        fn scale_all(
            tensors: Vec<Tensor<Self, 2>>,
            factor: Tensor<Self, 1>,
        ) -> Vec<Tensor<Self, 2>> {
            if $crate::cubecl::many::are_f32(&tensors) {
                $crate::cubecl::clip::scale_all(tensors, factor)
            } else {
                $crate::ops::clip::reference_scale(tensors, factor)
            }
        }

        fn adamw(tensors: Vec<$crate::AdamWTensor<Self>>) -> Vec<$crate::AdamWUpdate<Self>> {
            if $crate::cubecl::many::are_f32(tensors.iter().map(|tensor| &tensor.param)) {
                $crate::cubecl::adamw::adamw(tensors)
            } else {
                $crate::ops::adamw::reference(tensors)
            }
        }

        fn rms_norm(x: Tensor<Self, 2>, weight: Tensor<Self, 1>, epsilon: f64) -> Tensor<Self, 2> {
            if $crate::cubecl::launch::accumulates_in_f32(x.dtype()) {
                $crate::cubecl::rms_norm::rms_norm(x, weight, epsilon)
            } else {
                $crate::ops::rms_norm::reference(x, weight, epsilon)
            }
        }

        fn rms_norm_backward(
            x: Tensor<Self, 2>,
            weight: Tensor<Self, 1>,
            epsilon: f64,
            grad: Tensor<Self, 2>,
        ) -> Tensor<Self, 2> {
            if $crate::cubecl::launch::accumulates_in_f32(x.dtype()) {
                $crate::cubecl::rms_norm::rms_norm_backward(x, weight, epsilon, grad)
            } else {
                $crate::ops::rms_norm::reference_backward(x, weight, epsilon, grad)
            }
        }

        fn rope(
            x: Tensor<Self, 2>,
            angles: &$crate::RotaryAngles<Self>,
            rotated_heads: usize,
            rotation: $crate::Rotation,
        ) -> Tensor<Self, 2> {
            if $crate::cubecl::launch::accumulates_in_f32(x.dtype()) {
                $crate::cubecl::rope::rope(x, angles, rotated_heads, rotation)
            } else {
                $crate::ops::rope::reference(x, angles, rotated_heads, rotation)
            }
        }

        fn head_norm(qkv: Tensor<Self, 2>, norm: &$crate::HeadNorm<Self>) -> Tensor<Self, 2> {
            if $crate::cubecl::launch::accumulates_in_f32(qkv.dtype()) {
                $crate::cubecl::head_norm::head_norm(qkv, norm)
            } else {
                $crate::ops::head_norm::reference(qkv, norm)
            }
        }

        fn head_norm_backward(
            qkv: Tensor<Self, 2>,
            norm: &$crate::HeadNorm<Self>,
            grad: Tensor<Self, 2>,
        ) -> Tensor<Self, 2> {
            if $crate::cubecl::launch::accumulates_in_f32(qkv.dtype()) {
                $crate::cubecl::head_norm::head_norm_backward(qkv, norm, grad)
            } else {
                $crate::ops::head_norm::reference_backward(qkv, norm, grad)
            }
        }

        fn swiglu(gate_up: Tensor<Self, 2>) -> Tensor<Self, 2> {
            use $crate::cubecl::gated::{Gate, gated};
            if $crate::cubecl::launch::accumulates_in_f32(gate_up.dtype()) {
                gated(Gate::Silu, gate_up)
            } else {
                $crate::ops::swiglu::reference(gate_up)
            }
        }

        fn swiglu_backward(gate_up: Tensor<Self, 2>, grad: Tensor<Self, 2>) -> Tensor<Self, 2> {
            use $crate::cubecl::gated::{Gate, gated_backward};
            if $crate::cubecl::launch::accumulates_in_f32(gate_up.dtype()) {
                gated_backward(Gate::Silu, gate_up, grad)
            } else {
                $crate::ops::swiglu::reference_backward(gate_up, grad)
            }
        }

        fn geglu(gate_up: Tensor<Self, 2>) -> Tensor<Self, 2> {
            use $crate::cubecl::gated::{Gate, gated};
            if $crate::cubecl::launch::accumulates_in_f32(gate_up.dtype()) {
                gated(Gate::GeluTanh, gate_up)
            } else {
                $crate::ops::geglu::reference(gate_up)
            }
        }

        fn geglu_backward(gate_up: Tensor<Self, 2>, grad: Tensor<Self, 2>) -> Tensor<Self, 2> {
            use $crate::cubecl::gated::{Gate, gated_backward};
            if $crate::cubecl::launch::accumulates_in_f32(gate_up.dtype()) {
                gated_backward(Gate::GeluTanh, gate_up, grad)
            } else {
                $crate::ops::geglu::reference_backward(gate_up, grad)
            }
        }

        fn masked_attention(
            query: Tensor<Self, 2>,
            key: Tensor<Self, 2>,
            value: Tensor<Self, 2>,
            mask: &$crate::AttentionMask<Self>,
            config: &$crate::AttentionConfig,
        ) -> $crate::Attended<Self> {
            if $crate::cubecl::launch::accumulates_in_f32(query.dtype()) {
                $crate::cubecl::attention::masked_attention(query, key, value, mask, config)
            } else {
                $crate::ops::attention::reference(query, key, value, mask, config)
            }
        }

        fn self_attention(
            qkv: Tensor<Self, 2>,
            mask: &$crate::AttentionMask<Self>,
            config: &$crate::AttentionConfig,
        ) -> $crate::Attended<Self> {
            if $crate::cubecl::launch::accumulates_in_f32(qkv.dtype()) {
                $crate::cubecl::attention::self_attention(qkv, mask, config)
            } else {
                $crate::ops::attention::reference_self(qkv, mask, config)
            }
        }

        fn self_attention_backward(
            qkv: Tensor<Self, 2>,
            attended: $crate::Attended<Self>,
            grad: Tensor<Self, 2>,
            mask: &$crate::AttentionMask<Self>,
            config: &$crate::AttentionConfig,
        ) -> Tensor<Self, 2> {
            use $crate::{cubecl::attention as kernels, ops::attention as reference};
            if $crate::cubecl::launch::accumulates_in_f32(qkv.dtype()) {
                kernels::self_attention_backward(qkv, attended, grad, mask, config)
            } else {
                reference::reference_self_backward(qkv, attended, grad, mask, config)
            }
        }

        fn completion_log_probs(
            hidden: Tensor<Self, 2>,
            lm_head: $crate::Weight<Self>,
            targets: Tensor<Self, 1, burn::tensor::Int>,
            stats: $crate::LogProbStats,
            with_slopes: bool,
        ) -> $crate::LogProbs<Self> {
            use $crate::{cubecl::log_probs as kernels, ops::log_probs as reference};
            if $crate::cubecl::launch::accumulates_in_f32(hidden.dtype()) {
                kernels::completion_log_probs(hidden, lm_head, targets, stats, with_slopes)
            } else {
                reference::reference(hidden, lm_head, targets, stats, with_slopes)
            }
        }

        /// Float weights are left to Burn, which fuses the operations that follow, unless a library multiplies them.
        fn frozen_linear(x: Tensor<Self, 2>, weight: $crate::Weight<Self>) -> Tensor<Self, 2> {
            use $crate::{cubecl::adapted_linear as kernels, ops::linear as reference};
            let is_float = matches!(weight, $crate::Weight::Float(_));
            let use_kernel = !is_float || $crate::cubecl::queue::has_library::<Self>(&x.device());
            if use_kernel && $crate::cubecl::launch::accumulates_in_f32(x.dtype()) {
                kernels::frozen_linear(x, weight)
            } else {
                reference::reference(x, weight)
            }
        }

        /// Weights of every kind are left to the reference, unless a library multiplies matrices.
        fn frozen_linear_backward(
            grad: Tensor<Self, 2>,
            weight: $crate::Weight<Self>,
        ) -> Tensor<Self, 2> {
            use $crate::{cubecl::adapted_linear as kernels, ops::linear as reference};
            let has_library = $crate::cubecl::queue::has_library::<Self>(&grad.device());
            if has_library && $crate::cubecl::launch::accumulates_in_f32(grad.dtype()) {
                kernels::frozen_linear_backward(grad, weight)
            } else {
                reference::reference_backward(grad, weight)
            }
        }

        fn adapted_linear(
            x: Tensor<Self, 2>,
            projections: &[$crate::Projection<Self>],
            residual: Option<Tensor<Self, 2>>,
        ) -> $crate::Adapted<Self> {
            use $crate::{cubecl::adapted_linear as kernels, ops::adapted_linear as reference};
            if $crate::cubecl::launch::accumulates_in_f32(x.dtype()) {
                kernels::adapted_linear(x, projections, residual)
            } else {
                reference::reference(x, projections, residual)
            }
        }

        fn adapted_linear_backward(
            x: Option<Tensor<Self, 2>>,
            projections: &[$crate::Projection<Self>],
            low: Option<Tensor<Self, 2>>,
            grad: Tensor<Self, 2>,
            needs_x: bool,
        ) -> $crate::AdaptedGrads<Self> {
            use $crate::{cubecl::adapted_linear as kernels, ops::adapted_linear as reference};
            if $crate::cubecl::launch::accumulates_in_f32(grad.dtype()) {
                kernels::adapted_linear_backward(x, projections, low, grad, needs_x)
            } else {
                reference::reference_backward(x, projections, low, grad, needs_x)
            }
        }
    };
}

pub(crate) use cubecl_operations;
