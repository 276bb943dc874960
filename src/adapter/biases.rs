//! The biases of the model that an adapter trains: PEFT's `bias`.
//!
//! The adapter has copies of them, which the model uses in their place; without the adapter the model has its own ones. That
//! differs from PEFT, where a model whose adapter is disabled keeps the trained biases, as PEFT warns: a reference is here the
//! model as it was before the training.

use std::collections::BTreeMap;

use arithmo_backends::TrainBackend;
use burn::module::Param;
use burn::tensor::{DType, Tensor, TensorData};

use super::config::{LoraBias, LoraConfig};
use crate::error::Result;
use crate::model::config::DecoderConfig;
use crate::model::decoder::Decoder;
use crate::model::names::TensorRole;

/// Each trained bias by the name of its module (`model.layers.0.self_attn.q_proj`), in f32.
pub type Biases = BTreeMap<String, TensorData>;

/// A bias that an adapter trains.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct TrainedBias {
    /// Name of its module.
    pub(super) module: String,
    /// Number of values.
    pub(super) width: usize,
    /// Whether the module also has a branch.
    pub(super) has_branch: bool,
}

impl TrainedBias {
    /// Returns its name in PEFT's files, below the prefix: PEFT wraps a module with a branch, whose own tensors are then
    /// those of its `base_layer`.
    pub(super) fn name(&self) -> String {
        name_in_files(&self.module, self.has_branch)
    }
}

/// Returns the name of the bias of `module` in PEFT's files.
pub(super) fn name_in_files(module: &str, has_branch: bool) -> String {
    let base = if has_branch { ".base_layer" } else { "" };
    format!("{module}{base}.bias")
}

/// Lists the biases of `model` that an adapter with `config` trains.
///
/// # Errors
/// Same as [`LoraConfig::at`].
pub(super) fn trained_biases(
    model: &DecoderConfig,
    config: &LoraConfig,
) -> Result<Vec<TrainedBias>> {
    let mut trained = Vec::new();
    for tensor in model.tensors().iter().filter(|tensor| tensor.role == TensorRole::Bias) {
        let module = tensor.module().to_string();
        let has_branch = config.at(&module)?.is_some();
        let is_trained = match config.bias {
            LoraBias::None => false,
            LoraBias::LoraOnly => has_branch,
            LoraBias::All => true,
        };
        if is_trained {
            trained.push(TrainedBias { module, width: tensor.count(), has_branch });
        }
    }
    Ok(trained)
}

/// Makes the biases trainable that `config` trains: from `biases`, or from the model's own values where they are absent
/// there. They have the type of the branches.
///
/// # Errors
/// Same as [`LoraConfig::at`].
pub(super) fn attach_biases<B: TrainBackend>(
    model: &mut Decoder<B>,
    config: &LoraConfig,
    mut biases: Biases,
    dtype: DType,
    device: &B::Device,
) -> Result<()> {
    let trained = trained_biases(&model.config, config)?;
    for (name, linear) in model.projections_mut() {
        if !trained.iter().any(|bias| bias.module == name) {
            continue;
        }
        let value = match (biases.remove(&name), &linear.bias) {
            (Some(data), _) => Some(Tensor::from_data(data, (device, dtype))),
            (None, own) => own.as_ref().map(|own| own.val().cast(dtype)),
        };
        linear.trained_bias = value.map(|value: Tensor<B, 1>| Param::from_tensor(value.detach()));
    }
    Ok(())
}
