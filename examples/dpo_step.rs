//! One DPO step of a Mistral model with LoRA, the same on any backend.
//!
//! `cargo run --example dpo_step` runs it on the CPU; with `--features wgpu`, also on a GPU.

#![allow(clippy::print_stdout, reason = "the example shows its results")]

use std::path::Path;

use arithmo::Result;
use arithmo::adapter::lora::{attach, trainable};
use arithmo::adapter::{LoraConfig, TargetModules};
use arithmo::data::encode::{EncodedPair, EncodedSequence};
use arithmo::model::Mistral;
use arithmo::model::config::DecoderConfig;
use arithmo::model::load::random;
use arithmo::objective::dpo::ReferenceTiming;
use arithmo::objective::preference::PreferenceLoss;
use arithmo::objective::reference::Reference;
use arithmo::train::activations::Activations;
use arithmo::train::optimizer::{AdamW, Optimizer};
use arithmo::train::step::{Learner, StepConfig};
use arithmo_backends::TrainBackend;
use burn::backend::Autodiff;
use burn::module::AutodiffModule;
use burn::tensor::DType;

/// `config.json` of a small model. `arithmo::model::load::load` reads a real one with its weights.
const CONFIG: &str = r#"{"model_type": "mistral", "vocab_size": 64, "hidden_size": 32, "intermediate_size": 64,
    "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "initializer_range": 0.2}"#;

fn main() -> Result<()> {
    dpo_steps::<burn_ndarray::NdArray<f32>>(&Default::default())?;
    #[cfg(feature = "wgpu")]
    dpo_steps::<arithmo_backends::wgpu::Gpu>(&Default::default())?;
    Ok(())
}

/// Trains an adapter on one pair for two steps. The first loss is ln 2, because the policy still equals the reference.
fn dpo_steps<B: TrainBackend>(device: &B::Device) -> Result<()> {
    let config = DecoderConfig::parse(CONFIG, Path::new("config.json"))?;
    let mut policy: Mistral<Autodiff<B>> = random(config, 1, DType::F32, device)?;
    let targets = TargetModules::Names(["q_proj", "v_proj"].map(String::from).to_vec());
    let lora = LoraConfig { r: 4, target_modules: targets, ..LoraConfig::default() };
    attach(&mut policy, &lora, 7, device)?;
    println!("{} trained weights", trainable(&policy));

    let completion = |ids: &[u32]| EncodedSequence {
        ids: [&[1, 5, 9, 20], ids].concat(),
        completion_start: 4,
        hidden: Vec::new(),
    };
    let (chosen, rejected) = (completion(&[11, 12, 2]), completion(&[30, 2]));
    let pair = EncodedPair { id: "a pair".to_string(), chosen, rejected };

    let reference = Reference::base(policy.valid());
    let (loss, timing) = (PreferenceLoss::sigmoid(0.1), ReferenceTiming::EveryStep);
    let adamw = AdamW { beta1: 0.9, beta2: 0.999, epsilon: 1e-8, weight_decay: 0.0 };
    let optimizer = Optimizer::new(adamw);
    let step = StepConfig {
        max_grad_norm: Some(1.0),
        activations: Activations::Keep,
        pass_tokens: 1024,
        dropout_seed: None,
    };
    let mut learner = Learner::dpo(policy, optimizer, loss, reference, timing, step, device);
    for step in 0..2 {
        let output = learner.step(step, 1e-2, &[vec![&pair]]);
        println!("step {}: loss {:.6}", step + 1, output.micro_batches[0].loss);
    }
    Ok(())
}
