//! Saves the result of a run: an adapter as a PEFT folder, or a whole model as a Hugging Face folder.

use std::path::{Path, PathBuf};

use arithmo_backends::TrainBackend;
use burn::backend::Autodiff;
use burn::tensor::DType;

use crate::adapter::parameters::Parameter;
use crate::adapter::{LoraConfig, peft};
use crate::config::RunConfig;
use crate::data::tokenizer::{CarriedFiles, TOKENIZER_FILES};
use crate::error::Result;
use crate::model::decoder::Decoder;
use crate::model::save::{ModelFolder, OutTensor};
use crate::train::checkpoint::{Checkpoint, NamedTensors};
use crate::train::folder::RunFolder;
use crate::train::parameters::{set_trained_parameters, trained_parameters};

/// Name of the checkpoint's group of all weights. Its names are those in the model's files, and norms are `[1, D]`.
const WEIGHTS: &str = "weights";

/// Saves and restores the weights that a run trains.
#[derive(Clone, Debug)]
pub struct TrainedWeights {
    /// Settings of the adapter. `None` means that all weights are trained.
    lora: Option<LoraConfig>,
    base_model: String,
    revision: String,
    /// Name of the adapter.
    name: String,
}

impl TrainedWeights {
    /// Creates a value for an adapter with the settings `lora`, or for all weights if `lora` is `None`.
    pub fn new(config: &RunConfig, lora: Option<LoraConfig>) -> Self {
        Self {
            lora,
            base_model: config.model.model_name_or_path.clone(),
            revision: config.model.revision.clone(),
            name: config.lora.adapter_name.clone(),
        }
    }

    /// Returns the name of the checkpoint's group of tensors.
    pub fn group(&self) -> &'static str {
        match self.lora {
            Some(_) => peft::CHECKPOINT_GROUP,
            None => WEIGHTS,
        }
    }

    /// Returns the trained tensors for a checkpoint.
    pub fn tensors<B: TrainBackend>(&self, policy: &Decoder<Autodiff<B>>) -> NamedTensors {
        if self.lora.is_some() {
            return peft::tensors(policy);
        }
        let named = trained_parameters(policy).into_iter();
        named.map(|parameter| (parameter.name, parameter.value.into_data())).collect()
    }

    /// Returns the names and contents of the files that a checkpoint has beside the tensors.
    pub fn files<B: TrainBackend>(&self, policy: &Decoder<Autodiff<B>>) -> Vec<(String, Vec<u8>)> {
        let config = self.adapter_config(policy);
        let file = config.map(|json| (peft::CONFIG.to_string(), json.into_bytes()));
        file.into_iter().collect()
    }

    /// Restores the tensors of `checkpoint`.
    ///
    /// # Errors
    /// The tensors do not fit the model.
    pub fn restore<B: TrainBackend>(
        &self,
        policy: &mut Decoder<Autodiff<B>>,
        checkpoint: &Checkpoint,
        device: &B::Device,
    ) -> Result<()> {
        if self.lora.is_some() {
            let saved = checkpoint.tensors(self.group())?;
            return peft::restore(policy, saved, checkpoint.path(), device);
        }
        let values = checkpoint.values(self.group(), &trained_parameters(policy), device)?;
        set_trained_parameters(policy, values);
        Ok(())
    }

    /// Reads the files of the base model that [`Self::save`] writes beside the result.
    ///
    /// # Errors
    /// A file cannot be read.
    pub fn carried_files(&self, model_folder: &Path) -> Result<CarriedFiles> {
        let model = self.lora.is_none().then_some("generation_config.json");
        CarriedFiles::read(model_folder, TOKENIZER_FILES.into_iter().chain(model))
    }

    /// Writes the result of the run into its folder and returns the folder of the result. A `reference` that follows an
    /// adapter is one itself, and is saved beside it under PEFT's rules for several adapters.
    ///
    /// # Errors
    /// The folder cannot be written.
    pub fn save<B: TrainBackend>(
        &self,
        policy: &Decoder<Autodiff<B>>,
        reference: Option<&Decoder<B>>,
        run: &RunFolder,
        carried: &CarriedFiles,
    ) -> Result<PathBuf> {
        if let Some(config) = self.adapter_config(policy) {
            let folder = run.adapter();
            if let Some(reference) = reference {
                peft::save(reference, &config, &folder.join(peft::REFERENCE_NAME))?;
            }
            carried.write(&folder)?;
            let folder = peft::folder_of(&folder, &self.name);
            peft::save(policy, &config, &folder)?;
            return Ok(folder);
        }
        let folder = run.model();
        let tensors = trained_parameters(policy).into_iter().map(|parameter| {
            let Parameter { name, shape, value, .. } = parameter;
            let values = move || Ok(value.into_data().iter::<f32>().collect());
            OutTensor::new(name, shape, DType::F32, values)
        });
        // If a run is resumed after its end, the folder already has the same weights.
        let shape = &policy.config;
        let written = ModelFolder::new(&folder, shape);
        written.replace_with(tensors, |part| carried.write(part))?;
        Ok(folder)
    }

    /// Returns the adapter's config file, or `None` if all weights are trained.
    fn adapter_config<B: TrainBackend>(&self, policy: &Decoder<Autodiff<B>>) -> Option<String> {
        let lora = self.lora.as_ref()?;
        let revision = Some(self.revision.as_str());
        Some(peft::config_json(policy, lora, &self.base_model, revision))
    }
}
