//! The arguments that select a model, shared by the subcommands that load one.

use std::path::{Path, PathBuf};

use arithmo_backends::TrainBackend;
use clap::Args;

use crate::adapter::peft;
use crate::config::{ModelDtype, Quantization};
use crate::error::{Error, Result};
use crate::model::config::DecoderConfig;
use crate::model::decoder::Decoder;
use crate::model::dtype::{Purpose, choose};
use crate::model::hub::Hub;
use crate::model::limits;
use crate::model::load::load_as;
use crate::model::quantize;
use crate::model::quantize::cache::Cache;
use crate::progress::ProgressMode;

/// The flags that select a model and the form in which it is loaded.
#[derive(Args, Clone, Debug)]
pub struct ModelArgs {
    /// Load this model: a folder in Hugging Face layout, or a hub id OWNER/NAME.
    #[arg(long, value_name = "FOLDER|ID")]
    pub model: String,
    #[command(flatten)]
    pub(super) load: LoadArgs,
}

/// The flags that select the form in which a model is loaded.
#[derive(Args, Clone, Debug)]
pub struct LoadArgs {
    /// Use this branch, tag or commit of the hub.
    #[arg(long, default_value = "main")]
    pub revision: String,
    /// Apply the PEFT adapter in this folder.
    #[arg(long, value_name = "DIR")]
    pub adapter: Option<PathBuf>,
    /// Choose the adapter with this name in the folder of --adapter [default: default, which PEFT saves at the top].
    #[arg(long, value_name = "NAME", requires = "adapter")]
    pub adapter_name: Option<String>,
    /// Set the dtype of the weights in memory; auto uses that of the files, or the nearest one in which the backend
    /// computes.
    #[arg(long, value_enum, default_value = "auto")]
    pub dtype: ModelDtype,
    #[command(flatten)]
    pub(super) quantize: QuantizeArgs,
}

/// The flags that choose how projections are quantized.
#[derive(Args, Clone, Copy, Debug, Default)]
pub struct QuantizeArgs {
    /// Quantize the projections to 4 bits (nf4, fp4) or 8 bits (int8) as bitsandbytes does [default: none]. Quantized
    /// models are kept in the user's cache folder.
    #[arg(long, value_enum, value_name = "none|nf4|fp4|int8", hide_possible_values = true)]
    pub quantization: Option<Quantization>,
    /// Quantize the scales too, which saves about 0.4 bits per weight.
    #[arg(long, requires = "quantization")]
    pub double_quant: bool,
}

impl QuantizeArgs {
    /// Returns the requested quantization, or `None` to load projections as they are stored.
    ///
    /// # Errors
    /// `--double-quant` is set without a quantization.
    pub fn quantization(&self) -> Result<Option<quantize::Quantization>> {
        quantization_settings(self.quantization.unwrap_or_default(), self.double_quant)
    }
}

/// Combines `--quantization` and `--double-quant`; `None` means no quantization.
///
/// # Errors
/// `--double-quant` is set without a quantization.
pub(super) fn quantization_settings(
    quantization: Quantization,
    double_quant: bool,
) -> Result<Option<quantize::Quantization>> {
    match quantization.with(double_quant) {
        None if double_quant => Err(Error::invalid(
            "--double-quant",
            "has no effect: --quantization is none",
            "leave it out",
        )),
        packed => Ok(packed),
    }
}

impl LoadArgs {
    /// Replaces the folder of `--adapter` by that of the adapter which `--adapter-name` chooses in it.
    ///
    /// # Errors
    /// There is no adapter of that name.
    pub(super) fn resolve_adapter(&mut self) -> Result<()> {
        if let (Some(folder), Some(name)) = (&mut self.adapter, &self.adapter_name) {
            *folder = peft::named_adapter(folder, name)?;
        }
        Ok(())
    }
}

impl ModelArgs {
    /// Returns the folders that these arguments name, which no output may change.
    pub(super) fn inputs(&self) -> Vec<&Path> {
        let model = [Path::new(&self.model)];
        model.into_iter().chain(self.load.adapter.as_deref()).collect()
    }

    /// Returns the model's folder, downloaded from the hub if need be.
    ///
    /// # Errors
    /// The model is neither a folder nor on the hub.
    pub fn folder(&self, progress: ProgressMode) -> Result<PathBuf> {
        Hub::open(progress).resolve(&self.model, &self.load.revision)
    }

    /// Loads the model in `folder`, quantized if requested, with the adapter if one is named.
    ///
    /// # Errors
    /// A file is damaged, or model and adapter do not fit together.
    pub fn load<B: TrainBackend>(
        &self,
        folder: &Path,
        mode: ProgressMode,
        device: &B::Device,
    ) -> Result<Decoder<B>> {
        if let Some(adapter) = &self.load.adapter {
            // A mistake in the adapter is found before the model is loaded.
            peft::read_config(adapter)?;
        }
        let shape = DecoderConfig::load(folder)?;
        let dtype = choose::<B>(&shape, self.load.dtype.dtype(), Purpose::Hold, device)?;
        let (to, cache) = (self.load.quantize.quantization()?, Cache::from_env(mode));
        limits::check::<B>(&shape, to, dtype, device)?;
        let mut model = load_as(folder, dtype, to, &cache, device)?;
        if let Some(folder) = &self.load.adapter {
            peft::load(&mut model, folder, device)?;
            note_base_mismatch(folder, model.config.quantization, mode)?;
        }
        Ok(model)
    }
}

/// Prints a note if the adapter was trained on another quantization of the base than the present one: an adapter
/// compensates for the rounding of the weights it was trained on, so on others it does slightly worse.
///
/// # Errors
/// The record of the adapter's base cannot be read.
pub(super) fn note_base_mismatch(
    adapter: &Path,
    now: Option<quantize::Quantization>,
    mode: ProgressMode,
) -> Result<()> {
    let Some(then) = peft::base_quantization(adapter)? else {
        return Ok(());
    };
    if Some(then) != now && mode != ProgressMode::Quiet {
        let double = if then.double_quant { " --double-quant" } else { "" };
        say!(
            "note: {}: this adapter was trained on a base in {}, but is used on one in {}; --quantization {}{double} restores \
             the base it was trained on",
            adapter.display(),
            then.name(),
            now.map_or("full", |now| now.name()),
            then.name(),
        );
    }
    Ok(())
}
