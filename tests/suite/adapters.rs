//! Adapters for tests: random ones on a tiny model, and the golden runs' adapters.

use std::fs;
use std::path::{Path, PathBuf};

use arithmo::adapter::lora::attach;
use arithmo::adapter::{LoraConfig, TargetModules, peft};
use arithmo::data::batch::TokenRows;
use arithmo::model::config::DecoderConfig;
use arithmo::model::decoder::{Decoder, ModuleMut};
use arithmo::model::input::ModelInput;
use arithmo::model::linear::Linear;
use arithmo::model::load::load;
use arithmo::model::quantize::Quantization;
use arithmo_backends::Format;
use burn::module::Param;
use burn::tensor::{DType, Tensor, TensorData};
use serde_json::Value;
use tempfile::TempDir;

use super::golden::{Tensors, json_file, whole_reference};
use super::tiny::{uniform, write_model};

type B = burn_ndarray::NdArray<f32>;

pub const VOCABULARY: usize = 37;

/// Returns a tiny shape with grouped queries, a window, and `head_dim * heads != hidden_size`.
pub fn shape() -> DecoderConfig {
    let text = r#"{"model_type": "mistral", "vocab_size": 37, "hidden_size": 20, "intermediate_size": 28,
        "num_hidden_layers": 2, "num_attention_heads": 6, "num_key_value_heads": 2, "head_dim": 4,
        "max_position_embeddings": 32, "sliding_window": 5}"#;
    DecoderConfig::parse(text, "config.json".as_ref()).unwrap()
}

/// Writes a model of [`shape`] with random weights, in several shards, stored as `dtype`.
pub fn write_base(folder: &Path, dtype: DType) {
    write_model(folder, &shape(), dtype);
}

/// Returns a configuration of rank 3 and alpha 7. Empty `targets` mean all linear layers.
pub fn config(targets: &[&str], use_rslora: bool) -> LoraConfig {
    LoraConfig {
        r: 3,
        lora_alpha: 7.0,
        target_modules: match targets {
            [] => TargetModules::AllLinear,
            names => TargetModules::Names(names.iter().map(|name| name.to_string()).collect()),
        },
        use_rslora,
        ..LoraConfig::default()
    }
}

/// Attaches an adapter whose `lora_B` is random, not zero.
pub fn attach_random(model: &mut Decoder<B>, config: &LoraConfig) {
    attach(model, config, 3, &Default::default()).unwrap();
    for (seed, (_, linear)) in (100..).zip(model.projections_mut()) {
        if let Some(lora) = &mut linear.lora {
            let shape @ [d_out, r] = lora.lora_b.dims();
            let b = TensorData::new(uniform(seed, d_out * r, 0.3), shape);
            lora.lora_b = Param::from_tensor(Tensor::from_data(b, &Default::default()));
            if let Some(bias) = &mut lora.lora_b_bias {
                let values = TensorData::new(uniform(seed + 50, d_out, 0.3), [d_out]);
                *bias = Param::from_tensor(Tensor::from_data(values, &Default::default()));
            }
            if let Some(dora) = &mut lora.dora {
                let factors = uniform(seed + 50, d_out, 0.4);
                let factors =
                    Tensor::from_data(TensorData::new(factors, [d_out]), &Default::default());
                let magnitude = dora.magnitude.val();
                dora.magnitude = Param::from_tensor(magnitude.clone() + magnitude * factors);
            }
        }
        linear.update_norms();
    }
    for (seed, (_, module)) in (200..).zip(model.modules_mut()) {
        let noise = |count| TensorData::new(uniform(seed, count, 0.1), [count]);
        match module {
            ModuleMut::Matrix(weight) | ModuleMut::Projection(Linear { weight, .. }) => {
                weight.trained = weight
                    .trained
                    .take()
                    .map(|weight| weight.map(|weight| add_noise(weight, noise)));
            }
            ModuleMut::Norm(norm) => {
                norm.trained =
                    norm.trained.take().map(|norm| norm.map(|weight| add_noise(weight, noise)));
            }
        }
    }
}

fn add_noise<const D: usize>(
    weight: Tensor<B, D>,
    noise: impl Fn(usize) -> TensorData,
) -> Tensor<B, D> {
    let shape = weight.dims();
    let noise = Tensor::<B, 1>::from_data(noise(shape.iter().product()), &Default::default());
    weight + noise.reshape(shape)
}

/// Writes a base model and a random adapter of `config` to a temporary folder. Returns this folder, the base's, the
/// adapter's, and the model with the adapter attached.
pub fn base_and_adapter(
    config: &LoraConfig,
    dtype: DType,
) -> (TempDir, PathBuf, PathBuf, Decoder<B>) {
    base_of_shape_and_adapter(&shape(), config, dtype)
}

/// Writes a model of `shape` and an adapter like [`base_and_adapter`].
pub fn base_of_shape_and_adapter(
    shape: &DecoderConfig,
    config: &LoraConfig,
    dtype: DType,
) -> (TempDir, PathBuf, PathBuf, Decoder<B>) {
    let folder = tempfile::tempdir().unwrap();
    let (base, adapter_folder) = (folder.path().join("base"), folder.path().join("adapter"));
    write_model(&base, shape, dtype);
    let mut model = load::<B>(&base, DType::F32, &Default::default()).unwrap();
    attach_random(&mut model, config);
    fs::create_dir(&adapter_folder).unwrap();
    save_adapter(&model, config, "owner/base", &adapter_folder);
    (folder, base, adapter_folder, model)
}

pub fn save_adapter(model: &Decoder<B>, config: &LoraConfig, base: &str, folder: &Path) {
    let json = peft::config_json(model, config, base, None);
    peft::save(model, &json, folder).unwrap();
}

pub fn logits(model: &Decoder<B>, ids: &[&[u32]]) -> Vec<f32> {
    let device = Default::default();
    let rows = TokenRows::right_padded(ids, 0);
    let input = ModelInput::new(&rows, &model.position_table(rows.length, &device), &device);
    model.forward(&input).into_data().to_vec().unwrap()
}

/// Returns the logits of `model` for the `input_ids` of a golden file.
pub fn golden_logits(model: &Decoder<B>, golden: &Tensors) -> Vec<f32> {
    let (shape, ids) = golden.i64("input_ids");
    let ids: Vec<u32> = ids.into_iter().map(|id| id as u32).collect();
    let rows: Vec<&[u32]> = ids.chunks(shape[1]).collect();
    logits(model, &rows)
}

pub fn random_ids(rows: usize, length: usize) -> Vec<Vec<u32>> {
    let ids = uniform(55, rows * length, 1.0).into_iter();
    let ids: Vec<u32> = ids.map(|x| ((x + 1.0) / 2.0 * (VOCABULARY - 1) as f32) as u32).collect();
    ids.chunks(length).map(<[u32]>::to_vec).collect()
}

pub fn random_logits(model: &Decoder<B>) -> Vec<f32> {
    let ids = random_ids(3, 11);
    logits(model, &ids.iter().map(Vec::as_slice).collect::<Vec<_>>())
}

/// Returns name, folder and `config.json` of every golden run.
pub fn runs() -> Vec<(String, PathBuf, Value)> {
    let runs = runs_of("trl");
    assert!(runs.len() >= 4, "only {} golden runs", runs.len());
    runs
}

/// Returns name, folder and `config.json` of every golden run of a group.
pub fn runs_of(group: &str) -> Vec<(String, PathBuf, Value)> {
    let mut runs = Vec::new();
    for entry in fs::read_dir(whole_reference(group)).into_iter().flatten() {
        let path = entry.unwrap().path();
        if path.join("adapter_config.json").is_file() {
            let name = path.file_name().unwrap().to_string_lossy().into_owned();
            runs.push((name, path.clone(), json_file(&path.join("config.json"))));
        }
    }
    runs.sort_by(|a, b| a.0.cmp(&b.0));
    runs
}

/// Returns the model folder of a golden run's base, given the run's `config.json`.
pub fn base_folder(run: &Value) -> PathBuf {
    let name = run["model"].as_str().unwrap();
    let folders = ["models", "families/models"];
    let mut folders =
        folders.map(|folder| whole_reference(&format!("{folder}/{name}"))).into_iter();
    folders.find(|folder| folder.exists()).unwrap()
}

/// Returns how a golden run's base is quantized, given the run's `config.json`.
pub fn base_quantization(run: &Value) -> Option<Quantization> {
    let double_quant = match run["base_precision"].as_str().unwrap() {
        "nf4" | "bnb4" => false,
        "nf4dq" => true,
        _ => return None,
    };
    Some(Quantization { format: Format::Nf4, double_quant })
}
