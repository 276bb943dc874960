//! The SwiGLU feed-forward half of a decoder layer (arXiv 2002.05202).

use arithmo_backends::{TrainBackend, ops::swiglu::swiglu};
use burn::module::Module;
use burn::tensor::Tensor;

use super::linear::Linear;

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
    /// Applies the block to each token: `[B, S, D]` to `[B, S, D]`.
    pub fn forward(&self, x: Tensor<B, 3>, dropout_seed: Option<u64>) -> Tensor<B, 3> {
        let gate = self.gate_proj.forward(x.clone(), dropout_seed);
        let up = self.up_proj.forward(x, dropout_seed);
        self.down_proj.forward(swiglu(gate, up), dropout_seed)
    }
}
