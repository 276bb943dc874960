//! The gated feed-forward half of a decoder layer (arXiv 2002.05202).

use arithmo_backends::{TrainBackend, ops::swiglu::swiglu};
use burn::module::Module;
use burn::tensor::Tensor;

use super::linear::{Linear, project};
use super::switches::Activation;

/// `down(activation(gate(x)) * up(x))`.
#[derive(Module, Debug)]
pub struct Mlp<B: TrainBackend> {
    /// `[I, D]`
    pub gate_proj: Linear<B>,
    /// `[I, D]`
    pub up_proj: Linear<B>,
    /// `[D, I]`
    pub down_proj: Linear<B>,
    /// The function that the gate passes through.
    #[module(skip)]
    pub activation: Activation,
}

impl<B: TrainBackend> Mlp<B> {
    /// Applies the feed-forward block to each token and adds the result to `residual`, if there is one; `[T, D]` both.
    pub fn forward(
        &self,
        x: Tensor<B, 2>,
        residual: Option<Tensor<B, 2>>,
        dropout_seed: Option<u64>,
    ) -> Tensor<B, 2> {
        let gate_up = project(&[&self.gate_proj, &self.up_proj], x, None, dropout_seed);
        let gated = match self.activation {
            Activation::Silu => swiglu(gate_up),
            Activation::GeluTanh => geglu(gate_up),
        };
        project(&[&self.down_proj], gated, residual, dropout_seed)
    }
}

/// Computes `gelu(gate) * up` of gate and up side by side, `[T, 2I]`, as `[T, I]`, with the tanh approximation
/// `gelu(x) = x / 2 * (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3)))`.
fn geglu<B: TrainBackend>(gate_up: Tensor<B, 2>) -> Tensor<B, 2> {
    let width = gate_up.dims()[1] / 2;
    let gate = gate_up.clone().narrow(1, 0, width);
    let up = gate_up.narrow(1, width, width);
    let cube = gate.clone() * gate.clone() * gate.clone();
    let inner = (gate.clone() + cube * 0.044_715) * (2.0 / std::f64::consts::PI).sqrt();
    gate * 0.5 * (inner.tanh() + 1.0) * up
}
