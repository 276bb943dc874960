//! The weights of a base model with an adapter merged into them: `W + scaling * B A`. With DoRA, each row of the sum is
//! scaled to its trained magnitude.

use std::collections::BTreeSet;
use std::path::Path;

use arithmo_backends::TrainBackend;
use burn::tensor::{DType, Tensor, TensorData};
use clap::ValueEnum;
use half::{bf16, f16};

use super::lora::Branch;
use super::peft::{self, AdapterWeights};
use crate::error::{Error, Result};
use crate::model::config::DecoderConfig;
use crate::model::names::{TensorRole, is_projection};
use crate::model::quantize::cache::quantize_matrix;
use crate::model::quantize::{Quantization, bitsandbytes};
use crate::model::weights::WeightFiles;

/// A base model and the adapter to merge into it.
#[derive(Clone, Copy, Debug)]
pub struct MergeSource<'a> {
    /// Folder of the base model.
    pub model: &'a Path,
    /// PEFT adapter folder; `None` for the weights of the base alone.
    pub adapter: Option<&'a Path>,
    /// Quantization of the base while the adapter was trained; `None` if there was none, or if `model` is stored
    /// quantized.
    pub base_quantization: Option<Quantization>,
    /// Weights to which the adapter is added, if the base was quantized.
    pub target: MergeTarget,
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

/// The weights of a base model with an adapter merged into them. One tensor at a time is computed and in memory.
pub struct MergedWeights<'a, B: TrainBackend> {
    source: MergeSource<'a>,
    /// Shape and quantization of the base.
    shape: DecoderConfig,
    files: WeightFiles,
    adapter: AdapterWeights,
    device: &'a B::Device,
}

impl<'a, B: TrainBackend> MergedWeights<'a, B> {
    /// Opens base and adapter, and checks that they fit together and suit the target.
    ///
    /// # Errors
    /// Base or adapter cannot be read, or do not fit together or the target.
    pub fn open(source: MergeSource<'a>, device: &'a B::Device) -> Result<Self> {
        let MergeSource { model, adapter, target, .. } = source;
        let shape = DecoderConfig::load(model)?;
        let files = WeightFiles::open_model(model, &shape)?;
        files.check(&shape.tensors())?;
        if shape.quantization.is_some() && target == MergeTarget::Original {
            return Err(Error::file(
                model,
                "holds only quantized weights, so there are no original ones to merge into",
                "choose --target dequantized or requantized, or name the full-precision model",
            ));
        }
        let mut weights = AdapterWeights::default();
        if let Some(folder) = adapter {
            let (lora, read) = peft::read(&shape, folder)?;
            if lora.lora_bias {
                check_biases(&shape, &read, folder)?;
            }
            weights = read;
        }
        Ok(Self { source, shape, files, adapter: weights, device })
    }

    /// Returns shape and quantization of the merged model.
    pub fn config(&self) -> DecoderConfig {
        let quantization = self.shape.quantization.or(self.source.base_quantization);
        let is_requantized = self.source.target == MergeTarget::Requantized;
        DecoderConfig {
            quantization: quantization.filter(|_| is_requantized),
            ..self.shape.clone()
        }
    }

    /// Returns the number of weights that the adapter changes.
    pub fn changed(&self) -> usize {
        let AdapterWeights { branches, saved, biases } = &self.adapter;
        let with_bias = branches.iter().filter(|(_, branch)| branch.bias.is_some());
        let biases: BTreeSet<&String> =
            with_bias.map(|(module, _)| module).chain(biases.keys()).collect();
        branches.len() + biases.len() + saved.len()
    }

    /// Returns the dtype in which the base stores the weight `name`; for a quantized one, the dtype of its dequantized
    /// values.
    ///
    /// # Errors
    /// The base has no such weight.
    pub fn stored_dtype(&self, name: &str) -> Result<DType> {
        if self.files.is_quantized(name) {
            self.files.dtype("model.embed_tokens.weight")
        } else {
            self.files.dtype(name)
        }
    }

    /// Returns the values of the weight `name` for writing in `dtype`, merged if it has a branch.
    ///
    /// # Errors
    /// The file cannot be read, or a value is not finite or too large for `dtype`.
    pub fn values(&self, name: &str, dtype: DType) -> Result<Vec<f32>> {
        if let Some(module) = name.strip_suffix(".bias") {
            let values = self.bias(name, module)?;
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

    /// Returns the values of `name`, the bias of `module`: those that the adapter trained, if it did, plus those of the
    /// projection's branch.
    fn bias(&self, name: &str, module: &str) -> Result<Vec<f32>> {
        let mut values = match self.adapter.biases.get(module) {
            Some(trained) => trained.iter::<f32>().collect(),
            None => self.files.tensor_f32(name)?,
        };
        let branch = self.adapter.branches.get(module);
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
        let as_trained = self.source.target != MergeTarget::Original && is_projection(name);
        let values = match (dims.as_slice(), self.source.base_quantization.filter(|_| as_trained)) {
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
