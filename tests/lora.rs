//! LoRA: the branch equals merged weights, and adapters are PEFT's in both directions.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod suite;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use arithmo::lora::adapter;
use arithmo::lora::linear::{attach, parameters, trainable};
use arithmo::model::linear::WeightParam;
use arithmo::model::load::load;
use arithmo::model::mistral::Mistral;
use arithmo::model::save::{load_safetensors_f32, save_safetensors};
use burn::tensor::{DType, Tensor, TensorData};
use serde_json::Value;
use suite::adapters::{
    attach_random, base_and_adapter, base_of, config, random_logits, refused_dora, runs,
    save_adapter, write_base,
};
use suite::golden::{assert_close, json};

type B = burn_ndarray::NdArray<f32>;

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
            values(&linear.weight.floats(DType::F32)),
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
        let sum: Tensor<_, 2> = Tensor::from_data(sum, &Default::default());
        linear.weight = WeightParam::frozen(sum);
    }
    model
}

const TARGETS: [&[&str]; 4] =
    [&["q_proj", "v_proj"], &["o_proj", "down_proj"], &["layers.1.mlp.up_proj"], &[]];

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
            assert!(change.fold(0.0, f32::max) > 0.05, "{what}: the branch does something");
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
                true => assert!(largest <= bound && largest > 0.7 * bound, "{name}: {largest}"),
                false => assert_eq!(largest, 0.0, "{name}"),
            }
        }
    }
    let error =
        attach(&mut base.clone(), &config(&["q_proj", "qproj"], false), 3, &Default::default());
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
            all.map(|(name, t)| (name, values(&t).iter().map(|x| x.to_bits()).collect())).collect()
        };
        assert_eq!(bits(&model), bits(&again));
        assert_eq!(random_logits(&model), random_logits(&again));
        let second = adapter_folder.with_file_name("second");
        fs::create_dir(&second).unwrap();
        save_adapter(&again, &read, "owner/base", &second);
        for file in ["adapter_config.json", "adapter_model.safetensors"] {
            let bytes = |folder: &Path| fs::read(folder.join(file)).unwrap();
            assert_eq!(bytes(&adapter_folder), bytes(&second), "{targets:?}: {file}");
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
        let list: Vec<_> = tensors.into_iter().map(|(name, (shape, v))| (name, shape, v)).collect();
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
    extra.insert("base_model.model.lm_head.lora_A.weight".into(), (vec![1], vec![0.0]));
    assert!(error_with(extra).contains("lm_head.lora_A.weight has no place"));
    let mut misshapen = whole.clone();
    misshapen.get_mut(name).unwrap().0.reverse();
    let error = error_with(misshapen);
    assert!(error.contains(&format!("{name} is [3, 8], must be [8, 3]")), "{error}");

    save_safetensors(&weights, &whole.into_iter().map(|(n, (s, v))| (n, s, v)).collect::<Vec<_>>())
        .unwrap();
    let bytes = fs::read(&weights).unwrap();
    for length in [0, 7, 100, bytes.len() / 2, bytes.len() - 1] {
        fs::write(&weights, &bytes[..length]).unwrap();
        let error = adapter::load(&mut model, &adapter_folder, &Default::default()).unwrap_err();
        let error = error.to_string();
        assert!(error.contains("adapter_model.safetensors"), "cut at {length}: {error}");
        assert_eq!(random_logits(&model), before, "cut at {length}");
    }
    fs::remove_file(&weights).unwrap();
    assert!(adapter::load(&mut model, &adapter_folder, &Default::default()).is_err());
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
        assert_eq!(config.scaling(), run["lora"]["scaling"].as_f64().unwrap_or(2.0), "{name}");
        let base = run["model"].as_str().unwrap();
        save_adapter(&model, &config, base, out.path());

        let read = |folder: &Path| load_safetensors_f32(&folder.join("adapter_model.safetensors"));
        assert_eq!(read(out.path()).unwrap(), read(&folder).unwrap(), "{name}");
        let ours = json(&out.path().join("adapter_config.json"));
        let theirs = json(&folder.join("adapter_config.json"));
        for (key, value) in ours.as_object().unwrap() {
            // PEFT writes a set, in any order.
            let set = |value: &Value| -> BTreeSet<String> {
                value.as_array().unwrap().iter().map(Value::to_string).collect()
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
    let names = ["down_proj", "gate_proj", "k_proj", "o_proj", "q_proj", "up_proj", "v_proj"];
    assert_eq!(written["target_modules"], serde_json::json!(names));
}
