//! The enumerated values of `run.toml`, with their names in TRL, PEFT and transformers.

use arithmo_backends::Format;
use burn::tensor::DType;
use clap::ValueEnum;
use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

pub use crate::adapter::config::LoraBias;
pub use crate::adapter::modules::{ExcludeModules, TargetModules};
use crate::model::quantize;
use crate::objective::losses::LossType;

/// Training method.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Method {
    /// Direct preference optimization on pairs.
    #[default]
    Dpo,
    /// Supervised fine-tuning on prompts and completions.
    Sft,
    /// KTO on examples that are labeled as desirable or not.
    Kto,
    /// ORPO on pairs, without a reference.
    Orpo,
    /// CPO, SimPO or AlphaPO on pairs, without a reference.
    Cpo,
}

impl Method {
    /// Returns the name in `run.toml`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Dpo => "dpo",
            Self::Sft => "sft",
            Self::Kto => "kto",
            Self::Orpo => "orpo",
            Self::Cpo => "cpo",
        }
    }
}

/// How often to log, evaluate or save, as in transformers' `TrainingArguments`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum IntervalStrategy {
    /// Never during training.
    No,
    /// After a fixed number of optimizer steps.
    #[default]
    Steps,
    /// At the end of each epoch.
    Epoch,
}

impl IntervalStrategy {
    /// Returns the interval in optimizer steps; 0 means not before the end of the run. `steps` is the interval of
    /// [`Self::Steps`].
    pub fn interval(self, steps: usize, steps_per_epoch: usize) -> usize {
        match self {
            Self::No => 0,
            Self::Steps => steps,
            Self::Epoch => steps_per_epoch,
        }
    }
}

/// When to save checkpoints, as in transformers' `TrainingArguments`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SaveStrategy {
    /// Never during training.
    No,
    /// After a fixed number of optimizer steps.
    #[default]
    Steps,
    /// At the end of each epoch.
    Epoch,
    /// After each evaluation that is the best so far.
    Best,
}

impl SaveStrategy {
    /// Returns the strategy that counts steps or epochs; `None` if evaluations decide.
    pub fn fixed(self) -> Option<IntervalStrategy> {
        match self {
            Self::No => Some(IntervalStrategy::No),
            Self::Steps => Some(IntervalStrategy::Steps),
            Self::Epoch => Some(IntervalStrategy::Epoch),
            Self::Best => None,
        }
    }

    /// Returns whether a checkpoint is saved at an interval and after the last step.
    pub fn saves_regularly(self) -> bool {
        matches!(self, Self::Steps | Self::Epoch)
    }
}

/// Dtype of the base weights. LoRA weights and the optimizer state are always f32.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum ModelDtype {
    /// The stored dtype if the device computes in it, otherwise another 16-bit dtype or f32.
    #[default]
    Auto,
    /// 32-bit float.
    F32,
    /// bfloat16.
    Bf16,
    /// IEEE half.
    F16,
}

impl ModelDtype {
    /// Returns the requested dtype; `None` for `auto`.
    pub fn dtype(self) -> Option<DType> {
        match self {
            Self::Auto => None,
            Self::F32 => Some(DType::F32),
            Self::Bf16 => Some(DType::BF16),
            Self::F16 => Some(DType::F16),
        }
    }
}

/// Quantization of the frozen projections (Dettmers et al. 2023, QLoRA), in bitsandbytes' layout.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Quantization {
    /// No quantization.
    #[default]
    None,
    /// 4-bit NormalFloat.
    Nf4,
    /// 4-bit float, bitsandbytes' default type.
    Fp4,
    /// Blockwise 8-bit.
    Int8,
}

impl Quantization {
    /// Returns the quantization settings; `None` for weights as stored.
    pub fn with(self, double_quant: bool) -> Option<quantize::Quantization> {
        let format = match self {
            Self::None => return None,
            Self::Nf4 => Format::Nf4,
            Self::Fp4 => Format::Fp4,
            Self::Int8 => Format::Int8,
        };
        Some(quantize::Quantization { format, double_quant })
    }
}

/// Reference model of the loss.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Reference {
    /// [`Reference::Initial`] if `lora.adapter` is given, else [`Reference::Base`], as in TRL.
    #[default]
    Auto,
    /// The model without any adapter.
    Base,
    /// A frozen copy of the initial adapter.
    Initial,
}

/// The `optim` of transformers' `TrainingArguments`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Optim {
    /// AdamW as in PyTorch.
    #[default]
    AdamwTorch,
    /// The same numbers as `adamw_torch`.
    AdamwTorchFused,
    /// Stochastic gradient descent as in PyTorch.
    Sgd,
    /// RMSprop as in PyTorch, the optimizer of the DPO paper.
    Rmsprop,
    /// Lion as in bitsandbytes.
    #[serde(rename = "lion_32bit")]
    Lion32bit,
    /// Adagrad as in PyTorch.
    Adagrad,
    /// Adafactor as in transformers, without relative steps.
    Adafactor,
    /// AdEMAMix as in bitsandbytes.
    #[serde(rename = "ademamix")]
    AdEmaMix,
    /// AdamW whose state takes 8 bits per value, as in bitsandbytes.
    #[serde(rename = "adamw_8bit")]
    Adamw8bit,
    /// The same as `adamw_8bit`.
    #[serde(rename = "adamw_bnb_8bit")]
    AdamwBnb8bit,
    /// The same as `adamw_8bit`: the state stays on the device.
    #[serde(rename = "paged_adamw_8bit")]
    PagedAdamw8bit,
    /// The same numbers as `adamw_torch`: the state stays on the device.
    #[serde(rename = "paged_adamw_32bit")]
    PagedAdamw32bit,
    /// Lion whose state takes 8 bits per value, as in bitsandbytes.
    #[serde(rename = "lion_8bit")]
    Lion8bit,
    /// AdEMAMix whose state takes 8 bits per value, as in bitsandbytes.
    #[serde(rename = "ademamix_8bit")]
    AdEmaMix8bit,
}

impl Optim {
    /// Returns whether the optimizer is AdamW.
    pub fn is_adamw(self) -> bool {
        matches!(
            self,
            Self::AdamwTorch
                | Self::AdamwTorchFused
                | Self::Adamw8bit
                | Self::AdamwBnb8bit
                | Self::PagedAdamw8bit
                | Self::PagedAdamw32bit
        )
    }

    /// Returns whether the optimizer is AdEMAMix.
    pub fn is_ademamix(self) -> bool {
        matches!(self, Self::AdEmaMix | Self::AdEmaMix8bit)
    }

    /// Returns whether the optimizer is Lion.
    pub fn is_lion(self) -> bool {
        matches!(self, Self::Lion32bit | Self::Lion8bit)
    }

    /// Returns whether the state of large matrices takes 8 bits per value.
    pub fn is_eight_bit(self) -> bool {
        matches!(
            self,
            Self::Adamw8bit
                | Self::AdamwBnb8bit
                | Self::PagedAdamw8bit
                | Self::Lion8bit
                | Self::AdEmaMix8bit
        )
    }
}

/// Which states of a run are pushed to the hub, the `hub_strategy` of `TrainingArguments`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum HubStrategy {
    /// The result, once.
    #[default]
    End,
}

/// How metrics are averaged over several batches.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum EvalMeans {
    /// Means over all pairs, or over all completion tokens for per-token metrics. They do not depend on the batch size,
    /// except for losses that compare the pairs of a batch (`aot`, `aot_unpaired`, WPO with `sft`).
    #[default]
    Pairs,
    /// Means of the batch means, as TRL logs them: a shorter last batch counts as much as a full one.
    Trl,
}

/// PEFT's `init_lora_weights`: `true`, `"gaussian"`, `"pissa"`, `"pissa_niter_N"`, `"olora"` or `"loftq"`. The first two
/// initialize `lora_B` to zero.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum InitLoraWeights {
    /// `true`: `lora_A ~ U(-1/sqrt(in), 1/sqrt(in))`, PEFT's Kaiming-uniform with `a = sqrt(5)`.
    #[default]
    KaimingUniform,
    /// `"gaussian"`: `lora_A ~ N(0, 1/r)`, standard deviation `1/r`.
    Gaussian,
    /// `"pissa"`: the largest singular values of each weight, which the base loses (Meng et al. 2024).
    Pissa,
    /// `"pissa_niter_N"`: the same, approximated by `N` subspace iterations.
    PissaNiter(usize),
    /// `"olora"`: the start of each weight's QR decomposition, which the base loses (Büyükakyüz 2024).
    Olora,
    /// `"loftq"`: the best low-rank approximation of the quantization error (Li et al. 2023). Requires
    /// `model.quantization`.
    LoftQ,
}

/// Whether the activations of a block are recomputed in the backward pass, which is slower and takes less memory:
/// `"auto"`, `true` or `false`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum GradientCheckpointing {
    /// Only if the activations would not fit otherwise.
    #[default]
    Auto,
    /// Always.
    On,
    /// Never.
    Off,
}

/// A TOML value for options that PEFT or TRL accept as a flag, a name or a list of names.
#[derive(Serialize, Deserialize)]
#[serde(untagged, expecting = "expected true, false, a string or a list of strings")]
enum FlagOrNames {
    Flag(bool),
    Name(String),
    Names(Vec<String>),
}

impl Serialize for TargetModules {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Names(names) => names.serialize(serializer),
            Self::Pattern(pattern) => serializer.serialize_str(pattern),
            Self::AllLinear => serializer.serialize_str("all-linear"),
        }
    }
}

impl<'de> Deserialize<'de> for TargetModules {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        match FlagOrNames::deserialize(deserializer)? {
            FlagOrNames::Names(names) => Ok(Self::Names(names)),
            FlagOrNames::Name(name) if name.eq_ignore_ascii_case("all-linear") => {
                Ok(Self::AllLinear)
            }
            FlagOrNames::Name(pattern) => Ok(Self::Pattern(pattern)),
            FlagOrNames::Flag(_) => Err(serde::de::Error::custom(
                "expected a list of projection names, such as [\"q_proj\", \"v_proj\"], \"all-linear\", or a regular \
                 expression",
            )),
        }
    }
}

impl Serialize for ExcludeModules {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Names(names) => names.serialize(serializer),
            Self::Pattern(pattern) => serializer.serialize_str(pattern),
        }
    }
}

impl<'de> Deserialize<'de> for ExcludeModules {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        match FlagOrNames::deserialize(deserializer)? {
            FlagOrNames::Names(names) => Ok(Self::Names(names)),
            FlagOrNames::Name(pattern) => Ok(Self::Pattern(pattern)),
            FlagOrNames::Flag(_) => Err(serde::de::Error::custom(
                "expected a list of module names, or a regular expression",
            )),
        }
    }
}

impl InitLoraWeights {
    /// Returns whether the base loses a part to the adapter.
    pub fn changes_base(self) -> bool {
        matches!(self, Self::Pissa | Self::PissaNiter(_) | Self::Olora)
    }

    fn unknown<E: serde::de::Error>() -> E {
        E::custom(
            "expected true, \"gaussian\", \"pissa\", \"pissa_niter_N\", \"olora\" or \"loftq\"",
        )
    }
}

impl Serialize for InitLoraWeights {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::KaimingUniform => serializer.serialize_bool(true),
            Self::Gaussian => serializer.serialize_str("gaussian"),
            Self::Pissa => serializer.serialize_str("pissa"),
            Self::PissaNiter(count) => serializer.serialize_str(&format!("pissa_niter_{count}")),
            Self::Olora => serializer.serialize_str("olora"),
            Self::LoftQ => serializer.serialize_str("loftq"),
        }
    }
}

impl<'de> Deserialize<'de> for InitLoraWeights {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        match FlagOrNames::deserialize(deserializer)? {
            FlagOrNames::Flag(true) => Ok(Self::KaimingUniform),
            FlagOrNames::Name(name) if name == "gaussian" => Ok(Self::Gaussian),
            FlagOrNames::Name(name) if name == "loftq" => Ok(Self::LoftQ),
            FlagOrNames::Name(name) if name == "pissa" => Ok(Self::Pissa),
            FlagOrNames::Name(name) if name == "olora" => Ok(Self::Olora),
            FlagOrNames::Name(name) => {
                let count = name.strip_prefix("pissa_niter_").and_then(|count| count.parse().ok());
                count.map(Self::PissaNiter).ok_or_else(Self::unknown)
            }
            _ => Err(Self::unknown()),
        }
    }
}

impl Serialize for GradientCheckpointing {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Auto => serializer.serialize_str("auto"),
            Self::On => serializer.serialize_bool(true),
            Self::Off => serializer.serialize_bool(false),
        }
    }
}

impl<'de> Deserialize<'de> for GradientCheckpointing {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        match FlagOrNames::deserialize(deserializer)? {
            FlagOrNames::Name(name) if name == "auto" => Ok(Self::Auto),
            FlagOrNames::Flag(true) => Ok(Self::On),
            FlagOrNames::Flag(false) => Ok(Self::Off),
            _ => Err(serde::de::Error::custom("expected \"auto\", true or false")),
        }
    }
}

/// Reads a value or a list of values.
pub(super) fn one_or_list<'de, T: Deserialize<'de>, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<Option<Vec<T>>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged, expecting = "expected a value, or a list of them, of the right type")]
    enum OneOrList<T> {
        One(T),
        List(Vec<T>),
    }
    let given = Option::<OneOrList<T>>::deserialize(deserializer)?;
    Ok(given.map(|given| match given {
        OneOrList::One(one) => vec![one],
        OneOrList::List(list) => list,
    }))
}

/// Reads TRL's `loss_type`: one name or a list of names.
pub(super) fn one_or_many<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<Vec<LossType>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum OneOrMany {
        One(LossType),
        Many(Vec<LossType>),
    }
    match OneOrMany::deserialize(deserializer) {
        Ok(OneOrMany::One(loss)) => Ok(vec![loss]),
        Ok(OneOrMany::Many(losses)) => Ok(losses),
        Err(_) => {
            let names = LossType::ALL.iter().filter_map(|loss| serde_json::to_value(loss).ok());
            let names: Vec<String> =
                names.filter_map(|name| name.as_str().map(String::from)).collect();
            let names = names.join(", ");
            Err(D::Error::custom(format!(
                "expected the name of a loss, or a list of them: {names}"
            )))
        }
    }
}
