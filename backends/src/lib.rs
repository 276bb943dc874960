//! [`TrainBackend`], the extension trait that training needs, and the backends that implement it.
//!
//! Training needs a few operations that Burn 0.21 lacks or does not support well under autodiff. Each has its own
//! file in [`ops`], with its definition and its reference in plain tensor calls. The reference is the trait's default
//! body, so any Burn backend can train with an empty `impl`. `Autodiff<B>` has one hand-written backward per
//! operation, for all backends. A backend overrides only the operations that it fuses.
//!
//! Notation: `T` tokens of all sequences, one after another; `Q` queries; `K` keys; `H` heads, which share `H_kv`
//! key-value heads of width `Dh`; model width `D`; feed-forward width `I`; vocabulary size `V`; rank `r`.

// `eprintln!` panics if stderr cannot be written to; `writeln!` returns an error.
#![warn(clippy::print_stderr)]

mod autodiff;
pub mod conformance;
#[cfg(any(feature = "wgpu", feature = "cuda"))]
mod cubecl;
#[cfg(feature = "cuda")]
pub mod cuda;
mod device;
mod device_info;
mod devices;
#[cfg(feature = "dry-cuda")]
pub mod dry_cuda;
#[cfg(any(feature = "wgpu", feature = "cuda"))]
mod lost_work;
#[cfg(feature = "ndarray")]
pub mod ndarray;
pub mod ops;
#[cfg(feature = "wgpu")]
pub mod wgpu;

use std::ops::Range;

use burn::tensor::{DType, Int, Tensor, backend::Backend};

pub use autodiff::{backward_from, graph_lock};
pub use device::BackendKind;
pub use device_info::{
    Allocation, BufferLimits, DeviceClass, DeviceInfo, DeviceMemory, MatmulProvider,
};
pub use devices::{Assumed, assumed, devices, find_device};
#[cfg(any(feature = "wgpu", feature = "cuda"))]
pub use lost_work::lost_work;
pub use ops::adamw::{AdamWFactors, AdamWTensor, AdamWUpdate};
pub use ops::adapted_linear::{Adapted, AdaptedGrads, Adapter, Projection};
pub use ops::attention::{Attended, AttentionConfig, AttentionMask};
pub use ops::dropout::DropoutMask;
pub use ops::head_norm::HeadNorm;
pub use ops::log_probs::{LogProbStats, LogProbs};
pub use ops::packed::{Format, PackedWeight, Scales, Weight};
pub use ops::rope::{RotaryAngles, Rotation};
pub use ops::split::SplitWeight;

/// A Burn backend that can train: [`Backend`] plus the operations of [`ops`].
///
/// Every default body is the reference. An override must give the same result up to rounding. The autodiff rules of
/// `Autodiff<B>` call the `*_backward` operations on the inner backend.
pub trait TrainBackend: Backend {
    /// Returns the vendor's name of the device; `None` if the system does not report it.
    fn device_name(_device: &Self::Device) -> Option<String> {
        None
    }

    /// Returns the peak memory use so far: of the device on a GPU, of the whole process on the CPU. `None` if the
    /// system does not report it.
    fn peak_memory_bytes(_device: &Self::Device) -> Option<u64> {
        None
    }

    /// Returns how many bytes are still available for tensors; `None` if the device does not report it.
    fn available_memory_bytes(_device: &Self::Device) -> Option<u64> {
        None
    }

    /// Returns how the backend allocates memory on the device.
    fn allocation(_device: &Self::Device) -> Allocation {
        Allocation::Heap
    }

    /// Returns the largest size of a buffer; `None` if only the memory size limits it.
    fn buffer_limits(_device: &Self::Device) -> Option<BufferLimits> {
        None
    }

    /// Returns the default number of tokens per pass: enough for full speed but no more, because the memory for
    /// activations grows with it.
    fn pass_tokens() -> usize {
        device_info::PASS_TOKENS
    }

    /// Returns how many tokens a decoding pass computes in the time of one, because reading the weights dominates.
    /// That many speculative tokens cost nothing; 1 disables speculation.
    fn speculative_tokens() -> usize {
        1
    }

    /// Returns whether a model's weights may be in `dtype`: every operation is correct in it, also together with an
    /// f32 adapter.
    fn computes_in(device: &Self::Device, dtype: DType) -> bool {
        Self::supports_dtype(device, dtype)
    }

    /// Returns what multiplies matrices on the device. The first call on a device loads and tests the vendor's
    /// library, if there is one.
    fn matmul_provider(_device: &Self::Device) -> MatmulProvider {
        MatmulProvider::Backend
    }

    /// Runs `compute` while the backend's own kernels multiply all matrices, in every thread, and returns its result.
    /// This is for comparisons: it waits for the device before and after.
    fn without_library<T>(_device: &Self::Device, compute: impl FnOnce() -> T) -> T {
        compute()
    }

    /// Multiplies two tensors of matrices with equal batch dimensions, in their dtype. The reference bodies multiply
    /// with this.
    fn matmul<const D: usize>(left: Tensor<Self, D>, right: Tensor<Self, D>) -> Tensor<Self, D> {
        left.matmul(right)
    }

    /// Dequantizes some rows of a weight, `[rows, D_in]`: see [`ops::packed`].
    fn unpack(weight: &PackedWeight<Self>, rows: Range<usize>, dtype: DType) -> Tensor<Self, 2> {
        ops::packed::reference(weight, rows, dtype)
    }

    /// Dequantizes the rows `ids` of a weight, `[T, D_in]`: see [`ops::packed`].
    fn unpack_rows(
        weight: &PackedWeight<Self>,
        ids: Tensor<Self, 1, Int>,
        dtype: DType,
    ) -> Tensor<Self, 2> {
        ops::packed::reference_rows(weight, ids, dtype)
    }

    /// Projects tokens by a frozen weight: see [`ops::linear`].
    fn frozen_linear(x: Tensor<Self, 2>, weight: Weight<Self>) -> Tensor<Self, 2> {
        ops::linear::reference(x, weight)
    }

    /// Returns the gradient of [`Self::frozen_linear`] with respect to its input: see [`ops::linear`].
    fn frozen_linear_backward(grad: Tensor<Self, 2>, weight: Weight<Self>) -> Tensor<Self, 2> {
        ops::linear::reference_backward(grad, weight)
    }

    /// Projects one input by several weights with their low-rank branches, side by side: see [`ops::adapted_linear`].
    fn adapted_linear(
        x: Tensor<Self, 2>,
        projections: &[Projection<Self>],
        residual: Option<Tensor<Self, 2>>,
    ) -> Adapted<Self> {
        ops::adapted_linear::reference(x, projections, residual)
    }

    /// Returns the gradients of [`Self::adapted_linear`] with respect to the branches and, if `needs_x`, to `x`, but
    /// not to the weights: see [`ops::adapted_linear`]. `x` must be given if a projection has a branch.
    fn adapted_linear_backward(
        x: Option<Tensor<Self, 2>>,
        projections: &[Projection<Self>],
        low: Option<Tensor<Self, 2>>,
        grad: Tensor<Self, 2>,
        needs_x: bool,
    ) -> AdaptedGrads<Self> {
        ops::adapted_linear::reference_backward(x, projections, low, grad, needs_x)
    }

    /// Computes a dropout mask, the same on every backend: see [`ops::dropout`].
    fn dropout_mask(mask: &DropoutMask, device: &Self::Device) -> Tensor<Self, 2> {
        ops::dropout::reference(mask, device)
    }

    /// Returns the gradient of projections with respect to their weights, stacked below each other: see
    /// [`ops::linear`].
    fn linear_weight_gradient(x: Tensor<Self, 2>, grad: Tensor<Self, 2>) -> Tensor<Self, 2> {
        ops::linear::reference_weight_gradient(x, grad)
    }

    /// Normalizes each row by its root mean square: see [`ops::rms_norm`].
    fn rms_norm(x: Tensor<Self, 2>, weight: Tensor<Self, 1>, epsilon: f64) -> Tensor<Self, 2> {
        ops::rms_norm::reference(x, weight, epsilon)
    }

    /// Returns the gradient of [`Self::rms_norm`] with respect to `x`: see [`ops::rms_norm`].
    fn rms_norm_backward(
        x: Tensor<Self, 2>,
        weight: Tensor<Self, 1>,
        epsilon: f64,
        grad: Tensor<Self, 2>,
    ) -> Tensor<Self, 2> {
        ops::rms_norm::reference_backward(x, weight, epsilon, grad)
    }

    /// Returns [`Self::rms_norm_backward`] plus `other`, the gradient that reaches `x` through the residual stream.
    fn rms_norm_backward_onto(
        x: Tensor<Self, 2>,
        weight: Tensor<Self, 1>,
        epsilon: f64,
        grad: Tensor<Self, 2>,
        other: Tensor<Self, 2>,
    ) -> Tensor<Self, 2> {
        Self::rms_norm_backward(x, weight, epsilon, grad) + other
    }

    /// Returns the gradient of [`Self::rms_norm`] with respect to the weight: see [`ops::rms_norm`].
    fn rms_norm_weight_gradient(
        x: Tensor<Self, 2>,
        epsilon: f64,
        grad: Tensor<Self, 2>,
    ) -> Tensor<Self, 1> {
        ops::rms_norm::reference_weight_gradient(x, epsilon, grad)
    }

    /// Normalizes each head of queries and keys: see [`ops::head_norm`].
    fn head_norm(qkv: Tensor<Self, 2>, norm: &HeadNorm<Self>) -> Tensor<Self, 2> {
        ops::head_norm::reference(qkv, norm)
    }

    /// Returns the gradient of [`Self::head_norm`] with respect to `qkv`: see [`ops::head_norm`].
    fn head_norm_backward(
        qkv: Tensor<Self, 2>,
        norm: &HeadNorm<Self>,
        grad: Tensor<Self, 2>,
    ) -> Tensor<Self, 2> {
        ops::head_norm::reference_backward(qkv, norm, grad)
    }

    /// Rotates the first heads of each token by its angles, or by the inverse rotation: see [`ops::rope`].
    fn rope(
        x: Tensor<Self, 2>,
        angles: &RotaryAngles<Self>,
        rotated_heads: usize,
        rotation: Rotation,
    ) -> Tensor<Self, 2> {
        ops::rope::reference(x, angles, rotated_heads, rotation)
    }

    /// Computes the attention of queries to keys, for example those of a cache: see [`ops::attention`].
    fn masked_attention(
        query: Tensor<Self, 2>,
        key: Tensor<Self, 2>,
        value: Tensor<Self, 2>,
        mask: &AttentionMask<Self>,
        config: &AttentionConfig,
    ) -> Attended<Self> {
        ops::attention::reference(query, key, value, mask, config)
    }

    /// Replaces rows of a matrix, in place if possible: see [`ops::write_rows`].
    fn write_rows(
        target: Tensor<Self, 2>,
        rows: &Tensor<Self, 1, Int>,
        new: Tensor<Self, 2>,
    ) -> Tensor<Self, 2> {
        ops::write_rows::reference(target, rows, new)
    }

    /// Computes the attention of a sequence to itself: see [`ops::attention`].
    fn self_attention(
        qkv: Tensor<Self, 2>,
        mask: &AttentionMask<Self>,
        config: &AttentionConfig,
    ) -> Attended<Self> {
        ops::attention::reference_self(qkv, mask, config)
    }

    /// Returns the gradient of [`Self::self_attention`]: see [`ops::attention`].
    fn self_attention_backward(
        qkv: Tensor<Self, 2>,
        attended: Attended<Self>,
        grad: Tensor<Self, 2>,
        mask: &AttentionMask<Self>,
        config: &AttentionConfig,
    ) -> Tensor<Self, 2> {
        ops::attention::reference_self_backward(qkv, attended, grad, mask, config)
    }

    /// Computes `silu(gate) * up` of gate and up side by side: see [`ops::swiglu`].
    fn swiglu(gate_up: Tensor<Self, 2>) -> Tensor<Self, 2> {
        ops::swiglu::reference(gate_up)
    }

    /// Returns the gradient of [`Self::swiglu`]: see [`ops::swiglu`].
    fn swiglu_backward(gate_up: Tensor<Self, 2>, grad: Tensor<Self, 2>) -> Tensor<Self, 2> {
        ops::swiglu::reference_backward(gate_up, grad)
    }

    /// Computes `gelu(gate) * up` of gate and up side by side: see [`ops::geglu`].
    fn geglu(gate_up: Tensor<Self, 2>) -> Tensor<Self, 2> {
        ops::geglu::reference(gate_up)
    }

    /// Returns the gradient of [`Self::geglu`]: see [`ops::geglu`].
    fn geglu_backward(gate_up: Tensor<Self, 2>, grad: Tensor<Self, 2>) -> Tensor<Self, 2> {
        ops::geglu::reference_backward(gate_up, grad)
    }

    /// Returns the log-probabilities of target tokens without materializing the full logits and, if asked for, their
    /// slopes: see [`ops::log_probs`].
    fn completion_log_probs(
        hidden: Tensor<Self, 2>,
        lm_head: Weight<Self>,
        targets: Tensor<Self, 1, Int>,
        stats: LogProbStats,
        with_slopes: bool,
    ) -> LogProbs<Self> {
        ops::log_probs::reference(hidden, lm_head, targets, stats, with_slopes)
    }

    /// Returns the sum of the squares of all values of all tensors, `[1]`: see [`ops::clip`].
    ///
    /// # Panics
    /// If there are no tensors.
    fn sum_of_squares(tensors: &[Tensor<Self, 2>]) -> Tensor<Self, 1> {
        ops::clip::reference(tensors)
    }

    /// Multiplies all values of all tensors by `factor`, `[1]`: see [`ops::clip`].
    fn scale_all(tensors: Vec<Tensor<Self, 2>>, factor: Tensor<Self, 1>) -> Vec<Tensor<Self, 2>> {
        ops::clip::reference_scale(tensors, factor)
    }

    /// Computes one optimizer step of all trained tensors: see [`ops::adamw`].
    fn adamw(tensors: Vec<AdamWTensor<Self>>) -> Vec<AdamWUpdate<Self>> {
        ops::adamw::reference(tensors)
    }
}

/// Returns `false`: the CPU's backend returns or panics where it fails.
#[cfg(not(any(feature = "wgpu", feature = "cuda")))]
pub fn lost_work() -> bool {
    false
}
