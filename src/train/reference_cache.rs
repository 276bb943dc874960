//! Keeps the reference's log-probabilities of training or held-out samples on disk for `precompute_ref_log_probs`, so that
//! further runs with the same reference and data do not compute them again. Each is one file in
//! `$XDG_CACHE_HOME/arithmo/reference` (usually `~/.cache/arithmo/reference`), and may be deleted at any time.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use burn::tensor::DType;
use safetensors::SafeTensors;
use safetensors::tensor::{Dtype, TensorView, serialize};
use serde_json::json;
use sha2::{Digest, Sha256};

use crate::config::{InitLoraWeights, Reference, RunConfig};
use crate::data::sample::Sample;
use crate::error::{Error, Result};
use crate::input_file;
use crate::model::identity::{ModelIdentity, hex};
use crate::model::quantize::cache::user_folder;
use crate::output::write_whole;

/// Part of each key; must change whenever the same samples would get other log-probabilities.
const VERSION: &str = "arithmo reference 1";

/// Name of the tensor.
const LOG_PROBS: &str = "log_probs";

/// Name of the metadata entry with the key and the hash of the tensor. There is only one entry, because the order of several
/// is random.
const HASHES: &str = "key and sha256";

/// Largest difference from a value computed again, relative to the value if that is above 1. Kernels of a GPU may add in
/// another order.
const TOLERANCE: f32 = 1e-3;

/// The file with the reference's log-probabilities of one set of samples.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReferenceCache {
    path: PathBuf,
    /// SHA-256 of everything that determines the log-probabilities.
    key: String,
}

/// What determines the log-probabilities of a run's reference, besides the samples.
#[derive(Clone, Copy, Debug)]
pub struct ReferenceOrigin<'a> {
    /// The run's configuration.
    pub config: &'a RunConfig,
    /// Hashes of the model and the starting adapter.
    pub model: &'a ModelIdentity,
    /// Type of the weights.
    pub dtype: DType,
    /// Name of the backend and its device.
    pub device: &'a str,
    /// Number of samples that are computed together.
    pub batch_size: usize,
}

impl ReferenceCache {
    /// Returns the cache file in the user's cache folder. Returns `None` if there is no such folder, or the weights are
    /// random.
    pub fn open<S: Sample>(origin: ReferenceOrigin<'_>, samples: &[S]) -> Option<Self> {
        let folder = user_folder("reference").filter(|_| !origin.config.model.from_scratch)?;
        Some(Self::within(&folder, origin, samples))
    }

    /// Returns the cache file in `folder`.
    pub fn within<S: Sample>(folder: &Path, origin: ReferenceOrigin<'_>, samples: &[S]) -> Self {
        let key = key(origin, samples);
        let path = folder.join(format!("{}.safetensors", &key[..24]));
        Self { path, key }
    }

    /// Returns the path of the file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Reads the log-probabilities, in the order in which they were written. Returns `None` if there is no file, or if it is
    /// damaged or belongs to another reference or other samples.
    pub fn read(&self) -> Option<Vec<f32>> {
        let bytes = input_file::read(&self.path).ok()?;
        let (_, metadata) = SafeTensors::read_metadata(&bytes).ok()?;
        let metadata = metadata.metadata().as_ref()?;
        let tensors = SafeTensors::deserialize(&bytes).ok()?;
        let data = tensors.tensor(LOG_PROBS).ok().filter(|data| data.dtype() == Dtype::F32)?;
        if metadata.get(HASHES) != Some(&self.hashes(data.data())) {
            return None;
        }
        let (values, _) = data.data().as_chunks::<4>();
        Some(values.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect())
    }

    /// Writes the log-probabilities.
    ///
    /// # Errors
    /// The folder is not writable.
    pub fn write(&self, log_probs: &[f32]) -> Result<()> {
        let defect = |e| Error::file(&self.path, e, "this is a defect of the program: report it");
        let bytes: Vec<u8> = log_probs.iter().flat_map(|value| value.to_le_bytes()).collect();
        let metadata = HashMap::from([(HASHES.to_string(), self.hashes(&bytes))]);
        let view = TensorView::new(Dtype::F32, vec![log_probs.len()], &bytes).map_err(defect)?;
        let file = serialize([(LOG_PROBS, view)], Some(metadata)).map_err(defect)?;
        write_whole(&self.path, &file)
    }

    /// Returns the key and the hash of the tensor's bytes.
    fn hashes(&self, bytes: &[u8]) -> String {
        format!("{} {}", self.key, hex(Sha256::digest(bytes)))
    }
}

/// Returns whether values read from the cache equal the same ones computed again, up to the order of additions.
pub fn agrees(cached: &[f32], computed: &[f32]) -> bool {
    let near = |(cached, computed): (&f32, &f32)| {
        (cached - computed).abs() <= TOLERANCE * computed.abs().max(1.0)
    };
    cached.len() == computed.len() && cached.iter().zip(computed).all(near)
}

/// Returns the SHA-256 of everything that determines the log-probabilities: the model, the adapter if it is part of the
/// reference, types, device, batch size, and the samples' ids and tokens (which contain the effects of tokenizer, template and
/// truncation).
fn key<S: Sample>(origin: ReferenceOrigin<'_>, samples: &[S]) -> String {
    let ReferenceOrigin { config, model, dtype, device, batch_size } = origin;
    let adapter = adapter_counts(config).then(|| json!([config.lora, config.seed]));
    let settings = json!({
        "version": VERSION,
        "model": model,
        "adapter": adapter,
        "quantization": [json!(config.model.quantization), json!(config.model.double_quant)],
        "dtype": format!("{dtype:?}"),
        "device": device,
        "batch_size": batch_size,
        "ld_alpha": config.dpo.ld_alpha,
        "mismatched": config.has_mismatched_completions().then_some([
            config.train.per_device_train_batch_size,
            config.data.max_length,
        ]),
    });
    let mut hasher = Sha256::new();
    hasher.update(settings.to_string());
    let mut number = |number: usize| hasher.update((number as u64).to_le_bytes());
    let mut texts = Vec::new();
    for sample in samples {
        let sides = sample.sides();
        texts.push(sample.id());
        number(sample.id().len());
        number(sides.len());
        for side in sides {
            number(side.completion_start);
            number(side.hidden.len());
            side.hidden.iter().for_each(|position| number(*position));
            number(side.ids.len());
            side.ids.iter().for_each(|id| number(*id as usize));
        }
    }
    texts.iter().for_each(|text| hasher.update(text));
    hex(hasher.finalize())
}

/// Returns whether the log-probabilities of the reference depend on the settings of the adapter: the reference has one, or
/// its initialization changes the base weights.
fn adapter_counts(config: &RunConfig) -> bool {
    let is_plain = matches!(
        config.lora.init_lora_weights,
        InitLoraWeights::KaimingUniform | InitLoraWeights::Gaussian
    );
    let is_base = match config.reference() {
        Some(Reference::Base) | None => true,
        Some(Reference::Auto) => config.lora.adapter.is_none(),
        Some(Reference::Initial) => false,
    };
    config.model.use_peft && !(is_plain && is_base)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::encode::{EncodedPair, EncodedSequence};

    fn pairs(last: u32) -> Vec<EncodedPair> {
        let side = |ids: &[u32]| EncodedSequence {
            ids: ids.to_vec(),
            completion_start: 1,
            hidden: Vec::new(),
        };
        let (chosen, rejected) = (side(&[1, 5, last]), side(&[1, 6, 2]));
        vec![EncodedPair { id: "one".into(), chosen, rejected }]
    }

    fn cache(folder: &Path, config: &RunConfig, pairs: &[EncodedPair]) -> ReferenceCache {
        let model = ModelIdentity::default();
        let batch_size = config.precompute_sizes().map_or(1, |sizes| sizes.training);
        let (dtype, device) = (DType::F32, "cpu");
        let origin = ReferenceOrigin { config, model: &model, dtype, device, batch_size };
        ReferenceCache::within(folder, origin, pairs)
    }

    #[test]
    fn a_file_is_read_as_written_unless_damaged() {
        let folder = tempfile::tempdir().unwrap();
        let cache = cache(folder.path(), &RunConfig::default(), &pairs(2));
        assert_eq!(cache.read(), None);
        cache.write(&[-1.5, -2.25]).unwrap();
        assert_eq!(cache.read(), Some(vec![-1.5, -2.25]));
        let whole = std::fs::read(cache.path()).unwrap();
        for index in 0..whole.len() {
            let mut damaged = whole.clone();
            damaged[index] ^= 4;
            std::fs::write(cache.path(), &damaged).unwrap();
            let read = cache.read();
            assert!(read.is_none() || read == Some(vec![-1.5, -2.25]), "byte {index}: {read:?}");
            std::fs::write(cache.path(), &whole[..index]).unwrap();
            assert_eq!(cache.read(), None, "cut at {index}");
        }
    }

    #[test]
    fn the_key_changes_with_everything_that_counts() {
        let folder = Path::new("x");
        let mut config = RunConfig::default();
        config.dpo.precompute_ref_log_probs = true;
        let first = cache(folder, &config, &pairs(2));
        let with = |change: &dyn Fn(&mut RunConfig)| {
            let mut changed = config.clone();
            change(&mut changed);
            cache(folder, &changed, &pairs(2))
        };
        // The learning rate, the loss and, as the reference is the base, the rank and the seed do not count.
        assert_eq!(with(&|c| c.train.learning_rate = 1.0), first);
        assert_eq!(with(&|c| c.dpo.beta = 0.7), first);
        assert_eq!(with(&|c| (c.lora.r, c.seed) = (3, 9)), first);
        assert_ne!(cache(folder, &config, &pairs(3)), first);
        assert_ne!(cache(folder, &config, &[]), first);
        assert_ne!(with(&|c| c.dpo.ld_alpha = Some(0.5)), first);
        assert_ne!(with(&|c| c.dpo.precompute_ref_batch_size = Some(7)), first);
        assert_ne!(with(&|c| c.model.double_quant = true), first);
        let initial = with(&|c| c.dpo.reference = Reference::Initial);
        assert_ne!(initial, first);
        let initial_and_rank = with(&|c| {
            c.dpo.reference = Reference::Initial;
            c.lora.r = 3;
        });
        assert_ne!(initial_and_rank, initial);
        assert_ne!(with(&|c| c.lora.init_lora_weights = InitLoraWeights::LoftQ), first);
    }

    #[test]
    fn values_agree_up_to_the_order_of_additions() {
        assert!(agrees(&[-400.0, -0.5], &[-400.1, -0.5005]));
        assert!(!agrees(&[-400.0], &[-401.0]));
        assert!(!agrees(&[-400.0], &[f32::NAN]));
        assert!(!agrees(&[-400.0], &[-400.0, -1.0]));
    }
}
