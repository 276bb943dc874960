//! What a run leaves behind: an adapter as a PEFT folder, or a whole model as a Hugging Face folder.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use arithmo_backends::TrainBackend;
use burn::backend::Autodiff;
use burn::tensor::{DType, Tensor};

use crate::config::RunConfig;
use crate::data::tokenizer::copy_tokenizer_files;
use crate::error::{Error, Result};
use crate::lora::{LoraConfig, adapter};
use crate::model::mistral::Mistral;
use crate::model::save::{MAX_SHARD_BYTES, OutTensor, save_folder};
use crate::output::remove;
use crate::train::checkpoint::{Checkpoint, NamedTensors};
use crate::train::folder::RunFolder;
use crate::train::parameters::{parameters, set_parameters};

/// The group of a checkpoint with all weights: names as in the model's files, norms as `[1, D]`.
const WEIGHTS: &str = "weights";

/// Which weights a run trains, and how they are kept.
#[derive(Clone, Debug)]
pub struct TrainedWeights {
    /// The adapter's settings; `None`: all weights are trained.
    lora: Option<LoraConfig>,
    base_model: String,
    revision: String,
}

impl TrainedWeights {
    /// Those of an adapter with the settings `lora`, or all.
    pub fn new(config: &RunConfig, lora: Option<LoraConfig>) -> Self {
        Self {
            lora,
            base_model: config.model.model_name_or_path.clone(),
            revision: config.model.revision.clone(),
        }
    }

    /// Name of the checkpoint's group of tensors.
    pub fn group(&self) -> &'static str {
        match self.lora {
            Some(_) => adapter::CHECKPOINT_GROUP,
            None => WEIGHTS,
        }
    }

    /// The tensors a checkpoint keeps.
    pub fn tensors<B: TrainBackend>(&self, policy: &Mistral<Autodiff<B>>) -> NamedTensors {
        if self.lora.is_some() {
            return adapter::tensors(policy);
        }
        let named = parameters(policy).into_iter();
        named.map(|(name, tensor)| (name, tensor.into_data())).collect()
    }

    /// The files a checkpoint keeps beside them.
    pub fn files<B: TrainBackend>(&self, policy: &Mistral<Autodiff<B>>) -> Vec<(String, Vec<u8>)> {
        let config = self.adapter_config(policy);
        let file = config.map(|json| (adapter::CONFIG.to_string(), json.into_bytes()));
        file.into_iter().collect()
    }

    /// Puts the tensors of `checkpoint` back.
    ///
    /// # Errors
    /// They do not fit the model.
    pub fn restore<B: TrainBackend>(
        &self,
        policy: &mut Mistral<Autodiff<B>>,
        checkpoint: &Checkpoint,
        device: &B::Device,
    ) -> Result<()> {
        let saved = checkpoint.tensors(self.group())?;
        if self.lora.is_some() {
            return adapter::restore(policy, saved, checkpoint.path(), device);
        }
        let mut saved: BTreeMap<_, _> = saved.into_iter().collect();
        let mut values = Vec::new();
        for (name, tensor) in parameters(policy) {
            let data = saved.remove(&name).filter(|data| data.shape == tensor.shape());
            let Some(data) = data else {
                let problem = format!("{name} is missing or not {:?}", tensor.dims());
                let remedy = "remove this checkpoint folder";
                return Err(Error::file(checkpoint.path(), problem, remedy));
            };
            values.push(Tensor::from_data(data, device));
        }
        set_parameters(policy, values);
        Ok(())
    }

    /// Writes the run's result into its folder; returns where.
    ///
    /// # Errors
    /// The folder cannot be written.
    pub fn save<B: TrainBackend>(
        &self,
        policy: &Mistral<Autodiff<B>>,
        run: &RunFolder,
        model_folder: &Path,
    ) -> Result<PathBuf> {
        if let Some(config) = self.adapter_config(policy) {
            let folder = run.adapter();
            adapter::save(policy, &config, &folder)?;
            copy_tokenizer_files(model_folder, &folder)?;
            return Ok(folder);
        }
        let folder = run.model();
        // Of a run that is resumed after its end: the same weights.
        remove(&folder)?;
        let shapes: BTreeMap<_, _> = policy.config.tensors().into_iter().collect();
        let tensors = parameters(policy).into_iter().map(|(name, tensor)| {
            let shape = shapes.get(&name).cloned().unwrap_or_default();
            let values = move || Ok(tensor.into_data().iter::<f32>().collect());
            OutTensor::new(name, shape, DType::F32, values)
        });
        let model = Some(model_folder);
        save_folder(&folder, &policy.config, tensors, MAX_SHARD_BYTES, model)?;
        Ok(folder)
    }

    fn adapter_config<B: TrainBackend>(&self, policy: &Mistral<Autodiff<B>>) -> Option<String> {
        let lora = self.lora.as_ref()?;
        let revision = Some(self.revision.as_str());
        Some(adapter::config_json(policy, lora, &self.base_model, revision))
    }
}
