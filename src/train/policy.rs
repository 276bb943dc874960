//! Loads the model that a run trains and marks its trained tensors: an adapter, or all weights.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use arithmo_backends::TrainBackend;
use burn::backend::Autodiff;
use burn::tensor::{DType, Element};

use crate::adapter::config::{BranchConfig, LoraInit};
use crate::adapter::modules::{LayerChoice, Patterns};
use crate::adapter::{self, LoraConfig, loftq, peft, residual};
use crate::config::{InitLoraWeights, RunConfig};
use crate::error::{Error, Result};
use crate::model::config::DecoderConfig;
use crate::model::decoder::Decoder;
use crate::model::dtype::{Purpose, choose};
use crate::model::quantize::cache::Cache;
use crate::model::weights::WeightFiles;
use crate::model::{limits, load};
use crate::progress::ProgressMode;
use crate::train::checkpoint::Checkpoint;
use crate::train::parameters::train_all;

/// Loads the model and makes its trained tensors require a gradient: an adapter, whose settings are returned, or all
/// weights. A run that is resumed from a checkpoint gives it, because it tells what an adapter started with that took a part
/// of the base.
pub(super) fn policy<B: TrainBackend>(
    config: &RunConfig,
    model_folder: &Path,
    resumed: Option<&Checkpoint>,
    mode: ProgressMode,
    device: &B::Device,
) -> Result<(Decoder<Autodiff<B>>, Option<LoraConfig>)> {
    let shape = DecoderConfig::load(model_folder)?;
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
    if config.lora.uses_loftq() || config.lora.changes_base() {
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
            adapter::lora::attach(&mut policy, &lora, config.seed, device)?;
            if lora.init == LoraInit::LoftQ {
                let files = WeightFiles::open_model(model_folder, &shape)?;
                loftq::start::<B>(&mut policy, &lora, config.seed, &files, mode, device)?;
            }
            if lora.init.changes_base() {
                let saved = resumed.map(|from| from.tensors(peft::CHECKPOINT_GROUP)).transpose()?;
                residual::start::<B>(&mut policy, &lora, config.seed, saved, mode, device)?;
            }
            lora
        }
    };
    Ok((policy, Some(lora)))
}

/// Checks that the new adapter of a run suits a model of shape `shape`, or that the settings of the starting adapter can be
/// read, before anything is loaded or written.
///
/// # Errors
/// Same as [`adapter::lora::check`] or [`peft::read_config`].
pub(super) fn check_adapter(config: &RunConfig, shape: &DecoderConfig) -> Result<()> {
    if !config.model.use_peft {
        return Ok(());
    }
    if let Some(folder) = &config.lora.adapter {
        return peft::read_config(folder).map(|_| ());
    }
    let quantization = shape.quantization.or(config.model.quantize());
    let shape = DecoderConfig { quantization, ..shape.clone() };
    adapter::lora::check(&shape, &lora_config(config))
}

/// Returns the dtype of weights that are trained themselves: the backend's own, f32.
fn full_dtype<B: TrainBackend>() -> DType {
    <B::FloatElem as Element>::dtype()
}

/// Checks that no key of `[lora]` contradicts the starting adapter, which has its own settings: none of them must change
/// the adapter if it replaces the adapter's own value. A key with its default value is ignored.
///
/// # Errors
/// A key has another value than its default and than the adapter.
fn check_against_adapter<B: TrainBackend>(
    config: &RunConfig,
    adapter: &LoraConfig,
    policy: &Decoder<Autodiff<B>>,
) -> Result<()> {
    let names: Vec<String> = policy.projections().map(|(name, _)| name).collect();
    let branches = |lora: &LoraConfig| -> Result<Vec<Option<BranchConfig>>> {
        names.iter().map(|name| lora.at(name)).collect()
    };
    let others = |lora: &LoraConfig| {
        let modules: BTreeSet<String> = lora.modules_to_save.iter().cloned().collect();
        (lora.lora_dropout, lora.use_dora, lora.bias, lora.lora_bias, modules)
    };
    for (key, changed) in with_each_key(adapter, &lora_config(config)) {
        if branches(&changed)? != branches(adapter)? || others(&changed) != others(adapter) {
            return Err(Error::invalid(
                key,
                "differs from the settings of the adapter in lora.adapter, which are used",
                format!("remove {key}, or lora.adapter"),
            ));
        }
    }
    Ok(())
}

/// Returns the settings of `adapter` with one value of `own` each, for every key that has not its default value there.
fn with_each_key(adapter: &LoraConfig, own: &LoraConfig) -> Vec<(&'static str, LoraConfig)> {
    let default = lora_config(&RunConfig::default());
    let mut found = Vec::new();
    let mut set = |key, is_set: bool, change: &dyn Fn(&mut LoraConfig)| {
        if is_set {
            let mut changed = adapter.clone();
            change(&mut changed);
            found.push((key, changed));
        }
    };
    set("lora.r", own.r != default.r, &|lora| lora.r = own.r);
    set("lora.lora_alpha", own.lora_alpha != default.lora_alpha, &|lora| {
        lora.lora_alpha = own.lora_alpha;
    });
    set("lora.lora_dropout", own.lora_dropout != default.lora_dropout, &|lora| {
        lora.lora_dropout = own.lora_dropout;
    });
    set("lora.use_rslora", own.use_rslora, &|lora| lora.use_rslora = true);
    set("lora.use_dora", own.use_dora, &|lora| lora.use_dora = true);
    set("lora.target_modules", own.target_modules != default.target_modules, &|lora| {
        lora.target_modules = own.target_modules.clone();
    });
    set("lora.exclude_modules", !own.exclude_modules.is_empty(), &|lora| {
        lora.exclude_modules = own.exclude_modules.clone();
    });
    set("lora.layers_to_transform", !own.layers.indices.is_empty(), &|lora| {
        lora.layers.indices = own.layers.indices.clone();
    });
    set("lora.layers_pattern", !own.layers.patterns.is_empty(), &|lora| {
        lora.layers.patterns = own.layers.patterns.clone();
    });
    set("lora.rank_pattern", !own.rank_pattern.0.is_empty(), &|lora| {
        lora.rank_pattern = own.rank_pattern.clone();
    });
    set("lora.alpha_pattern", !own.alpha_pattern.0.is_empty(), &|lora| {
        lora.alpha_pattern = own.alpha_pattern.clone();
    });
    set("lora.bias", own.bias != default.bias, &|lora| lora.bias = own.bias);
    set("lora.lora_bias", own.lora_bias, &|lora| lora.lora_bias = true);
    set("lora.modules_to_save", !own.modules_to_save.is_empty(), &|lora| {
        lora.modules_to_save = own.modules_to_save.clone();
    });
    found
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
        use_dora: lora.use_dora,
        init: match lora.init_lora_weights {
            InitLoraWeights::Gaussian => LoraInit::Gaussian,
            InitLoraWeights::KaimingUniform => LoraInit::KaimingUniform,
            InitLoraWeights::LoftQ => LoraInit::LoftQ,
            InitLoraWeights::Pissa => LoraInit::Pissa { niter: None },
            InitLoraWeights::PissaNiter(count) => LoraInit::Pissa { niter: Some(count) },
            InitLoraWeights::Olora => LoraInit::Olora,
        },
        rank_pattern: patterns(lora.rank_pattern.as_ref()),
        alpha_pattern: patterns(lora.alpha_pattern.as_ref()),
        exclude_modules: lora.exclude_modules.clone().unwrap_or_default(),
        layers: LayerChoice {
            indices: lora.layers_to_transform.clone().unwrap_or_default(),
            patterns: lora.layers_pattern.clone().unwrap_or_default(),
        },
        bias: lora.bias,
        lora_bias: lora.lora_bias,
        modules_to_save: lora.modules_to_save.clone().unwrap_or_default(),
    }
}

fn patterns<T: Copy>(table: Option<&BTreeMap<String, T>>) -> Patterns<T> {
    let entries = table.into_iter().flatten();
    Patterns(entries.map(|(pattern, value)| (pattern.clone(), *value)).collect())
}
