//! Decides how many tokens a pass has and which decoder layers keep their activations for the backward pass.

use arithmo_backends::TrainBackend;
use burn::backend::Autodiff;

use crate::model::decoder::Decoder;

/// Fraction of the free memory that kept activations may take. The rest is for the temporaries of a layer.
pub(crate) const ACTIVATIONS_SHARE: f64 = 0.6;

/// Number of weights above which a model recomputes activations under `gradient_checkpointing = "auto"` if the device does
/// not report its free memory.
pub(crate) const RECOMPUTE_ABOVE: usize = 1_000_000_000;

/// Which decoder layers keep their activations for the backward pass. The others recompute them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Activations {
    /// All layers keep their activations.
    Keep,
    /// No layer keeps its activations (gradient checkpointing, arXiv 1604.06174).
    Recompute,
    /// As many layers keep their activations as fit into memory.
    Fit {
        /// Available memory in bytes.
        available: u64,
        /// Bytes that a layer keeps per token.
        per_token: u64,
    },
}

impl Activations {
    /// Returns how many of the upper layers keep their activations in a pass of `tokens` tokens.
    pub fn keep(self, tokens: usize) -> usize {
        match self {
            Self::Keep => usize::MAX,
            Self::Recompute => 0,
            Self::Fit { available, per_token } => {
                (available / (per_token * tokens as u64).max(1)) as usize
            }
        }
    }
}
/// Chooses which layers keep their activations under `gradient_checkpointing = "auto"`: as many as fit into the memory that
/// is free once the model is loaded. If the device does not report its free memory, all layers of small models and none of
/// large models do. `memory` is the device memory in bytes that the run may use, or `None` for all of it.
pub fn choose_activations<B: TrainBackend>(
    policy: &Decoder<Autodiff<B>>,
    memory: Option<u64>,
    device: &B::Device,
) -> Activations {
    let used = B::peak_memory_bytes(device).unwrap_or(0);
    let remaining = memory.map(|memory| memory.saturating_sub(used));
    let available = B::available_memory_bytes(device);
    match remaining.into_iter().chain(available).min() {
        Some(available) => Activations::Fit {
            available: (available as f64 * ACTIVATIONS_SHARE) as u64,
            per_token: policy.block_bytes_per_token() as u64,
        },
        None if policy.config.weights() > RECOMPUTE_ABOVE => Activations::Recompute,
        None => Activations::Keep,
    }
}

/// Reduces `tokens` so that a tensor of `bytes_per_token` bytes per token fits into one buffer of at most `max_buffer`
/// bytes. Returns at least 1.
pub fn fitting_tokens(tokens: usize, max_buffer: Option<u64>, bytes_per_token: usize) -> usize {
    match max_buffer {
        Some(bytes) => tokens.min((bytes / bytes_per_token.max(1) as u64) as usize).max(1),
        None => tokens,
    }
}
