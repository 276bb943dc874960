//! The input of a plan: a model's shape, a run's configuration, and a device. Nothing is loaded or
//! started.

use burn::tensor::DType;

use super::layers::{Group, Layer};
use super::passes::Samples;
use super::profile::Profile;
use crate::adapter::saved::saved_modules;
use crate::adapter::{LoraConfig, peft};
use crate::config::{GradientCheckpointing, Method, Optim, Reference, RunConfig};
use crate::error::{Error, Result};
use crate::input_file;
use crate::model::config::DecoderConfig;
use crate::model::limits::{HALVES, Pieces};
use crate::model::names::{ModelTensor, is_projection, layer_module};
use crate::model::quantize::Quantization;
use crate::train::activations::{ACTIVATIONS_SHARE, Activations, RECOMPUTE_ABOVE};
use crate::train::optimizer::{Rule, UpdateRule, eight_bit};
use crate::train::policy::lora_config;

/// Everything that determines how much memory and time a run needs.
#[derive(Clone, Debug)]
pub struct Job {
    /// The model's shape.
    pub shape: DecoderConfig,
    /// The run's configuration.
    pub config: RunConfig,
    /// Compute type: that of activations, and of weights unless they are quantized.
    pub dtype: DType,
    /// Whether matrices are stored in bf16 and widened when they are used (see
    /// [`crate::model::load::load`]).
    pub(super) bf16_storage: bool,
    /// How projections are quantized, either in the model's files already or while they are loaded.
    pub(super) quantization: Option<Quantization>,
    /// The largest number of bytes in one buffer of the device.
    max_buffer_bytes: Option<u64>,
    /// The lengths of the samples.
    pub samples: Samples,
    pub(super) layers: Vec<Layer>,
    /// The modules that are trained in full beside an adapter, with the number of their weights.
    saved: Vec<(String, usize)>,
}

impl Job {
    /// Creates the job of `config` on a model of `shape`, whose weights have the compute type of
    /// `profile`.
    ///
    /// # Errors
    /// The adapter from which training starts cannot be read.
    pub fn new(
        shape: &DecoderConfig,
        config: &RunConfig,
        samples: &Samples,
        profile: &Profile,
    ) -> Result<Self> {
        let lora = trained_adapter(config)?;
        let quantization = quantization(shape, config);
        let saved = match &lora {
            Some(lora) => saved_modules(&DecoderConfig { quantization, ..shape.clone() }, lora)?,
            None => Vec::new(),
        };
        let saved: Vec<(String, usize)> =
            saved.into_iter().map(|(name, dims)| (name, dims.iter().product())).collect();
        let layers = (0..shape.num_hidden_layers)
            .map(|index| Layer::of(shape, lora.as_ref(), &saved, index))
            .collect::<Result<_>>()?;
        Ok(Self {
            layers,
            saved,
            shape: shape.clone(),
            dtype: profile.dtype(shape, config),
            bf16_storage: profile.stores_bf16(shape, config),
            quantization,
            max_buffer_bytes: profile.largest_tensor,
            config: config.clone(),
            samples: samples.clone(),
        })
    }

    /// Returns the bytes of one value of the compute type.
    pub(super) fn size(&self) -> usize {
        self.dtype.size()
    }

    /// Returns whether all weights are trained, rather than an adapter.
    pub(super) fn trains_all(&self) -> bool {
        !self.config.model.use_peft
    }

    /// Returns whether the weight of `module` is trained in full.
    pub(super) fn trains(&self, module: &str) -> bool {
        self.trains_all() || self.saved.iter().any(|(name, _)| name == module)
    }

    /// Returns the numbers of weights of the projections of layer `index` that are trained in full beside an adapter.
    pub(super) fn saved_projections(&self, index: usize) -> Vec<usize> {
        let layer = format!("{}.", layer_module(index));
        let is_here =
            |name: &str| name.starts_with(&layer) && is_projection(&format!("{name}.weight"));
        self.saved.iter().filter(|(name, _)| is_here(name)).map(|(_, count)| *count).collect()
    }

    /// Returns whether a step computes the reference.
    pub(super) fn has_reference(&self) -> bool {
        self.config.reference().is_some()
    }

    /// Returns the forward passes without a gradient, over all tokens of a step, of a step that does not know the reference and
    /// of one that does: those of the reference, and with KTO's mismatched completions, which are about as long as the
    /// samples, also those of policy and reference over these.
    pub(super) fn forward_passes(&self) -> [f64; 2] {
        let sequences = if self.config.has_mismatched_completions() { 2.0 } else { 1.0 };
        let reference = if self.has_reference() { sequences } else { 0.0 };
        let mismatched = sequences - 1.0;
        [reference + mismatched, mismatched]
    }

    /// Returns whether the reference's log-probabilities are known after the first epoch. KTO, and a reference that follows the
    /// policy, compute them in every step.
    pub(super) fn keeps_reference(&self) -> bool {
        match self.config.method {
            Method::Kto => self.config.precompute_sizes().is_some(),
            Method::Dpo => !self.config.dpo.sync_ref_model,
            Method::Sft | Method::Orpo | Method::Cpo => true,
        }
    }

    /// Returns whether the reference needs a copy of the trained weights: the frozen adapter of
    /// TR-DPO, or the initial model.
    pub(super) fn copies_reference(&self) -> bool {
        let initial = match self.config.reference() {
            Some(Reference::Initial) => true,
            Some(Reference::Auto) => self.config.lora.adapter.is_some(),
            Some(Reference::Base) | None => false,
        };
        self.has_reference() && (initial || self.trains_all() || self.config.dpo.sync_ref_model)
    }

    /// Returns the bytes of a frozen matrix as it is stored.
    pub(super) fn matrix_bytes(&self, rows: usize, columns: usize) -> usize {
        let count = rows * columns;
        let quantized_bytes = self.quantization.map(|quantization| quantization.bytes(count));
        quantized_bytes.unwrap_or_else(|| self.float_bytes(count))
    }

    /// Returns the bytes of a matrix of `count` values that is not quantized.
    fn float_bytes(&self, count: usize) -> usize {
        if self.bf16_storage { 4 * count.div_ceil(2) } else { count * self.size() }
    }

    /// Returns the size of the largest projection, or of the largest piece of one: so many values
    /// are dequantized at once when a quantized weight is multiplied.
    pub(super) fn largest_projection(&self) -> usize {
        let groups = self.layers.iter().flat_map(Layer::groups);
        let matrices = groups.flat_map(|group| {
            let rows = group.outs.iter();
            rows.map(|out| self.piece_rows([*out, group.d_in], true) * group.d_in)
        });
        matrices.max().unwrap_or(0)
    }

    /// Returns whether projections are quantized.
    pub(super) fn is_quantized(&self) -> bool {
        self.quantization.is_some()
    }

    /// Returns the number of matrices that the optimizer keeps for each trained one.
    pub(super) fn optimizer_states(&self) -> usize {
        let rule = Rule::of(&self.config.train);
        rule.map_or(2, |rule| rule.state_names().len())
    }

    /// Returns the bytes of each matrix that the optimizer keeps for a trained matrix of `count` values.
    pub(super) fn optimizer_bytes(&self, count: usize) -> usize {
        match self.config.train.optim {
            // A row and a column; the estimate is for a square matrix.
            Optim::Adafactor => 4 * (count as f64).sqrt() as usize,
            optim if optim.is_eight_bit() && count >= eight_bit::MIN_VALUES => {
                let blocks = count.div_ceil(eight_bit::BLOCK);
                blocks * (eight_bit::BLOCK + 4)
            }
            _ => 4 * count,
        }
    }

    /// Returns whether the optimizer updates all tensors in one kernel, without temporaries.
    pub(super) fn updates_in_one_pass(&self) -> bool {
        let optim = self.config.train.optim;
        optim.is_adamw() && !optim.is_eight_bit()
    }

    /// Returns the number of values of each trained matrix.
    pub(super) fn trained_sizes(&self) -> Vec<usize> {
        if self.trains_all() {
            return self.shape.tensors().iter().map(ModelTensor::count).collect();
        }
        let groups = self.layers.iter().flat_map(Layer::groups);
        let branches = groups.flat_map(|group| {
            let sizes = move |(out, rank): (&usize, &usize)| [rank * group.d_in, out * rank];
            let matrices = group.outs.iter().zip(&group.ranks).flat_map(sizes);
            matrices.chain(group.magnitudes())
        });
        let saved = self.saved.iter().map(|(_, count)| *count);
        let biases = bias_sizes(&self.layers, self.config.lora.lora_bias);
        branches.chain(biases).filter(|count| *count > 0).chain(saved).collect()
    }

    /// Returns the number of row norms of each weight with magnitudes.
    pub(super) fn norm_sizes(&self) -> Vec<usize> {
        let groups = self.layers.iter().flat_map(Layer::groups);
        groups.flat_map(Group::magnitudes).collect()
    }

    /// Returns the bytes of everything that is loaded: the model and its adapter.
    pub(super) fn loaded_bytes(&self) -> usize {
        let adapter =
            if self.trains_all() { 0 } else { 4 * self.trained_sizes().iter().sum::<usize>() };
        self.model_bytes() + adapter
    }

    /// Returns the bytes of the model.
    pub fn model_bytes(&self) -> usize {
        self.weight_bytes().iter().sum()
    }

    /// Returns the bytes of each of the model's tensors, with one entry per piece of a matrix that
    /// is split.
    pub(super) fn weight_bytes(&self) -> Vec<usize> {
        let mut all = Vec::new();
        for tensor in self.shape.tensors() {
            let Some([rows, columns]) = tensor.dims() else {
                all.push(tensor.count() * self.size());
                continue;
            };
            let quantized = tensor.is_projection();
            let piece_rows = self.piece_rows([rows, columns], quantized);
            for start in (0..rows).step_by(piece_rows.max(1)) {
                let rows = piece_rows.min(rows - start);
                all.push(if quantized {
                    self.matrix_bytes(rows, columns)
                } else {
                    self.float_bytes(rows * columns)
                });
            }
        }
        all
    }

    /// Returns the number of rows of a matrix that fit into one buffer.
    pub(super) fn piece_rows(&self, [rows, columns]: [usize; 2], is_projection: bool) -> usize {
        let quantization = self.quantization.filter(|_| is_projection);
        let unit = quantization.map_or(HALVES, |quantization| quantization.unit());
        let piece_rows = self.pieces().rows([rows, columns], unit);
        piece_rows.unwrap_or(rows)
    }

    /// Returns how the device splits the model's matrices.
    fn pieces(&self) -> Pieces {
        Pieces { longest: self.max_buffer_bytes, size: self.size() }
    }

    /// Returns a matrix that the device holds neither whole nor, where it may be split, in pieces,
    /// and its bytes.
    pub(super) fn too_long_weight(&self) -> Option<(String, u64)> {
        let pieces = self.pieces();
        if self.trains_all() || self.config.lora.uses_loftq() || self.config.lora.changes_base() {
            Pieces { size: 4, ..pieces }.longer_than_a_piece(&self.shape)
        } else {
            let saved: Vec<&str> = self.saved.iter().map(|(name, _)| name.as_str()).collect();
            let too_long = Pieces { size: 4, ..pieces }.longer_among(&self.shape, &saved);
            too_long.or_else(|| pieces.too_long(&self.shape, self.quantization))
        }
    }

    /// Returns the bytes per token that a checkpointed block keeps, as
    /// [`Decoder::block_bytes_per_token`](crate::model::decoder::Decoder::block_bytes_per_token) counts them.
    fn block_bytes_per_token(&self) -> u64 {
        let scaled = |layer: &Layer| -> usize {
            let groups = layer.groups().into_iter().filter(|group| group.dora);
            groups.map(Group::width).sum()
        };
        let scaled = self.layers.iter().map(scaled).max().unwrap_or(0);
        (self.shape.block_values_per_token() * self.size() + 4 * scaled) as u64
    }

    /// Returns how many blocks keep their activations in a pass of `tokens` tokens.
    /// [`crate::train::activations::choose_activations`] decides the same once the model is loaded.
    pub(super) fn kept_blocks(&self, profile: &Profile, tokens: usize) -> usize {
        let activations = match self.config.train.gradient_checkpointing {
            GradientCheckpointing::On => Activations::Recompute,
            GradientCheckpointing::Off => Activations::Keep,
            GradientCheckpointing::Auto => match profile.capacity {
                Some(capacity) => {
                    let used = profile.program + self.loaded_bytes() as u64;
                    let left = capacity.saturating_sub(used);
                    Activations::Fit {
                        available: (left as f64 * ACTIVATIONS_SHARE) as u64,
                        per_token: self.block_bytes_per_token(),
                    }
                }
                None if self.shape.weights() > RECOMPUTE_ABOVE => Activations::Recompute,
                None => Activations::Keep,
            },
        };
        activations.keep(tokens).min(self.shape.num_hidden_layers)
    }
}

/// Returns the sizes of the biases of all branches, if they have any.
fn bias_sizes(layers: &[Layer], lora_bias: bool) -> impl Iterator<Item = usize> {
    let groups = layers.iter().filter(move |_| lora_bias).flat_map(Layer::groups);
    groups.flat_map(|group| {
        let with_branch = |(out, rank): (&usize, &usize)| (*rank > 0).then_some(*out);
        group.outs.iter().zip(&group.ranks).filter_map(with_branch)
    })
}

/// Returns how projections are quantized. Files that are quantized already stay as they are,
/// whatever the configuration says ([`crate::model::load::load_as`]).
pub(super) fn quantization(shape: &DecoderConfig, config: &RunConfig) -> Option<Quantization> {
    shape.quantization.or(config.model.quantize())
}

/// Returns the configuration of the adapter that is trained. An adapter from which training starts
/// brings its own.
fn trained_adapter(config: &RunConfig) -> Result<Option<LoraConfig>> {
    if !config.model.use_peft {
        return Ok(None);
    }
    let Some(folder) = &config.lora.adapter else {
        return Ok(Some(lora_config(config)));
    };
    let path = folder.join(peft::CONFIG);
    let text = input_file::read_to_string(&path).map_err(|e| Error::io(&path, "read", e))?;
    LoraConfig::from_json(&text, &path.display().to_string()).map(Some)
}
