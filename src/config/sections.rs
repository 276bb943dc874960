//! The tables of `run.toml`: one struct a table, one field a key, defaults in one place each.
//!
//! Names and meanings are those of transformers' `TrainingArguments`, TRL's `DPOConfig` and PEFT's `LoraConfig`.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::options::{
    FDivergence, GradientCheckpointing, InitLoraWeights, LoraBias, LossType, ModelDtype, Optim,
    Quantization, Reference, TargetModules, one_or_many,
};
use crate::data::encode::{Compat, TruncationMode};
use crate::data::prompt::PLAIN;
use crate::model::quantize;
use crate::train::schedule::{SchedulerKwargs, SchedulerType};

/// `[model]`: the weights training starts from.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct ModelSection {
    /// A folder in Hugging Face layout, or a hub id (`owner/name`).
    pub model_name_or_path: String,
    /// Branch, tag or commit on the hub; unused for a folder.
    pub revision: String,
    /// Type of the base weights.
    pub dtype: ModelDtype,
    /// Storage of the frozen projections in few bits.
    pub quantization: Quantization,
    /// Whether the quantization scales are themselves quantized (saves about 0.4 bit a weight).
    pub double_quant: bool,
    /// Whether an adapter is trained (`[lora]`); false: all weights are, in f32, and the result is a model folder.
    pub use_peft: bool,
    /// Whether training starts from random weights: of the model only `config.json` and the tokenizer are read.
    pub from_scratch: bool,
}

impl Default for ModelSection {
    fn default() -> Self {
        Self {
            model_name_or_path: "akjindal53244/Arithmo-Mistral-7B".into(),
            revision: "main".into(),
            dtype: ModelDtype::Auto,
            quantization: Quantization::None,
            double_quant: false,
            use_peft: true,
            from_scratch: false,
        }
    }
}

impl ModelSection {
    /// How projections are packed; `None`: they are as stored.
    pub fn quantize(&self) -> Option<quantize::Quantization> {
        self.quantization.with(self.double_quant)
    }
}

/// `[data]`: the pairs and how they become token ids.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct DataSection {
    /// Pairs to train on: `.jsonl`, `.json` (an array) or `.parquet`.
    pub train_file: PathBuf,
    /// Held-out pairs, same form.
    pub eval_file: Option<PathBuf>,
    /// Text put around each prompt; contains `{prompt}` once.
    pub prompt_template: String,
    /// Longest prompt + completion, in tokens. Default 1024, under `compat = "trl-0.7.4"` 512 as there.
    pub max_length: usize,
    /// Longest prompt once a pair is too long, in tokens; only `trl-0.7.4` has it (default 128 there).
    pub max_prompt_length: Option<usize>,
    /// Which end of a too long sequence is kept. Default `keep_start`, under `compat = "trl-0.7.4"` `keep_end` as there.
    pub truncation_mode: TruncationMode,
    /// Whether pairs are shuffled, anew each epoch.
    pub shuffle: bool,
    /// The TRL version to agree with.
    pub compat: Compat,
    /// Trains on pairs whose completion is empty, as TRL would: loss ln 2, gradient 0.
    pub allow_empty_completions: bool,
    /// Leaves out pairs that would train on nothing, instead of refusing the file.
    pub skip_untrainable: bool,
}

impl Default for DataSection {
    fn default() -> Self {
        Self {
            train_file: "pairs.jsonl".into(),
            eval_file: None,
            prompt_template: PLAIN.into(),
            max_length: 1024,
            max_prompt_length: None,
            truncation_mode: TruncationMode::KeepStart,
            shuffle: true,
            compat: Compat::Trl1,
            allow_empty_completions: false,
            skip_untrainable: false,
        }
    }
}

/// `[lora]`: the low-rank update `x W + s (x A) B` (Hu et al. 2021), PEFT's names.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct LoraSection {
    /// Rank.
    pub r: usize,
    /// Numerator of the scaling `s = lora_alpha / r`.
    pub lora_alpha: f64,
    /// Probability that an input of `lora_A` is zeroed in training; inactive while `train.disable_dropout` is true.
    pub lora_dropout: f64,
    /// Projections that get an adapter.
    pub target_modules: TargetModules,
    /// Rank-stabilised scaling `s = lora_alpha / sqrt(r)` (Kalajdzievski 2023).
    pub use_rslora: bool,
    /// Weight-decomposed LoRA (Liu et al. 2024). Not built yet.
    pub use_dora: bool,
    /// PEFT adapter folder to start from.
    pub adapter: Option<PathBuf>,
    /// How the adapter starts.
    pub init_lora_weights: InitLoraWeights,
    /// The numbers of `init_lora_weights = "loftq"`.
    pub loftq_config: LoftqConfig,
    /// Which biases are trained: none.
    pub bias: LoraBias,
    /// A bias on `lora_B`. Not built yet.
    pub lora_bias: bool,
    /// Modules trained in full beside the adapter. Not built yet.
    pub modules_to_save: Option<Vec<String>>,
}

impl LoraSection {
    /// Whether the adapter's start is computed from the full-precision weights.
    pub fn starts_by_loftq(&self) -> bool {
        self.init_lora_weights == InitLoraWeights::LoftQ && self.adapter.is_none()
    }
}

impl Default for LoraSection {
    fn default() -> Self {
        Self {
            r: 16,
            lora_alpha: 32.0,
            lora_dropout: 0.0,
            target_modules: TargetModules::default(),
            use_rslora: false,
            use_dora: false,
            adapter: None,
            init_lora_weights: InitLoraWeights::KaimingUniform,
            loftq_config: LoftqConfig::default(),
            bias: LoraBias::None,
            lora_bias: false,
            modules_to_save: None,
        }
    }
}

/// `lora.loftq_config` (Li et al. 2023, LoftQ), PEFT's names.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct LoftqConfig {
    /// Bits of the packed weights: 4.
    pub loftq_bits: usize,
    /// Times that weights and adapter are fitted to each other: 1. The packed weights are then those of no adapter.
    pub loftq_iter: usize,
}

impl Default for LoftqConfig {
    fn default() -> Self {
        Self { loftq_bits: 4, loftq_iter: 1 }
    }
}

/// `[dpo]`: the loss (Rafailov et al. 2023), TRL's `DPOConfig` names.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct DpoSection {
    /// One loss, or several added with [`DpoSection::loss_weights`].
    #[serde(deserialize_with = "one_or_many")]
    pub loss_type: Vec<LossType>,
    /// Weight of each loss; absent: 1 each.
    pub loss_weights: Option<Vec<f64>>,
    /// Strength of the pull towards the reference: rewards are `beta * (logp - ref_logp)`.
    pub beta: f64,
    /// What the policy is compared with.
    pub reference: Reference,
    /// Probability that a label is flipped, for the losses that know one.
    pub label_smoothing: f64,
    /// The divergence that is bounded.
    pub f_divergence_type: FDivergence,
    /// Alpha of the alpha-divergence.
    pub f_alpha_divergence_coef: f64,
    /// Computes all reference log-probabilities before training, once, instead of at every step.
    pub precompute_ref_log_probs: bool,
    /// Pairs a batch while precomputing; absent: `train.per_device_train_batch_size`.
    pub precompute_ref_batch_size: Option<usize>,
    /// Weight of the part of a completion beyond the shorter one's length (Liu et al. 2024, LD-DPO). Not built yet.
    pub ld_alpha: Option<f64>,
    /// Weighted preference optimization (Zhou et al. 2024). Not built yet.
    pub use_weighting: bool,
    /// Temperature of the DiscoPOP loss.
    pub discopop_tau: f64,
    /// Moves the reference towards the policy during training (Gorbatovski et al. 2024, TR-DPO). Not built yet.
    pub sync_ref_model: bool,
}

impl Default for DpoSection {
    fn default() -> Self {
        Self {
            loss_type: vec![LossType::Sigmoid],
            loss_weights: None,
            beta: 0.1,
            reference: Reference::Auto,
            label_smoothing: 0.0,
            f_divergence_type: FDivergence::ReverseKl,
            f_alpha_divergence_coef: 0.5,
            precompute_ref_log_probs: false,
            precompute_ref_batch_size: None,
            ld_alpha: None,
            use_weighting: false,
            discopop_tau: 0.05,
            sync_ref_model: false,
        }
    }
}

/// `[train]`: batches, optimizer, schedule, what is written when; `TrainingArguments` names.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct TrainSection {
    /// Pairs a micro-batch.
    pub per_device_train_batch_size: usize,
    /// Pairs a batch in evaluation.
    pub per_device_eval_batch_size: usize,
    /// Micro-batches an optimizer step.
    pub gradient_accumulation_steps: usize,
    /// Peak learning rate.
    pub learning_rate: f64,
    /// Shape of the learning rate over the run.
    pub lr_scheduler_type: SchedulerType,
    /// Numbers of that shape, by their names in transformers.
    pub lr_scheduler_kwargs: SchedulerKwargs,
    /// Steps the learning rate climbs from 0; a value in (0, 1) is a share of all steps. Default 100, or 0 if
    /// `warmup_ratio` is given.
    pub warmup_steps: f64,
    /// Share of all steps the learning rate climbs from 0; counts only where `warmup_steps` is 0.
    pub warmup_ratio: Option<f64>,
    /// Optimizer steps; -1: as many as `num_train_epochs` takes. Default 2000, or -1 if `num_train_epochs` is given.
    pub max_steps: i64,
    /// Passes over the data, where `max_steps` is -1; absent: 3 as in `TrainingArguments`.
    pub num_train_epochs: Option<f64>,
    /// Largest global L2 norm of the gradient; 0: never clipped.
    pub max_grad_norm: f64,
    /// Decoupled weight decay on all trained weights but those of norms.
    pub weight_decay: f64,
    /// Decay of the first moment.
    pub adam_beta1: f64,
    /// Decay of the second moment.
    pub adam_beta2: f64,
    /// Added to the root of the second moment.
    pub adam_epsilon: f64,
    /// The optimizer.
    pub optim: Optim,
    /// Optimizer steps between lines of metrics.
    pub logging_steps: usize,
    /// Optimizer steps between evaluations; 0: only at the end, if `data.eval_file` is given.
    pub eval_steps: usize,
    /// Optimizer steps between checkpoints; 0: none between start and end.
    pub save_steps: usize,
    /// Newest checkpoints kept; 0: all.
    pub save_total_limit: usize,
    /// Recomputes activations in the backward pass.
    pub gradient_checkpointing: GradientCheckpointing,
    /// Most tokens computed together, whatever the micro-batches; absent: what the backend is fastest with. Changes
    /// speed and memory, not results.
    pub max_tokens_per_pass: Option<usize>,
    /// Turns every dropout off, LoRA's too: TRL's default for DPO.
    pub disable_dropout: bool,
}

impl Default for TrainSection {
    fn default() -> Self {
        Self {
            per_device_train_batch_size: 1,
            per_device_eval_batch_size: 8,
            gradient_accumulation_steps: 4,
            learning_rate: 5e-5,
            lr_scheduler_type: SchedulerType::Cosine,
            lr_scheduler_kwargs: SchedulerKwargs::default(),
            warmup_steps: 100.0,
            warmup_ratio: None,
            max_steps: 2000,
            num_train_epochs: None,
            max_grad_norm: 1.0,
            weight_decay: 0.0,
            adam_beta1: 0.9,
            adam_beta2: 0.999,
            adam_epsilon: 1e-8,
            optim: Optim::AdamwTorch,
            logging_steps: 1,
            eval_steps: 0,
            save_steps: 0,
            save_total_limit: 2,
            gradient_checkpointing: GradientCheckpointing::Auto,
            max_tokens_per_pass: None,
            disable_dropout: true,
        }
    }
}

impl TrainSection {
    /// Optimizer steps of one pass over `samples` pairs: a last, incomplete group of micro-batches still makes a step.
    pub fn steps_per_epoch(&self, samples: usize) -> usize {
        samples
            .div_ceil(self.per_device_train_batch_size.max(1))
            .div_ceil(self.gradient_accumulation_steps.max(1))
            .max(1)
    }

    /// Optimizer steps of the whole run over `samples` pairs, as transformers' `Trainer` counts them.
    pub fn total_steps(&self, samples: usize) -> usize {
        match usize::try_from(self.max_steps) {
            Ok(steps) => steps,
            Err(_) => {
                let epochs = self.num_train_epochs.unwrap_or(3.0);
                (epochs * self.steps_per_epoch(samples) as f64).ceil() as usize
            }
        }
    }

    /// Optimizer steps of warmup in a run of `total_steps`.
    pub fn resolved_warmup_steps(&self, total_steps: usize) -> usize {
        crate::train::schedule::resolve_warmup(self.warmup_steps, self.warmup_ratio, total_steps)
    }

    /// Whether LoRA's dropout acts in training.
    pub fn dropout_is_active(&self) -> bool {
        !self.disable_dropout
    }
}
