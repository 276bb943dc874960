//! Builds a [`Decoder`] tensor by tensor from a Hugging Face folder, optionally quantizing it, or from random values.

mod values;

use std::collections::BTreeMap;
use std::path::Path;

use arithmo_backends::{Format, SplitWeight, TrainBackend, Weight};
use burn::tensor::{DType, Element, Tensor, TensorData};
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};

use self::values::{Floats, Values, host};
use super::attention::Attention;
use super::config::DecoderConfig;
use super::decoder::{Decoder, DecoderLayer};
use super::limits::Pieces;
use super::linear::{Linear, StoredWeight, WeightParam, frozen_param};
use super::mlp::Mlp;
use super::names::{EMBEDDING, FINAL_NORM, HEAD, is_projection, layer_module};
use super::quantize::cache::{Cache, quantize_matrix};
use super::quantize::{Quantization, Quantized, bitsandbytes, words};
use super::rms_norm::RmsNorm;
use super::weights::WeightFiles;
use crate::error::{Error, Result};
use crate::interrupt;

/// Loads the model in `folder` onto `device` with its weights in `dtype`; projections that are stored quantized stay
/// so.
///
/// Every backend can keep a model in bf16: if `device` does not compute in it, matrices are words of two values,
/// widened when they are used. Files are read at about the speed of memory. Besides the model, at most one tensor is
/// in memory.
///
/// # Errors
/// The folder is not a supported model in safetensors format, or tensors are missing, unexpected or misshapen (all are
/// named).
pub fn load<B: TrainBackend>(
    folder: &Path,
    dtype: DType,
    device: &B::Device,
) -> Result<Decoder<B>> {
    load_as(folder, dtype, None, &Cache::none(), device)
}

/// Loads a model like [`load`] and quantizes its projections as `to`, or reads them from `cache` if they were
/// quantized before. Besides the quantized model, one piece of a tensor per thread is in memory.
///
/// # Errors
/// Same as [`load`]; the weights are already quantized in another way; or a weight is not finite.
pub fn load_as<B: TrainBackend>(
    folder: &Path,
    dtype: DType,
    to: Option<Quantization>,
    cache: &Cache,
    device: &B::Device,
) -> Result<Decoder<B>> {
    let pieces = Pieces::of::<B>(dtype, device);
    load_in_pieces(folder, dtype, to, cache, pieces, device)
}

/// Loads a model like [`load_as`], with matrices split as `pieces` says instead of by the limits of `device`.
///
/// # Errors
/// Same as [`load_as`].
pub fn load_in_pieces<B: TrainBackend>(
    folder: &Path,
    dtype: DType,
    to: Option<Quantization>,
    cache: &Cache,
    pieces: Pieces,
    device: &B::Device,
) -> Result<Decoder<B>> {
    let config = DecoderConfig::load(folder)?;
    if config.is_text_part {
        cache.say(&format!(
            "note: {}: this model reads more than text; only its text part is used",
            folder.display()
        ));
    }
    let files = WeightFiles::open_model(folder, &config)?;
    files.check(&config.tensors())?;
    let to = match (config.quantization, to) {
        (Some(stored), Some(requested)) if stored != requested => {
            return Err(already_quantized(folder, stored, requested));
        }
        (Some(_), _) | (None, None) => None,
        (None, to) => to,
    };
    if let Some(to) = to
        && let Some(quantized) = cache.quantized_folder(folder, &config, &files, to)?
    {
        let nothing = Cache::none();
        return load_in_pieces(&quantized, dtype, None, &nothing, pieces, device);
    }
    let quantization = to.or(config.quantization);
    // bf16 words are exact and take half the memory of f32 if the device cannot compute in 16 bits.
    let halves = match quantization {
        Some(_) => [DType::BF16, DType::F32].contains(&dtype),
        None => dtype == DType::BF16,
    } && !B::computes_in(device, DType::BF16);
    let config = DecoderConfig { quantization, ..config };
    build_in_pieces(config, dtype, pieces, device, &mut |name, shape| {
        if interrupt::requested() {
            return Err(Error::Interrupted { note: "stopped while loading the model".to_string() });
        }
        let &[d_out, d_in] = shape else {
            return files.tensor_data(name, dtype).map(host);
        };
        match to.filter(|_| is_projection(name)) {
            _ if files.is_quantized(name) => {
                bitsandbytes::read(&files, name, [d_out, d_in]).map(Values::Quantized)
            }
            Some(to) => quantize_matrix(&files, name, [d_out, d_in], to).map(Values::Quantized),
            None if halves && files.dtype(name)? == DType::BF16 => {
                files.words(name).map(Values::Halves)
            }
            None => files.tensor_data(name, dtype).map(host),
        }
    })
}

/// Creates a frozen weight `[D_out, D_in]` of `values`, held as `like` is: in its dtype, or in words of two bf16 values.
/// Returns `None` if `like` is quantized otherwise.
pub fn held_like<B: TrainBackend>(
    values: TensorData,
    like: &WeightParam<B>,
    device: &B::Device,
) -> Option<WeightParam<B>> {
    let weight = match &like.stored {
        StoredWeight::Float(like) => Tensor::from_data(values, (device, like.val().dtype())).into(),
        StoredWeight::Packed(like) if like.format == Format::Bf16 => {
            let values = Values::Halves(words(values.convert_dtype(DType::BF16).as_bytes()));
            values.into_weight(like.dims, device, DType::F32)
        }
        _ => return None,
    };
    Some(WeightParam::frozen(weight))
}

/// Returns the error for weights that are already quantized in another way.
fn already_quantized(folder: &Path, stored: Quantization, requested: Quantization) -> Error {
    let double_quant = |quantization: Quantization| {
        if quantization.double_quant { " with double_quant" } else { "" }
    };
    Error::file(
        folder,
        format!(
            "the weights are already quantized as {}{}, and cannot be quantized as {}{}",
            stored.name(),
            double_quant(stored),
            requested.name(),
            double_quant(requested)
        ),
        "leave quantization out to use them as they are, or name the full-precision model",
    )
}

/// Makes the weight of the given name: its values, row-major, and the dtype they are stored in.
pub type MakeWeight<'a> = dyn FnMut(&str) -> Result<(Vec<f32>, DType)> + 'a;

/// Builds a model from the weights that `values` returns by name: row-major, with the dtype they are stored in (F32,
/// BF16 or F16), to which they are rounded. Projections are quantized if `config` says so.
///
/// # Errors
/// `values` fails, or a weight to be quantized is not finite.
pub fn from_values<B: TrainBackend>(
    config: DecoderConfig,
    dtype: DType,
    device: &B::Device,
    values: &mut MakeWeight<'_>,
) -> Result<Decoder<B>> {
    let quantization = config.quantization;
    build(config, dtype, device, &mut |name, shape| {
        let (values, stored) = values(name)?;
        let to = quantization.filter(|_| is_projection(name));
        if let (Some(to), &[d_out, d_in]) = (to, shape) {
            let read = |first: usize, out: &mut [f32]| {
                out.copy_from_slice(&values[first..first + out.len()]);
                Ok(())
            };
            return Quantized::quantize(name, [d_out, d_in], to, read).map(Values::Quantized);
        }
        let data = TensorData::new(values, shape.to_vec()).convert_dtype(stored);
        Ok(match (shape.len(), stored, dtype) {
            (2, DType::BF16, DType::F32) => Values::Halves(words(data.as_bytes())),
            _ => host(data.convert_dtype(dtype)),
        })
    })
}

/// Creates a model with random weights: normal with standard deviation `initializer_range`, norms at one, biases at zero.
/// A seed gives the same weights on every backend.
pub fn random<B: TrainBackend>(
    config: DecoderConfig,
    seed: u64,
    dtype: DType,
    device: &B::Device,
) -> Result<Decoder<B>> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let deviation = config.initializer_range;
    let unit_offset = config.switches.unit_offset_norm;
    build(config, dtype, device, &mut |name, shape| {
        let count = shape.iter().product();
        let values: Vec<f32> = match shape {
            [_] if unit_offset || name.ends_with(".bias") => vec![0.0; count],
            [_] => vec![1.0; count],
            _ => (0..count).map(|_| (normal(&mut rng) * deviation) as f32).collect(),
        };
        let data = TensorData::new(values, shape.to_vec());
        Ok(host(data.convert_dtype(dtype)))
    })
}

/// Creates a model with random weights directly on the device, for measurements: uniform with standard deviation
/// `initializer_range`, norms at one, biases at zero, and random codes for projections quantized as `to`.
pub fn random_on_device<B: TrainBackend>(
    config: DecoderConfig,
    dtype: DType,
    to: Option<Quantization>,
    device: &B::Device,
) -> Result<Decoder<B>> {
    let mut rng = ChaCha8Rng::seed_from_u64(1);
    let (deviation, unit_offset) = (config.initializer_range, config.switches.unit_offset_norm);
    build(config, dtype, device, &mut |name, shape| {
        Ok(match (shape, to.filter(|_| is_projection(name))) {
            ([_], _) if unit_offset || name.ends_with(".bias") => Values::Floats(Floats::Zeros),
            ([_], _) => Values::Floats(Floats::Ones),
            (&[d_out, d_in], Some(to)) => {
                Values::Quantized(Quantized::random([d_out, d_in], to, deviation as f32, &mut rng))
            }
            _ => Values::Floats(Floats::Uniform(deviation * 3f64.sqrt())),
        })
    })
}

type Source<'a> = dyn FnMut(&str, &[usize]) -> Result<Values> + 'a;

/// Builds a model from the values of `source`, with matrices split by the limits of `device`.
fn build<B: TrainBackend>(
    config: DecoderConfig,
    dtype: DType,
    device: &B::Device,
    source: &mut Source<'_>,
) -> Result<Decoder<B>> {
    let pieces = Pieces::of::<B>(dtype, device);
    build_in_pieces(config, dtype, pieces, device, source)
}

/// Builds a model from the values of `source`, with matrices split as `pieces` says.
fn build_in_pieces<B: TrainBackend>(
    config: DecoderConfig,
    dtype: DType,
    pieces: Pieces,
    device: &B::Device,
    source: &mut Source<'_>,
) -> Result<Decoder<B>> {
    let mut builder = Builder::<B> {
        config: &config,
        tensors: config.tensors().into_iter().map(|tensor| (tensor.name, tensor.shape)).collect(),
        dtype: if B::computes_in(device, dtype) {
            dtype
        } else {
            <B::FloatElem as Element>::dtype()
        },
        pieces,
        device,
        source,
    };
    let embed_tokens = builder.matrix(EMBEDDING)?;
    let layers =
        (0..config.num_hidden_layers).map(|index| builder.layer(index)).collect::<Result<_>>()?;
    let norm = builder.norm(FINAL_NORM)?;
    let lm_head = if config.tie_word_embeddings { None } else { Some(builder.matrix(HEAD)?) };
    Ok(Decoder { embed_tokens, layers, norm, lm_head, config })
}

struct Builder<'a, 'b, B: TrainBackend> {
    config: &'a DecoderConfig,
    /// The shapes of the model's tensors by name.
    tensors: BTreeMap<String, Vec<usize>>,
    /// Dtype of computation.
    dtype: DType,
    pieces: Pieces,
    device: &'a B::Device,
    source: &'a mut Source<'b>,
}

impl<B: TrainBackend> Builder<'_, '_, B> {
    /// Builds the decoder layer number `index`.
    fn layer(&mut self, index: usize) -> Result<DecoderLayer<B>> {
        let layer = layer_module(index);
        let name = |part: &str| format!("{layer}.{part}");
        Ok(DecoderLayer {
            self_attn: Attention {
                q_proj: self.optional_linear(&name("self_attn.q_proj"))?,
                k_proj: self.optional_linear(&name("self_attn.k_proj"))?,
                v_proj: self.optional_linear(&name("self_attn.v_proj"))?,
                qkv_proj: self.optional_linear(&name("self_attn.qkv_proj"))?,
                o_proj: self.linear(&name("self_attn.o_proj"))?,
                q_norm: self.optional_norm(&name("self_attn.q_norm"))?,
                k_norm: self.optional_norm(&name("self_attn.k_norm"))?,
                kind: self.config.layer_kind(index),
            },
            mlp: Mlp {
                gate_proj: self.optional_linear(&name("mlp.gate_proj"))?,
                up_proj: self.optional_linear(&name("mlp.up_proj"))?,
                gate_up_proj: self.optional_linear(&name("mlp.gate_up_proj"))?,
                down_proj: self.linear(&name("mlp.down_proj"))?,
                activation: self.config.switches.activation,
            },
            input_layernorm: self.optional_norm(&name("input_layernorm"))?,
            post_attention_layernorm: self.norm(&name("post_attention_layernorm"))?,
            pre_feedforward_layernorm: self.optional_norm(&name("pre_feedforward_layernorm"))?,
            post_feedforward_layernorm: self.optional_norm(&name("post_feedforward_layernorm"))?,
            residual_multiplier: self.config.switches.residual_multiplier,
        })
    }

    /// Builds the projection `module`, with a bias if it has one.
    fn linear(&mut self, module: &str) -> Result<Linear<B>> {
        let weight = self.matrix(module)?;
        let bias = format!("{module}.bias");
        let bias = self.tensors.contains_key(&bias).then(|| self.vector(&bias)).transpose()?;
        Ok(Linear { weight, bias: bias.map(frozen_param), trained_bias: None, lora: None })
    }

    /// Builds the projection `module`, or nothing if the model does not have it.
    fn optional_linear(&mut self, module: &str) -> Result<Option<Linear<B>>> {
        let exists = self.tensors.contains_key(&format!("{module}.weight"));
        exists.then(|| self.linear(module)).transpose()
    }

    /// Builds the norm `module`.
    fn norm(&mut self, module: &str) -> Result<RmsNorm<B>> {
        let weight = self.vector(&format!("{module}.weight"))?;
        let unit_offset = self.config.switches.unit_offset_norm;
        Ok(RmsNorm::frozen(weight, self.config.rms_norm_eps, unit_offset))
    }

    /// Builds the norm `module`, or nothing if the model does not have it.
    fn optional_norm(&mut self, module: &str) -> Result<Option<RmsNorm<B>>> {
        let exists = self.tensors.contains_key(&format!("{module}.weight"));
        exists.then(|| self.norm(module)).transpose()
    }

    /// Returns the shape of the tensor `name`.
    fn shape<const D: usize>(&self, name: &str) -> Result<[usize; D]> {
        let shape = self.tensors.get(name).and_then(|shape| shape.as_slice().try_into().ok());
        shape.ok_or_else(|| {
            let problem = format!("{name} is not in the list of the model's tensors");
            Error::run(problem, "this is a defect of arithmo: please report it")
        })
    }

    /// Builds the weight of `module`, a matrix, split into parts if it is too long for the device.
    fn matrix(&mut self, module: &str) -> Result<WeightParam<B>> {
        let name = format!("{module}.weight");
        let dims @ [rows, columns] = self.shape(&name)?;
        let values = (self.source)(&name, &dims)?;
        let piece = self.pieces.rows(dims, values.unit()).unwrap_or(rows);
        if piece >= rows {
            return Ok(WeightParam::frozen(self.weight(values, dims)));
        }
        let starts = (0..rows).step_by(piece);
        let parts = starts.map(|start| {
            let rows = start..rows.min(start + piece);
            let dims = [rows.len(), columns];
            self.weight(values.rows(rows, columns), dims)
        });
        Ok(WeightParam::frozen(SplitWeight::new(parts.collect())))
    }

    /// Creates a weight on the device.
    fn weight(&self, values: Values, dims: [usize; 2]) -> Weight<B> {
        let (device, dtype) = (self.device, self.dtype);
        // Weights live as long as the program; persistent allocations keep them apart from the pools of activations.
        B::memory_persistent_allocations(device, values, |values| {
            values.into_weight(dims, device, dtype)
        })
    }

    /// Builds the vector `name`, the weight of a norm or a bias.
    fn vector(&mut self, name: &str) -> Result<Tensor<B, 1>> {
        let shape = self.shape(name)?;
        let values = (self.source)(name, &shape)?;
        let (device, dtype) = (self.device, self.dtype);
        let Values::Floats(floats) = values else {
            let problem = format!("{name} was quantized, but it is not a matrix");
            return Err(Error::run(problem, "this is a defect of arithmo: please report it"));
        };
        Ok(B::memory_persistent_allocations(device, floats, |floats| {
            floats.into_tensor(shape, device, dtype)
        }))
    }
}

/// Draws a standard normal number (Box-Muller).
fn normal(rng: &mut ChaCha8Rng) -> f64 {
    let mut uniform = || (f64::from(rng.next_u32()) + 0.5) / (f64::from(u32::MAX) + 1.0);
    let (u, v) = (uniform(), uniform());
    (-2.0 * u.ln()).sqrt() * (std::f64::consts::TAU * v).cos()
}
