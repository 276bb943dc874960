//! The modules that an adapter trains in full, beside its branches: PEFT's `modules_to_save`.

use std::collections::BTreeMap;

use arithmo_backends::TrainBackend;
use burn::module::Param;
use burn::tensor::{DType, Element, Tensor, TensorData};

use super::biases::{Biases, attach_biases};
use super::config::LoraConfig;
use crate::error::{Error, Result};
use crate::model::config::DecoderConfig;
use crate::model::decoder::{Decoder, ModuleMut};
use crate::model::limits::check_whole_weights;
use crate::model::linear::{Linear, WeightParam};
use crate::model::names::{ModelTensor, TensorRole, is_projection};
use crate::model::rms_norm::RmsNorm;

/// The weight of each module that is trained in full, by module name (`lm_head`), in f32.
pub type SavedWeights = BTreeMap<String, TensorData>;

/// Returns the modules that `config` trains in full, with the shapes of their weights. As in PEFT, a module is chosen if
/// its name ends in one of `modules_to_save`, so that `norm` chooses every norm of the model.
///
/// # Errors
/// A name chooses no module or one that holds other modules, the embedding is also the head, or a chosen projection is
/// quantized or has a branch.
pub fn saved_modules(
    model: &DecoderConfig,
    config: &LoraConfig,
) -> Result<Vec<(String, Vec<usize>)>> {
    let tensors = model.tensors();
    let weights = tensors.iter().filter(|tensor| tensor.role != TensorRole::Bias);
    let modules: Vec<(String, Vec<usize>)> =
        weights.map(|tensor| (tensor.module().to_string(), tensor.shape.clone())).collect();
    for ending in &config.modules_to_save {
        check_ending(model, &modules, ending)?;
    }
    let is_saved = |name: &str| config.modules_to_save.iter().any(|end| name.ends_with(end));
    let saved: Vec<_> = modules.into_iter().filter(|(name, _)| is_saved(name)).collect();
    for (name, _) in &saved {
        let problem = if config.at(name)?.is_some() && is_projection(&format!("{name}.weight")) {
            "also gets a low-rank branch, because the end of its name is no whole part of it"
        } else if model.quantization.is_some() && is_projection(&format!("{name}.weight")) {
            "is quantized, and quantized weights cannot be trained themselves"
        } else if tensors.iter().any(|tensor| is_bias_of(name, tensor)) {
            "has a bias, which PEFT would train with its weight; that is not built"
        } else {
            continue;
        };
        return Err(refused(format!("{name} {problem}"), "name other modules"));
    }
    Ok(saved)
}

/// Returns whether `tensor` is the bias of `module`.
fn is_bias_of(module: &str, tensor: &ModelTensor) -> bool {
    tensor.role == TensorRole::Bias && tensor.module() == module
}

/// Checks that `ending` chooses weights, and no module that holds others.
fn check_ending(
    model: &DecoderConfig,
    modules: &[(String, Vec<usize>)],
    ending: &str,
) -> Result<()> {
    let error = |problem: &str, remedy: &str| Err(refused(format!("`{ending}` {problem}"), remedy));
    let is_tied = ["model.embed_tokens", "lm_head"].iter().any(|name| name.ends_with(ending));
    if model.tie_word_embeddings && is_tied {
        return error(
            "is embedding and head in one in this model (tie_word_embeddings); PEFT would train a copy for one of the two, \
             which is not built",
            "name other modules",
        );
    }
    let parents = modules.iter().flat_map(|(name, _)| {
        let dots = name.match_indices('.').map(|(at, _)| at);
        dots.map(|at| &name[..at]).collect::<Vec<_>>()
    });
    if let Some(parent) = parents.into_iter().find(|parent| parent.ends_with(ending)) {
        let problem = format!("chooses {parent}, which holds other modules");
        return error(&problem, "name the modules themselves, such as `mlp.up_proj`");
    }
    if modules.iter().any(|(name, _)| name.ends_with(ending)) {
        return Ok(());
    }
    error(
        "chooses no module of this model",
        "use some of lm_head, embed_tokens, norm, input_layernorm, post_attention_layernorm",
    )
}

fn refused(problem: String, remedy: &str) -> Error {
    Error::invalid("modules_to_save", problem, remedy)
}

/// Makes the modules and biases of `config` trainable: from then on the model computes with copies of them, whose initial
/// values are `saved` and `biases`, or the model's own for a module that is absent there. In training the copies are in f32.
///
/// # Errors
/// Same as [`saved_modules`], or the device cannot take a weight whole.
pub(super) fn attach_saved<B: TrainBackend>(
    model: &mut Decoder<B>,
    config: &LoraConfig,
    (mut saved, biases): (SavedWeights, Biases),
    device: &B::Device,
) -> Result<()> {
    let modules = saved_modules(&model.config, config)?;
    let names: Vec<&str> = modules.iter().map(|(name, _)| name.as_str()).collect();
    check_whole_weights::<B>(&model.config, &names, device)?;
    let dtype =
        if B::ad_enabled(device) { <B::FloatElem as Element>::dtype() } else { model.dtype() };
    for (name, module) in model.modules_mut() {
        if !names.contains(&name.as_str()) {
            continue;
        }
        let data = saved.remove(&name);
        match module {
            ModuleMut::Matrix(weight) => attach_matrix(weight, data, dtype, device),
            ModuleMut::Projection(linear) => {
                attach_matrix(&mut linear.weight, data, dtype, device);
            }
            ModuleMut::Norm(norm) => {
                let value = from_data(data, dtype, device);
                let value = value.unwrap_or_else(|| norm.weight.val().cast(dtype));
                norm.trained = Some(trainable(value));
            }
        }
    }
    attach_biases(model, config, biases, dtype, device)
}

/// Makes `weight` trainable, from `data` or from its own values.
fn attach_matrix<B: TrainBackend>(
    weight: &mut WeightParam<B>,
    data: Option<TensorData>,
    dtype: DType,
    device: &B::Device,
) {
    let value = from_data(data, dtype, device);
    weight.trained = Some(trainable(value.unwrap_or_else(|| weight.floats(dtype))));
}

fn from_data<B: TrainBackend, const D: usize>(
    data: Option<TensorData>,
    dtype: DType,
    device: &B::Device,
) -> Option<Tensor<B, D>> {
    data.map(|data| Tensor::from_data(data, (device, dtype)))
}

fn trainable<B: TrainBackend, const D: usize>(tensor: Tensor<B, D>) -> Param<Tensor<B, D>> {
    Param::from_tensor(tensor.detach())
}

/// Returns whether the modules and biases that are trained in full have the values of the model without its adapter.
pub fn saved_equals_base<B: TrainBackend>(model: &Decoder<B>) -> bool {
    let mut model = model.clone();
    let matrix_equals = |WeightParam { stored, trained }: &WeightParam<B>| {
        trained.as_ref().is_none_or(|trained| {
            let trained = trained.val().detach();
            is_equal(stored.val().floats(trained.dtype()), trained)
        })
    };
    model.modules_mut().into_iter().all(|(_, module)| match module {
        ModuleMut::Matrix(weight) => matrix_equals(weight),
        ModuleMut::Projection(Linear { weight, bias, trained_bias, .. }) => {
            matrix_equals(weight)
                && bias.as_ref().is_none_or(|bias| vector_equals(bias, trained_bias.as_ref()))
        }
        ModuleMut::Norm(RmsNorm { weight, trained, .. }) => vector_equals(weight, trained.as_ref()),
    })
}

/// Returns whether the copy `trained` of a vector has its values; true if there is no copy.
fn vector_equals<B: TrainBackend>(
    own: &Param<Tensor<B, 1>>,
    trained: Option<&Param<Tensor<B, 1>>>,
) -> bool {
    trained.is_none_or(|trained| {
        let trained = trained.val().detach();
        is_equal(own.val().cast(trained.dtype()), trained)
    })
}

fn is_equal<B: TrainBackend, const D: usize>(a: Tensor<B, D>, b: Tensor<B, D>) -> bool {
    a.equal(b).all().into_data().iter::<bool>().all(|equal| equal)
}
