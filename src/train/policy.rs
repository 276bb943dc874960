//! Loads the model that a run trains and marks its trained tensors: an adapter, or all weights.

use std::collections::BTreeMap;
use std::path::Path;

use arithmo_backends::TrainBackend;
use burn::backend::Autodiff;
use burn::tensor::{DType, Element};

use crate::adapter::config::{BranchConfig, LoraInit};
use crate::adapter::modules::{LayerChoice, Patterns};
use crate::adapter::{self, LoraConfig, loftq, peft};
use crate::config::{InitLoraWeights, RunConfig};
use crate::error::{Error, Result};
use crate::model::config::MistralConfig;
use crate::model::dtype::{Purpose, choose};
use crate::model::mistral::Mistral;
use crate::model::quantize::cache::Cache;
use crate::model::weights::WeightFiles;
use crate::model::{limits, load};
use crate::progress::ProgressMode;
use crate::train::parameters::train_all;

/// Loads the model and makes its trained tensors require a gradient: an adapter, whose settings are returned, or all
/// weights.
pub(super) fn policy<B: TrainBackend>(
    config: &RunConfig,
    model_folder: &Path,
    mode: ProgressMode,
    device: &B::Device,
) -> Result<(Mistral<Autodiff<B>>, Option<LoraConfig>)> {
    let shape = MistralConfig::load(model_folder)?;
    if !config.model.use_peft {
        limits::check_whole::<B>(&shape, device)?;
        let dtype = full_dtype::<B>();
        let policy = if config.model.from_scratch {
            load::random(shape, config.seed, dtype, device)?
        } else {
            load::load(model_folder, dtype, device)?
        };
        if let Some(format) = policy.config.quantization {
            return Err(Error::file(
                model_folder,
                format!(
                    "the weights are quantized as {} and cannot be trained themselves",
                    format.name()
                ),
                "set model.use_peft = true to train an adapter on them, or give the full-precision model",
            ));
        }
        return Ok((train_all(policy), None));
    }
    let dtype = choose::<B>(&shape, config.model.dtype.dtype(), Purpose::Hold, device)?;
    let (quantize, cache) = (config.model.quantize(), Cache::from_env(mode));
    limits::check::<B>(&shape, quantize, dtype, device)?;
    if config.lora.uses_loftq() {
        limits::check_whole::<B>(&shape, device)?;
    }
    let mut policy = load::load_as::<Autodiff<B>>(model_folder, dtype, quantize, &cache, device)?;
    let lora = match &config.lora.adapter {
        Some(folder) => {
            let lora = peft::load(&mut policy, folder, device)?;
            check_against_adapter(config, &lora, &policy)?;
            lora
        }
        None => {
            let lora = lora_config(config);
            adapter::linear::attach(&mut policy, &lora, config.seed, device)?;
            if lora.init == LoraInit::LoftQ {
                let files = WeightFiles::open(model_folder)?;
                loftq::start::<B>(&mut policy, &lora, config.seed, &files, mode, device)?;
            }
            lora
        }
    };
    Ok((policy, Some(lora)))
}

/// Returns the dtype of weights that are trained themselves: the backend's own, f32.
fn full_dtype<B: TrainBackend>() -> DType {
    <B::FloatElem as Element>::dtype()
}

/// Checks that no key of `[lora]` contradicts the starting adapter, which has its own settings: setting the key in the
/// adapter must not change it. A key with its default value is ignored.
///
/// # Errors
/// A key has another value than its default and than the adapter.
fn check_against_adapter<B: TrainBackend>(
    config: &RunConfig,
    adapter: &LoraConfig,
    policy: &Mistral<Autodiff<B>>,
) -> Result<()> {
    let names: Vec<String> = policy.projections().map(|(name, _)| name).collect();
    let branches = |lora: &LoraConfig| -> Result<Vec<Option<BranchConfig>>> {
        names.iter().map(|name| lora.at(name)).collect()
    };
    let (own, default) = (lora_config(config), lora_config(&RunConfig::default()));
    let old = || adapter.clone();
    let (target_modules, exclude_modules) =
        (own.target_modules.clone(), own.exclude_modules.clone());
    let indices = LayerChoice { indices: own.layers.indices.clone(), ..old().layers };
    let patterns = LayerChoice { patterns: own.layers.patterns.clone(), ..old().layers };
    let (rank_pattern, alpha_pattern) = (own.rank_pattern.clone(), own.alpha_pattern.clone());
    // The adapter with one key set, and whether the key has a value of its own.
    let changed = [
        ("r", own.r != default.r, LoraConfig { r: own.r, ..old() }),
        (
            "lora_alpha",
            own.lora_alpha != default.lora_alpha,
            LoraConfig { lora_alpha: own.lora_alpha, ..old() },
        ),
        (
            "lora_dropout",
            own.lora_dropout != default.lora_dropout,
            LoraConfig { lora_dropout: own.lora_dropout, ..old() },
        ),
        ("use_rslora", own.use_rslora, LoraConfig { use_rslora: true, ..old() }),
        (
            "target_modules",
            target_modules != default.target_modules,
            LoraConfig { target_modules, ..old() },
        ),
        ("exclude_modules", !exclude_modules.is_empty(), LoraConfig { exclude_modules, ..old() }),
        (
            "layers_to_transform",
            !indices.indices.is_empty(),
            LoraConfig { layers: indices, ..old() },
        ),
        ("layers_pattern", !patterns.patterns.is_empty(), LoraConfig { layers: patterns, ..old() }),
        ("rank_pattern", !rank_pattern.0.is_empty(), LoraConfig { rank_pattern, ..old() }),
        ("alpha_pattern", !alpha_pattern.0.is_empty(), LoraConfig { alpha_pattern, ..old() }),
        ("bias", own.bias != default.bias, LoraConfig { bias: own.bias, ..old() }),
    ];
    for (key, is_set, changed) in changed {
        let same_settings =
            (changed.lora_dropout, changed.bias) == (adapter.lora_dropout, adapter.bias);
        if is_set && !(same_settings && branches(&changed)? == branches(adapter)?) {
            return Err(Error::invalid(
                format!("lora.{key}"),
                "differs from the settings of the adapter in lora.adapter, which are used",
                format!("remove lora.{key}, or lora.adapter"),
            ));
        }
    }
    Ok(())
}

/// Returns the settings of a new adapter from the configuration.
pub fn lora_config(config: &RunConfig) -> LoraConfig {
    let lora = &config.lora;
    LoraConfig {
        r: lora.r,
        lora_alpha: lora.lora_alpha,
        lora_dropout: lora.lora_dropout,
        target_modules: lora.target_modules.clone(),
        use_rslora: lora.use_rslora,
        init: match lora.init_lora_weights {
            InitLoraWeights::Gaussian => LoraInit::Gaussian,
            InitLoraWeights::KaimingUniform => LoraInit::KaimingUniform,
            InitLoraWeights::LoftQ => LoraInit::LoftQ,
        },
        rank_pattern: patterns(lora.rank_pattern.as_ref()),
        alpha_pattern: patterns(lora.alpha_pattern.as_ref()),
        exclude_modules: lora.exclude_modules.clone().unwrap_or_default(),
        layers: LayerChoice {
            indices: lora.layers_to_transform.clone().unwrap_or_default(),
            patterns: lora.layers_pattern.clone().unwrap_or_default(),
        },
        bias: lora.bias,
    }
}

fn patterns<T: Copy>(table: Option<&BTreeMap<String, T>>) -> Patterns<T> {
    let entries = table.into_iter().flatten();
    Patterns(entries.map(|(pattern, value)| (pattern.clone(), *value)).collect())
}
