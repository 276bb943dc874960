//! The arguments that name a model, shared by the subcommands that load one.

use std::path::{Path, PathBuf};

use arithmo_backends::TrainBackend;
use burn::tensor::DType;
use clap::{Args, ValueEnum};

use crate::config::Quantization;
use crate::error::{Error, Result};
use crate::lora::adapter;
use crate::model::config::MistralConfig;
use crate::model::dtype::{Purpose, choose};
use crate::model::hub::Hub;
use crate::model::limits;
use crate::model::load::load_as;
use crate::model::mistral::Mistral;
use crate::model::quantize;
use crate::model::quantize::cache::Cache;
use crate::progress::ProgressMode;

/// Which model.
#[derive(Args, Clone, Debug)]
pub struct ModelArgs {
    /// A folder in Hugging Face layout, or a hub id OWNER/NAME.
    #[arg(long, value_name = "FOLDER|ID")]
    pub model: String,
    /// Branch, tag or commit on the hub.
    #[arg(long, default_value = "main")]
    pub revision: String,
    /// A PEFT adapter folder to put on the model.
    #[arg(long, value_name = "DIR")]
    pub adapter: Option<PathBuf>,
    /// Type of the weights in memory; auto: as stored, or what the backend computes in that is nearest.
    #[arg(long, value_enum, default_value = "auto")]
    pub dtype: WeightType,
    #[command(flatten)]
    pub(super) quantize: QuantizeArgs,
}

/// Whether projections are packed.
#[derive(Args, Clone, Copy, Debug, Default)]
pub struct QuantizeArgs {
    /// Hold the projections in 4 bits (nf4, fp4) or 8 (int8), packed as bitsandbytes packs them; packed models are kept in
    /// the user's cache folder.
    #[arg(long, value_enum, value_name = "none|nf4|fp4|int8", hide_possible_values = true)]
    pub quantization: Option<Quantization>,
    /// Pack the scales too: about 0.4 bit a weight less.
    #[arg(long, requires = "quantization")]
    pub double_quant: bool,
}

impl QuantizeArgs {
    /// What is asked for; `None`: projections as they are stored.
    ///
    /// # Errors
    /// `--double-quant` has nothing to act on.
    pub fn quantization(&self) -> Result<Option<quantize::Quantization>> {
        packed_as(self.quantization.unwrap_or_default(), self.double_quant)
    }
}

/// What `--quantization` and `--double-quant` say together; `None`: not packed.
///
/// # Errors
/// `--double-quant` has nothing to act on.
pub(super) fn packed_as(
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

/// Types a model's weights can be held in, or written in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum WeightType {
    /// As stored.
    Auto,
    /// 32-bit.
    F32,
    /// bfloat16.
    Bf16,
    /// 16-bit.
    F16,
}

impl WeightType {
    /// The type asked for; `None` for auto.
    pub fn dtype(self) -> Option<DType> {
        match self {
            Self::Auto => None,
            Self::F32 => Some(DType::F32),
            Self::Bf16 => Some(DType::BF16),
            Self::F16 => Some(DType::F16),
        }
    }
}

impl ModelArgs {
    /// The model's folder, fetched from the hub if need be.
    ///
    /// # Errors
    /// It is neither a folder nor on the hub.
    pub fn folder(&self, progress: ProgressMode) -> Result<PathBuf> {
        Hub::open(progress).resolve(&self.model, &self.revision)
    }

    /// Loads the model in `folder`, packed if asked for, with the adapter if one is named.
    ///
    /// # Errors
    /// A file is damaged, or model and adapter do not fit together.
    pub fn load<B: TrainBackend>(
        &self,
        folder: &Path,
        mode: ProgressMode,
        device: &B::Device,
    ) -> Result<Mistral<B>> {
        let shape = MistralConfig::load(folder)?;
        let dtype = choose::<B>(&shape, self.dtype.dtype(), Purpose::Hold, device)?;
        let (to, cache) = (self.quantize.quantization()?, Cache::of_user(mode));
        limits::check::<B>(&shape, to, dtype, device)?;
        let mut model = load_as(folder, dtype, to, &cache, device)?;
        if let Some(folder) = &self.adapter {
            adapter::load(&mut model, folder, device)?;
            note_other_base(folder, model.config.quantization, mode)?;
        }
        Ok(model)
    }
}

/// An adapter makes up for the rounding of the weights it was trained on: on others it does a little less well.
fn note_other_base(
    adapter: &Path,
    now: Option<quantize::Quantization>,
    mode: ProgressMode,
) -> Result<()> {
    let Some(then) = adapter::trained_on(adapter)? else {
        return Ok(());
    };
    if Some(then) != now && mode != ProgressMode::Quiet {
        let double = if then.double_quant { " --double-quant" } else { "" };
        eprintln!(
            "note: {}: this adapter was trained on a base in {}, and is used on one in {}; --quantization {}{double} is what \
             it was trained on",
            adapter.display(),
            then.name(),
            now.map_or("full", |now| now.name()),
            then.name(),
        );
    }
    Ok(())
}
