//! The values that keys of `run.toml` choose from, under the names their users know from TRL, PEFT and transformers.

use arithmo_backends::Format;
use burn::tensor::DType;
use clap::ValueEnum;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::model::quantize;

/// What is trained.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Method {
    /// Direct preference optimization on pairs.
    #[default]
    Dpo,
    /// Supervised fine-tuning on prompts and completions.
    Sft,
}

/// The type the base weights are held in. LoRA's own weights and the optimizer state are f32 whatever it is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ModelDtype {
    /// The best the backend computes well, given the type the weights are stored in.
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
    /// The type asked for; `None` for auto.
    pub fn dtype(self) -> Option<DType> {
        match self {
            Self::Auto => None,
            Self::F32 => Some(DType::F32),
            Self::Bf16 => Some(DType::BF16),
            Self::F16 => Some(DType::F16),
        }
    }
}

/// Storage of the frozen projections in few bits (Dettmers et al. 2023, QLoRA), as bitsandbytes packs them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Quantization {
    /// Weights as they are.
    #[default]
    None,
    /// 4-bit NormalFloat.
    Nf4,
    /// 4-bit float, bitsandbytes' default type.
    Fp4,
    /// 8 bits, blockwise.
    Int8,
}

impl Quantization {
    /// What it asks for; `None`: weights as they are stored.
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

/// The model a policy is compared with.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Reference {
    /// [`Reference::Initial`] if `lora.adapter` is given, else [`Reference::Base`]: what TRL does.
    #[default]
    Auto,
    /// The model without any adapter.
    Base,
    /// A frozen copy of the adapter training starts from.
    Initial,
}

/// TRL's `loss_type`. Formulas: TRL 1.x, `DPOTrainer._compute_loss`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LossType {
    /// DPO (Rafailov et al. 2023, eq. 7).
    Sigmoid,
    /// SLiC (Zhao et al. 2023).
    Hinge,
    /// IPO (Azar et al. 2023), averaged over tokens.
    Ipo,
    /// EXO (Ji et al. 2024).
    ExoPair,
    /// NCA (Chen et al. 2024).
    NcaPair,
    /// Robust DPO (Chowdhury et al. 2024).
    Robust,
    /// BCO (Jung et al. 2024), pairwise.
    BcoPair,
    /// SPPO with hard labels (Wu et al. 2024).
    SppoHard,
    /// AOT (Melnyk et al. 2024), paired.
    Aot,
    /// AOT (Melnyk et al. 2024), unpaired.
    AotUnpaired,
    /// APO-zero (D'Oosterlinck et al. 2024).
    ApoZero,
    /// APO-down (D'Oosterlinck et al. 2024).
    ApoDown,
    /// DiscoPOP (Lu et al. 2024).
    Discopop,
    /// Cross-entropy on the chosen completions.
    Sft,
    /// DPO on log-probabilities averaged over tokens.
    SigmoidNorm,
}

/// The divergence from the reference that is bounded (Wang et al. 2023, f-DPO).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FDivergence {
    /// KL(policy || reference): plain DPO.
    #[default]
    ReverseKl,
    /// KL(reference || policy).
    ForwardKl,
    /// Jensen-Shannon.
    JsDivergence,
    /// Alpha-divergence with `dpo.f_alpha_divergence_coef`.
    AlphaDivergence,
}

/// TrainingArguments' `optim`; one is built.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Optim {
    /// AdamW as torch computes it.
    #[default]
    AdamwTorch,
}

/// PEFT's `bias`; one is built.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LoraBias {
    /// No bias is trained.
    #[default]
    None,
}

/// Which projections get LoRA: a list of names, or `"all-linear"` (every projection of the decoder layers, not `lm_head`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TargetModules {
    /// Names as in the model: `q_proj`, `down_proj`, ...
    Names(Vec<String>),
    /// `"all-linear"`.
    AllLinear,
}

impl Default for TargetModules {
    fn default() -> Self {
        Self::Names(vec!["q_proj".into(), "v_proj".into()])
    }
}

/// PEFT's `init_lora_weights`: `true`, `"gaussian"` or `"loftq"`. `lora_B` starts at zero under the first two.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum InitLoraWeights {
    /// `true`: `lora_A ~ U(-1/sqrt(in), 1/sqrt(in))`, PEFT's Kaiming-uniform with `a = sqrt(5)`.
    #[default]
    KaimingUniform,
    /// `"gaussian"`: `lora_A ~ N(0, 1/r)`, standard deviation `1/r`.
    Gaussian,
    /// `"loftq"`: the best approximation of what packing took from the weights (Li et al. 2023); needs
    /// `model.quantization`.
    LoftQ,
}

/// `"auto"`, `true` or `false`: whether block activations are recomputed in the backward pass (slower, less memory).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum GradientCheckpointing {
    /// On when the activations would not fit otherwise.
    #[default]
    Auto,
    /// Always.
    On,
    /// Never.
    Off,
}

/// What TOML may hold where PEFT or TRL take a flag, a name or a list of names.
#[derive(Serialize, Deserialize)]
#[serde(untagged, expecting = "expected true, false, a string or a list of strings")]
enum Loose {
    Flag(bool),
    Name(String),
    Names(Vec<String>),
}

impl Serialize for TargetModules {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Names(names) => names.serialize(serializer),
            Self::AllLinear => serializer.serialize_str("all-linear"),
        }
    }
}

impl<'de> Deserialize<'de> for TargetModules {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        match Loose::deserialize(deserializer)? {
            Loose::Names(names) => Ok(Self::Names(names)),
            Loose::Name(name) if name == "all-linear" => Ok(Self::AllLinear),
            _ => Err(serde::de::Error::custom(
                "expected a list of projection names, as [\"q_proj\", \"v_proj\"], or \"all-linear\"",
            )),
        }
    }
}

impl Serialize for InitLoraWeights {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::KaimingUniform => serializer.serialize_bool(true),
            Self::Gaussian => serializer.serialize_str("gaussian"),
            Self::LoftQ => serializer.serialize_str("loftq"),
        }
    }
}

impl<'de> Deserialize<'de> for InitLoraWeights {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        match Loose::deserialize(deserializer)? {
            Loose::Flag(true) => Ok(Self::KaimingUniform),
            Loose::Name(name) if name == "gaussian" => Ok(Self::Gaussian),
            Loose::Name(name) if name == "loftq" => Ok(Self::LoftQ),
            _ => Err(serde::de::Error::custom("expected true, \"gaussian\" or \"loftq\"")),
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
        match Loose::deserialize(deserializer)? {
            Loose::Name(name) if name == "auto" => Ok(Self::Auto),
            Loose::Flag(true) => Ok(Self::On),
            Loose::Flag(false) => Ok(Self::Off),
            _ => Err(serde::de::Error::custom("expected \"auto\", true or false")),
        }
    }
}

/// Reads TRL's `loss_type`: one name or a list of names.
pub(super) fn one_or_many<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<Vec<LossType>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged, expecting = "expected the name of a loss of TRL, or a list of names")]
    enum OneOrMany {
        One(LossType),
        Many(Vec<LossType>),
    }
    Ok(match OneOrMany::deserialize(deserializer)? {
        OneOrMany::One(loss) => vec![loss],
        OneOrMany::Many(losses) => losses,
    })
}
