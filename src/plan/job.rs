//! What a plan is made from: a model's shape, what is done with it, and a device. Nothing is loaded, nothing started.

use std::fs;

use burn::tensor::DType;

use super::layers::Layer;
use super::passes::Samples;
use super::profile::Profile;
use crate::config::{GradientCheckpointing, Method, Reference, RunConfig};
use crate::error::{Error, Result};
use crate::lora::{LoraConfig, adapter};
use crate::model::config::MistralConfig;
use crate::model::limits::{HALVES, Pieces};
use crate::model::quantize::{Quantization, is_projection};
use crate::train::method::Activations;
use crate::train::setup::{ACTIVATIONS_SHARE, RECOMPUTE_ABOVE, lora_config, weights};

/// Everything that decides how much a run takes.
#[derive(Clone, Debug)]
pub struct Job {
    /// The model's shape.
    pub shape: MistralConfig,
    /// The run's configuration.
    pub config: RunConfig,
    /// Type that is computed in: of activations, and of weights unless they are packed.
    pub dtype: DType,
    /// Whether matrices are held in bf16, and widened when they are used: see [`crate::model::load::load`].
    pub(super) halves: bool,
    /// How projections are packed: in the model's files already, or while they are loaded.
    pub(super) quantization: Option<Quantization>,
    /// Most bytes that the device takes in one piece.
    longest: Option<u64>,
    /// The samples.
    pub samples: Samples,
    pub(super) layers: Vec<Layer>,
}

impl Job {
    /// The job of `config` on a model of `shape`, whose weights are held in what `profile` computes in.
    ///
    /// # Errors
    /// The adapter that training starts from cannot be read.
    pub fn new(
        shape: &MistralConfig,
        config: &RunConfig,
        samples: &Samples,
        profile: &Profile,
    ) -> Result<Self> {
        let lora = adapter_of(config)?;
        let layers =
            (0..shape.num_hidden_layers).map(|index| Layer::of(shape, lora.as_ref(), index));
        Ok(Self {
            layers: layers.collect::<Result<_>>()?,
            shape: shape.clone(),
            dtype: profile.dtype(shape, config),
            halves: profile.holds_halves(shape, config),
            quantization: quantization(shape, config),
            longest: profile.largest_tensor,
            config: config.clone(),
            samples: samples.clone(),
        })
    }

    /// Bytes of a weight, an activation.
    pub(super) fn size(&self) -> usize {
        self.dtype.size()
    }

    pub(super) fn trains_all(&self) -> bool {
        !self.config.model.use_peft
    }

    /// Whether policy and reference differ in more than the branch: TR-DPO's frozen adapter, or the model as it was.
    pub(super) fn copies_reference(&self) -> bool {
        let initial = match self.config.dpo.reference {
            Reference::Initial => true,
            Reference::Auto => self.config.lora.adapter.is_some(),
            Reference::Base => false,
        };
        self.config.method == Method::Dpo && (initial || self.trains_all())
    }

    /// Bytes of a frozen matrix as it is held.
    pub(super) fn matrix_bytes(&self, rows: usize, columns: usize) -> usize {
        let count = rows * columns;
        let packed = self.quantization.map(|packed| packed.bytes(count));
        packed.unwrap_or_else(|| self.float_bytes(count))
    }

    /// Bytes of a matrix of so many values that is not quantised.
    fn float_bytes(&self, count: usize) -> usize {
        match self.halves {
            true => 4 * count.div_ceil(2),
            false => count * self.size(),
        }
    }

    /// Weights of the matrix, or of the piece of one, that is unpacked where packed ones are multiplied: the largest.
    pub(super) fn largest_projection(&self) -> usize {
        let groups = self.layers.iter().flat_map(Layer::groups);
        let matrices = groups.flat_map(|group| {
            let rows = group.outs.iter();
            rows.map(|out| self.piece([*out, group.d_in], true) * group.d_in)
        });
        matrices.max().unwrap_or(0)
    }

    pub(super) fn is_quantized(&self) -> bool {
        self.quantization.is_some()
    }

    /// Numbers that are trained, matrix by matrix.
    pub(super) fn trained(&self) -> Vec<usize> {
        if self.trains_all() {
            let tensors = self.shape.tensors().into_iter();
            return tensors.map(|(_, shape)| shape.iter().product()).collect();
        }
        let groups = self.layers.iter().flat_map(Layer::groups);
        let branches = groups.flat_map(|group| {
            let of = move |(out, rank): (&usize, &usize)| [rank * group.d_in, out * rank];
            group.outs.iter().zip(&group.ranks).flat_map(of)
        });
        branches.filter(|count| *count > 0).collect()
    }

    /// Bytes of everything that is loaded: the model and what is trained of it.
    pub(super) fn loaded_bytes(&self) -> usize {
        let adapter = match self.trains_all() {
            true => 0,
            false => 4 * self.trained().iter().sum::<usize>(),
        };
        self.model_bytes() + adapter
    }

    /// Bytes of the model.
    pub fn model_bytes(&self) -> usize {
        self.weight_bytes().iter().sum()
    }

    /// Bytes of each of the model's tensors, piece by piece.
    pub(super) fn weight_bytes(&self) -> Vec<usize> {
        let mut all = Vec::new();
        for (name, shape) in self.shape.tensors() {
            let &[rows, columns] = shape.as_slice() else {
                all.push(shape.iter().product::<usize>() * self.size());
                continue;
            };
            let packed = is_projection(&name);
            let piece = self.piece([rows, columns], packed);
            for start in (0..rows).step_by(piece.max(1)) {
                let rows = piece.min(rows - start);
                all.push(match packed {
                    true => self.matrix_bytes(rows, columns),
                    false => self.float_bytes(rows * columns),
                });
            }
        }
        all
    }

    /// Rows of a matrix that lie in one piece.
    pub(super) fn piece(&self, [rows, columns]: [usize; 2], is_projection: bool) -> usize {
        let packed = self.quantization.filter(|_| is_projection);
        let unit = packed.map_or(HALVES, |packed| packed.unit());
        let piece = self.pieces().rows([rows, columns], unit);
        piece.unwrap_or(rows)
    }

    /// How the device cuts the model's matrices.
    fn pieces(&self) -> Pieces {
        Pieces { longest: self.longest, size: self.size() }
    }

    /// A matrix that the device takes neither whole nor, where that is possible, in pieces, with its bytes.
    pub(super) fn too_long_weight(&self) -> Option<(String, u64)> {
        let pieces = self.pieces();
        match self.trains_all() || self.config.lora.starts_by_loftq() {
            true => Pieces { size: 4, ..pieces }.longer_than_a_piece(&self.shape),
            false => pieces.too_long(&self.shape, self.quantization),
        }
    }

    /// How many blocks keep their activations in a pass of `tokens` tokens, as [`crate::train::setup::what_fits`] decides
    /// once the model is loaded.
    pub(super) fn kept_blocks(&self, profile: &Profile, tokens: usize) -> usize {
        let activations = match self.config.train.gradient_checkpointing {
            GradientCheckpointing::On => Activations::Recompute,
            GradientCheckpointing::Off => Activations::Keep,
            GradientCheckpointing::Auto => match profile.capacity {
                Some(capacity) => {
                    let taken = profile.program + self.loaded_bytes() as u64;
                    let left = capacity.saturating_sub(taken);
                    Activations::Fit {
                        available: (left as f64 * ACTIVATIONS_SHARE) as u64,
                        per_token: self.shape.block_values_per_token() as u64 * self.size() as u64,
                    }
                }
                None if weights(&self.shape) > RECOMPUTE_ABOVE => Activations::Recompute,
                None => Activations::Keep,
            },
        };
        activations.keep(tokens).min(self.shape.num_hidden_layers)
    }
}

/// How projections are packed: what lies packed in its files stays so, whatever is asked for ([`crate::model::load::load_as`]).
pub(super) fn quantization(shape: &MistralConfig, config: &RunConfig) -> Option<Quantization> {
    shape.quantization.or(config.model.quantize())
}

/// The adapter that is trained: a starting one brings its own settings.
fn adapter_of(config: &RunConfig) -> Result<Option<LoraConfig>> {
    if !config.model.use_peft {
        return Ok(None);
    }
    let Some(folder) = &config.lora.adapter else {
        return Ok(Some(lora_config(config)));
    };
    let path = folder.join(adapter::CONFIG);
    let text = fs::read_to_string(&path).map_err(|e| Error::io(&path, "read", e))?;
    LoraConfig::from_json(&text, &path.display().to_string()).map(Some)
}
