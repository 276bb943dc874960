//! A frozen projection, with or without a low-rank branch on top: `y = x W^T + scaling * (x A^T) B^T`.
//!
//! The branch is part of the projection so that the model has one type for all its projections; what the branch
//! *is* (its initialisation, its files, which projections get one) is decided in [`crate::lora`].

use arithmo_backends::{TrainBackend, ops, ops::linear::linear};
use burn::module::{Module, Param};
use burn::tensor::{Tensor, TensorData};
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};

/// The low-rank branch of a projection (LoRA, arXiv 2106.09685). Its weights are f32 (f64 on an f64 backend).
#[derive(Module, Debug)]
pub struct LowRank<B: TrainBackend> {
    /// `[r, D_in]`
    pub lora_a: Param<Tensor<B, 2>>,
    /// `[D_out, r]`
    pub lora_b: Param<Tensor<B, 2>>,
    /// `alpha / r`, or `alpha / sqrt(r)` for rsLoRA.
    #[module(skip)]
    pub scaling: f64,
    /// Probability of zeroing an element of the branch's input, while training with dropout.
    #[module(skip)]
    pub dropout: f64,
    /// Number of this projection in the model: makes its dropout mask its own.
    #[module(skip)]
    pub site: u64,
}

/// A projection whose weight is frozen.
#[derive(Module, Debug)]
pub struct Linear<B: TrainBackend> {
    /// `[D_out, D_in]`, as stored by Hugging Face.
    pub weight: Param<Tensor<B, 2>>,
    /// The trainable branch, if an adapter is attached here.
    pub lora: Option<LowRank<B>>,
}

impl<B: TrainBackend> Linear<B> {
    /// A projection by `weight` `[D_out, D_in]`, without a branch.
    pub fn frozen(weight: Tensor<B, 2>) -> Self {
        Self {
            weight: frozen_param(weight),
            lora: None,
        }
    }

    /// Projects each token.
    ///
    /// # Shapes
    /// - x: `[B, S, D_in]`, of the weight's dtype
    /// - dropout_seed: `Some` only while training with dropout
    /// - returns `[B, S, D_out]`
    pub fn forward(&self, x: Tensor<B, 3>, dropout_seed: Option<u64>) -> Tensor<B, 3> {
        let [batch, length, d_in] = x.dims();
        let x = x.reshape([batch * length, d_in]);
        let base = linear(x.clone(), self.weight.val());
        let y = match &self.lora {
            Some(lora) => lora.add_to(base, x, dropout_seed),
            None => base,
        };
        let [_, d_out] = y.dims();
        y.reshape([batch, length, d_out])
    }

    /// `(D_out, D_in)`.
    pub fn dims(&self) -> (usize, usize) {
        let [d_out, d_in] = self.weight.dims();
        (d_out, d_in)
    }
}

impl<B: TrainBackend> LowRank<B> {
    /// `base + scaling * (dropout(x) A^T) B^T`, the branch computed in the adapter's own dtype and cast to base's.
    fn add_to(
        &self,
        base: Tensor<B, 2>,
        x: Tensor<B, 2>,
        dropout_seed: Option<u64>,
    ) -> Tensor<B, 2> {
        let (a, b) = (self.lora_a.val(), self.lora_b.val());
        let dtype = base.dtype();
        let x = x.cast(a.dtype());
        let x = match dropout_seed {
            Some(seed) if self.dropout > 0.0 => self.drop(x, seed),
            _ => x,
        };
        let delta = x.matmul(a.transpose()).matmul(b.transpose()) * self.scaling;
        base + delta.cast(dtype)
    }

    /// Zeroes elements with probability `p` and scales the others by `1 / (1 - p)`.
    ///
    /// The mask is drawn on the host from (seed, site), so that every backend, a resumed run and a recomputed block
    /// draw the same one.
    fn drop(&self, x: Tensor<B, 2>, seed: u64) -> Tensor<B, 2> {
        let [rows, width] = x.dims();
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        rng.set_stream(self.site);
        let keep = 1.0 - self.dropout;
        let limit = (keep * f64::from(u32::MAX)) as u32;
        let scale = (1.0 / keep) as f32;
        let mask = (0..rows * width).map(|_| if rng.next_u32() <= limit { scale } else { 0.0 });
        let mask = TensorData::new(mask.collect(), [rows, width]);
        let mask = Tensor::<B, 2>::from_data(mask, (&x.device(), x.dtype()));
        x * mask
    }
}

/// A parameter that never requires a gradient.
pub fn frozen_param<B: TrainBackend, const D: usize>(tensor: Tensor<B, D>) -> Param<Tensor<B, D>> {
    Param::initialized(Default::default(), tensor)
}

/// The type LoRA weights, norms' statistics and sums are kept in beside `tensor`'s own.
pub(crate) fn accumulator<B: TrainBackend, const D: usize>(
    tensor: &Tensor<B, D>,
) -> burn::tensor::DType {
    ops::accumulator(tensor.dtype())
}
