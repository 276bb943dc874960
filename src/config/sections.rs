//! The tables of `run.toml`: one struct per table, one field per key, each default in one place.
//!
//! Names and meanings are those of transformers' `TrainingArguments`, TRL's `DPOConfig` and PEFT's `LoraConfig`.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::options::{
    EvalMeans, ExcludeModules, GradientCheckpointing, HubStrategy, InitLoraWeights,
    IntervalStrategy, LoraBias, ModelDtype, Optim, Quantization, Reference, SaveStrategy,
    TargetModules, one_or_list, one_or_many,
};
use crate::adapter::peft::DEFAULT_NAME;
use crate::data::encode::{Compat, TruncationMode};
use crate::data::prompt::PLAIN;
use crate::model::quantize;
use crate::objective::f_divergence::FDivergence;
use crate::objective::losses::{LossSettings, LossType};
use crate::objective::preference::PreferenceLoss;
use crate::objective::reference::ReferenceSync;
use crate::train::schedule::{SchedulerKwargs, SchedulerType};

/// `[model]`: the base model.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct ModelSection {
    /// A folder in Hugging Face layout, or a hub id (`owner/name`).
    pub model_name_or_path: String,
    /// Branch, tag or commit on the hub; unused for a folder.
    pub revision: String,
    /// Dtype of the base weights. `"auto"`: the stored dtype if the device computes in it, otherwise another 16-bit
    /// dtype or f32.
    pub dtype: ModelDtype,
    /// Quantization of the frozen projections to 4 or 8 bits.
    pub quantization: Quantization,
    /// Whether the quantization scales are themselves quantized (saves about 0.4 bits per weight).
    pub double_quant: bool,
    /// Whether to train an adapter (`[lora]`). If false, all weights are trained in f32, and the result is a model
    /// folder.
    pub use_peft: bool,
    /// Whether to start from random weights. Of the model, only `config.json` and the tokenizer are read.
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
    /// Returns the quantization of the projections; `None` if they stay as stored.
    pub fn quantize(&self) -> Option<quantize::Quantization> {
        self.quantization.with(self.double_quant)
    }
}

/// `[data]`: the data and how it is tokenized.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct DataSection {
    /// File of pairs (or examples) to train on: `.jsonl`, `.json` (an array) or `.parquet`.
    pub train_file: PathBuf,
    /// File of held-out pairs (or examples), in the same formats.
    pub eval_file: Option<PathBuf>,
    /// Template around each prompt that is text (a conversation has the model's chat template); contains `{prompt}` once. `--set data.prompt_template=` reads `\n` as a line break,
    /// like `--prompt-template`.
    pub prompt_template: String,
    /// Maximum length of prompt + completion, in tokens. Default 1024, or 512 with `compat = "trl-0.7.4"`.
    pub max_length: usize,
    /// Maximum length of the prompt if a pair exceeds `max_length`, in tokens. Only with `compat = "trl-0.7.4"`
    /// (default 128).
    pub max_prompt_length: Option<usize>,
    /// Which end of a sequence that is too long is kept. Default `keep_start`; `keep_end` with
    /// `compat = "trl-0.7.4"`.
    pub truncation_mode: TruncationMode,
    /// Whether to shuffle the data before each epoch.
    pub shuffle: bool,
    /// TRL version whose tokenization, truncation and metric definitions are followed.
    pub compat: Compat,
    /// Whether to train on pairs with an empty completion, as TRL does (loss ln 2, gradient 0).
    pub allow_empty_completions: bool,
    /// Whether to leave out pairs that would train on nothing, instead of refusing the file.
    pub skip_untrainable: bool,
    /// Whether to train on the assistant's messages alone, which the chat template marks with `{% generation %}`. Only with
    /// `method = "sft"` and conversations.
    pub assistant_only_loss: bool,
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
            assistant_only_loss: false,
        }
    }
}

/// `[lora]`: the adapter, `y = x W^T + s (x A^T) B^T` (Hu et al. 2021), with PEFT's names.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct LoraSection {
    /// Rank of the adapter.
    pub r: usize,
    /// Numerator of the scaling `s = lora_alpha / r`.
    pub lora_alpha: f64,
    /// Dropout probability of the input of `lora_A`; inactive while `train.disable_dropout` is true.
    pub lora_dropout: f64,
    /// Projections that get an adapter. A regular expression must match the whole name, such as
    /// `model.layers.0.self_attn.q_proj`.
    pub target_modules: TargetModules,
    /// Projections that get none although `target_modules` has them. A regular expression must match the whole name.
    pub exclude_modules: Option<ExcludeModules>,
    /// Index of the layer whose projections get an adapter, or a list of them. Default: all layers.
    #[serde(deserialize_with = "one_or_list")]
    pub layers_to_transform: Option<Vec<usize>>,
    /// Regular expression for the part of a projection's name before the index of the layer, or a list of them.
    #[serde(deserialize_with = "one_or_list")]
    pub layers_pattern: Option<Vec<String>>,
    /// Ranks of single projections, by a regular expression for the end of their names, such as
    /// `{ v_proj = 4, "layers.1.mlp.down_proj" = 2 }`.
    pub rank_pattern: Option<BTreeMap<String, usize>>,
    /// Values of `lora_alpha` of single projections, by a regular expression for the end of their names.
    pub alpha_pattern: Option<BTreeMap<String, f64>>,
    /// Whether to use the rank-stabilized scaling `s = lora_alpha / sqrt(r)` (Kalajdzievski 2023).
    pub use_rslora: bool,
    /// Whether to also train the magnitude of each row of the adapted weights (weight-decomposed LoRA, Liu et al. 2024).
    pub use_dora: bool,
    /// Folder of a PEFT adapter to start from.
    pub adapter: Option<PathBuf>,
    /// Name of the adapter. As PEFT does, the run saves `"default"` in `output_dir/adapter` itself, and any other name in its
    /// subfolder of that name. `"ref"` is the name of the reference that `dpo.sync_ref_model` saves there.
    pub adapter_name: String,
    /// Initialization of the adapter's weights.
    pub init_lora_weights: InitLoraWeights,
    /// Settings of `init_lora_weights = "loftq"`.
    pub loftq_config: LoftqConfig,
    /// Biases that are trained too: those of the whole model, or of the projections with a branch. In a model without biases this
    /// only changes adapter_config.json.
    pub bias: LoraBias,
    /// Whether `lora_B` has a bias. Such an adapter can be merged only where the projections have biases too.
    pub lora_bias: bool,
    /// Learning rate of `lora_B` relative to that of `lora_A` (Hayou et al. 2024, LoRA+). Vectors that are trained too have
    /// the rate of `lora_B`. Default: one rate for all.
    pub loraplus_lr_ratio: Option<f64>,
    /// Weight decay with LoRA+, of all trained weights, also those of norms; used in place of `train.weight_decay`.
    pub loraplus_weight_decay: f64,
    /// Ends of the names of modules to train in full beside the adapter, such as `lm_head`, `embed_tokens`, or `norm` for
    /// every norm. They are saved with the adapter.
    pub modules_to_save: Option<Vec<String>>,
}

impl LoraSection {
    /// Returns whether the adapter's initialization takes a part of the base.
    pub fn changes_base(&self) -> bool {
        self.init_lora_weights.changes_base() && self.adapter.is_none()
    }

    /// Returns whether LoftQ computes the adapter's initial weights, for which it needs the full-precision weights.
    pub fn uses_loftq(&self) -> bool {
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
            exclude_modules: None,
            layers_to_transform: None,
            layers_pattern: None,
            rank_pattern: None,
            alpha_pattern: None,
            use_rslora: false,
            use_dora: false,
            adapter: None,
            adapter_name: DEFAULT_NAME.to_string(),
            init_lora_weights: InitLoraWeights::KaimingUniform,
            loftq_config: LoftqConfig::default(),
            bias: LoraBias::None,
            lora_bias: false,
            loraplus_lr_ratio: None,
            loraplus_weight_decay: 0.0,
            modules_to_save: None,
        }
    }
}

/// `lora.loftq_config` (Li et al. 2023, LoftQ), with PEFT's names.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct LoftqConfig {
    /// Bits per quantized weight; must be 4.
    pub loftq_bits: usize,
    /// Number of times that quantized weights and adapter are fitted to each other; must be 1, which quantizes the base
    /// as without LoftQ.
    pub loftq_iter: usize,
}

impl Default for LoftqConfig {
    fn default() -> Self {
        Self { loftq_bits: 4, loftq_iter: 1 }
    }
}

/// `[dpo]`: the loss (Rafailov et al. 2023), with the names of TRL's `DPOConfig`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct DpoSection {
    /// One loss, or several, added with the weights [`DpoSection::loss_weights`].
    #[serde(deserialize_with = "one_or_many")]
    pub loss_type: Vec<LossType>,
    /// Weight of each loss. Default: 1 each.
    pub loss_weights: Option<Vec<f64>>,
    /// Strength of the regularization towards the reference. Rewards are `beta * (logp - ref_logp)`.
    pub beta: f64,
    /// Reference model: the base, or the initial adapter. `"auto"`: the initial adapter if `lora.adapter` is given,
    /// else the base.
    pub reference: Reference,
    /// Probability that a preference label is flipped, for `robust`, `exo_pair` (which needs a value above 0),
    /// `aot`, `aot_unpaired` and `cdpo`.
    pub label_smoothing: f64,
    /// Divergence from the reference that the loss penalizes (Wang et al. 2023, f-DPO).
    pub f_divergence_type: FDivergence,
    /// Alpha of `"alpha_divergence"`.
    pub f_alpha_divergence_coef: f64,
    /// Whether to compute all reference log-probabilities once before training, of held-out pairs too, instead of at every
    /// step and evaluation.
    pub precompute_ref_log_probs: bool,
    /// Pairs per batch when precomputing. Default: `train.per_device_train_batch_size`, and
    /// `train.per_device_eval_batch_size` for held-out pairs.
    pub precompute_ref_batch_size: Option<usize>,
    /// Weight of the tokens of a completion beyond the length of the shorter one (Liu et al. 2024, LD-DPO). Default: 1.
    pub ld_alpha: Option<f64>,
    /// Whether to multiply the loss of each pair by how likely its completions are under the policy (Zhou et al. 2024, WPO).
    pub use_weighting: bool,
    /// Temperature of `discopop`.
    pub discopop_tau: f64,
    /// Weight of `dpop`'s penalty on chosen completions that become less likely.
    pub dpop_lambda: f64,
    /// Weight of the cross-entropy of the chosen completions, which is added to the loss (Pang et al. 2024, RPO). The same
    /// as `sft` in `loss_type` with this weight.
    pub rpo_alpha: Option<f64>,
    /// Whether the reference's log-probabilities count as 0. The reference is then not computed, and rewards are
    /// `beta * logp`.
    pub reference_free: bool,
    /// Whether the reference follows the policy during training (Gorbatovski et al. 2024, TR-DPO). It starts as the
    /// initial policy. With an adapter, the reference is a second adapter on the same base.
    pub sync_ref_model: bool,
    /// Weight of the policy in the new reference, for `sync_ref_model`.
    pub ref_model_mixup_alpha: f64,
    /// Optimizer steps between two updates of the reference, for `sync_ref_model`.
    pub ref_model_sync_steps: usize,
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
            dpop_lambda: 50.0,
            rpo_alpha: None,
            reference_free: false,
            sync_ref_model: false,
            ref_model_mixup_alpha: 0.6,
            ref_model_sync_steps: 512,
        }
    }
}

impl DpoSection {
    /// Returns how the reference follows the policy, for `sync_ref_model`.
    pub fn sync(&self) -> ReferenceSync {
        ReferenceSync { alpha: self.ref_model_mixup_alpha, steps: self.ref_model_sync_steps }
    }

    /// Returns the loss that the section describes.
    pub fn loss(&self) -> PreferenceLoss {
        let weights = self.loss_weights.clone().unwrap_or(vec![1.0; self.loss_type.len()]);
        let sft = self.rpo_alpha.map(|weight| (LossType::Sft, weight));
        PreferenceLoss {
            terms: self.loss_type.iter().copied().zip(weights).chain(sft).collect(),
            settings: LossSettings {
                beta: self.beta,
                label_smoothing: self.label_smoothing,
                discopop_tau: self.discopop_tau,
                dpop_lambda: self.dpop_lambda,
            },
            f_divergence: self.f_divergence_type,
            f_alpha: self.f_alpha_divergence_coef,
            use_weighting: self.use_weighting,
            ld_alpha: self.ld_alpha,
            reference_free: self.reference_free,
        }
    }
}

/// `[train]`: batches, optimizer, schedule, logging, evaluation and checkpoints, with the names of `TrainingArguments`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct TrainSection {
    /// Pairs (or examples) per micro-batch.
    pub per_device_train_batch_size: usize,
    /// Pairs (or examples) per batch in evaluation.
    pub per_device_eval_batch_size: usize,
    /// Micro-batches per optimizer step.
    pub gradient_accumulation_steps: usize,
    /// Peak learning rate.
    pub learning_rate: f64,
    /// Learning-rate schedule. `"reduce_lr_on_plateau"` follows the evaluations.
    pub lr_scheduler_type: SchedulerType,
    /// Settings of the schedule, with their names in transformers.
    pub lr_scheduler_kwargs: SchedulerKwargs,
    /// Optimizer steps of warmup; a value in (0, 1) is a fraction of all steps. Default 100, or 0 if `warmup_ratio` is
    /// given.
    pub warmup_steps: f64,
    /// Warmup as a fraction of all steps; used only if `warmup_steps` is 0.
    pub warmup_ratio: Option<f64>,
    /// Number of optimizer steps; -1 means those of `num_train_epochs`. Default 2000, or -1 if `num_train_epochs` is
    /// given.
    pub max_steps: i64,
    /// Number of epochs; used only if `max_steps` is -1. Default 3, as in `TrainingArguments`.
    pub num_train_epochs: Option<f64>,
    /// Maximum global L2 norm of the gradient; 0 disables clipping.
    pub max_grad_norm: f64,
    /// Weight decay of all trained weights except those of norms.
    pub weight_decay: f64,
    /// Decay rate of the first moment.
    pub adam_beta1: f64,
    /// Decay rate of the second moment.
    pub adam_beta2: f64,
    /// Constant added to the square root of the second moment.
    pub adam_epsilon: f64,
    /// Optimizer. Weight decay is decoupled for AdamW and Lion, and added to the gradient for the others, as in torch.
    pub optim: Optim,
    /// Arguments of the optimizer: for `"sgd"` momentum, dampening and nesterov, for `"rmsprop"` alpha, eps, momentum and
    /// centered, for `"adagrad"` lr_decay and eps, for `"ademamix"` beta3 and alpha, such as `"momentum=0.9,nesterov=True"`.
    pub optim_args: Option<String>,
    /// When to log metrics: `"steps"` (every `logging_steps`), `"epoch"`, or `"no"` (only after the last step).
    pub logging_strategy: IntervalStrategy,
    /// Optimizer steps between log lines.
    pub logging_steps: usize,
    /// When to evaluate on `data.eval_file`: `"steps"` (every `eval_steps`), `"epoch"`, or `"no"` (never). `"steps"`
    /// and `"epoch"` always evaluate after the last step.
    pub eval_strategy: IntervalStrategy,
    /// Optimizer steps between evaluations; 0 means only after the last step.
    pub eval_steps: usize,
    /// Whether to evaluate before the first step, too.
    pub eval_on_start: bool,
    /// Optimizer steps before the first evaluation, or epochs if `eval_strategy = "epoch"`.
    pub eval_delay: f64,
    /// How held-out metrics are averaged: `"pairs"` (over all pairs or tokens) or `"trl"` (over the batch means, as TRL
    /// logs them). In training metrics, `"pairs"` weights micro-batches by their number of pairs, `"trl"` equally.
    pub eval_means: EvalMeans,
    /// When to save checkpoints: `"steps"` (every `save_steps`), `"epoch"`, `"best"` (after each evaluation that is the best
    /// so far by `metric_for_best_model`), or `"no"` (never). `"steps"` and `"epoch"` always save after the last step. Ctrl-C
    /// saves in any case.
    pub save_strategy: SaveStrategy,
    /// Optimizer steps between checkpoints; 0 means only after the last step, so that a crash loses the run.
    pub save_steps: usize,
    /// Number of checkpoints to keep: the newest ones, and the best one if evaluations are compared; 0 keeps all. While the
    /// run goes on, the newest and the best one are kept even with 1.
    pub save_total_limit: usize,
    /// Whether the result is the checkpoint with the best evaluation instead of the last step. Every best step is saved.
    pub load_best_model_at_end: bool,
    /// Metric by which evaluations are compared, with or without `eval_` in front, such as `"rewards/margins"`. Default:
    /// `"loss"` if `load_best_model_at_end`, `early_stopping_patience` or `"reduce_lr_on_plateau"` needs one.
    pub metric_for_best_model: Option<String>,
    /// Whether larger values of the metric are better. Default: true unless its name ends with `loss`.
    pub greater_is_better: Option<bool>,
    /// Number of evaluations in a row without improvement after which the run stops. Default: it never stops early.
    pub early_stopping_patience: Option<usize>,
    /// Improvement of the metric that early stopping asks for; it must be exceeded.
    pub early_stopping_threshold: f64,
    /// Whether activations are recomputed in the backward pass (slower, less memory). `"auto"`: only if they would not
    /// fit.
    pub gradient_checkpointing: GradientCheckpointing,
    /// Maximum number of tokens computed together, independent of the micro-batches. A longer pair is computed by
    /// itself; micro-batches stay whole for `aot`, `aot_unpaired`, and `use_weighting` with `sft` or `rpo_alpha`. Default: the fastest for the backend. Changes speed and
    /// memory, not results.
    pub max_tokens_per_pass: Option<usize>,
    /// Whether to disable all dropout, including LoRA's; true is TRL's default for DPO.
    pub disable_dropout: bool,
    /// Whether to push the result to the hub after training, with the access token in `HF_TOKEN`. The repository is made
    /// before the first step. The same as `--push-to-hub`.
    pub push_to_hub: bool,
    /// Repository to push to: `owner/name`, or a name of the token's own account. Default: the name of `output_dir`.
    pub hub_model_id: Option<String>,
    /// Whether the repository is private if the push makes it. Default: that of the account.
    pub hub_private_repo: Option<bool>,
    /// Branch to push to; it must exist. Default: `main`.
    pub hub_revision: Option<String>,
    /// When to push: only `"end"`, which pushes the result. Checkpoints are pushed with `arithmo push`.
    pub hub_strategy: HubStrategy,
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
            optim_args: None,
            logging_strategy: IntervalStrategy::Steps,
            logging_steps: 1,
            eval_strategy: IntervalStrategy::Steps,
            eval_steps: 0,
            eval_on_start: false,
            eval_delay: 0.0,
            eval_means: EvalMeans::Pairs,
            save_strategy: SaveStrategy::Steps,
            save_steps: 0,
            save_total_limit: 2,
            load_best_model_at_end: false,
            metric_for_best_model: None,
            greater_is_better: None,
            early_stopping_patience: None,
            early_stopping_threshold: 0.0,
            gradient_checkpointing: GradientCheckpointing::Auto,
            max_tokens_per_pass: None,
            disable_dropout: true,
            push_to_hub: false,
            hub_model_id: None,
            hub_private_repo: None,
            hub_revision: None,
            hub_strategy: HubStrategy::End,
        }
    }
}
