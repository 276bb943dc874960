//! Merging an adapter into its base, as it is or as it was packed: `W + scaling * B A`, written as a model folder of its own.

use std::fs;
use std::path::{Path, PathBuf};

use arithmo_backends::TrainBackend;
use burn::tensor::{DType, Tensor, TensorData};
use clap::ValueEnum;
use half::{bf16, f16};

use super::adapter::{self, Branches};
use crate::error::{Error, Result};
use crate::model::config::MistralConfig;
use crate::model::load::from_values;
use crate::model::mistral::Mistral;
use crate::model::quantize::cache::pack;
use crate::model::quantize::{Quantization, Quantized, bitsandbytes, is_projection};
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
    /// What the base was packed as while the adapter was trained; `None`: it was not, or it lies packed in `model`.
    pub packed: Option<Quantization>,
    /// What the adapter is added to, where the base was packed.
    pub target: MergeTarget,
    /// Replaces a model folder that exists already.
    pub overwrite: bool,
}

/// What an adapter is added to that was trained on a packed base, and what becomes of the sum.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum MergeTarget {
    /// The floats that the packed weights stand for: exactly what was trained, but for the rounding to the type written.
    #[default]
    Dequantized,
    /// The weights as they were before they were packed. The adapter has learnt to make up for what packing took, too.
    Original,
    /// As [`Self::Dequantized`], and the sums are packed again: as small as the base, and rounded once more.
    Requantized,
}

/// What was written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MergeSummary {
    /// Weights changed by the adapter.
    pub merged: usize,
    /// Weights written without it.
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
    config.check_output()?;
    let merger = Merger::<B>::new(config, device)?;
    let mut tensors = Vec::new();
    for (name, dims) in merger.shape.tensors() {
        let dtype = merger.written_as(&name)?;
        let (merger, on_tensor, source) = (&merger, &on_tensor, name.clone());
        let to = merger.result.quantization.filter(|_| is_projection(&name));
        tensors.push(match (to, dims.as_slice()) {
            (Some(to), &[d_out, d_in]) => {
                let dims = [d_out, d_in];
                OutTensor::packed(name, dims, dtype, to, move || {
                    let values = merger.values(&source, dtype)?;
                    on_tensor(&source);
                    Quantized::pack(&source, dims, to, |first, out| {
                        out.copy_from_slice(&values[first..first + out.len()]);
                        Ok(())
                    })
                })
            }
            _ => OutTensor::new(name, dims, dtype, move || {
                let values = merger.values(&source, dtype)?;
                on_tensor(&source);
                Ok(values)
            }),
        });
    }
    let summary = MergeSummary {
        merged: merger.branches.len(),
        copied: tensors.len() - merger.branches.len(),
    };
    write(config, &merger.result, tensors)?;
    Ok(summary)
}

/// The model [`merge`] would write, in memory, to measure it: it computes in `dtype`.
///
/// # Errors
/// As [`merge`], but for the output.
pub fn merged_model<B: TrainBackend>(
    config: &MergeConfig,
    dtype: DType,
    device: &B::Device,
) -> Result<Mistral<B>> {
    let merger = Merger::<B>::new(config, device)?;
    let result = merger.result.clone();
    from_values(result, dtype, device, &mut |name| {
        let stored = merger.written_as(name)?;
        Ok((merger.values(name, stored)?, stored))
    })
}

/// What the tensors' producers share.
struct Merger<'a, B: TrainBackend> {
    config: &'a MergeConfig,
    /// Of the base.
    shape: MistralConfig,
    /// Of what is written.
    result: MistralConfig,
    files: WeightFiles,
    branches: Branches,
    scaling: f64,
    device: &'a B::Device,
}

impl<'a, B: TrainBackend> Merger<'a, B> {
    fn new(config: &'a MergeConfig, device: &'a B::Device) -> Result<Self> {
        let shape = MistralConfig::load(&config.model)?;
        let files = WeightFiles::open(&config.model)?;
        files.check(&shape.tensors())?;
        if shape.quantization.is_some() && config.target == MergeTarget::Original {
            return Err(Error::file(
                &config.model,
                "holds packed weights only: there are no original ones to merge into",
                "choose --target dequantized or requantized, or give the full-precision model",
            ));
        }
        let packed = shape.quantization.or(config.packed);
        let (lora, branches) = adapter::read(&shape, &config.adapter)?;
        let result = MistralConfig {
            quantization: packed.filter(|_| config.target == MergeTarget::Requantized),
            ..shape.clone()
        };
        Ok(Self { config, shape, result, files, branches, scaling: lora.scaling(), device })
    }

    /// The type the weight `name` is written in; of one that is packed, the type of what it stands for.
    fn written_as(&self, name: &str) -> Result<DType> {
        let stored = match self.files.is_packed(name) {
            true => self.files.dtype("model.embed_tokens.weight")?,
            false => self.files.dtype(name)?,
        };
        Ok(match (self.config.dtype, stored) {
            (Some(dtype), _) => dtype,
            (None, DType::F64) => DType::F32,
            (None, stored) => stored,
        })
    }

    /// The values of the weight `name` to write in `dtype`, merged if it has a branch.
    fn values(&self, name: &str, dtype: DType) -> Result<Vec<f32>> {
        let (values, dims) = self.base(name)?;
        let values = match self.branches.get(name.trim_end_matches(".weight")) {
            Some(branch) => self.add(values, dims, branch.clone()),
            None => values,
        };
        check_finite(name, &values, dtype)?;
        Ok(values)
    }

    /// What the adapter is added to, and its shape.
    fn base(&self, name: &str) -> Result<(Vec<f32>, Vec<usize>)> {
        let of_shape = self.shape.tensors().into_iter().find(|(other, _)| other == name);
        let dims = of_shape.map_or_else(Vec::new, |(_, dims)| dims);
        let as_trained = self.config.target != MergeTarget::Original && is_projection(name);
        let values = match (dims.as_slice(), self.config.packed.filter(|_| as_trained)) {
            (&[d_out, d_in], _) if self.files.is_packed(name) => {
                bitsandbytes::read(&self.files, name, [d_out, d_in])?.unpack()
            }
            (&[d_out, d_in], Some(to)) => pack(&self.files, name, [d_out, d_in], to)?.unpack(),
            _ => self.files.tensor_f32(name)?,
        };
        Ok((values, dims))
    }

    /// `W + scaling * B A`, `[D_out, D_in]`, on the device in f32.
    fn add(&self, weight: Vec<f32>, shape: Vec<usize>, branch: [TensorData; 2]) -> Vec<f32> {
        let tensor = |data| Tensor::<B, 2>::from_data(data, (self.device, DType::F32));
        let weight = tensor(TensorData::new(weight, shape));
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
        true => ("is too large for this type", "merge with --dtype bf16 or f32"),
        false => {
            ("is not finite", "the adapter or the base is broken: train again, or fetch it again")
        }
    };
    Err(Error::run(format!("{name}: {value} in {} {problem}", dtype.name()), remedy))
}

impl MergeConfig {
    /// Refuses to touch anything but a new folder, or, with `overwrite`, a model folder that is neither base nor adapter.
    ///
    /// # Errors
    /// The output may not be written; nothing was touched.
    pub fn check_output(&self) -> Result<()> {
        let output = &self.output;
        let Ok(mut entries) = fs::read_dir(output) else {
            return Ok(());
        };
        if entries.next().is_none() {
            return Ok(());
        }
        let refuse = |problem: &str, remedy: &str| Err(Error::file(output, problem, remedy));
        if !self.overwrite {
            return refuse(
                "exists already",
                "choose a new folder, or give --overwrite to replace it",
            );
        }
        if !output.join("config.json").is_file() {
            return refuse("is not a model folder, and is not replaced", "choose a new folder");
        }
        let absolute = |path: &Path| fs::canonicalize(path).map_err(|e| Error::io(path, "open", e));
        for (what, input) in [("base model", &self.model), ("adapter", &self.adapter)] {
            if absolute(input)?.starts_with(absolute(output)?) {
                let problem = format!("holds the {what} that is being merged");
                return refuse(&problem, "choose another folder");
            }
        }
        Ok(())
    }
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
    let swap = tempfile::Builder::new().prefix(".part-").tempdir_in(parent).map_err(fail)?;
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
