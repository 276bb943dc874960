//! Compares a model whose weights are split into pieces with the same model in whole weights.

use std::path::Path;

use arithmo::adapter::config::{LoraConfig, TargetModules};
use arithmo::adapter::lora::{adapter_parameters, attach, set_adapter_parameters};
use arithmo::data::batch::TokenRows;
use arithmo::generate::{GenerateConfig, generate};
use arithmo::model::config::DecoderConfig;
use arithmo::model::decoder::Decoder;
use arithmo::model::input::ModelInput;
use arithmo::model::limits::Pieces;
use arithmo::model::linear::{StoredWeight, WeightParam};
use arithmo::model::load::{load_as, load_in_pieces};
use arithmo::model::quantize::Quantization;
use arithmo::model::quantize::cache::Cache;
use arithmo::train::gradient::{Loss, gradients};
use arithmo_backends::ops::log_probs::completion_log_probs;
use arithmo_backends::{Format, LogProbStats, TrainBackend};
use burn::backend::Autodiff;
use burn::module::AutodiffModule;
use burn::tensor::{DType, Tensor, TensorData};

use super::golden::assert_close;
use super::tiny::{uniform, write_model};

const VOCABULARY: usize = 700;

/// Largest size of a piece, in bytes. It splits embedding and head into three pieces of at most 256 rows, and every
/// projection except keys and values into at least four.
const LONGEST: u64 = 4 * 256 * 64;

fn shape(tied: bool) -> DecoderConfig {
    let json = format!(
        r#"{{"model_type": "mistral", "vocab_size": {VOCABULARY}, "hidden_size": 64, "intermediate_size": 1024,
            "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 128,
            "max_position_embeddings": 80, "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "sliding_window": 9,
            "tie_word_embeddings": {tied}, "hidden_act": "silu"}}"#
    );
    DecoderConfig::parse(&json, Path::new("config.json")).unwrap()
}

/// How the weights are stored in the file, held in memory, and quantized.
pub struct Case {
    tied: bool,
    stored: DType,
    held: DType,
    to: Option<Quantization>,
}

const fn nf4(double_quant: bool) -> Option<Quantization> {
    Some(Quantization { format: Format::Nf4, double_quant })
}

const fn case(tied: bool, stored: DType, held: DType, to: Option<Quantization>) -> Case {
    Case { tied, stored, held, to }
}

/// Cases with f32, bf16 (packed in words if the device does not compute in bf16), nf4 with 8-bit scales, and nf4.
pub const CASES: [Case; 4] = [
    case(false, DType::F32, DType::F32, None),
    case(true, DType::BF16, DType::BF16, None),
    case(false, DType::BF16, DType::F32, nf4(true)),
    case(true, DType::F32, DType::F32, nf4(false)),
];

/// Checks that a split model computes the same results as the whole one.
pub fn equals_whole<B: TrainBackend>(cases: &[Case], device: &B::Device) {
    for case in cases {
        case.check::<B>(device);
    }
}

impl Case {
    fn check<B: TrainBackend>(&self, device: &B::Device) {
        let folder = tempfile::tempdir().unwrap();
        let folder = folder.path().join("model");
        write_model(&folder, &shape(self.tied), self.stored);
        let pieces = Pieces { longest: Some(LONGEST), ..Pieces::of::<B>(self.held, device) };
        let nothing = Cache::none();
        let [whole, split] = [false, true].map(|split| {
            let mut model = if split {
                load_in_pieces(&folder, self.held, self.to, &nothing, pieces, device)
            } else {
                load_as(&folder, self.held, self.to, &nothing, device)
            }
            .unwrap();
            with_branches::<B>(&mut model, device);
            model
        });
        let is_split =
            |weight: &WeightParam<Autodiff<B>>| matches!(weight.stored, StoredWeight::Split(_));
        assert!(is_split(&split.embed_tokens) && !is_split(&whole.embed_tokens));
        assert!(split.lm_head.iter().all(is_split));
        let cut = |model: &Decoder<_>| {
            let linears = model.projections();
            linears.filter(|(_, linear)| is_split(&linear.weight)).count()
        };
        // All projections except keys and values, which are 256 by 64.
        assert_eq!((cut(&whole), cut(&split)), (0, 2 * 5), "{:?}", self.to);
        let [whole, split] = [&whole, &split].map(|model| Outcome::compute(model, device));
        let what = format!("{:?} as {:?} {:?}", self.stored, self.held, self.to);
        split.assert_equals(&whole, &what);
    }
}

/// Attaches a branch with random non-zero weights to every projection.
fn with_branches<B: TrainBackend>(model: &mut Decoder<Autodiff<B>>, device: &B::Device) {
    let config = LoraConfig {
        r: 3,
        lora_alpha: 6.0,
        target_modules: TargetModules::AllLinear,
        ..LoraConfig::default()
    };
    attach(model, &config, 7, device).unwrap();
    let values = (0..).zip(adapter_parameters(model)).map(|(seed, (_, tensor))| {
        let shape = tensor.dims();
        let values = uniform(seed, shape[0] * shape[1], 0.1);
        Tensor::<B, 2>::from_data(TensorData::new(values, shape), device)
    });
    let values = values.collect();
    set_adapter_parameters(model, values);
}

/// Results of a model that are compared.
struct Outcome {
    logits: Vec<f32>,
    log_probs: Vec<f32>,
    gradients: Vec<Vec<f32>>,
    generated: Vec<Vec<u32>>,
}

impl Outcome {
    fn compute<B: TrainBackend>(model: &Decoder<Autodiff<B>>, device: &B::Device) -> Self {
        let inner = model.valid();
        let ids = |count: usize, step: usize| -> Vec<u32> {
            (0..count).map(|at| (at * step % VOCABULARY) as u32).collect()
        };
        let (first, second) = (ids(23, 211), ids(9, 97));
        let rows = TokenRows::right_padded(&[&first, &second], 0);
        let input = ModelInput::new(&rows, &inner.position_table(80, device), device);
        let logits = values(inner.forward(&input));
        let tokens = logits.len() / VOCABULARY;
        let targets: Vec<i64> = (0..tokens).map(|at| (at * 389 % VOCABULARY) as i64).collect();
        let targets = TensorData::new(targets, [tokens]);
        let (log_probs, gradients) = gradients(model, &input, 1, |hidden| {
            let targets = Tensor::from_data(targets, device);
            let stats = LogProbStats::All;
            let columns = completion_log_probs(hidden, model.head(), targets, stats);
            let logps = columns.clone().narrow(1, 0, 1).squeeze_dim::<1>(1);
            Loss { loss: logps.powi_scalar(2).mean(), output: values(columns.inner()) }
        });
        let config = GenerateConfig { max_new_tokens: 6, ..GenerateConfig::default() };
        let all = generate(&inner, &[first, second], &config, |_| ()).unwrap();
        Self {
            logits,
            log_probs,
            gradients: gradients.into_iter().map(values).collect(),
            generated: all.into_iter().map(|one| one.token_ids).collect(),
        }
    }

    fn assert_equals(&self, whole: &Self, what: &str) {
        let close = |name: &str, ours: &[f32], theirs: &[f32]| {
            let scale = theirs.iter().fold(0f32, |max, v| max.max(v.abs()));
            assert!(scale > 1e-4, "{what}: no {name} to compare");
            assert_close(&format!("{what}: {name}"), ours, theirs, 2e-5 * scale);
        };
        close("logits", &self.logits, &whole.logits);
        close("log-probs", &self.log_probs, &whole.log_probs);
        assert_eq!(self.gradients.len(), 2 * 14);
        for (index, (ours, theirs)) in self.gradients.iter().zip(&whole.gradients).enumerate() {
            close(&format!("gradient {index}"), ours, theirs);
        }
        assert!(whole.generated.iter().all(|ids| ids.len() == 6));
        assert_eq!(self.generated, whole.generated, "{what}");
    }
}

fn values<B: TrainBackend>(tensor: Tensor<B, 2>) -> Vec<f32> {
    tensor.into_data().iter::<f32>().collect()
}
