//! The gated feed-forward half of a decoder layer (arXiv 2002.05202).

use arithmo_backends::TrainBackend;
use arithmo_backends::ops::geglu::geglu;
use arithmo_backends::ops::swiglu::swiglu;
use burn::module::Module;
use burn::tensor::Tensor;

use super::linear::{Linear, project};
use super::switches::Activation;

/// `down(activation(gate(x)) * up(x))`.
#[derive(Module, Debug)]
pub struct Mlp<B: TrainBackend> {
    /// `[I, D]`; `None` if there is a [`Self::gate_up_proj`].
    pub gate_proj: Option<Linear<B>>,
    /// `[I, D]`; `None` if there is a [`Self::gate_up_proj`].
    pub up_proj: Option<Linear<B>>,
    /// The rows of the gate and of up as one projection, `[2 * I, D]`.
    pub gate_up_proj: Option<Linear<B>>,
    /// `[D, I]`
    pub down_proj: Linear<B>,
    /// The function that the gate passes through.
    #[module(skip)]
    pub activation: Activation,
}

impl<B: TrainBackend> Mlp<B> {
    /// Returns the projections of the input, whose outputs side by side are gate and up.
    pub(super) fn inputs(&self) -> Vec<&Linear<B>> {
        [&self.gate_proj, &self.up_proj, &self.gate_up_proj].into_iter().flatten().collect()
    }

    /// Applies the feed-forward block to each token and adds the result to `residual`, if there is one; `[T, D]` both.
    pub fn forward(
        &self,
        x: Tensor<B, 2>,
        residual: Option<Tensor<B, 2>>,
        dropout_seed: Option<u64>,
    ) -> Tensor<B, 2> {
        let gate_up = project(&self.inputs(), x, None, dropout_seed);
        let gated = match self.activation {
            Activation::Silu => swiglu(gate_up),
            Activation::GeluTanh => geglu(gate_up),
        };
        project(&[&self.down_proj], gated, residual, dropout_seed)
    }
}
