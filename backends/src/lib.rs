//! The one extension trait of `arithmo`, [`TrainBackend`], and the backends it runs on.
//!
//! Training needs a few operations that Burn 0.21 does not have, or not well under autodiff. Each lives in its own
//! file in [`ops`]: what it computes, its reference in plain tensor calls, its autodiff rule and its tests. The
//! reference is the trait's default body, so any Burn backend joins with an empty `impl`; `Autodiff<B>` gets one
//! hand-written backward per operation, once, for every backend; a backend overrides only what it fuses.
//!
//! Notation: `B` sequences of `S` tokens, `T` tokens in all, `H` heads sharing `H_kv` key-value heads of width `Dh`,
//! model width `D`, vocabulary `V`.

mod autodiff;
#[cfg(any(feature = "wgpu", feature = "cuda"))]
mod cubecl;
#[cfg(feature = "cuda")]
pub mod cuda;
mod device;
#[cfg(feature = "ndarray")]
pub mod ndarray;
pub mod ops;
#[cfg(feature = "wgpu")]
pub mod wgpu;

use burn::tensor::{DType, Int, Tensor, backend::Backend};

pub use autodiff::graph_lock;
pub use device::BackendKind;
pub use ops::attention::{AttentionConfig, AttentionGrads, AttentionMask};
pub use ops::log_probs::LogProbStats;

/// A Burn backend that can train: plain [`Backend`] plus the operations of [`ops`].
///
/// Every default body is the reference; overriding one must not change its result beyond rounding. The `*_backward`
/// operations are what the autodiff rules of `Autodiff<B>` call on the inner backend.
pub trait TrainBackend: Backend {
    /// Most bytes used so far: of the device's memory on a GPU, of the whole process on the CPU. `None` where the
    /// system does not tell.
    fn peak_memory_bytes(_device: &Self::Device) -> Option<u64> {
        None
    }

    /// Whether a model's weights may be held in `dtype`: all operations are right in it, also beside an f32 adapter.
    fn computes_in(device: &Self::Device, dtype: DType) -> bool {
        Self::supports_dtype(device, dtype)
    }

    /// The widest row that reductions are right for: the largest vocabulary.
    fn widest_row() -> usize {
        usize::MAX
    }

    /// A projection by a frozen weight: see [`ops::linear`].
    fn frozen_linear(x: Tensor<Self, 2>, weight: Tensor<Self, 2>) -> Tensor<Self, 2> {
        ops::linear::reference(x, weight)
    }

    /// Gradient of [`Self::frozen_linear`] with respect to its input: see [`ops::linear`].
    fn frozen_linear_backward(grad: Tensor<Self, 2>, weight: Tensor<Self, 2>) -> Tensor<Self, 2> {
        ops::linear::reference_backward(grad, weight)
    }

    /// Masked attention with grouped queries: see [`ops::attention`].
    fn masked_attention(
        query: Tensor<Self, 4>,
        key: Tensor<Self, 4>,
        value: Tensor<Self, 4>,
        mask: &AttentionMask<Self>,
        config: &AttentionConfig,
    ) -> Tensor<Self, 4> {
        ops::attention::reference(query, key, value, mask, config)
    }

    /// Gradients of [`Self::masked_attention`]: see [`ops::attention`].
    fn masked_attention_backward(
        query: Tensor<Self, 4>,
        key: Tensor<Self, 4>,
        value: Tensor<Self, 4>,
        grad: Tensor<Self, 4>,
        mask: &AttentionMask<Self>,
        config: &AttentionConfig,
    ) -> AttentionGrads<Self> {
        ops::attention::reference_backward(query, key, value, grad, mask, config)
    }

    /// `silu(gate) * up`: see [`ops::swiglu`].
    fn swiglu(gate: Tensor<Self, 3>, up: Tensor<Self, 3>) -> Tensor<Self, 3> {
        ops::swiglu::reference(gate, up)
    }

    /// Gradients of [`Self::swiglu`] with respect to gate and up: see [`ops::swiglu`].
    fn swiglu_backward(
        gate: Tensor<Self, 3>,
        up: Tensor<Self, 3>,
        grad: Tensor<Self, 3>,
    ) -> [Tensor<Self, 3>; 2] {
        ops::swiglu::reference_backward(gate, up, grad)
    }

    /// Log-probabilities of target tokens, without the full logits: see [`ops::log_probs`].
    fn completion_log_probs(
        hidden: Tensor<Self, 2>,
        lm_head: Tensor<Self, 2>,
        targets: Tensor<Self, 1, Int>,
        stats: LogProbStats,
    ) -> Tensor<Self, 2> {
        ops::log_probs::reference(hidden, lm_head, targets, stats)
    }

    /// Gradient of [`Self::completion_log_probs`] with respect to `hidden`: see [`ops::log_probs`].
    fn completion_log_probs_backward(
        hidden: Tensor<Self, 2>,
        lm_head: Tensor<Self, 2>,
        targets: Tensor<Self, 1, Int>,
        grad: Tensor<Self, 1>,
    ) -> Tensor<Self, 2> {
        ops::log_probs::reference_backward(hidden, lm_head, targets, grad)
    }
}
