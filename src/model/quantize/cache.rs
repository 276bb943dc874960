//! Packed models kept on disk, so that a model is quantised once: each a folder that opens like any other, in
//! `$XDG_CACHE_HOME/arithmo/quantized` (usually `~/.cache/arithmo/quantized`). Any of them may be removed at any time.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};

use burn::tensor::DType;
use sha2::{Digest, Sha256};

use super::{Quantization, Quantized, checksum, is_projection};
use crate::error::{Error, Result};
use crate::model::config::MistralConfig;
use crate::model::save::{MAX_SHARD_BYTES, OutTensor, save_folder_with};
use crate::model::weights::WeightFiles;
use crate::output::remove;
use crate::progress::{Progress, ProgressMode};

/// Changes whenever the same weights would be packed or laid out otherwise.
const VERSION: &str = "arithmo quantized 1";

/// Bytes of the smallest model that is kept for a user.
const WORTH_KEEPING: u64 = 256 << 20;

/// Where packed models are kept, if anywhere, and who hears about it.
#[derive(Clone, Debug)]
pub struct Cache {
    /// The folder of packed models; `None`: they are quantised at every start.
    pub folder: Option<PathBuf>,
    /// Bytes of the smallest model that is kept: smaller ones are packed sooner than found.
    pub worth: u64,
    /// Where progress and messages go.
    pub progress: ProgressMode,
}

impl Cache {
    /// The user's cache folder, as the environment gives it.
    pub fn of_user(progress: ProgressMode) -> Self {
        let caches = match env::var_os("XDG_CACHE_HOME").filter(|folder| !folder.is_empty()) {
            Some(folder) => Some(PathBuf::from(folder)),
            None => env::home_dir().map(|home| home.join(".cache")),
        };
        Self {
            folder: caches.map(|caches| caches.join("arithmo/quantized")),
            worth: WORTH_KEEPING,
            progress,
        }
    }

    /// Keeps nothing and says nothing.
    pub fn none() -> Self {
        Self { folder: None, worth: 0, progress: ProgressMode::Quiet }
    }

    /// The folder with `model` packed as `to`, made now if it is not there; `None` where nothing can be kept.
    ///
    /// # Errors
    /// The model cannot be read, a weight is not finite, or the user interrupts.
    pub fn packed(
        &self,
        model: &Path,
        config: &MistralConfig,
        files: &WeightFiles,
        to: Quantization,
    ) -> Result<Option<PathBuf>> {
        let folder = self.folder.as_ref().filter(|_| files.total_bytes() >= self.worth);
        let Some(folder) = folder else {
            return Ok(None);
        };
        let folder = folder.join(fingerprint(model, files, to)?);
        if is_whole(&folder, config, to) {
            let Some(changed) = checksum::first_changed(&folder) else {
                return Ok(Some(folder));
            };
            self.say(&format!(
                "warning: {}: is not as it was written\n  the model is quantised again",
                changed.display()
            ));
        }
        let made = remove(&folder).and_then(|()| self.make(&folder, model, config, files, to));
        match made {
            Ok(()) => Ok(Some(folder)),
            // Another process was quicker.
            Err(_) if is_whole(&folder, config, to) => Ok(Some(folder)),
            Err(Error::Io { path, action, source }) if !matches!(action, "open" | "read") => {
                self.say(&format!(
                    "warning: {}: cannot keep the quantised model: {source}\n  it is quantised again at every start",
                    path.display()
                ));
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }

    /// Quantises `model` into `folder`, which appears when it is whole.
    fn make(
        &self,
        folder: &Path,
        model: &Path,
        config: &MistralConfig,
        files: &WeightFiles,
        to: Quantization,
    ) -> Result<()> {
        let tensors = config.tensors();
        let total = tensors.len() as u64;
        let progress = Progress::new("quantize", Some(total), "weights", self.progress);
        progress.println(&format!("quantising to {}: {}", to.name(), folder.display()));
        let mut out = Vec::new();
        for (name, shape) in tensors {
            let dtype = match files.dtype(&name)? {
                DType::F64 => DType::F32,
                stored => stored,
            };
            let (progress, source) = (&progress, name.clone());
            out.push(match (shape.as_slice(), is_projection(&name)) {
                (&[d_out, d_in], true) => {
                    let dims = [d_out, d_in];
                    OutTensor::packed(name, dims, dtype, to, move || {
                        progress.inc(1);
                        pack(files, &source, dims, to)
                    })
                }
                _ => OutTensor::new(name, shape, dtype, move || {
                    progress.inc(1);
                    files.tensor_f32(&source)
                }),
            });
        }
        let packed = MistralConfig { quantization: Some(to), ..config.clone() };
        let note = |written: &Path| checksum::note(written);
        save_folder_with(folder, &packed, out, MAX_SHARD_BYTES, Some(model), note)?;
        progress.finish();
        Ok(())
    }

    fn say(&self, message: &str) {
        if self.progress != ProgressMode::Quiet {
            eprintln!("{message}");
        }
    }
}

/// Packs one matrix of a model's files.
///
/// # Errors
/// It cannot be read, or a value is not finite.
pub fn pack(
    files: &WeightFiles,
    name: &str,
    dims: [usize; 2],
    to: Quantization,
) -> Result<Quantized> {
    Quantized::pack(name, dims, to, |first, values| files.read_f32(name, first, values))
}

/// Whether `folder` is a model of this shape, packed so, with nothing missing or cut off.
fn is_whole(folder: &Path, config: &MistralConfig, to: Quantization) -> bool {
    let opened = || -> Result<bool> {
        let stored = MistralConfig::load(folder)?;
        let files = WeightFiles::open(folder)?;
        files.check(&config.tensors())?;
        let mut names = config.tensors().into_iter().map(|(name, _)| name);
        Ok(stored.quantization == Some(to)
            && names.all(|name| files.is_packed(&name) == is_projection(&name)))
    };
    folder.is_dir() && opened().unwrap_or(false)
}

/// What the packed weights follow from: the configuration, each file's name, size and time, each tensor's place and first
/// bytes, and how it is packed.
fn fingerprint(model: &Path, files: &WeightFiles, to: Quantization) -> Result<String> {
    let mut hasher = Sha256::new();
    let config = model.join("config.json");
    hasher.update(VERSION);
    hasher.update(fs::read(&config).map_err(|e| Error::io(&config, "read", e))?);
    files.identify(&mut |bytes| hasher.update(bytes))?;
    let double = if to.double_quant { "-double" } else { "" };
    let digest = hasher.finalize();
    let hex: String = digest.iter().take(12).map(|byte| format!("{byte:02x}")).collect();
    Ok(format!("{}{double}-{hex}", to.name()))
}
