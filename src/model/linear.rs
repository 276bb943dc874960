//! A projection, with or without a bias and a low-rank branch on top: `y = x W^T + b + scaling * (x A^T) B^T`. With DoRA
//! (see [`Dora`]), every output but the bias is also scaled by a factor of its own.
//!
//! The branch is part of the projection so that the model has one type for all its projections; what the branch
//! *is* (its initialization, its files, which projections get one) is decided in [`crate::adapter`].

use std::sync::Arc;

use arithmo_backends::{
    Adapter, DropoutMask, PackedWeight, Projection, SplitWeight, TrainBackend, Weight,
    ops::{self, adapted_linear::adapted_linear},
};
use burn::module::{Module, Param};
use burn::tensor::{DType, Int, Tensor, TensorData};

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
    /// The trained magnitudes, if the branch is one of DoRA.
    pub dora: Option<Dora<B>>,
    /// The first `lora_a` and `lora_b` on the host in f32, if the base has lost them (PiSSA, OLoRA).
    #[module(skip)]
    pub initial: Option<Arc<[TensorData; 2]>>,
}

/// The magnitudes of DoRA (arXiv 2402.09353): output `i` of the projection with its branch is multiplied by
/// `magnitude_i / norms_i`. Its tensors have the branch's type.
#[derive(Module, Debug)]
pub struct Dora<B: TrainBackend> {
    /// The trained length of each row of the weight, `[D_out]`.
    pub magnitude: Param<Tensor<B, 1>>,
    /// The L2 norm of each row of `W + scaling * B A`, `[D_out]`. It is a constant in the gradient (section 4.3 of the
    /// paper), and so it is computed once per change of A or B, by [`Linear::update_norms`].
    pub norms: Param<Tensor<B, 1>>,
}

/// The number of values of `W + scaling * B A` that are in memory at a time while its row norms are computed.
const NORM_VALUES: usize = 1 << 22;

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
    /// `[D_out]`; `None` if the projection has no bias.
    pub bias: Option<Param<Tensor<B, 1>>>,
    /// The copy of the bias that an adapter trains in full ([`crate::adapter::biases`]), used in its place.
    pub trained_bias: Option<Param<Tensor<B, 1>>>,
    /// The trainable branch, if an adapter is attached here.
    pub lora: Option<LowRank<B>>,
}

impl<B: TrainBackend> Linear<B> {
    /// Creates a projection by `weight` `[D_out, D_in]`, without a bias and a low-rank branch.
    pub fn frozen(weight: Tensor<B, 2>) -> Self {
        Self { weight: WeightParam::frozen(weight), bias: None, trained_bias: None, lora: None }
    }

    /// Returns the shape `(D_out, D_in)`.
    pub fn dims(&self) -> (usize, usize) {
        let [d_out, d_in] = self.weight.dims();
        (d_out, d_in)
    }

    /// Recomputes the norms of DoRA, if the branch has magnitudes. Call it whenever A or B was replaced.
    pub fn update_norms(&mut self) {
        let with_magnitudes = self.lora.as_ref().filter(|lora| lora.dora.is_some());
        let norms = with_magnitudes.map(|lora| self.row_norms(lora));
        let dora = self.lora.as_mut().and_then(|lora| lora.dora.as_mut());
        if let (Some(dora), Some(norms)) = (dora, norms) {
            dora.norms = frozen_param(norms);
        }
    }

    /// Returns the L2 norm of each row of `W + scaling * B A`, `[D_out]`, without a graph, a few rows at a time.
    pub fn row_norms(&self, lora: &LowRank<B>) -> Tensor<B, 1> {
        let [d_out, d_in] = self.weight.dims();
        // A detached tensor would still require a gradient.
        let constant = |tensor: Tensor<B, 2>| tensor.detach().set_require_grad(false);
        let (a, b) = (constant(lora.lora_a.val()).transpose(), constant(lora.lora_b.val()));
        let (weight, dtype) = (self.weight.val(), b.dtype());
        let chunk = (NORM_VALUES / d_in.max(1)).max(1);
        let norms = (0..d_out).step_by(chunk).map(|start| {
            let rows = start..d_out.min(start + chunk);
            let b = b.clone().narrow(0, start, rows.len());
            let update = ops::linear::linear(b, a.clone()) * lora.scaling;
            let sum = weight.row_range(rows, dtype) + update;
            sum.square().sum_dim(1).sqrt().squeeze_dim(1)
        });
        Tensor::cat(norms.collect(), 0)
    }

    /// Returns the factor of each output, `[D_out]`: those of DoRA, or 1.
    fn output_factors(&self, like: &Tensor<B, 2>) -> Tensor<B, 1> {
        match self.lora.as_ref().and_then(|lora| lora.dora.as_ref()) {
            Some(dora) => dora.magnitude.val() / dora.norms.val(),
            None => {
                let dtype = ops::accumulator(like.dtype());
                Tensor::ones([self.dims().0], (&like.device(), dtype))
            }
        }
    }

    /// Returns whether the projection has magnitudes of DoRA.
    pub(super) fn has_magnitudes(&self) -> bool {
        self.lora.as_ref().is_some_and(|lora| lora.dora.is_some())
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
    // The operation adds the residual, so biases join it.
    let residual = match (biases(linears, &x), residual) {
        (None, residual) => residual,
        (Some(biases), Some(residual)) => Some(residual + biases),
        (Some(biases), None) => {
            let ([tokens, _], [_, width]) = (x.dims(), biases.dims());
            Some(biases.expand([tokens, width]))
        }
    };
    if linears.iter().any(|linear| linear.has_magnitudes()) {
        return project_scaled(linears, x, residual, dropout_seed);
    }
    let projections = projections(linears, &x, dropout_seed);
    adapted_linear(x, &projections, residual)
}

/// Returns the projections in the form that the operation takes, for an input `x` `[T, D_in]`.
fn projections<B: TrainBackend>(
    linears: &[&Linear<B>],
    x: &Tensor<B, 2>,
    dropout_seed: Option<u64>,
) -> Vec<Projection<B>> {
    let projection = |linear: &&Linear<B>| Projection {
        weight: linear.weight.for_input(x.dtype()),
        adapter: linear.lora.as_ref().map(|lora| lora.adapter(x, dropout_seed)),
    };
    linears.iter().map(projection).collect()
}

/// Returns the biases of all projections, plus those of their branches times their scalings, side by side as
/// `[1, sum of D_out]` in the dtype of `x`; `None` if there is no bias.
fn biases<B: TrainBackend>(linears: &[&Linear<B>], x: &Tensor<B, 2>) -> Option<Tensor<B, 2>> {
    let bias = |linear: &&Linear<B>| {
        let own = linear.trained_bias.as_ref().or(linear.bias.as_ref());
        let own = own.map(|bias| in_dtype(bias.val().unsqueeze(), x.dtype()));
        let branch = linear.lora.as_ref().and_then(|lora| {
            let bias = lora.lora_b_bias.as_ref()?.val();
            Some(in_dtype((bias * lora.scaling).unsqueeze(), x.dtype()))
        });
        match (own, branch) {
            (Some(own), Some(branch)) => Some(own + branch),
            (own, branch) => own.or(branch),
        }
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

/// Computes [`project`] for projections of which some have magnitudes: `c (x W^T + scaling * (x A^T) B^T)` with the
/// factors `c` of [`Linear::output_factors`].
fn project_scaled<B: TrainBackend>(
    linears: &[&Linear<B>],
    x: Tensor<B, 2>,
    residual: Option<Tensor<B, 2>>,
    dropout_seed: Option<u64>,
) -> Tensor<B, 2> {
    let has_dropout = |linear: &&Linear<B>| {
        linear.has_magnitudes() && linear.lora.as_ref().is_some_and(|lora| lora.dropout > 0.0)
    };
    let output = match dropout_seed.filter(|_| linears.iter().any(has_dropout)) {
        Some(seed) => {
            let project = |linear: &&Linear<B>| project_dropped(linear, x.clone(), seed);
            Tensor::cat(linears.iter().map(project).collect(), 1)
        }
        None => {
            let factors = linears.iter().map(|linear| linear.output_factors(&x)).collect();
            let projections = projections(linears, &x, dropout_seed);
            scale_columns(adapted_linear(x, &projections, None), Tensor::cat(factors, 0))
        }
    };
    match residual {
        Some(residual) => output + residual,
        None => output,
    }
}

/// Projects `x` by one projection with dropout. With magnitudes, it is PEFT's
/// `x W^T + (c - 1) (x' W^T) + c * scaling * (x' A^T) B^T`, in which `x'` is the input after dropout.
fn project_dropped<B: TrainBackend>(
    linear: &Linear<B>,
    x: Tensor<B, 2>,
    seed: u64,
) -> Tensor<B, 2> {
    let Some(lora) = linear.lora.as_ref().filter(|lora| lora.dora.is_some()) else {
        let projections = projections(&[linear], &x, Some(seed));
        return adapted_linear(x, &projections, None);
    };
    let mask = lora.dropout_mask(&x, seed);
    let dropped = (x.clone().cast(mask.dtype()) * mask).cast(x.dtype());
    let weight = linear.weight.for_input(x.dtype());
    let removed = ops::linear::linear(x - dropped.clone(), weight);
    let factors = linear.output_factors(&dropped);
    let projections = projections(&[linear], &dropped, None);
    removed + scale_columns(adapted_linear(dropped, &projections, None), factors)
}

/// Multiplies column `i` of `x` `[T, D]` by `factors_i`, in the type of the factors.
fn scale_columns<B: TrainBackend>(x: Tensor<B, 2>, factors: Tensor<B, 1>) -> Tensor<B, 2> {
    let dtype = x.dtype();
    (x.cast(factors.dtype()) * factors.unsqueeze()).cast(dtype)
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

    /// Computes the dropout mask for `x`, which depends on the seed, the projection and the shape of `x` only.
    fn dropout_mask(&self, x: &Tensor<B, 2>, seed: u64) -> Tensor<B, 2> {
        let (shape, dtype) = (x.dims(), ops::accumulator(x.dtype()));
        let mask = DropoutMask { shape, p: self.dropout, seed, stream: self.site, dtype };
        B::dropout_mask(&mask, &x.device())
    }
}

/// Creates a parameter that never requires a gradient.
pub fn frozen_param<B: TrainBackend, const D: usize>(tensor: Tensor<B, D>) -> Param<Tensor<B, D>> {
    Param::initialized(Default::default(), tensor)
}
