//! A projection, with or without a low-rank branch on top: `y = x W^T + scaling * (x A^T) B^T`.
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
    /// `[D_out]`, added to the branch's output before the scaling, if the adapter has biases (PEFT's `lora_bias`).
    pub lora_b_bias: Option<Param<Tensor<B, 1>>>,
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
pub struct WeightParam<B: TrainBackend> {
    /// The weight of the model.
    pub stored: StoredWeight<B>,
    /// The copy that an adapter trains in full ([`crate::adapter::saved`]). The model computes with it in place of
    /// [`Self::stored`].
    pub trained: Option<Param<Tensor<B, 2>>>,
}

/// The forms in which a matrix of the model is stored.
#[derive(Module, Debug)]
pub enum StoredWeight<B: TrainBackend> {
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
        let stored = match weight.into() {
            Weight::Float(weight) => StoredWeight::Float(frozen_param(weight)),
            Weight::Packed(weight) => StoredWeight::Packed(weight),
            Weight::Split(weight) => StoredWeight::Split(weight),
        };
        Self { stored, trained: None }
    }

    /// Returns the shape `[D_out, D_in]`.
    pub fn dims(&self) -> [usize; 2] {
        match &self.stored {
            StoredWeight::Float(weight) => weight.dims(),
            StoredWeight::Packed(weight) => weight.dims,
            StoredWeight::Split(weight) => weight.dims(),
        }
    }

    /// Returns the weight; if it is a trained copy, in the copy's dtype.
    pub fn val(&self) -> Weight<B> {
        match &self.trained {
            Some(trained) => Weight::Float(trained.val()),
            None => self.stored.val(),
        }
    }

    /// Returns the weight in the form that operations on activations of `dtype` take.
    pub fn for_input(&self, dtype: DType) -> Weight<B> {
        match &self.trained {
            Some(trained) => Weight::Float(in_dtype(trained.val(), dtype)),
            None => self.stored.val(),
        }
    }

    /// Returns all values in `dtype`, `[D_out, D_in]`; quantized ones are dequantized.
    pub fn floats(&self, dtype: DType) -> Tensor<B, 2> {
        self.val().floats(dtype)
    }

    /// Returns the rows `ids` `[T]` as `[T, D_in]`; quantized ones are dequantized to `dtype`.
    pub fn rows(&self, ids: Tensor<B, 1, Int>, dtype: DType) -> Tensor<B, 2> {
        let rows = self.val().rows(ids, dtype);
        if self.trained.is_some() { in_dtype(rows, dtype) } else { rows }
    }
}

impl<B: TrainBackend> StoredWeight<B> {
    /// Returns the weight in the form that operations take.
    pub fn val(&self) -> Weight<B> {
        match self {
            Self::Float(weight) => Weight::Float(weight.val()),
            Self::Packed(weight) => Weight::Packed(weight.clone()),
            Self::Split(weight) => Weight::Split(weight.clone()),
        }
    }
}

/// Casts `tensor` to `dtype` unless it has it.
pub(super) fn in_dtype<B: TrainBackend, const D: usize>(
    tensor: Tensor<B, D>,
    dtype: DType,
) -> Tensor<B, D> {
    if tensor.dtype() == dtype { tensor } else { tensor.cast(dtype) }
}

/// A projection.
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
            weight: linear.weight.for_input(x.dtype()),
            adapter: linear.lora.as_ref().map(|lora| lora.adapter(&x, dropout_seed)),
        })
        .collect();
    let biases = scaled_biases(linears, &x);
    let output = adapted_linear(x, &projections, residual);
    match biases {
        Some(biases) => output + biases,
        None => output,
    }
}

/// Returns the biases of all branches times their scalings, side by side as `[1, sum of D_out]` in the dtype of `x`;
/// `None` if no branch has a bias.
fn scaled_biases<B: TrainBackend>(
    linears: &[&Linear<B>],
    x: &Tensor<B, 2>,
) -> Option<Tensor<B, 2>> {
    let bias = |linear: &&Linear<B>| {
        let lora = linear.lora.as_ref()?;
        let bias = lora.lora_b_bias.as_ref()?.val();
        Some(in_dtype((bias * lora.scaling).unsqueeze(), x.dtype()))
    };
    let biases: Vec<Option<Tensor<B, 2>>> = linears.iter().map(bias).collect();
    if biases.iter().all(Option::is_none) {
        return None;
    }
    let parts = biases.into_iter().zip(linears).map(|(bias, linear)| {
        bias.unwrap_or_else(|| Tensor::zeros([1, linear.dims().0], (&x.device(), x.dtype())))
    });
    Some(Tensor::cat(parts.collect(), 1))
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
