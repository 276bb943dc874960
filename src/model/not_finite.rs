//! Finds the first weight that holds a NaN or infinity, or the first layer whose activations overflow.

use arithmo_backends::{TrainBackend, Weight};
use burn::module::Param;
use burn::tensor::backend::Backend;
use burn::tensor::{DType, ElementConversion, Int, Tensor};

use super::decoder::{Decoder, ModuleMut};
use super::input::ModelInput;
use super::linear::{Linear, WeightParam};
use super::names::layer_module;
use crate::error::Error;

/// Number of values of a matrix that are checked together.
const PIECE: usize = 1 << 22;

/// Counts of the values in a tensor that are not finite.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct NonFinite {
    nan: u64,
    infinite: u64,
}

/// Returns the error for a model whose log-probabilities or logits on one of `inputs` are not finite. It names the
/// first weight with such a value, or else the first layer whose activations have one.
pub fn explain<B: TrainBackend>(
    model: &Decoder<B>,
    inputs: impl IntoIterator<Item = ModelInput<B>>,
) -> Error {
    let explain_input = |input: ModelInput<B>| explain_activations(model, &input);
    explain_weights(model).or_else(|| inputs.into_iter().find_map(explain_input)).unwrap_or_else(|| {
        Error::run(
            "the model's log-probabilities are not finite, though its weights and activations are",
            "compute in a wider type (--dtype f32)",
        )
    })
}

/// Returns the error for the first weight of `model` with a value that is not finite, or `None` if all are finite.
pub fn explain_weights<B: TrainBackend>(model: &Decoder<B>) -> Option<Error> {
    let device = model.device();
    // The weights are shared with `model`, not copied.
    let mut model = model.clone();
    let mut modules = model.modules_mut().into_iter();
    let (name, found) = modules.find_map(|(name, module)| match module {
        ModuleMut::Matrix(matrix) => check_matrix(format!("{name}.weight"), matrix, &device),
        ModuleMut::Projection(linear) => check_projection(&name, linear, &device),
        ModuleMut::Norm(norm) => check_tensor(format!("{name}.weight"), norm.val()),
    })?;
    let remedy = if name.contains(".lora_") {
        "the adapter is broken: take another checkpoint, or train again with a lower learning rate"
    } else {
        "the model is broken: fetch or train it again, or take another checkpoint"
    };
    Some(Error::run(format!("the weight {name} holds {}", found.describe()), remedy))
}

/// Returns the first weight of a projection and its branch that holds values that are not finite, with their counts.
fn check_projection<B: TrainBackend>(
    module: &str,
    linear: &Linear<B>,
    device: &B::Device,
) -> Option<(String, NonFinite)> {
    let name = |part: &str| format!("{module}.{part}");
    let own = check_matrix(name("weight"), &linear.weight, device).or_else(|| {
        let bias = linear.bias.as_ref()?;
        check_tensor(name("bias"), bias.val())
    });
    own.or_else(|| {
        let lora = linear.lora.as_ref()?;
        let sides = [("lora_A", &lora.lora_a), ("lora_B", &lora.lora_b)];
        let broken = |(side, values): (&str, &Param<Tensor<B, 2>>)| {
            check_tensor(name(&format!("{side}.weight")), values.val())
        };
        let magnitude = lora.dora.as_ref().map(|dora| &dora.magnitude);
        let vectors =
            [("lora_B.bias", lora.lora_b_bias.as_ref()), ("lora_magnitude_vector", magnitude)];
        sides.into_iter().find_map(broken).or_else(|| {
            let mut vectors = vectors.into_iter();
            vectors.find_map(|(side, values)| check_tensor(name(side), values?.val()))
        })
    })
}

/// Counts the values of a tensor that are not finite. Returns `None` if all are finite.
fn check_tensor<B: TrainBackend, const D: usize>(
    name: String,
    values: Tensor<B, D>,
) -> Option<(String, NonFinite)> {
    let found = count(values);
    found.any().then_some((name, found))
}

/// Counts the values of a matrix that are not finite, a few rows at a time and dequantized if need be. Returns `None`
/// if all are finite.
fn check_matrix<B: TrainBackend>(
    name: String,
    matrix: &WeightParam<B>,
    device: &B::Device,
) -> Option<(String, NonFinite)> {
    let [rows, columns] = matrix.dims();
    let (piece, weight) = ((PIECE / columns.max(1)).max(1), matrix.val());
    let mut found = NonFinite::default();
    for start in (0..rows).step_by(piece) {
        let row_count = rows.min(start + piece) - start;
        found = found.plus(match &weight {
            Weight::Float(weight) => count(weight.clone().narrow(0, start, row_count)),
            packed => {
                let ids = start as i64..(start + row_count) as i64;
                let ids = Tensor::<B, 1, Int>::arange(ids, device);
                count(packed.clone().rows(ids, DType::F32))
            }
        });
    }
    found.any().then_some((name, found))
}

/// Returns the error for the first layer whose output on `input` is not finite, or `None` if all are finite.
fn explain_activations<B: TrainBackend>(
    model: &Decoder<B>,
    input: &ModelInput<B>,
) -> Option<Error> {
    let place = find_activation(model, input)?;
    let (dtype, remedy) = match model.dtype() {
        DType::F16 => (
            "; f16 overflows at 65504",
            "compute in bf16 or f32: --dtype, or model.dtype in a run's file",
        ),
        _ => (
            "",
            "the weights are finite but too large: check that weights, config.json and adapter belong together",
        ),
    };
    Some(Error::run(format!("activations are not finite {place}{dtype}"), remedy))
}

/// Finds the first layer whose output on `input` has a value that is not finite. Returns it in words, with the number of such
/// values, as in `from layer 3 (model.layers.3) on: 5 NaN`.
pub fn find_activation<B: TrainBackend>(
    model: &Decoder<B>,
    input: &ModelInput<B>,
) -> Option<String> {
    let mut x = model.embed(input.token_ids.clone());
    let mut found = count(x.clone());
    let mut place = "the embedding".to_string();
    for index in 0..model.layers.len() {
        if found.any() {
            break;
        }
        x = model.layer(index, x, &input.context);
        found = count(x.clone());
        place = format!("layer {index} ({})", layer_module(index));
    }
    if !found.any() {
        x = model.final_states(x);
        found = count(x);
        place = "the final norm (model.norm)".to_string();
    }
    found.any().then(|| format!("from {place} on: {}", found.describe()))
}

/// Returns the number of values of `x` that are not finite in words, as in `5 NaN`, or `None` if all are finite.
pub fn describe<B: Backend, const D: usize>(x: Tensor<B, D>) -> Option<String> {
    let found = count(x);
    found.any().then(|| found.describe())
}

/// Counts the values of `x` that are not finite.
fn count<B: Backend, const D: usize>(x: Tensor<B, D>) -> NonFinite {
    let total = |mask: Tensor<B, D, burn::tensor::Bool>| -> u64 {
        mask.int().sum().into_scalar().elem::<i64>().unsigned_abs()
    };
    NonFinite { nan: total(x.clone().is_nan()), infinite: total(x.is_inf()) }
}

impl NonFinite {
    fn any(self) -> bool {
        self != Self::default()
    }

    fn plus(self, other: Self) -> Self {
        Self { nan: self.nan + other.nan, infinite: self.infinite + other.infinite }
    }

    fn describe(self) -> String {
        match (self.nan, self.infinite) {
            (nan, 0) => format!("{nan} NaN"),
            (0, infinite) => format!("{infinite} infinite values"),
            (nan, infinite) => format!("{nan} NaN and {infinite} infinite values"),
        }
    }
}
