//! The switches of the decoder: what a family of models has beyond, or instead of, what Mistral has.

use arithmo_backends::AttentionConfig;

/// What distinguishes the decoders of different families. The default is Mistral's decoder.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Switches {
    /// Whether the projections of queries, keys and values have biases.
    pub qkv_bias: bool,
    /// Whether the output projection of attention has a bias.
    pub o_bias: bool,
    /// Whether the projections of the feed-forward block have biases.
    pub mlp_bias: bool,
    /// Whether `q_proj`, `k_proj` and `v_proj` are the rows of one matrix, `qkv_proj`, and `gate_proj` and `up_proj` those of
    /// `gate_up_proj`. They stay one matrix here too, because an adapter of PEFT has one `lora_A` for all of its rows.
    pub fused_projections: bool,
    /// How queries and keys are normalized before their rotation; `None` if they are not.
    pub qk_norm: Option<QkNorm>,
    /// The layers that the sliding window restricts; empty if it restricts all of them.
    pub windowed: Vec<bool>,
    /// The layers whose queries and keys are rotated; empty if all are.
    pub rotated: Vec<bool>,
    /// The part of each head, from its start, that is rotated; `None` if heads are rotated whole.
    pub partial_rotary_factor: Option<f64>,
    /// How the rotary frequencies are stretched for longer texts.
    pub rope_scaling: RopeScaling,
    /// Base of the rotary frequencies of the layers that the window restricts, which are not scaled; `None` if all
    /// layers have the same frequencies.
    pub local_rope_theta: Option<f64>,
    /// The growth of the queries with their positions; `None` if they do not grow.
    pub query_growth: Option<QueryGrowth>,
    /// The factor on attention scores; `None` means one over the square root of the width of a head.
    pub attention_scale: Option<AttentionScale>,
    /// Factor on embeddings; `None` means 1.
    pub embedding_multiplier: Option<f64>,
    /// Factor on what attention and the feed-forward block add to the residual stream; `None` means 1.
    pub residual_multiplier: Option<f64>,
    /// Divisor of the logits; `None` means 1.
    pub logits_scaling: Option<f64>,
    /// Whether norms multiply by `1 + weight` instead of `weight`.
    pub unit_offset_norm: bool,
    /// Where a layer has norms.
    pub norm_placement: NormPlacement,
    /// The activation of the feed-forward block.
    pub activation: Activation,
}

impl Switches {
    /// Returns whether the window, if there is one, restricts layer `index`.
    pub fn is_windowed(&self, index: usize) -> bool {
        self.windowed.get(index).copied().unwrap_or(self.windowed.is_empty())
    }

    /// Returns whether queries and keys of layer `index` are rotated.
    pub fn is_rotated(&self, index: usize) -> bool {
        self.rotated.get(index).copied().unwrap_or(true)
    }
}

/// What distinguishes the attention of one layer from that of others.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LayerKind {
    /// Heads, and the factor on scores.
    pub attention: AttentionConfig,
    /// Index of the layer's window in [`DecoderConfig::windows`](super::config::DecoderConfig::windows).
    pub window: usize,
    /// Index of the layer's frequencies in [`DecoderConfig::ropes`](super::config::DecoderConfig::ropes); `None` if nothing
    /// is rotated.
    pub rope: Option<usize>,
    /// How queries and keys are normalized.
    pub qk_norm: Option<QkNorm>,
}

/// The factor on attention scores, as a family's `config.json` gives it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum AttentionScale {
    /// The factor itself.
    Factor(f64),
    /// A number whose inverse square root is the factor (`query_pre_attn_scalar`).
    InverseRootOf(f64),
}

impl AttentionScale {
    /// Returns the factor.
    pub fn factor(self) -> f64 {
        match self {
            Self::Factor(factor) => factor,
            Self::InverseRootOf(scalar) => 1.0 / scalar.sqrt(),
        }
    }
}

/// Where a layer has norms.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum NormPlacement {
    /// Before attention and before the feed-forward block.
    #[default]
    Before,
    /// Before and after each of the two (Gemma 2 and 3).
    BeforeAndAfter,
    /// After attention and after the feed-forward block, before their outputs are added (OLMo 2).
    After,
}

/// How queries and keys are normalized.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum QkNorm {
    /// Each head, with the same weights (Qwen 3, Gemma 3).
    EachHead,
    /// All heads of a token together (OLMo 2).
    AllHeads,
}

/// The function that the gate of the feed-forward block passes through.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Activation {
    /// `x * sigmoid(x)`.
    #[default]
    Silu,
    /// GELU by its approximation with tanh (arXiv 1606.08415), `gelu_pytorch_tanh`.
    GeluTanh,
}

/// The growth of queries with their positions (Llama 4, Ministral 3): they are multiplied by
/// `1 + beta ln(1 + floor(position / original_max_position_embeddings))`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct QueryGrowth {
    /// `llama_4_scaling_beta`.
    pub beta: f64,
    /// The longest text of the first training phase, in tokens.
    pub original_max_position_embeddings: usize,
}

impl QueryGrowth {
    /// Returns the factor on the query at `position`, computed in f32 as transformers does.
    pub fn factor(&self, position: i64) -> f32 {
        let quotient = (position as f32 / self.original_max_position_embeddings as f32).floor();
        1.0 + self.beta as f32 * (1.0 + quotient).ln()
    }
}

/// How rotary frequencies are stretched for texts longer than those of the first training phase, with the names of
/// transformers' `rope_scaling`.
#[derive(Clone, Debug, Default, PartialEq)]
pub enum RopeScaling {
    /// Not at all (`default`).
    #[default]
    None,
    /// All by one factor (`linear`).
    Linear {
        /// The factor.
        factor: f64,
    },
    /// Low frequencies only, with a smooth transition (`llama3`).
    Llama3 {
        /// Factor of the low frequencies.
        factor: f64,
        /// Waves longer than `original_max_position_embeddings` over this are stretched.
        low_freq_factor: f64,
        /// Waves shorter than `original_max_position_embeddings` over this are not.
        high_freq_factor: f64,
        /// The longest text of the first training phase, in tokens.
        original_max_position_embeddings: usize,
    },
    /// Low frequencies only, with a linear transition (`yarn`, arXiv 2309.00071).
    Yarn(Yarn),
    /// Each frequency by a factor of its own (`longrope`, arXiv 2402.13753).
    LongRope(LongRope),
}

/// The parameters of LongRoPE.
///
/// The model has one list of factors for texts of up to `original_max_position_embeddings` tokens, and another for longer
/// texts. Only the former is used: longer texts are refused, since transformers chooses the list for a whole batch, so that
/// the values of a text would depend on the texts beside it.
#[derive(Clone, Debug, PartialEq)]
pub struct LongRope {
    /// Divisors of the frequencies.
    pub short_factor: Vec<f64>,
    /// Divisors of the frequencies in longer texts, kept for `config.json`.
    pub long_factor: Vec<f64>,
    /// The longest text of the first training phase, in tokens.
    pub original_max_position_embeddings: usize,
    /// The model's own `max_position_embeddings`, for `config.json`.
    pub max_position_embeddings: usize,
    /// By how much longer texts may be; `None` means the ratio of the two lengths.
    pub factor: Option<f64>,
    /// Factor on sines and cosines; `None` derives it from the others.
    pub attention_factor: Option<f64>,
}

/// The parameters of YaRN.
#[derive(Clone, Debug, PartialEq)]
pub struct Yarn {
    /// Factor of the low frequencies.
    pub factor: f64,
    /// The longest text of the first training phase, in tokens.
    pub original_max_position_embeddings: usize,
    /// Factor on sines and cosines; `None` derives it from the others.
    pub attention_factor: Option<f64>,
    /// Rotations over the first training phase's length above which a frequency keeps its value.
    pub beta_fast: f64,
    /// Rotations below which a frequency is stretched by the whole factor.
    pub beta_slow: f64,
    /// Weight of the derived factor on sines and cosines.
    pub mscale: Option<f64>,
    /// Weight of its divisor.
    pub mscale_all_dim: Option<f64>,
    /// Whether the bounds of the transition are rounded to whole frequencies.
    pub truncate: bool,
}
