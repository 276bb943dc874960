//! The arguments that name a model, shared by the subcommands that load one.

use std::path::{Path, PathBuf};

use arithmo_backends::TrainBackend;
use burn::tensor::DType;
use clap::{Args, ValueEnum};

use crate::error::Result;
use crate::lora::adapter;
use crate::model::config::MistralConfig;
use crate::model::dtype::choose;
use crate::model::hub::Hub;
use crate::model::limits;
use crate::model::load::load;
use crate::model::mistral::Mistral;
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

    /// Loads the model in `folder`, with the adapter if one is named.
    ///
    /// # Errors
    /// A file is damaged, or model and adapter do not fit together.
    pub fn load<B: TrainBackend>(&self, folder: &Path, device: &B::Device) -> Result<Mistral<B>> {
        let shape = MistralConfig::load(folder)?;
        let dtype = choose::<B>(&shape, self.dtype.dtype(), device)?;
        limits::check::<B>(&shape, dtype, device)?;
        let mut model = load(folder, dtype, device)?;
        if let Some(folder) = &self.adapter {
            adapter::load(&mut model, folder, device)?;
        }
        Ok(model)
    }
}
