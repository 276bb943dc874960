//! Merges an adapter into its base model, original or quantized, and writes the result as a separate model folder.

use std::fs;
use std::path::{Path, PathBuf};

use arithmo_backends::TrainBackend;
use burn::tensor::DType;

pub use super::merged::MergeTarget;
use super::merged::{MergeSource, MergedWeights};
use crate::error::{Error, Result};
use crate::model::config::DecoderConfig;
use crate::model::decoder::Decoder;
use crate::model::load::from_values;
use crate::model::names::{ModelTensor, is_projection};
use crate::model::quantize::{Quantization, Quantized};
use crate::model::save::{ModelFolder, OutTensor, check_replaceable, is_model_file};
use crate::output::list::{NAME, listed_files};
use crate::output::target::resolve_folder;
use crate::output::{FileList, Lock, is_taken, refuse_inputs_among};

/// Inputs, output and settings of a merge.
#[derive(Clone, Debug)]
pub struct MergeConfig {
    /// Folder of the base model.
    pub model: PathBuf,
    /// PEFT adapter folder.
    pub adapter: PathBuf,
    /// Model folder to write.
    pub output: PathBuf,
    /// Dtype of every weight written: F32, BF16 or F16; `None` keeps the dtype of the base (F64 becomes F32).
    pub dtype: Option<DType>,
    /// Quantization of the base while the adapter was trained; `None` if there was none, or if `model` is stored
    /// quantized.
    pub base_quantization: Option<Quantization>,
    /// Weights to which the adapter is added, if the base was quantized.
    pub target: MergeTarget,
    /// Whether to replace an existing model folder.
    pub overwrite: bool,
}

/// Counts of the weights that a merge wrote.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MergeSummary {
    /// Number of weights changed by the adapter.
    pub merged: usize,
    /// Number of weights written unchanged.
    pub copied: usize,
}

/// Merges an adapter tensor by tensor, so that only one weight and its update are in memory. Sums are f32 and rounded
/// once.
///
/// `on_tensor` is called after each tensor. The output folder appears when it is complete, or not at all.
///
/// # Errors
/// Base or adapter cannot be read or do not fit together; the output already exists (and is not to be replaced), or
/// contains base or adapter; a value is not finite or too large for `dtype`; the disk is full; the user interrupts.
pub fn merge<B: TrainBackend>(
    config: &MergeConfig,
    device: &B::Device,
    on_tensor: impl Fn(&str),
) -> Result<MergeSummary> {
    config.check_output()?;
    let merged = MergedWeights::<B>::open(config.source(), device)?;
    let result = merged.config();
    let mut tensors = Vec::new();
    for ModelTensor { name, shape: dims, .. } in result.tensors() {
        let dtype = config.output_dtype(merged.stored_dtype(&name)?);
        let (merged, on_tensor, source) = (&merged, &on_tensor, name.clone());
        let to = result.quantization.filter(|_| is_projection(&name));
        tensors.push(match (to, dims.as_slice()) {
            (Some(to), &[d_out, d_in]) => {
                let dims = [d_out, d_in];
                OutTensor::quantized(name, dims, dtype, to, move || {
                    let values = merged.values(&source, dtype)?;
                    on_tensor(&source);
                    Quantized::quantize(&source, dims, to, |first, out| {
                        out.copy_from_slice(&values[first..first + out.len()]);
                        Ok(())
                    })
                })
            }
            _ => OutTensor::new(name, dims, dtype, move || {
                let values = merged.values(&source, dtype)?;
                on_tensor(&source);
                Ok(values)
            }),
        });
    }
    let summary =
        MergeSummary { merged: merged.changed(), copied: tensors.len() - merged.changed() };
    write(config, &result, tensors)?;
    Ok(summary)
}

/// Builds in memory the model that [`merge`] would write, for measurements. It computes in `dtype`.
///
/// # Errors
/// Same as [`merge`], except for the output.
pub fn merged_model<B: TrainBackend>(
    config: &MergeConfig,
    dtype: DType,
    device: &B::Device,
) -> Result<Decoder<B>> {
    let merged = MergedWeights::<B>::open(config.source(), device)?;
    from_values(merged.config(), dtype, device, &mut |name| {
        let stored = config.output_dtype(merged.stored_dtype(name)?);
        Ok((merged.values(name, stored)?, stored))
    })
}

impl MergeConfig {
    /// Returns base and adapter.
    fn source(&self) -> MergeSource<'_> {
        MergeSource {
            model: &self.model,
            adapter: Some(&self.adapter),
            base_quantization: self.base_quantization,
            target: self.target,
        }
    }

    /// Returns the dtype in which a weight is written that the base stores as `stored`.
    fn output_dtype(&self, stored: DType) -> DType {
        match (self.dtype, stored) {
            (Some(dtype), _) => dtype,
            (None, DType::F64) => DType::F32,
            (None, stored) => stored,
        }
    }

    /// Checks that the output is a new folder, or, with `overwrite`, a model folder of this program that is neither
    /// base nor adapter.
    ///
    /// # Errors
    /// The output must not be written; nothing was changed.
    pub fn check_output(&self) -> Result<()> {
        let output = &self.output;
        let refuse = |problem: &str, remedy: &str| Err(Error::file(output, problem, remedy));
        let absolute = |path: &Path| fs::canonicalize(path).map_err(|e| Error::io(path, "open", e));
        resolve_folder(output)?;
        if !is_taken(output) {
            return Ok(());
        }
        for (what, input) in [("base model", &self.model), ("adapter", &self.adapter)] {
            if absolute(input)?.starts_with(absolute(output)?) {
                let problem = format!("holds the {what} that is being merged");
                return refuse(&problem, "choose another folder");
            }
        }
        // An input folder may hold links into the output.
        let inputs = [self.model.as_path(), self.adapter.as_path()];
        refuse_inputs_among(&listed_files(output), inputs)?;
        let list = FileList::read(output);
        let ours = list.is_some();
        // Runs, reports and evaluations have lists of the same name.
        let of_model =
            list.unwrap_or_default().names().iter().all(|name| is_model_file(name) || name == NAME);
        // A process killed while it replaced a model leaves the list without a model.
        match (ours, output.join("config.json").is_file()) {
            (true, _) if !of_model => refuse(
                "holds other files of this program than a model's, and is not replaced",
                "choose a new folder",
            ),
            (true, _) if self.overwrite => check_replaceable(output, &self.model),
            (true, _) => refuse(
                "exists already",
                "choose a new folder, or replace the model there with --overwrite",
            ),
            (false, true) => refuse(
                "holds files, and no file list of this program says that it wrote them",
                "choose a new folder",
            ),
            (false, false) => {
                refuse("is not a model folder and is not replaced", "choose a new folder")
            }
        }
    }

    /// Locks the output folder if it exists, or else its name.
    ///
    /// # Errors
    /// Another process holds it, or the folder cannot be written to.
    pub fn lock_output(&self) -> Result<Lock> {
        let end = resolve_folder(&self.output)?;
        if end.is_dir() { Lock::folder(&end) } else { Lock::beside(&end) }
    }
}

/// Writes the model, which replaces one that this program wrote if `overwrite` is set.
fn write(config: &MergeConfig, shape: &DecoderConfig, tensors: Vec<OutTensor<'_>>) -> Result<()> {
    let folder = ModelFolder::new(&config.output, shape).with_tokenizer(&config.model);
    if config.overwrite { folder.replace_with(tensors, |_| Ok(())) } else { folder.save(tensors) }
}
