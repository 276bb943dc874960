//! Adapters to test with: random ones on a tiny model of our own, and those of the reference runs.

use std::fs;
use std::path::{Path, PathBuf};

use arithmo::data::batch::TokenRows;
use arithmo::lora::linear::attach;
use arithmo::lora::{LoraConfig, TargetModules, adapter, config::LoraInit};
use arithmo::model::config::MistralConfig;
use arithmo::model::input::ModelInput;
use arithmo::model::load::load;
use arithmo::model::mistral::Mistral;
use burn::module::Param;
use burn::tensor::{DType, Tensor, TensorData};
use serde_json::Value;
use tempfile::TempDir;

use super::golden::{json, reference};
use super::tiny::{uniform, write_model};

type B = burn_ndarray::NdArray<f32>;

pub const VOCABULARY: usize = 37;

/// A tiny shape with grouped queries, a window, and `head_dim * heads != hidden_size`.
pub fn shape() -> MistralConfig {
    let text = r#"{"model_type": "mistral", "vocab_size": 37, "hidden_size": 20, "intermediate_size": 28,
        "num_hidden_layers": 2, "num_attention_heads": 6, "num_key_value_heads": 2, "head_dim": 4,
        "max_position_embeddings": 32, "sliding_window": 5}"#;
    MistralConfig::parse(text, "config.json".as_ref()).unwrap()
}

/// Writes a model of [`shape`] with random weights, in several shards, stored as `dtype`.
pub fn write_base(folder: &Path, dtype: DType) {
    write_model(folder, &shape(), dtype);
}

pub fn config(targets: &[&str], use_rslora: bool) -> LoraConfig {
    LoraConfig {
        r: 3,
        lora_alpha: 7.0,
        lora_dropout: 0.0,
        target_modules: match targets {
            [] => TargetModules::AllLinear,
            names => TargetModules::Names(names.iter().map(|name| name.to_string()).collect()),
        },
        use_rslora,
        init: LoraInit::KaimingUniform,
    }
}

/// Attaches an adapter whose `lora_B` is random instead of zero.
pub fn attach_random(model: &mut Mistral<B>, config: &LoraConfig) {
    attach(model, config, 3, &Default::default()).unwrap();
    for (seed, (_, linear)) in (100..).zip(model.projections_mut()) {
        let d_out = linear.dims().0;
        if let Some(lora) = &mut linear.lora {
            let b = TensorData::new(uniform(seed, d_out * config.r, 0.3), [d_out, config.r]);
            lora.lora_b = Param::from_tensor(Tensor::from_data(b, &Default::default()));
        }
    }
}

/// A folder with a base model, an adapter of `config` with random weights, and the model with that adapter.
pub fn base_and_adapter(
    config: &LoraConfig,
    dtype: DType,
) -> (TempDir, PathBuf, PathBuf, Mistral<B>) {
    let folder = tempfile::tempdir().unwrap();
    let (base, adapter_folder) = (folder.path().join("base"), folder.path().join("adapter"));
    write_base(&base, dtype);
    let mut model = load::<B>(&base, DType::F32, &Default::default()).unwrap();
    attach_random(&mut model, config);
    fs::create_dir(&adapter_folder).unwrap();
    save_adapter(&model, config, "owner/base", &adapter_folder);
    (folder, base, adapter_folder, model)
}

pub fn save_adapter(model: &Mistral<B>, config: &LoraConfig, base: &str, folder: &Path) {
    let json = adapter::config_json(model, config, base, None);
    adapter::save(model, &json, folder).unwrap();
}

pub fn logits(model: &Mistral<B>, ids: &[&[u32]]) -> Vec<f32> {
    let device = Default::default();
    let rows = TokenRows::right_padded(ids, 0);
    let input = ModelInput::new(&rows, &model.position_table(rows.length, &device), &device);
    model.forward(&input).into_data().to_vec().unwrap()
}

pub fn random_ids(rows: usize, length: usize) -> Vec<Vec<u32>> {
    let ids = uniform(55, rows * length, 1.0).into_iter();
    let ids: Vec<u32> = ids.map(|x| ((x + 1.0) / 2.0 * (VOCABULARY - 1) as f32) as u32).collect();
    ids.chunks(length).map(<[u32]>::to_vec).collect()
}

pub fn random_logits(model: &Mistral<B>) -> Vec<f32> {
    let ids = random_ids(3, 11);
    logits(model, &ids.iter().map(Vec::as_slice).collect::<Vec<_>>())
}

/// The reference runs, each with its folder and its `config.json`.
pub fn runs() -> Vec<(String, PathBuf, Value)> {
    let Some(folder) = reference("trl") else {
        return Vec::new();
    };
    let mut runs = Vec::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.join("adapter_config.json").is_file() {
            let name = path.file_name().unwrap().to_string_lossy().into_owned();
            runs.push((name, path.clone(), json(&path.join("config.json"))));
        }
    }
    assert!(runs.len() > 50, "only {} reference runs", runs.len());
    runs.sort_by(|a, b| a.0.cmp(&b.0));
    runs
}

pub fn base_of(run: &Value) -> PathBuf {
    reference(&format!("models/{}", run["model"].as_str().unwrap())).unwrap()
}

/// PEFT's DoRA adapters are refused; returns whether this is one.
pub fn refused_dora(folder: &Path) -> bool {
    let theirs = json(&folder.join("adapter_config.json"));
    if theirs["use_dora"] == true {
        let error = adapter::read_config(folder).unwrap_err().to_string();
        assert!(error.contains("use_dora"), "{error}");
    }
    theirs["use_dora"] == true
}
