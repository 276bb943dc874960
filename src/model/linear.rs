//! A frozen projection, with or without a low-rank branch on top: `y = x W^T + scaling * (x A^T) B^T`.
//!
//! The branch is part of the projection so that the model has one type for all its projections; what the branch
//! *is* (its initialization, its files, which projections get one) is decided in [`crate::adapter`].

use arithmo_backends::{
    Adapter, PackedWeight, Projection, SplitWeight, TrainBackend, Weight, ops,
    ops::adapted_linear::adapted_linear,
};
use burn::module::{Module, Param};
use burn::tensor::{DType, Int, Tensor, TensorData};
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
    /// Index of this projection in the model; gives it a dropout mask of its own.
    #[module(skip)]
    pub site: u64,
}

/// A matrix of the model: a projection, the embedding or the head.
#[derive(Module, Debug)]
pub enum WeightParam<B: TrainBackend> {
    /// `[D_out, D_in]`, as stored by Hugging Face.
    Float(Param<Tensor<B, 2>>),
    /// Quantized weight: never trained, and so no parameter.
    Packed(PackedWeight<B>),
    /// Split between rows because the device cannot take it whole ([`crate::model::limits`]): never trained either.
    Split(SplitWeight<B>),
}

impl<B: TrainBackend> WeightParam<B> {
    /// Wraps a weight `[D_out, D_in]` that is not trained.
    pub fn frozen(weight: impl Into<Weight<B>>) -> Self {
        match weight.into() {
            Weight::Float(weight) => Self::Float(frozen_param(weight)),
            Weight::Packed(weight) => Self::Packed(weight),
            Weight::Split(weight) => Self::Split(weight),
        }
    }

    /// Returns the shape `[D_out, D_in]`.
    pub fn dims(&self) -> [usize; 2] {
        match self {
            Self::Float(weight) => weight.dims(),
            Self::Packed(weight) => weight.dims,
            Self::Split(weight) => weight.dims(),
        }
    }

    /// Returns the weight in the form that operations take.
    pub fn val(&self) -> Weight<B> {
        match self {
            Self::Float(weight) => Weight::Float(weight.val()),
            Self::Packed(weight) => Weight::Packed(weight.clone()),
            Self::Split(weight) => Weight::Split(weight.clone()),
        }
    }

    /// Returns all values in `dtype`, `[D_out, D_in]`; quantized ones are dequantized.
    pub fn floats(&self, dtype: DType) -> Tensor<B, 2> {
        self.val().floats(dtype)
    }

    /// Returns the rows `ids` `[T]` as `[T, D_in]`; quantized ones are dequantized to `dtype`.
    pub fn rows(&self, ids: Tensor<B, 1, Int>, dtype: DType) -> Tensor<B, 2> {
        self.val().rows(ids, dtype)
    }
}

/// A projection whose weight is frozen.
#[derive(Module, Debug)]
pub struct Linear<B: TrainBackend> {
    /// `[D_out, D_in]`, as stored by Hugging Face.
    pub weight: WeightParam<B>,
    /// The trainable branch, if an adapter is attached here.
    pub lora: Option<LowRank<B>>,
}

impl<B: TrainBackend> Linear<B> {
    /// Creates a projection by `weight` `[D_out, D_in]`, without a low-rank branch.
    pub fn frozen(weight: Tensor<B, 2>) -> Self {
        Self { weight: WeightParam::frozen(weight), lora: None }
    }

    /// Returns the shape `(D_out, D_in)`.
    pub fn dims(&self) -> (usize, usize) {
        let [d_out, d_in] = self.weight.dims();
        (d_out, d_in)
    }
}

/// Projects tokens by all `linears`, concatenates the outputs and adds `residual`.
///
/// # Shapes
/// - x: `[T, D_in]`, of the weights' dtype
/// - residual, returns: `[T, sum of D_out]`
/// - dropout_seed: `Some` only while training with dropout
pub fn project<B: TrainBackend>(
    linears: &[&Linear<B>],
    x: Tensor<B, 2>,
    residual: Option<Tensor<B, 2>>,
    dropout_seed: Option<u64>,
) -> Tensor<B, 2> {
    let projections: Vec<_> = linears
        .iter()
        .map(|linear| Projection {
            weight: linear.weight.val(),
            adapter: linear.lora.as_ref().map(|lora| lora.adapter(&x, dropout_seed)),
        })
        .collect();
    adapted_linear(x, &projections, residual)
}

impl<B: TrainBackend> LowRank<B> {
    /// Returns the branch in the form that the operation takes, for an input `x` `[T, D_in]`.
    fn adapter(&self, x: &Tensor<B, 2>, dropout_seed: Option<u64>) -> Adapter<B> {
        let seed = dropout_seed.filter(|_| self.dropout > 0.0);
        Adapter {
            a: self.lora_a.val(),
            b: self.lora_b.val(),
            scaling: self.scaling,
            dropout_mask: seed.map(|seed| self.dropout_mask(x, seed)),
        }
    }

    /// Draws a dropout mask for `x`: each element is 0 with probability `p`, else `1 / (1 - p)`.
    ///
    /// The mask is drawn on the host from (seed, site), so that every backend, a resumed run and a recomputed block
    /// draw the same one.
    fn dropout_mask(&self, x: &Tensor<B, 2>, seed: u64) -> Tensor<B, 2> {
        let [rows, width] = x.dims();
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        rng.set_stream(self.site);
        let keep = 1.0 - self.dropout;
        let limit = (keep * f64::from(u32::MAX)) as u32;
        let scale = (1.0 / keep) as f32;
        let mask = (0..rows * width).map(|_| if rng.next_u32() <= limit { scale } else { 0.0 });
        let mask = TensorData::new(mask.collect(), [rows, width]);
        Tensor::from_data(mask, (&x.device(), ops::accumulator(x.dtype())))
    }
}

/// Creates a parameter that never requires a gradient.
pub fn frozen_param<B: TrainBackend, const D: usize>(tensor: Tensor<B, D>) -> Param<Tensor<B, D>> {
    Param::initialized(Default::default(), tensor)
}
