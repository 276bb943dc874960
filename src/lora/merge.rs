//! Merging an adapter into its base: `W + scaling * B A`, written as a model folder of its own.

use std::fs;
use std::path::{Path, PathBuf};

use arithmo_backends::TrainBackend;
use burn::tensor::{DType, Tensor, TensorData};
use half::{bf16, f16};

use super::adapter::{self, Branches};
use crate::error::{Error, Result};
use crate::model::config::MistralConfig;
use crate::model::save::{MAX_SHARD_BYTES, OutTensor, save_folder};
use crate::model::weights::WeightFiles;

/// What to merge, and where to.
#[derive(Clone, Debug)]
pub struct MergeConfig {
    /// Folder of the base model.
    pub model: PathBuf,
    /// PEFT adapter folder.
    pub adapter: PathBuf,
    /// The model folder to write.
    pub output: PathBuf,
    /// Type of every weight written: F32, BF16 or F16; `None`: each as the base stores it (F64 as F32).
    pub dtype: Option<DType>,
    /// Replaces a model folder that exists already.
    pub overwrite: bool,
}

/// What was written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MergeSummary {
    /// Weights changed by the adapter.
    pub merged: usize,
    /// Weights written as they were.
    pub copied: usize,
}

/// Merges; tensor by tensor, so that memory holds one weight and its update. Sums are in f32 and rounded once.
///
/// `on_tensor` is called after each tensor. The output folder appears when it is whole, or not at all.
///
/// # Errors
/// Base or adapter are not readable or do not fit together; the output exists already (and is not to be replaced), or
/// contains base or adapter; a value is not finite or too large for `dtype`; the disk is full; the user interrupts.
pub fn merge<B: TrainBackend>(
    config: &MergeConfig,
    device: &B::Device,
    on_tensor: impl Fn(&str),
) -> Result<MergeSummary> {
    check_output(config)?;
    let shape = MistralConfig::load(&config.model)?;
    let files = WeightFiles::open(&config.model)?;
    files.check(&shape.tensors())?;
    let (lora, branches) = adapter::read(&shape, &config.adapter)?;
    let merger = Merger::<B> {
        files: &files,
        branches: &branches,
        scaling: lora.scaling(),
        device,
    };
    let mut tensors = Vec::new();
    for (name, dims) in shape.tensors() {
        let dtype = match (config.dtype, files.dtype(&name)?) {
            (Some(dtype), _) => dtype,
            (None, DType::F64) => DType::F32,
            (None, stored) => stored,
        };
        let (merger, on_tensor, source) = (&merger, &on_tensor, name.clone());
        tensors.push(OutTensor::new(name, dims, dtype, move || {
            let values = merger.values(&source, dtype)?;
            on_tensor(&source);
            Ok(values)
        }));
    }
    let summary = MergeSummary {
        merged: branches.len(),
        copied: tensors.len() - branches.len(),
    };
    write(config, &shape, tensors)?;
    Ok(summary)
}

/// What the tensors' producers share.
struct Merger<'a, B: TrainBackend> {
    files: &'a WeightFiles,
    branches: &'a Branches,
    scaling: f64,
    device: &'a B::Device,
}

impl<B: TrainBackend> Merger<'_, B> {
    /// The values of the weight `name` to write in `dtype`, merged if it has a branch.
    fn values(&self, name: &str, dtype: DType) -> Result<Vec<f32>> {
        let values = self.files.tensor_f32(name)?;
        let values = match self.branches.get(name.trim_end_matches(".weight")) {
            Some(branch) => self.add(values, self.files.shape(name)?, branch.clone()),
            None => values,
        };
        check_finite(name, &values, dtype)?;
        Ok(values)
    }

    /// `W + scaling * B A`, `[D_out, D_in]`, on the device in f32.
    fn add(&self, weight: Vec<f32>, shape: &[usize], branch: [TensorData; 2]) -> Vec<f32> {
        let tensor = |data| Tensor::<B, 2>::from_data(data, (self.device, DType::F32));
        let weight = tensor(TensorData::new(weight, shape.to_vec()));
        let [a, b] = branch.map(tensor);
        let merged = weight + b.matmul(a) * self.scaling;
        merged.into_data().iter::<f32>().collect()
    }
}

/// PEFT's `safe_merge`: a broken adapter must not become a broken model.
fn check_finite(name: &str, values: &[f32], dtype: DType) -> Result<()> {
    let stays_finite = |value: &f32| match dtype {
        DType::F16 => f16::from_f32(*value).is_finite(),
        DType::BF16 => bf16::from_f32(*value).is_finite(),
        _ => value.is_finite(),
    };
    let Some(value) = values.iter().find(|value| !stays_finite(value)) else {
        return Ok(());
    };
    let (problem, remedy) = match value.is_finite() {
        true => (
            "is too large for this type",
            "merge with --dtype bf16 or f32",
        ),
        false => (
            "is not finite",
            "the adapter or the base is broken: train again, or fetch it again",
        ),
    };
    Err(Error::run(
        format!("{name}: {value} in {} {problem}", dtype.name()),
        remedy,
    ))
}

/// Refuses to touch anything but a new folder, or, with `overwrite`, a model folder that is neither base nor adapter.
fn check_output(config: &MergeConfig) -> Result<()> {
    let output = &config.output;
    let Ok(mut entries) = fs::read_dir(output) else {
        return Ok(());
    };
    if entries.next().is_none() {
        return Ok(());
    }
    let refuse = |problem: &str, remedy: &str| Err(Error::file(output, problem, remedy));
    if !config.overwrite {
        return refuse(
            "exists already",
            "choose a new folder, or give --overwrite to replace it",
        );
    }
    if !output.join("config.json").is_file() {
        return refuse(
            "is not a model folder, and is not replaced",
            "choose a new folder",
        );
    }
    let absolute = |path: &Path| fs::canonicalize(path).map_err(|e| Error::io(path, "open", e));
    for (what, input) in [("base model", &config.model), ("adapter", &config.adapter)] {
        if absolute(input)?.starts_with(absolute(output)?) {
            let problem = format!("holds the {what} that is being merged");
            return refuse(&problem, "choose another folder");
        }
    }
    Ok(())
}

/// Writes the folder beside its final name, and swaps it for an older one if there is one.
fn write(config: &MergeConfig, shape: &MistralConfig, tensors: Vec<OutTensor<'_>>) -> Result<()> {
    let (base, output) = (Some(config.model.as_path()), &config.output);
    if !(config.overwrite && output.is_dir()) {
        return save_folder(output, shape, tensors, MAX_SHARD_BYTES, base);
    }
    let parent = match output.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    let fail = |e| Error::io(output, "replace", e);
    let swap = tempfile::Builder::new()
        .prefix(".part-")
        .tempdir_in(parent)
        .map_err(fail)?;
    let new = swap.path().join("new");
    save_folder(&new, shape, tensors, MAX_SHARD_BYTES, base)?;
    let old = swap.path().join("old");
    fs::rename(output, &old).map_err(fail)?;
    if let Err(error) = fs::rename(&new, output) {
        // What was there is put back; if even that fails, it stays in the temporary folder.
        if fs::rename(&old, output).is_err() {
            let _ = swap.keep();
        }
        return Err(fail(error));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_would_not_be_finite_is_named_with_its_type() {
        assert!(check_finite("w", &[1.0, -65504.0], DType::F16).is_ok());
        let large = check_finite("w", &[1.0, 65520.0], DType::F16).unwrap_err();
        assert!(large.to_string().contains("65520") && large.to_string().contains("--dtype"));
        assert!(check_finite("w", &[65520.0], DType::BF16).is_ok());
        assert!(check_finite("w", &[f32::MAX], DType::BF16).is_err());
        assert!(check_finite("w", &[f32::MAX], DType::F32).is_ok());
        let broken = check_finite("w", &[f32::NAN], DType::F32).unwrap_err();
        assert!(broken.to_string().starts_with("w: NaN"), "{broken}");
    }
}
