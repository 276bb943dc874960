//! The SwiGLU feed-forward half of a decoder layer (arXiv 2002.05202).

use arithmo_backends::{TrainBackend, ops::swiglu::swiglu};
use burn::module::Module;
use burn::tensor::Tensor;

use super::linear::{Linear, project};

/// `down(silu(gate(x)) * up(x))`.
#[derive(Module, Debug)]
pub struct Mlp<B: TrainBackend> {
    /// `[I, D]`
    pub gate_proj: Linear<B>,
    /// `[I, D]`
    pub up_proj: Linear<B>,
    /// `[D, I]`
    pub down_proj: Linear<B>,
}

impl<B: TrainBackend> Mlp<B> {
    /// Applies the feed-forward block to each token and adds the result to `residual`, `[T, D]` both.
    pub fn forward(
        &self,
        x: Tensor<B, 2>,
        residual: Tensor<B, 2>,
        dropout_seed: Option<u64>,
    ) -> Tensor<B, 2> {
        let gate_up = project(&[&self.gate_proj, &self.up_proj], x, None, dropout_seed);
        let gated = swiglu(gate_up);
        project(&[&self.down_proj], gated, Some(residual), dropout_seed)
    }
}
