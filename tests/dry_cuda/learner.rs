//! Steps of the real learner on a card that is not there.

use std::path::Path;
use std::time::{Duration, Instant};

use arithmo::adapter::config::{LoraConfig, TargetModules};
use arithmo::adapter::lora::attach;
use arithmo::data::encode::{EncodedPair, EncodedSequence};
use arithmo::model::config::DecoderConfig;
use arithmo::model::load::random_on_device;
use arithmo::model::quantize::Quantization;
use arithmo::objective::dpo::ReferenceTiming;
use arithmo::objective::preference::PreferenceLoss;
use arithmo::objective::reference::Reference;
use arithmo::train::activations::Activations;
use arithmo::train::optimizer::{AdamW, Optimizer};
use arithmo::train::step::{Learner, StepConfig};
use arithmo_backends::Format;
use arithmo_backends::dry_cuda::{Card, DryCuda, DryDevice, MAX_GRID, Record};
use burn::backend::Autodiff;
use burn::module::AutodiffModule;
use burn::tensor::DType;

/// Packed tokens of a pair, 30 % of them in the prompt.
const PAIR_TOKENS: usize = 512;

/// A training step of Mistral 7B, or of a model that differs from it in one respect.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Case {
    pub(crate) card: Card,
    /// Whether cuBLASLt multiplies matrices.
    pub(crate) library: bool,
    pub(crate) dtype: DType,
    /// Whether the model is a Gemma 3 of Mistral's size: with norms of heads, GeGLU, and windows in some layers.
    pub(crate) gemma: bool,
    /// Format of the projections, if they are quantized.
    pub(crate) quantized: Option<Format>,
    pub(crate) head_width: usize,
    pub(crate) rank: usize,
    /// Whether every projection has a branch, or only `q_proj` and `v_proj`.
    pub(crate) all_linear: bool,
    /// Whether activations are recomputed.
    pub(crate) recompute: bool,
    pub(crate) layers: usize,
    pub(crate) tokens: usize,
}

/// What was launched to make the model, in the first step and in a later one.
pub(crate) struct Steps {
    pub(crate) setup: Record,
    pub(crate) first: Record,
    pub(crate) later: Record,
    /// Time of the host for the later step.
    pub(crate) host: Duration,
}

impl Case {
    /// Returns the usual case: bf16, rank 16 on `q_proj` and `v_proj`.
    pub(crate) fn new(card: Card) -> Self {
        Self {
            card,
            library: true,
            dtype: DType::BF16,
            gemma: false,
            quantized: None,
            head_width: 128,
            rank: 16,
            all_linear: false,
            recompute: false,
            layers: 2,
            tokens: 2 * PAIR_TOKENS,
        }
    }

    /// Describes the case without its card.
    pub(crate) fn name(&self) -> String {
        let weights = match self.quantized {
            Some(format) => format!("{} in {}", quantization(format).name(), self.dtype.name()),
            None => self.dtype.name().to_string(),
        };
        let family = if self.gemma { "Gemma 3, " } else { "" };
        let modules = if self.all_linear { "all projections" } else { "q_proj, v_proj" };
        let activations = if self.recompute { "recomputed" } else { "kept" };
        let products = if self.library { "cuBLASLt" } else { "no cuBLASLt" };
        format!(
            "{family}{weights}, heads of {}, rank {} on {modules}, activations {activations}, {products}",
            self.head_width, self.rank
        )
    }

    fn config(&self) -> DecoderConfig {
        let family = if self.gemma {
            r#""model_type": "gemma3_text", "hidden_activation": "gelu_pytorch_tanh", "sliding_window_pattern": 2,
                "query_pre_attn_scalar": 128"#
        } else {
            r#""model_type": "mistral", "hidden_act": "silu""#
        };
        let json = format!(
            r#"{{{family}, "vocab_size": 32000, "hidden_size": 4096, "intermediate_size": 14336,
                "num_hidden_layers": {}, "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": {},
                "max_position_embeddings": 4096, "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "sliding_window": 4096,
                "tie_word_embeddings": false, "initializer_range": 0.02}}"#,
            self.layers, self.head_width
        );
        DecoderConfig::parse(&json, Path::new("config.json")).unwrap()
    }

    fn lora(&self) -> LoraConfig {
        let names = ["q_proj", "v_proj"].map(str::to_string).to_vec();
        let target_modules =
            if self.all_linear { TargetModules::AllLinear } else { TargetModules::Names(names) };
        let lora_alpha = 2.0 * self.rank as f64;
        LoraConfig { r: self.rank, lora_alpha, target_modules, ..LoraConfig::default() }
    }

    /// Makes the model and runs three steps on a device of its own: see [`Self::run_on`].
    pub(crate) fn run(&self) -> Steps {
        self.run_on(DryDevice::new(&self.card, self.library))
    }

    /// Makes the model and runs three steps, none of which may ask for what the card refuses.
    pub(crate) fn run_on(&self, device: DryDevice) -> Steps {
        let (config, quantized) = (self.config(), self.quantized.map(quantization));
        let mut policy =
            random_on_device::<Autodiff<DryCuda>>(config, self.dtype, quantized, &device).unwrap();
        attach(&mut policy, &self.lora(), 1, &device).unwrap();
        let activations = if self.recompute { Activations::Recompute } else { Activations::Keep };
        let step = StepConfig {
            max_grad_norm: Some(1.0),
            activations,
            pass_tokens: 8192,
            dropout_seed: None,
        };
        let rule = AdamW { beta1: 0.9, beta2: 0.999, epsilon: 1e-8, weight_decay: 0.0 };
        let reference = Reference::base(policy.valid());
        let (loss, timing) = (PreferenceLoss::sigmoid(0.1), ReferenceTiming::EveryStep);
        let optimizer = Optimizer::new(rule);
        let mut learner =
            Learner::<DryCuda>::dpo(policy, optimizer, loss, reference, timing, step, &device);
        let setup = device.take();
        let pairs = pairs(self.tokens / PAIR_TOKENS);
        let batch = [pairs.iter().collect::<Vec<_>>()];
        let mut run = |step: usize| {
            let started = Instant::now();
            let output = learner.step(step, 1e-6, &batch);
            assert!(output.applied, "{output:?}");
            (device.take(), started.elapsed())
        };
        let (first, _) = run(0);
        run(1);
        let (later, host) = run(2);
        for record in [&setup, &first, &later] {
            self.check(record);
        }
        Steps { setup, first, later, host }
    }

    /// Checks every kernel against the card's limits.
    fn check(&self, record: &Record) {
        let name = self.name();
        assert!(record.errors.is_empty(), "{name} on {}: {:#?}", self.card.name, record.errors);
        for kernel in &record.kernels {
            let (x, y, z) = kernel.max_grid;
            let fits = x <= MAX_GRID.0 && y <= MAX_GRID.1 && z <= MAX_GRID.2;
            assert!(fits, "{name}: {} has a grid of {:?}", kernel.name, kernel.max_grid);
            let shared = kernel.shared_bytes;
            let max = self.card.max_shared_bytes;
            assert!(shared <= max, "{name}: {} takes {shared} bytes, of {max}", kernel.name);
            let threads = kernel.block.0 * kernel.block.1 * kernel.block.2;
            assert!(threads <= 1024, "{name}: {} has {threads} threads", kernel.name);
        }
        assert!(record.reserved_bytes <= self.card.memory);
    }
}

fn quantization(format: Format) -> Quantization {
    Quantization { format, double_quant: true }
}

/// Returns pairs of [`PAIR_TOKENS`] packed tokens each.
fn pairs(count: usize) -> Vec<EncodedPair> {
    let (prompt, completion) = (154, 179);
    let pair = |index: usize| {
        let side = |first: u32| EncodedSequence {
            // The last token of a sequence predicts nothing and is not in the packed row.
            ids: (0..prompt).chain(first..first + completion + 1).collect(),
            completion_start: prompt as usize,
            hidden: Vec::new(),
        };
        EncodedPair { id: index.to_string(), chosen: side(1000), rejected: side(2000) }
    };
    (0..count).map(pair).collect()
}
