//! Merges an adapter into its base model, original or quantized: `W + scaling * B A`, written as a separate model
//! folder. With DoRA, each row of the sum is scaled to its trained magnitude.

use std::fs;
use std::path::{Path, PathBuf};

use arithmo_backends::TrainBackend;
use burn::tensor::{DType, Tensor, TensorData};
use clap::ValueEnum;
use half::{bf16, f16};

use super::lora::Branch;
use super::peft::{self, AdapterWeights};
use crate::error::{Error, Result};
use crate::model::config::DecoderConfig;
use crate::model::decoder::Decoder;
use crate::model::load::from_values;
use crate::model::names::{ModelTensor, TensorRole, is_projection};
use crate::model::quantize::cache::quantize_matrix;
use crate::model::quantize::{Quantization, Quantized, bitsandbytes};
use crate::model::save::{ModelFolder, OutTensor, check_replaceable, is_model_file};
use crate::model::weights::WeightFiles;
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

/// The weights to which an adapter trained on a quantized base is added, and the form of the sum.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum MergeTarget {
    /// The dequantized weights: exactly the model that was trained, except for rounding to the dtype written.
    #[default]
    Dequantized,
    /// The weights before quantization, although the adapter has also learned to compensate for the quantization
    /// error.
    Original,
    /// Like [`Self::Dequantized`], with the sums quantized again: as small as the base, and rounded once more.
    Requantized,
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
    let merger = Merger::<B>::new(config, device)?;
    let mut tensors = Vec::new();
    for ModelTensor { name, shape: dims, .. } in merger.shape.tensors() {
        let dtype = merger.output_dtype(&name)?;
        let (merger, on_tensor, source) = (&merger, &on_tensor, name.clone());
        let to = merger.result.quantization.filter(|_| is_projection(&name));
        tensors.push(match (to, dims.as_slice()) {
            (Some(to), &[d_out, d_in]) => {
                let dims = [d_out, d_in];
                OutTensor::quantized(name, dims, dtype, to, move || {
                    let values = merger.values(&source, dtype)?;
                    on_tensor(&source);
                    Quantized::quantize(&source, dims, to, |first, out| {
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
    let summary =
        MergeSummary { merged: merger.changed(), copied: tensors.len() - merger.changed() };
    write(config, &merger.result, tensors)?;
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
    let merger = Merger::<B>::new(config, device)?;
    let result = merger.result.clone();
    from_values(result, dtype, device, &mut |name| {
        let stored = merger.output_dtype(name)?;
        Ok((merger.values(name, stored)?, stored))
    })
}

/// State shared by the functions that produce the output's tensors.
struct Merger<'a, B: TrainBackend> {
    config: &'a MergeConfig,
    /// Shape and quantization of the base.
    shape: DecoderConfig,
    /// Shape and quantization of the output.
    result: DecoderConfig,
    files: WeightFiles,
    adapter: AdapterWeights,
    device: &'a B::Device,
}

impl<'a, B: TrainBackend> Merger<'a, B> {
    /// Opens base and adapter, and checks that they fit together and suit the target.
    fn new(config: &'a MergeConfig, device: &'a B::Device) -> Result<Self> {
        let shape = DecoderConfig::load(&config.model)?;
        let files = WeightFiles::open_model(&config.model, &shape)?;
        files.check(&shape.tensors())?;
        if shape.quantization.is_some() && config.target == MergeTarget::Original {
            return Err(Error::file(
                &config.model,
                "holds only quantized weights, so there are no original ones to merge into",
                "choose --target dequantized or requantized, or name the full-precision model",
            ));
        }
        let quantization = shape.quantization.or(config.base_quantization);
        let (lora, adapter) = peft::read(&shape, &config.adapter)?;
        if lora.lora_bias {
            check_biases(&shape, &adapter, &config.adapter)?;
        }
        let result = DecoderConfig {
            quantization: quantization.filter(|_| config.target == MergeTarget::Requantized),
            ..shape.clone()
        };
        Ok(Self { config, shape, result, files, adapter, device })
    }

    /// Returns the number of weights that the adapter changes.
    fn changed(&self) -> usize {
        let branches = self.adapter.branches.values();
        let biases = branches.filter(|branch| branch.bias.is_some()).count();
        self.adapter.branches.len() + biases + self.adapter.saved.len()
    }

    /// Returns the dtype in which the weight `name` is written; for a quantized one, the dtype of its dequantized
    /// values.
    fn output_dtype(&self, name: &str) -> Result<DType> {
        let stored = if self.files.is_quantized(name) {
            self.files.dtype("model.embed_tokens.weight")?
        } else {
            self.files.dtype(name)?
        };
        Ok(match (self.config.dtype, stored) {
            (Some(dtype), _) => dtype,
            (None, DType::F64) => DType::F32,
            (None, stored) => stored,
        })
    }

    /// Returns the values of the weight `name` for writing in `dtype`, merged if it has a branch.
    fn values(&self, name: &str, dtype: DType) -> Result<Vec<f32>> {
        if let Some(module) = name.strip_suffix(".bias") {
            let branch = self.adapter.branches.get(module);
            let values = self.bias(name, branch)?;
            check_finite(name, &values, dtype)?;
            return Ok(values);
        }
        let module = name.trim_end_matches(".weight");
        let values = match (self.adapter.saved.get(module), self.adapter.branches.get(module)) {
            (Some(saved), _) => saved.iter::<f32>().collect(),
            (None, Some(branch)) => {
                let (values, dims) = self.base(name)?;
                self.add(values, dims, branch)
            }
            (None, None) => self.base(name)?.0,
        };
        check_finite(name, &values, dtype)?;
        Ok(values)
    }

    /// Returns the values of the bias `name`, with that of the projection's branch.
    fn bias(&self, name: &str, branch: Option<&Branch>) -> Result<Vec<f32>> {
        let mut values = self.files.tensor_f32(name)?;
        if let Some(Branch { bias: Some(bias), scaling, .. }) = branch {
            let added = bias.iter::<f32>();
            values.iter_mut().zip(added).for_each(|(value, bias)| *value += *scaling as f32 * bias);
        }
        Ok(values)
    }

    /// Returns the values to which the adapter is added, and their shape.
    fn base(&self, name: &str) -> Result<(Vec<f32>, Vec<usize>)> {
        let tensor = self.shape.tensors().into_iter().find(|tensor| tensor.name == name);
        let dims = tensor.map_or_else(Vec::new, |tensor| tensor.shape);
        let as_trained = self.config.target != MergeTarget::Original && is_projection(name);
        let values = match (dims.as_slice(), self.config.base_quantization.filter(|_| as_trained)) {
            (&[d_out, d_in], _) if self.files.is_quantized(name) => {
                bitsandbytes::read(&self.files, name, [d_out, d_in])?.dequantize()
            }
            (&[d_out, d_in], Some(to)) => {
                quantize_matrix(&self.files, name, [d_out, d_in], to)?.dequantize()
            }
            _ => self.files.tensor_f32(name)?,
        };
        Ok((values, dims))
    }

    /// Computes `W + scaling * B A`, `[D_out, D_in]`, on the device in f32; with DoRA, each row scaled to its magnitude.
    fn add(&self, weight: Vec<f32>, shape: Vec<usize>, branch: &Branch) -> Vec<f32> {
        let tensor = |data| Tensor::<B, 2>::from_data(data, (self.device, DType::F32));
        let weight = tensor(TensorData::new(weight, shape));
        let [a, b] = [&branch.a, &branch.b].map(|data| tensor(data.clone()));
        let mut merged = weight + b.matmul(a) * branch.scaling;
        if let Some(magnitude) = &branch.magnitude {
            let magnitude = Tensor::<B, 1>::from_data(magnitude.clone(), (self.device, DType::F32));
            let norms = merged.clone().square().sum_dim(1).sqrt();
            merged = merged * (magnitude.unsqueeze_dim(1) / norms);
        }
        merged.into_data().iter::<f32>().collect()
    }
}

/// Checks that every projection whose branch has a bias has one itself, to which that can be added.
fn check_biases(shape: &DecoderConfig, adapter: &AdapterWeights, folder: &Path) -> Result<()> {
    let tensors = shape.tensors();
    let has_bias = |module: &str| {
        let mut biases = tensors.iter().filter(|tensor| tensor.role == TensorRole::Bias);
        biases.any(|tensor| tensor.module() == module)
    };
    let Some(module) = adapter.branches.keys().find(|module| !has_bias(module)) else {
        return Ok(());
    };
    Err(Error::file(
        folder,
        format!(
            "has biases (lora_bias), and {module} of the base has none to which its could be added; PEFT refuses to merge it \
             too"
        ),
        "use the adapter as it is, or train without lora_bias",
    ))
}

/// Checks that all values are finite in `dtype`, as PEFT's `safe_merge` does: a broken adapter must not become a
/// broken model.
fn check_finite(name: &str, values: &[f32], dtype: DType) -> Result<()> {
    let stays_finite = |value: &f32| match dtype {
        DType::F16 => f16::from_f32(*value).is_finite(),
        DType::BF16 => bf16::from_f32(*value).is_finite(),
        _ => value.is_finite(),
    };
    let Some(value) = values.iter().find(|value| !stays_finite(value)) else {
        return Ok(());
    };
    let (problem, remedy) = if value.is_finite() {
        ("is too large for this type", "merge with --dtype bf16 or f32")
    } else {
        ("is not finite", "the adapter or the base is broken: train again, or fetch it again")
    };
    Err(Error::run(format!("{name}: {value} in {} {problem}", dtype.name()), remedy))
}

impl MergeConfig {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_that_would_not_be_finite_are_named_with_their_type() {
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
