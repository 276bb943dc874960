//! LoRA: the branch equals merged weights, adapters are PEFT's in both directions, merging writes a whole model.

mod suite;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use arithmo::data::batch::TokenRows;
use arithmo::lora::linear::{attach, parameters, trainable};
use arithmo::lora::merge::{MergeConfig, MergeSummary, merge};
use arithmo::lora::{LoraConfig, TargetModules, adapter, config::LoraInit};
use arithmo::model::config::MistralConfig;
use arithmo::model::input::ModelInput;
use arithmo::model::linear::frozen_param;
use arithmo::model::load::load;
use arithmo::model::mistral::Mistral;
use arithmo::model::save::{load_safetensors_f32, save_safetensors};
use arithmo::model::weights::WeightFiles;
use burn::module::Param;
use burn::tensor::{DType, Tensor, TensorData};
use serde_json::Value;
use suite::golden::{Tensors, assert_close, json, reference};
use suite::tiny::{uniform, write_model};
use tempfile::TempDir;

type B = burn_ndarray::NdArray<f32>;

const VOCABULARY: usize = 37;

/// A tiny shape with grouped queries, a window, and `head_dim * heads != hidden_size`.
fn shape() -> MistralConfig {
    let text = r#"{"model_type": "mistral", "vocab_size": 37, "hidden_size": 20, "intermediate_size": 28,
        "num_hidden_layers": 2, "num_attention_heads": 6, "num_key_value_heads": 2, "head_dim": 4,
        "max_position_embeddings": 32, "sliding_window": 5}"#;
    MistralConfig::parse(text, "config.json".as_ref()).unwrap()
}

/// Writes a model of [`shape`] with random weights, in several shards, stored as `dtype`.
fn write_base(folder: &Path, dtype: DType) {
    write_model(folder, &shape(), dtype);
}

fn config(targets: &[&str], use_rslora: bool) -> LoraConfig {
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
fn attach_random(model: &mut Mistral<B>, config: &LoraConfig) {
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
fn base_and_adapter(config: &LoraConfig, dtype: DType) -> (TempDir, PathBuf, PathBuf, Mistral<B>) {
    let folder = tempfile::tempdir().unwrap();
    let (base, adapter_folder) = (folder.path().join("base"), folder.path().join("adapter"));
    write_base(&base, dtype);
    let mut model = load::<B>(&base, DType::F32, &Default::default()).unwrap();
    attach_random(&mut model, config);
    fs::create_dir(&adapter_folder).unwrap();
    save_adapter(&model, config, "owner/base", &adapter_folder);
    (folder, base, adapter_folder, model)
}

fn save_adapter(model: &Mistral<B>, config: &LoraConfig, base: &str, folder: &Path) {
    let json = adapter::config_json(model, config, base, None);
    adapter::save(model, &json, folder).unwrap();
}

fn logits(model: &Mistral<B>, ids: &[&[u32]]) -> Vec<f32> {
    let device = Default::default();
    let rows = TokenRows::right_padded(ids, 0, |_| &[]);
    let input = ModelInput::new(&rows, &model.rotary_table(&device), &device);
    model.forward(&input).into_data().to_vec().unwrap()
}

fn random_ids(rows: usize, length: usize) -> Vec<Vec<u32>> {
    let ids = uniform(55, rows * length, 1.0).into_iter();
    let ids: Vec<u32> = ids
        .map(|x| ((x + 1.0) / 2.0 * (VOCABULARY - 1) as f32) as u32)
        .collect();
    ids.chunks(length).map(<[u32]>::to_vec).collect()
}

fn random_logits(model: &Mistral<B>) -> Vec<f32> {
    let ids = random_ids(3, 11);
    logits(model, &ids.iter().map(Vec::as_slice).collect::<Vec<_>>())
}

fn values<const D: usize>(tensor: &Tensor<B, D>) -> Vec<f32> {
    tensor.to_data().to_vec().unwrap()
}

/// `W + scaling * B A` of every branch, summed on the host in f64, and the branches taken off.
fn merged_by_hand(model: &Mistral<B>, scaling: f64) -> Mistral<B> {
    let mut model = model.clone();
    for (_, linear) in model.projections_mut() {
        let Some(lora) = linear.lora.take() else {
            continue;
        };
        let (d_out, d_in) = linear.dims();
        let (w, a, b) = (
            values(&linear.weight.val()),
            values(&lora.lora_a.val()),
            values(&lora.lora_b.val()),
        );
        let rank = a.len() / d_in;
        let sum = (0..d_out * d_in).map(|at| {
            let (row, column) = (at / d_in, at % d_in);
            let term = |k: usize| f64::from(b[row * rank + k]) * f64::from(a[k * d_in + column]);
            (f64::from(w[at]) + scaling * (0..rank).map(term).sum::<f64>()) as f32
        });
        let sum = TensorData::new(sum.collect::<Vec<_>>(), [d_out, d_in]);
        linear.weight = frozen_param(Tensor::from_data(sum, &Default::default()));
    }
    model
}

const TARGETS: [&[&str]; 4] = [
    &["q_proj", "v_proj"],
    &["o_proj", "down_proj"],
    &["layers.1.mlp.up_proj"],
    &[],
];

#[test]
fn branch_equals_merged_weights() {
    let folder = tempfile::tempdir().unwrap();
    write_base(&folder.path().join("base"), DType::F32);
    let base = load::<B>(&folder.path().join("base"), DType::F32, &Default::default()).unwrap();
    for targets in TARGETS {
        for (use_rslora, scaling) in [(false, 7.0 / 3.0), (true, 7.0 / 3f64.sqrt())] {
            let what = format!("{targets:?}, rsLoRA {use_rslora}");
            let mut model = base.clone();
            attach_random(&mut model, &config(targets, use_rslora));
            let with_branch = random_logits(&model);
            let merged = random_logits(&merged_by_hand(&model, scaling));
            assert_close(&what, &with_branch, &merged, 2e-5);
            let plain = random_logits(&base);
            let change = with_branch.iter().zip(&plain).map(|(a, b)| (a - b).abs());
            assert!(
                change.fold(0.0, f32::max) > 0.05,
                "{what}: the branch does something"
            );
            assert_eq!(
                random_logits(&model.without_adapter()),
                plain,
                "{what}: the base is as before"
            );
        }
    }
}

#[test]
fn a_fresh_adapter_changes_nothing_and_has_the_right_number_of_weights() {
    let folder = tempfile::tempdir().unwrap();
    write_base(&folder.path().join("base"), DType::F32);
    let base = load::<B>(&folder.path().join("base"), DType::F32, &Default::default()).unwrap();
    // Of a layer: D = 20, H * Dh = 24, H_kv * Dh = 8, I = 28.
    let per_layer = [20 + 24, 20 + 8, 20 + 8, 24 + 20, 20 + 28, 20 + 28, 28 + 20];
    let expected = [
        3 * 2 * (per_layer[0] + per_layer[2]),
        3 * 2 * (per_layer[3] + per_layer[6]),
        3 * per_layer[5],
        3 * 2 * per_layer.iter().sum::<usize>(),
    ];
    for (targets, expected) in TARGETS.iter().zip(expected) {
        let mut model = base.clone();
        attach(&mut model, &config(targets, false), 3, &Default::default()).unwrap();
        assert_eq!(trainable(&model), expected, "{targets:?}");
        assert_eq!(random_logits(&model), random_logits(&base), "{targets:?}");
        for (name, tensor) in parameters(&model) {
            let largest = values(&tensor).iter().fold(0f32, |max, x| max.max(x.abs()));
            let bound = 1.0 / (tensor.dims()[1] as f32).sqrt();
            match name.ends_with("lora_A.weight") {
                true => assert!(
                    largest <= bound && largest > 0.7 * bound,
                    "{name}: {largest}"
                ),
                false => assert_eq!(largest, 0.0, "{name}"),
            }
        }
    }
    let error = attach(
        &mut base.clone(),
        &config(&["q_proj", "qproj"], false),
        3,
        &Default::default(),
    );
    assert!(error.unwrap_err().to_string().contains("`qproj`"));
}

#[test]
fn saving_and_loading_changes_no_bit() {
    for targets in TARGETS {
        let (_folder, base, adapter_folder, model) =
            base_and_adapter(&config(targets, true), DType::F32);
        let mut again = load::<B>(&base, DType::F32, &Default::default()).unwrap();
        let read = adapter::load(&mut again, &adapter_folder, &Default::default()).unwrap();
        let bits = |model: &Mistral<B>| -> Vec<(String, Vec<u32>)> {
            let all = parameters(model).into_iter();
            all.map(|(name, t)| (name, values(&t).iter().map(|x| x.to_bits()).collect()))
                .collect()
        };
        assert_eq!(bits(&model), bits(&again));
        assert_eq!(random_logits(&model), random_logits(&again));
        let second = adapter_folder.with_file_name("second");
        fs::create_dir(&second).unwrap();
        save_adapter(&again, &read, "owner/base", &second);
        for file in ["adapter_config.json", "adapter_model.safetensors"] {
            let bytes = |folder: &Path| fs::read(folder.join(file)).unwrap();
            assert_eq!(
                bytes(&adapter_folder),
                bytes(&second),
                "{targets:?}: {file}"
            );
        }
    }
}

#[test]
fn an_adapter_that_does_not_fit_is_refused_by_name() {
    let (_folder, base, adapter_folder, _) =
        base_and_adapter(&config(&["q_proj", "v_proj"], false), DType::F32);
    let weights = adapter_folder.join("adapter_model.safetensors");
    let whole = load_safetensors_f32(&weights).unwrap();
    let mut model = load::<B>(&base, DType::F32, &Default::default()).unwrap();
    let before = random_logits(&model);
    let mut error_with = |tensors: BTreeMap<String, (Vec<usize>, Vec<f32>)>| {
        let list: Vec<_> = tensors
            .into_iter()
            .map(|(name, (shape, v))| (name, shape, v))
            .collect();
        save_safetensors(&weights, &list).unwrap();
        let error = adapter::load(&mut model, &adapter_folder, &Default::default()).unwrap_err();
        assert_eq!(random_logits(&model), before, "the model is as before");
        error.to_string()
    };
    let name = "base_model.model.model.layers.1.self_attn.v_proj.lora_B.weight";
    let mut missing = whole.clone();
    missing.remove(name);
    assert!(error_with(missing).contains(&format!("{name} is missing")));
    let mut extra = whole.clone();
    extra.insert(
        "base_model.model.lm_head.lora_A.weight".into(),
        (vec![1], vec![0.0]),
    );
    assert!(error_with(extra).contains("lm_head.lora_A.weight has no place"));
    let mut misshapen = whole.clone();
    misshapen.get_mut(name).unwrap().0.reverse();
    let error = error_with(misshapen);
    assert!(
        error.contains(&format!("{name} is [3, 8], must be [8, 3]")),
        "{error}"
    );

    save_safetensors(
        &weights,
        &whole
            .into_iter()
            .map(|(n, (s, v))| (n, s, v))
            .collect::<Vec<_>>(),
    )
    .unwrap();
    let bytes = fs::read(&weights).unwrap();
    for length in [0, 7, 100, bytes.len() / 2, bytes.len() - 1] {
        fs::write(&weights, &bytes[..length]).unwrap();
        let error = adapter::load(&mut model, &adapter_folder, &Default::default()).unwrap_err();
        let error = error.to_string();
        assert!(
            error.contains("adapter_model.safetensors"),
            "cut at {length}: {error}"
        );
        assert_eq!(random_logits(&model), before, "cut at {length}");
    }
    fs::remove_file(&weights).unwrap();
    assert!(adapter::load(&mut model, &adapter_folder, &Default::default()).is_err());
}

/// The reference runs, each with its folder and its `config.json`.
fn runs() -> Vec<(String, PathBuf, Value)> {
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

fn base_of(run: &Value) -> PathBuf {
    reference(&format!("models/{}", run["model"].as_str().unwrap())).unwrap()
}

/// PEFT's DoRA adapters are refused; returns whether this is one.
fn refused_dora(folder: &Path) -> bool {
    let theirs = json(&folder.join("adapter_config.json"));
    if theirs["use_dora"] == true {
        let error = adapter::read_config(folder).unwrap_err().to_string();
        assert!(error.contains("use_dora"), "{error}");
    }
    theirs["use_dora"] == true
}

#[test]
fn adapters_are_written_as_peft_writes_them() {
    let out = tempfile::tempdir().unwrap();
    for (name, folder, run) in runs() {
        if refused_dora(&folder) {
            continue;
        }
        let mut model = load::<B>(&base_of(&run), DType::F32, &Default::default()).unwrap();
        let config = adapter::load(&mut model, &folder, &Default::default()).unwrap();
        assert_eq!(
            config.scaling(),
            run["lora"]["scaling"].as_f64().unwrap_or(2.0),
            "{name}"
        );
        let base = run["model"].as_str().unwrap();
        save_adapter(&model, &config, base, out.path());

        let read = |folder: &Path| load_safetensors_f32(&folder.join("adapter_model.safetensors"));
        assert_eq!(read(out.path()).unwrap(), read(&folder).unwrap(), "{name}");
        let ours = json(&out.path().join("adapter_config.json"));
        let theirs = json(&folder.join("adapter_config.json"));
        for (key, value) in ours.as_object().unwrap() {
            // PEFT writes a set, in any order.
            let set = |value: &Value| -> BTreeSet<String> {
                value
                    .as_array()
                    .unwrap()
                    .iter()
                    .map(Value::to_string)
                    .collect()
            };
            match key.as_str() {
                "target_modules" => assert_eq!(set(value), set(&theirs[key]), "{name}: {key}"),
                _ => assert_eq!(Some(value), theirs.get(key), "{name}: {key}"),
            }
        }
        let keys: Vec<&String> = ours.as_object().unwrap().keys().collect();
        assert!(keys.is_sorted(), "{name}: PEFT sorts keys");
    }
}

#[test]
fn all_linear_is_written_as_names() {
    let (_folder, _, adapter_folder, _) = base_and_adapter(&config(&[], false), DType::F32);
    let written = json(&adapter_folder.join("adapter_config.json"));
    let names = [
        "down_proj",
        "gate_proj",
        "k_proj",
        "o_proj",
        "q_proj",
        "up_proj",
        "v_proj",
    ];
    assert_eq!(written["target_modules"], serde_json::json!(names));
}

/// Logits with the adapter, and of the merged model, against PEFT's `merge_and_unload`.
#[test]
fn merged_logits_equal_pefts() {
    let mut compared = 0;
    for (name, folder, run) in runs() {
        let golden = folder.join("merged_logits.safetensors");
        let plain_base = run["base_precision"] == "f32" || run["base_precision"] == "bf16";
        if golden.is_file() && plain_base && !refused_dora(&folder) {
            let bf16 = run["base_precision"] == "bf16";
            compare_merged(
                &name,
                &base_of(&run),
                &folder,
                &Tensors::open(&golden),
                bf16,
            );
            compared += 1;
        }
    }
    assert!(
        compared >= 10 || reference("trl").is_none(),
        "only {compared} runs compared"
    );
}

fn compare_merged(name: &str, base: &Path, adapter: &Path, golden: &Tensors, bf16: bool) {
    let (shape, ids) = golden.i64("input_ids");
    let ids: Vec<u32> = ids.into_iter().map(|id| id as u32).collect();
    let ids: Vec<&[u32]> = ids.chunks(shape[1]).collect();
    let (_, theirs) = golden.f32("merged_logits");

    let mut model = load::<B>(base, DType::F32, &Default::default()).unwrap();
    adapter::load(&mut model, adapter, &Default::default()).unwrap();
    let active = logits(&model, &ids);
    let folder = tempfile::tempdir().unwrap();
    let output = folder.path().join("merged");
    run_merge(base, adapter, &output, None).unwrap();
    let merged = load::<B>(&output, DType::F32, &Default::default()).unwrap();
    let merged = logits(&merged, &ids);
    // Of a bf16 model, PEFT's logits were computed in bf16: they differ by rounding, and are a loose check only.
    let tolerance = if bf16 { 0.15 } else { 2e-4 };
    let what = |which: &str| format!("{name}: {which}");
    assert_close(&what("merged and active"), &merged, &active, tolerance);
    assert_close(&what("merged"), &merged, &theirs, tolerance);
    assert_close(&what("active"), &active, &theirs, tolerance);

    let weight = "layers.0.self_attn.v_proj.weight";
    let files = WeightFiles::open(&output).unwrap();
    let ours = files.tensor_f32(&format!("model.{weight}")).unwrap();
    let (_, theirs) = golden.f32(&format!("merged.{weight}"));
    let largest = theirs.iter().fold(0f32, |max, x| max.max(x.abs()));
    // PEFT rounds B A and then the sum, we the sum alone: up to one unit in the last of bf16's 8 bits.
    let tolerance = if bf16 { largest / 128.0 } else { 1e-6 };
    assert_close(&what(weight), &ours, &theirs, tolerance);
}

fn run_merge(
    base: &Path,
    adapter: &Path,
    output: &Path,
    dtype: Option<DType>,
) -> arithmo::Result<MergeSummary> {
    let config = MergeConfig {
        model: base.to_path_buf(),
        adapter: adapter.to_path_buf(),
        output: output.to_path_buf(),
        dtype,
        overwrite: false,
    };
    merge::<B>(&config, &Default::default(), |_| ())
}

#[test]
fn merging_writes_a_whole_model_and_touches_only_targets() {
    for (dtype, tolerance) in [(DType::F32, 2e-5), (DType::BF16, 0.2)] {
        let (folder, base, adapter_folder, model) =
            base_and_adapter(&config(&["k_proj", "up_proj"], true), dtype);
        fs::write(base.join("tokenizer.json"), "{}").unwrap();
        let output = folder.path().join("merged");
        let summary = run_merge(&base, &adapter_folder, &output, None).unwrap();
        let total = shape().tensors().len();
        assert_eq!(
            summary,
            MergeSummary {
                merged: 4,
                copied: total - 4
            }
        );
        assert!(output.join("tokenizer.json").is_file());

        let (before, after) = (
            WeightFiles::open(&base).unwrap(),
            WeightFiles::open(&output).unwrap(),
        );
        for (name, _) in shape().tensors() {
            assert_eq!(after.dtype(&name).unwrap(), dtype, "{name}");
            let same = before.bytes(&name).unwrap()[..] == after.bytes(&name).unwrap()[..];
            let target = name.contains("k_proj") || name.contains("up_proj");
            assert_eq!(same, !target, "{name}");
        }
        let merged = load::<B>(&output, DType::F32, &Default::default()).unwrap();
        assert_close(
            "merged",
            &random_logits(&merged),
            &random_logits(&model),
            tolerance,
        );

        let narrow = folder.path().join("narrow");
        run_merge(&base, &adapter_folder, &narrow, Some(DType::F16)).unwrap();
        let narrow = WeightFiles::open(&narrow).unwrap();
        assert!(
            narrow
                .names()
                .all(|name| narrow.dtype(name).unwrap() == DType::F16)
        );
    }
}

#[test]
fn merging_spares_what_is_there() {
    let (folder, base, adapter_folder, _) =
        base_and_adapter(&config(&["q_proj"], false), DType::F32);
    let settings = |output: &Path, overwrite| MergeConfig {
        model: base.clone(),
        adapter: adapter_folder.clone(),
        output: output.to_path_buf(),
        dtype: None,
        overwrite,
    };
    let run = |output: &Path, overwrite| {
        let result = merge::<B>(&settings(output, overwrite), &Default::default(), |_| ());
        result.map_err(|error| error.to_string())
    };
    let output = folder.path().join("merged");
    run(&output, false).unwrap();
    fs::write(output.join("mine.txt"), "kept").unwrap();
    assert!(run(&output, false).unwrap_err().contains("--overwrite"));
    assert!(output.join("mine.txt").is_file());

    // A broken adapter: nothing is replaced, and no rest is left beside it.
    let weights = adapter_folder.join("adapter_model.safetensors");
    let good = fs::read(&weights).unwrap();
    let mut tensors: Vec<_> = load_safetensors_f32(&weights)
        .unwrap()
        .into_iter()
        .map(|(n, (s, v))| (n, s, v))
        .collect();
    tensors[0].2[0] = f32::NAN;
    save_safetensors(&weights, &tensors).unwrap();
    assert!(run(&output, true).unwrap_err().contains("not finite"));
    assert!(output.join("mine.txt").is_file());
    fs::write(&weights, good).unwrap();

    run(&output, true).unwrap();
    assert!(!output.join("mine.txt").exists());
    assert!(run(&base, true).unwrap_err().contains("base model"));
    let plain = folder.path().join("plain");
    fs::create_dir(&plain).unwrap();
    fs::write(plain.join("notes.txt"), "").unwrap();
    assert!(
        run(&plain, true)
            .unwrap_err()
            .contains("not a model folder")
    );
    fs::write(folder.path().join("config.json"), "{}").unwrap();
    assert!(run(folder.path(), true).unwrap_err().contains("base model"));
    let names = fs::read_dir(folder.path())
        .unwrap()
        .map(|e| e.unwrap().file_name().into_string().unwrap());
    assert!(
        names.into_iter().all(|name| !name.starts_with(".part")),
        "nothing is left over"
    );
}
