//! The one extension trait of `arithmo`, [`TrainBackend`], and the backends it runs on.
//!
//! Training needs a few operations that Burn 0.21 does not have, or not well under autodiff. Each lives in its own
//! file in [`ops`]: what it computes, its reference in plain tensor calls, its autodiff rule and its tests. The
//! reference is the trait's default body, so any Burn backend joins with an empty `impl`; `Autodiff<B>` gets one
//! hand-written backward per operation, once, for every backend; a backend overrides only what it fuses.
//!
//! Notation: `T` tokens of all sequences one after another, `Q` queries, `K` keys, `H` heads sharing `H_kv` key-value
//! heads of width `Dh`, model width `D`, feed-forward width `I`, vocabulary `V`, rank `r`.

mod autodiff;
#[cfg(any(feature = "wgpu", feature = "cuda"))]
mod cubecl;
#[cfg(feature = "cuda")]
pub mod cuda;
mod device;
mod devices;
#[cfg(feature = "ndarray")]
pub mod ndarray;
pub mod ops;
#[cfg(feature = "wgpu")]
pub mod wgpu;

use std::ops::Range;

use burn::tensor::{DType, Int, Tensor, backend::Backend};

pub use autodiff::{backward_from, graph_lock};
pub use device::BackendKind;
pub use devices::{
    Allocation, Assumed, BufferLimits, DeviceClass, DeviceInfo, DeviceMemory, ProductsBy, assumed,
    devices, find_device,
};
pub use ops::adamw::{AdamWFactors, AdamWTensor, AdamWUpdate};
pub use ops::adapted_linear::{Adapted, AdaptedGrads, Adapter, Projection};
pub use ops::attention::{Attended, AttentionConfig, AttentionMask};
pub use ops::log_probs::{LogProbStats, LogProbs};
pub use ops::packed::{Format, PackedWeight, Scales, Weight};
pub use ops::rope::{RotaryAngles, Turn};
pub use ops::split::SplitWeight;

/// A Burn backend that can train: plain [`Backend`] plus the operations of [`ops`].
///
/// Every default body is the reference; overriding one must not change its result beyond rounding. The `*_backward`
/// operations are what the autodiff rules of `Autodiff<B>` call on the inner backend.
pub trait TrainBackend: Backend {
    /// What the maker calls the device. `None` where the system does not tell.
    fn device_name(_device: &Self::Device) -> Option<String> {
        None
    }

    /// Most bytes used so far: of the device's memory on a GPU, of the whole process on the CPU. `None` where the
    /// system does not tell.
    fn peak_memory_bytes(_device: &Self::Device) -> Option<u64> {
        None
    }

    /// Bytes that can still be had for tensors. `None` where the device does not tell.
    fn available_memory_bytes(_device: &Self::Device) -> Option<u64> {
        None
    }

    /// How memory is taken from the device.
    fn allocation(_device: &Self::Device) -> Allocation {
        Allocation::Heap
    }

    /// How large a buffer may be, where there is a limit below the memory's.
    fn buffer_limits(_device: &Self::Device) -> Option<BufferLimits> {
        None
    }

    /// Tokens that are computed together unless a run says otherwise: enough for full speed, no more, because
    /// activations grow with them.
    fn pass_tokens() -> usize {
        devices::PASS_TOKENS
    }

    /// Tokens that a pass of decoding computes in the time of one, because reading the weights takes that long; guessed
    /// tokens that many cost nothing. 1: do not guess.
    fn free_tokens() -> usize {
        1
    }

    /// Whether a model's weights may be held in `dtype`: all operations are right in it, also beside an f32 adapter.
    fn computes_in(device: &Self::Device, dtype: DType) -> bool {
        Self::supports_dtype(device, dtype)
    }

    /// What multiplies matrices. The first call on a device loads and tests the library, where there is one.
    fn products_by(_device: &Self::Device) -> ProductsBy {
        ProductsBy::Backend
    }

    /// What `compute` returns; the backend's own kernels multiply all matrices meanwhile, those of other threads too. For
    /// comparisons: it waits for the device before and after.
    fn without_library<T>(_device: &Self::Device, compute: impl FnOnce() -> T) -> T {
        compute()
    }

    /// Some rows of a packed weight as floats, `[rows, D_in]`: see [`ops::packed`].
    fn unpack(weight: &PackedWeight<Self>, rows: Range<usize>, dtype: DType) -> Tensor<Self, 2> {
        ops::packed::reference(weight, rows, dtype)
    }

    /// The rows `ids` of a packed weight as floats, `[T, D_in]`: see [`ops::packed`].
    fn unpack_rows(
        weight: &PackedWeight<Self>,
        ids: Tensor<Self, 1, Int>,
        dtype: DType,
    ) -> Tensor<Self, 2> {
        ops::packed::reference_rows(weight, ids, dtype)
    }

    /// A projection by a frozen weight: see [`ops::linear`].
    fn frozen_linear(x: Tensor<Self, 2>, weight: Weight<Self>) -> Tensor<Self, 2> {
        ops::linear::reference(x, weight)
    }

    /// Gradient of [`Self::frozen_linear`] with respect to its input: see [`ops::linear`].
    fn frozen_linear_backward(grad: Tensor<Self, 2>, weight: Weight<Self>) -> Tensor<Self, 2> {
        ops::linear::reference_backward(grad, weight)
    }

    /// Projections of one input, side by side, with their low-rank branches: see [`ops::adapted_linear`].
    fn adapted_linear(
        x: Tensor<Self, 2>,
        projections: &[Projection<Self>],
        residual: Option<Tensor<Self, 2>>,
    ) -> Adapted<Self> {
        ops::adapted_linear::reference(x, projections, residual)
    }

    /// Gradients of [`Self::adapted_linear`] but those of the weights, that of `x` only if it is needed: see
    /// [`ops::adapted_linear`]. `x` is given where a projection has a branch.
    fn adapted_linear_backward(
        x: Option<Tensor<Self, 2>>,
        projections: &[Projection<Self>],
        low: Option<Tensor<Self, 2>>,
        grad: Tensor<Self, 2>,
        needs_x: bool,
    ) -> AdaptedGrads<Self> {
        ops::adapted_linear::reference_backward(x, projections, low, grad, needs_x)
    }

    /// Gradient of projections with respect to their weights, one below the other: see [`ops::linear`].
    fn linear_weight_gradient(x: Tensor<Self, 2>, grad: Tensor<Self, 2>) -> Tensor<Self, 2> {
        ops::linear::reference_weight_gradient(x, grad)
    }

    /// Root-mean-square norm: see [`ops::rms_norm`].
    fn rms_norm(x: Tensor<Self, 2>, weight: Tensor<Self, 1>, epsilon: f64) -> Tensor<Self, 2> {
        ops::rms_norm::reference(x, weight, epsilon)
    }

    /// Gradient of [`Self::rms_norm`] with respect to `x`: see [`ops::rms_norm`].
    fn rms_norm_backward(
        x: Tensor<Self, 2>,
        weight: Tensor<Self, 1>,
        epsilon: f64,
        grad: Tensor<Self, 2>,
    ) -> Tensor<Self, 2> {
        ops::rms_norm::reference_backward(x, weight, epsilon, grad)
    }

    /// [`Self::rms_norm_backward`] plus `other`, what flows back to `x` from elsewhere: the residual stream's gradient.
    fn rms_norm_backward_onto(
        x: Tensor<Self, 2>,
        weight: Tensor<Self, 1>,
        epsilon: f64,
        grad: Tensor<Self, 2>,
        other: Tensor<Self, 2>,
    ) -> Tensor<Self, 2> {
        Self::rms_norm_backward(x, weight, epsilon, grad) + other
    }

    /// Gradient of [`Self::rms_norm`] with respect to the weight: see [`ops::rms_norm`].
    fn rms_norm_weight_gradient(
        x: Tensor<Self, 2>,
        epsilon: f64,
        grad: Tensor<Self, 2>,
    ) -> Tensor<Self, 1> {
        ops::rms_norm::reference_weight_gradient(x, epsilon, grad)
    }

    /// Turns the first heads of each token by its angles, or back: see [`ops::rope`].
    fn rope(
        x: Tensor<Self, 2>,
        angles: &RotaryAngles<Self>,
        turned: usize,
        turn: Turn,
    ) -> Tensor<Self, 2> {
        ops::rope::reference(x, angles, turned, turn)
    }

    /// Attention of queries to the keys of a cache: see [`ops::attention`].
    fn masked_attention(
        query: Tensor<Self, 2>,
        key: Tensor<Self, 2>,
        value: Tensor<Self, 2>,
        mask: &AttentionMask<Self>,
        config: &AttentionConfig,
    ) -> Attended<Self> {
        ops::attention::reference(query, key, value, mask, config)
    }

    /// Rows of a matrix replaced, in place if possible: see [`ops::write_rows`].
    fn write_rows(
        target: Tensor<Self, 2>,
        rows: &Tensor<Self, 1, Int>,
        new: Tensor<Self, 2>,
    ) -> Tensor<Self, 2> {
        ops::write_rows::reference(target, rows, new)
    }

    /// Attention of a sequence to itself: see [`ops::attention`].
    fn self_attention(
        qkv: Tensor<Self, 2>,
        mask: &AttentionMask<Self>,
        config: &AttentionConfig,
    ) -> Attended<Self> {
        ops::attention::reference_self(qkv, mask, config)
    }

    /// Gradient of [`Self::self_attention`]: see [`ops::attention`].
    fn self_attention_backward(
        qkv: Tensor<Self, 2>,
        attended: Attended<Self>,
        grad: Tensor<Self, 2>,
        mask: &AttentionMask<Self>,
        config: &AttentionConfig,
    ) -> Tensor<Self, 2> {
        ops::attention::reference_self_backward(qkv, attended, grad, mask, config)
    }

    /// `silu(gate) * up` of gate and up side by side: see [`ops::swiglu`].
    fn swiglu(gate_up: Tensor<Self, 2>) -> Tensor<Self, 2> {
        ops::swiglu::reference(gate_up)
    }

    /// Gradient of [`Self::swiglu`]: see [`ops::swiglu`].
    fn swiglu_backward(gate_up: Tensor<Self, 2>, grad: Tensor<Self, 2>) -> Tensor<Self, 2> {
        ops::swiglu::reference_backward(gate_up, grad)
    }

    /// Log-probabilities of target tokens, without the full logits, and if asked for their slopes: see
    /// [`ops::log_probs`].
    fn completion_log_probs(
        hidden: Tensor<Self, 2>,
        lm_head: Weight<Self>,
        targets: Tensor<Self, 1, Int>,
        stats: LogProbStats,
        with_slopes: bool,
    ) -> LogProbs<Self> {
        ops::log_probs::reference(hidden, lm_head, targets, stats, with_slopes)
    }

    /// One optimizer step of all trained tensors: see [`ops::adamw`].
    fn adamw(tensors: Vec<AdamWTensor<Self>>) -> Vec<AdamWUpdate<Self>> {
        ops::adamw::reference(tensors)
    }
}
