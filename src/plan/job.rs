//! What a plan is made from: a model's shape, what is done with it, and a device. Nothing is loaded, nothing started.

use std::fs;

use burn::tensor::DType;

use super::profile::Profile;
use crate::config::{
    GradientCheckpointing, InitLoraWeights, Method, Quantization, Reference, RunConfig,
};
use crate::data::lengths::SampleLengths;
use crate::error::{Error, Result};
use crate::lora::{LoraConfig, adapter};
use crate::model::config::MistralConfig;
use crate::model::limits::{HALVES, Pieces};
use crate::model::mistral::PROJECTIONS;
use crate::model::quantize::is_projection;
use crate::train::method::Activations;
use crate::train::pass::grouped;
use crate::train::sampler::Sampler;
use crate::train::setup::{
    ACTIVATIONS_SHARE, RECOMPUTE_ABOVE, fitting_tokens, lora_config, weights,
};

/// Steps whose passes are looked at, to find the largest.
const STEPS_SEEN: usize = 5000;

/// Samples that are assumed where they are not known, at most: more than one pass takes.
const MOST_ASSUMED: usize = 1 << 14;

/// The largest pass of a run, and what surrounds it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PassShape {
    /// Tokens of the packed row, `T`.
    pub tokens: usize,
    /// Those whose hidden states are wanted.
    pub queries: usize,
    /// Completion tokens that are scored.
    pub scored: usize,
    /// Tokens of the longest sample: no query sees further.
    pub span: usize,
}

impl PassShape {
    fn add(&mut self, sample: &SampleLengths) {
        self.tokens += sample.packed();
        self.queries += sample.predicting();
        self.scored += sample.scored();
        self.span = self.span.max(sample.packed());
    }

    pub(super) fn of<'a>(samples: impl IntoIterator<Item = &'a SampleLengths>) -> Self {
        let mut shape = Self::default();
        samples.into_iter().for_each(|sample| shape.add(sample));
        shape
    }
}

/// Samples of a run: those of its files, or as many as a step has of the longest that can be.
#[derive(Clone, Debug)]
pub struct Samples {
    /// Of the training file; empty: not known.
    pub train: Vec<SampleLengths>,
    /// Of the held-out file.
    pub eval: Vec<SampleLengths>,
}

/// The projections of one input, side by side.
#[derive(Clone, Debug, Default)]
pub(super) struct Group {
    pub(super) d_in: usize,
    pub(super) outs: Vec<usize>,
    /// Rank of each one's branch; 0: none.
    pub(super) ranks: Vec<usize>,
}

impl Group {
    pub(super) fn width(&self) -> usize {
        self.outs.iter().sum()
    }

    pub(super) fn rank(&self) -> usize {
        self.ranks.iter().sum()
    }

    pub(super) fn branches(&self) -> usize {
        self.ranks.iter().filter(|rank| **rank > 0).count()
    }

    /// The same without branches: the reference model's.
    pub(super) fn bare(&self) -> Self {
        Self {
            ranks: vec![0; self.outs.len()],
            ..self.clone()
        }
    }
}

/// One layer: queries, keys and values; what attention made; gate and up; down.
#[derive(Clone, Debug, Default)]
pub(super) struct Layer {
    pub(super) qkv: Group,
    pub(super) o: Group,
    pub(super) gate_up: Group,
    pub(super) down: Group,
}

impl Layer {
    pub(super) fn groups(&self) -> [&Group; 4] {
        [&self.qkv, &self.o, &self.gate_up, &self.down]
    }
}

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
        let layers = (0..shape.num_hidden_layers).map(|index| layer(shape, lora.as_ref(), index));
        Ok(Self {
            layers: layers.collect::<Result<_>>()?,
            shape: shape.clone(),
            dtype: profile.dtype(shape, config),
            halves: profile.holds_halves(shape, config),
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
        packed_bytes(
            self.config.model.quantization,
            self.config.model.double_quant,
            rows * columns,
        )
        .unwrap_or_else(|| self.float_bytes(rows * columns))
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
        self.config.model.quantization != Quantization::None
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
        let packed = self.config.model.quantize().filter(|_| is_projection);
        let unit = packed.map_or(HALVES, |packed| packed.unit());
        let piece = self.pieces().rows([rows, columns], unit);
        piece.unwrap_or(rows)
    }

    /// How the device cuts the model's matrices.
    fn pieces(&self) -> Pieces {
        Pieces {
            longest: self.longest,
            size: self.size(),
        }
    }

    /// A matrix that the device takes neither whole nor, where that is possible, in pieces, with its bytes.
    pub(super) fn too_long_weight(&self) -> Option<(String, u64)> {
        let pieces = self.pieces();
        let lora = &self.config.lora;
        let loftq = lora.init_lora_weights == InitLoraWeights::LoftQ && lora.adapter.is_none();
        match self.trains_all() || loftq {
            true => Pieces { size: 4, ..pieces }.longer_than_a_piece(&self.shape),
            false => pieces.too_long(&self.shape, self.config.model.quantize()),
        }
    }

    /// Most tokens of a pass.
    pub fn pass_tokens(&self, profile: &Profile) -> usize {
        let asked = self.config.train.max_tokens_per_pass;
        asked.unwrap_or_else(|| {
            let widest = self.shape.widest_bytes_per_token(self.size());
            fitting_tokens(profile.pass_tokens, profile.largest_tensor, widest)
        })
    }

    /// Sequences of a sample.
    pub(super) fn sides(&self) -> usize {
        match self.config.method {
            Method::Dpo => 2,
            Method::Sft => 1,
        }
    }

    /// Whether lengths are those of the files.
    pub fn knows_samples(&self) -> bool {
        !self.samples.train.is_empty()
    }

    /// The samples with sequences no longer than `max_length`.
    pub(super) fn cut(&self, samples: &[SampleLengths]) -> Vec<SampleLengths> {
        let longest = self.config.data.max_length;
        samples.iter().map(|sample| sample.cut(longest)).collect()
    }

    /// The training samples, or a step of the longest.
    pub(super) fn train_samples(&self) -> Vec<SampleLengths> {
        let train = &self.config.train;
        match self.knows_samples() {
            true => self.cut(&self.samples.train),
            false => {
                let longest = SampleLengths::longest(self.config.data.max_length, self.sides());
                let count = train.per_device_train_batch_size * train.gradient_accumulation_steps;
                vec![longest; count.clamp(1, MOST_ASSUMED)]
            }
        }
    }

    /// The largest pass of the run, and the most passes of a step.
    pub(super) fn largest_pass(&self, profile: &Profile) -> (PassShape, usize) {
        let samples = self.train_samples();
        let tokens: Vec<usize> = samples.iter().map(SampleLengths::packed).collect();
        let train = &self.config.train;
        let sampler = Sampler {
            samples: samples.len(),
            batch_size: train.per_device_train_batch_size.max(1),
            accumulation: train.gradient_accumulation_steps.max(1),
            shuffle_seed: self.config.data.shuffle.then_some(self.config.seed),
        };
        let budget = self.pass_tokens(profile);
        let total = match self.knows_samples() {
            true => train.total_steps(samples.len()).clamp(1, STEPS_SEEN),
            false => 1,
        };
        let (mut largest, mut most) = (PassShape::default(), 0);
        for order in sampler.steps(total) {
            let of_step: Vec<usize> = order.iter().map(|index| tokens[*index]).collect();
            let passes = grouped(&of_step, budget);
            most = most.max(passes.len());
            for pass in passes {
                let size: usize = of_step[pass.clone()].iter().sum();
                if size > largest.tokens {
                    largest = PassShape::of(order[pass].iter().map(|index| &samples[*index]));
                }
            }
        }
        (largest, most)
    }

    /// The largest pass of held-out samples; `None` without such.
    pub(super) fn eval_pass(&self, profile: &Profile) -> Option<PassShape> {
        self.config.data.eval_file.as_ref()?;
        let samples = match self.samples.eval.is_empty() {
            true => vec![SampleLengths::longest(
                self.config.data.max_length,
                self.sides(),
            )],
            false => self.cut(&self.samples.eval),
        };
        let size = self.config.train.per_device_eval_batch_size.max(1);
        let budget = self.pass_tokens(profile);
        let passes = samples.chunks(size).flat_map(|batch| {
            let tokens: Vec<usize> = batch.iter().map(SampleLengths::packed).collect();
            let passes = grouped(&tokens, budget).into_iter();
            passes
                .map(|pass| PassShape::of(&batch[pass]))
                .collect::<Vec<_>>()
        });
        passes.max_by_key(|pass| pass.tokens)
    }

    /// The largest batch of the reference, where it is computed beforehand: those are not cut into passes.
    pub(super) fn precomputed_pass(&self) -> Option<PassShape> {
        if !self.config.dpo.precompute_ref_log_probs {
            return None;
        }
        let size = self.config.dpo.precompute_ref_batch_size;
        let size = size.unwrap_or(self.config.train.per_device_train_batch_size);
        let samples = self.train_samples();
        let batches = samples.chunks(size.max(1)).map(PassShape::of);
        batches.max_by_key(|pass| pass.tokens)
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

fn layer(shape: &MistralConfig, lora: Option<&LoraConfig>, index: usize) -> Result<Layer> {
    let (d, inner) = (shape.hidden_size, shape.intermediate_size);
    let queries = shape.num_attention_heads * shape.head_dim();
    let keys = shape.num_key_value_heads * shape.head_dim();
    let outs = [queries, keys, keys, d, inner, inner, d];
    let mut ranks = [0; 7];
    if let Some(lora) = lora {
        for (rank, path) in ranks.iter_mut().zip(PROJECTIONS) {
            if lora
                .target_modules
                .matches(&format!("model.layers.{index}.{path}"))?
            {
                *rank = lora.r;
            }
        }
    }
    let group = |d_in: usize, range: std::ops::Range<usize>| Group {
        d_in,
        outs: outs[range.clone()].to_vec(),
        ranks: ranks[range].to_vec(),
    };
    Ok(Layer {
        qkv: group(d, 0..3),
        o: group(queries, 3..4),
        gate_up: group(d, 4..6),
        down: group(inner, 6..7),
    })
}

/// Bytes of `count` quantised weights with their scales (QLoRA, arXiv 2305.14314), under double quantisation with their mean.
/// `None`: not quantised.
pub fn packed_bytes(quantization: Quantization, double_quant: bool, count: usize) -> Option<usize> {
    let to = quantization.with(double_quant)?;
    let mean = if double_quant { 4 } else { 0 };
    Some(to.bytes(count) + mean)
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
