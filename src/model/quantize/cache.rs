//! Keeps quantized models on disk, so that a model is quantized once. Each is a folder that opens like any other
//! model, in `$XDG_CACHE_HOME/arithmo/quantized` (usually `~/.cache/arithmo/quantized`), and may be deleted at any
//! time.

use std::env;
use std::path::{Path, PathBuf};

use burn::tensor::DType;
use sha2::{Digest, Sha256};

use super::{Quantization, Quantized, checksum};
use crate::error::{Error, Result};
use crate::model::config::DecoderConfig;
use crate::model::identity::{hex, weights_and_config};
use crate::model::names::ModelTensor;
use crate::model::save::{ModelFolder, OutTensor};
use crate::model::weights::WeightFiles;
use crate::output::list::{FileList, listed_files, remove_files};
use crate::output::{is_taken, remove};
use crate::progress::{Progress, ProgressMode};

/// Part of each fingerprint; must change whenever the same weights would be quantized or laid out differently.
const VERSION: &str = "arithmo quantized 2";

/// Bytes of the smallest model worth keeping on disk.
const WORTH_KEEPING: u64 = 256 << 20;

/// The location of quantized models on disk and where to report progress.
#[derive(Clone, Debug)]
pub struct Cache {
    /// Folder of quantized models; `None` quantizes at every start.
    pub folder: Option<PathBuf>,
    /// Bytes of the smallest model to keep: a smaller one is quantized faster than found.
    pub worth: u64,
    /// Where progress and messages go.
    pub progress: ProgressMode,
}

impl Cache {
    /// Opens the user's cache folder, as the environment names it.
    pub fn from_env(progress: ProgressMode) -> Self {
        Self { folder: user_folder("quantized"), worth: WORTH_KEEPING, progress }
    }

    /// Creates a cache that keeps nothing and prints nothing.
    pub fn none() -> Self {
        Self { folder: None, worth: 0, progress: ProgressMode::Quiet }
    }

    /// Returns the folder with `model` quantized as `to`, writing it first if need be; `None` if nothing can be kept.
    ///
    /// # Errors
    /// The model cannot be read, a weight is not finite, or the user interrupts.
    pub fn quantized_folder(
        &self,
        model: &Path,
        config: &DecoderConfig,
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
                "warning: {}: has changed since it was written\n  the model is quantized again",
                changed.display()
            ));
        }
        let old = match FileList::read(&folder) {
            Some(_) => listed_files(&folder),
            None => unlisted_files(&folder),
        };
        // The folder's name contains a hash, so a plain file of that name can only be a leftover.
        let cleared = if folder.is_file() { remove(&folder) } else { remove_files(&folder, &old) };
        let made = cleared.and_then(|()| self.make(&folder, model, config, files, to));
        match made {
            Ok(()) => Ok(Some(folder)),
            // Another process was faster.
            Err(_) if is_whole(&folder, config, to) => Ok(Some(folder)),
            Err(_) if is_taken(&folder) => {
                self.say(&format!(
                    "warning: {}: holds files that do not belong to a quantized model\n  the model is quantized again at every start",
                    folder.display()
                ));
                Ok(None)
            }
            Err(Error::Io { path, action, source }) if !matches!(action, "open" | "read") => {
                self.say(&format!(
                    "warning: {}: cannot keep the quantized model: {source}\n  it is quantized again at every start",
                    path.display()
                ));
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }

    /// Quantizes `model` into `folder`, which appears only when it is complete.
    fn make(
        &self,
        folder: &Path,
        model: &Path,
        config: &DecoderConfig,
        files: &WeightFiles,
        to: Quantization,
    ) -> Result<()> {
        let tensors = config.tensors();
        let total = tensors.len() as u64;
        let progress = Progress::new("quantize", Some(total), "weights", self.progress);
        progress.println(&format!("quantizing to {}: {}", to.name(), folder.display()));
        let mut out = Vec::new();
        for tensor in tensors {
            let (is_projection, dims) = (tensor.is_projection(), tensor.dims());
            let ModelTensor { name, shape, .. } = tensor;
            let dtype = match files.dtype(&name)? {
                DType::F64 => DType::F32,
                stored => stored,
            };
            let (progress, source) = (&progress, name.clone());
            out.push(match dims.filter(|_| is_projection) {
                Some(dims) => OutTensor::quantized(name, dims, dtype, to, move || {
                    progress.inc(1);
                    quantize_matrix(files, &source, dims, to)
                }),
                None => OutTensor::new(name, shape, dtype, move || {
                    progress.inc(1);
                    files.tensor_f32(&source)
                }),
            });
        }
        let quantized_config = DecoderConfig { quantization: Some(to), ..config.clone() };
        let finish = |written: &Path| checksum::write_checksums(written);
        ModelFolder::new(folder, &quantized_config).with_tokenizer(model).save_with(out, finish)?;
        progress.finish();
        Ok(())
    }

    /// Prints a message, unless nothing is to be printed.
    pub(in crate::model) fn say(&self, message: &str) {
        if self.progress != ProgressMode::Quiet {
            say!("{message}");
        }
    }
}

/// Returns this program's folder `name` in the user's cache folder, as the environment names it, without creating it.
pub(crate) fn user_folder(name: &str) -> Option<PathBuf> {
    let caches = match env::var_os("XDG_CACHE_HOME").filter(|folder| !folder.is_empty()) {
        Some(folder) => PathBuf::from(folder),
        None => env::home_dir()?.join(".cache"),
    };
    Some(caches.join("arithmo").join(name))
}

/// Quantizes one matrix of a model's files.
///
/// # Errors
/// The matrix cannot be read, or a value is not finite.
pub fn quantize_matrix(
    files: &WeightFiles,
    name: &str,
    dims: [usize; 2],
    to: Quantization,
) -> Result<Quantized> {
    Quantized::quantize(name, dims, to, |first, values| files.read_f32(name, first, values))
}

/// Lists the files of a quantized model without a file list, as older versions wrote it: all files in the folder,
/// since no one else uses its hashed name.
fn unlisted_files(folder: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    let files = entries.map(|entry| entry.path());
    files.filter(|path| !path.is_dir()).collect()
}

/// Returns whether `folder` holds a complete model of this shape, quantized as `to`.
fn is_whole(folder: &Path, config: &DecoderConfig, to: Quantization) -> bool {
    let opened = || -> Result<bool> {
        let stored = DecoderConfig::load(folder)?;
        let files = WeightFiles::open(folder)?;
        files.check(&config.tensors())?;
        let is_stored_well =
            |tensor: &ModelTensor| files.is_quantized(&tensor.name) == tensor.is_projection();
        Ok(stored.quantization == Some(to) && config.tensors().iter().all(is_stored_well))
    };
    folder.is_dir() && opened().unwrap_or(false)
}

/// Returns the folder name for these weights quantized as `to`, derived from the contents of configuration and
/// weights and from the settings.
fn fingerprint(model: &Path, files: &WeightFiles, to: Quantization) -> Result<String> {
    let content = weights_and_config(model, files)?;
    let digest = hex(Sha256::digest(format!("{VERSION}\n{content}")));
    let (start, _) = digest.split_at(24);
    let double = if to.double_quant { "-double" } else { "" };
    Ok(format!("{}{double}-{start}", to.name()))
}
