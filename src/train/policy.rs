//! Loads the model that a run trains and marks its trained tensors: an adapter, or all weights.

use std::path::Path;

use arithmo_backends::TrainBackend;
use burn::backend::Autodiff;
use burn::tensor::{DType, Element};

use crate::adapter::config::LoraInit;
use crate::adapter::{self, LoraConfig, loftq, peft, residual};
use crate::config::{InitLoraWeights, RunConfig, TargetModules};
use crate::error::{Error, Result};
use crate::model::config::MistralConfig;
use crate::model::dtype::{Purpose, choose};
use crate::model::mistral::Mistral;
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
            adapter::linear::attach(&mut policy, &lora, config.seed, device)?;
            if lora.init == LoraInit::LoftQ {
                let files = WeightFiles::open(model_folder)?;
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

/// Returns the dtype of weights that are trained themselves: the backend's own, f32.
fn full_dtype<B: TrainBackend>() -> DType {
    <B::FloatElem as Element>::dtype()
}

/// Checks that no key of `[lora]` contradicts the starting adapter, which has its own settings. A key with its default value
/// is ignored.
///
/// # Errors
/// A key has another value than its default and than the adapter.
fn check_against_adapter<B: TrainBackend>(
    config: &RunConfig,
    adapter: &LoraConfig,
    policy: &Mistral<Autodiff<B>>,
) -> Result<()> {
    let (requested, default) = (lora_config(config), lora_config(&RunConfig::default()));
    let sites = |lora: &LoraConfig| -> Result<Vec<bool>> {
        let names = policy.projections().map(|(name, _)| name);
        names.map(|name| lora.target_modules.matches(&name)).collect()
    };
    let (requested_sites, adapter_sites) = (sites(&requested)?, sites(adapter)?);
    let differs = [
        ("lora.r", requested.r != default.r && requested.r != adapter.r),
        (
            "lora.lora_alpha",
            requested.lora_alpha != default.lora_alpha
                && requested.lora_alpha != adapter.lora_alpha,
        ),
        (
            "lora.lora_dropout",
            requested.lora_dropout != default.lora_dropout
                && requested.lora_dropout != adapter.lora_dropout,
        ),
        ("lora.use_rslora", requested.use_rslora && !adapter.use_rslora),
        ("lora.use_dora", requested.use_dora && !adapter.use_dora),
        (
            "lora.target_modules",
            requested.target_modules != default.target_modules && requested_sites != adapter_sites,
        ),
    ];
    match differs.iter().find(|(_, differs)| *differs) {
        Some((key, _)) => Err(Error::invalid(
            key,
            "differs from the settings of the adapter in lora.adapter, which are used",
            format!("remove {key}, or lora.adapter"),
        )),
        None => Ok(()),
    }
}

/// Returns the settings of a new adapter from the configuration.
pub fn lora_config(config: &RunConfig) -> LoraConfig {
    let lora = &config.lora;
    LoraConfig {
        r: lora.r,
        lora_alpha: lora.lora_alpha,
        lora_dropout: lora.lora_dropout,
        target_modules: match &lora.target_modules {
            TargetModules::Names(names) => adapter::TargetModules::Names(names.clone()),
            TargetModules::AllLinear => adapter::TargetModules::AllLinear,
        },
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
    }
}
