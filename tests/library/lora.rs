//! Checks that the LoRA branch equals merged weights, and that adapters are read and written as PEFT does.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use crate::suite::adapters::{
    attach_random, base_and_adapter, base_folder, config, golden_logits, random_logits, runs,
    save_adapter, write_base,
};
use crate::suite::golden::{Tensors, assert_close, json_file, reference};
use arithmo::adapter::lora::{adapter_parameters, attach, trainable};
use arithmo::adapter::modules::{ExcludeModules, Patterns};
use arithmo::adapter::parameters::{self, Role};
use arithmo::adapter::{LoraConfig, peft};
use arithmo::model::decoder::{Decoder, ModuleMut};
use arithmo::model::linear::WeightParam;
use arithmo::model::load::load;
use arithmo::model::save::{load_safetensors_f32, save_safetensors};
use burn::tensor::{DType, Tensor, TensorData};
use serde_json::Value;

type B = burn_ndarray::NdArray<f32>;

fn values<const D: usize>(tensor: &Tensor<B, D>) -> Vec<f32> {
    tensor.to_data().to_vec().unwrap()
}

/// Returns `model` without branches and with `W + scaling * B A`, computed on the host in f64, as the weights. With
/// magnitudes, each row is scaled to its own.
fn merged_by_hand(model: &Decoder<B>, scaling: f64) -> Decoder<B> {
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
            f64::from(w[at]) + scaling * (0..rank).map(term).sum::<f64>()
        });
        let mut sum: Vec<f64> = sum.collect();
        if let Some(dora) = &lora.dora {
            for (row, magnitude) in sum.chunks_mut(d_in).zip(values(&dora.magnitude.val())) {
                let norm = row.iter().map(|x| x * x).sum::<f64>().sqrt();
                row.iter_mut().for_each(|x| *x *= f64::from(magnitude) / norm);
            }
        }
        let sum = sum.into_iter().map(|x| x as f32).collect();
        let sum = TensorData::new::<f32, _>(sum, [d_out, d_in]);
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
        for (use_rslora, use_dora, scaling) in
            [(false, false, 7.0 / 3.0), (true, false, 7.0 / 3f64.sqrt()), (false, true, 7.0 / 3.0)]
        {
            let what = format!("{targets:?}, rsLoRA {use_rslora}, DoRA {use_dora}");
            let mut model = base.clone();
            attach_random(&mut model, &LoraConfig { use_dora, ..config(targets, use_rslora) });
            let with_branch = random_logits(&model);
            let merged = random_logits(&merged_by_hand(&model, scaling));
            assert_close(&what, &with_branch, &merged, 2e-5);
            let plain = random_logits(&base);
            let change = with_branch.iter().zip(&plain).map(|(a, b)| (a - b).abs());
            assert!(change.fold(0.0, f32::max) > 0.05, "{what}: the branch has no effect");
            assert_eq!(
                random_logits(&model.without_adapter()),
                plain,
                "{what}: the base has changed"
            );
        }
    }
}

#[test]
fn a_new_adapter_changes_no_logits_and_has_the_right_number_of_weights() {
    let folder = tempfile::tempdir().unwrap();
    write_base(&folder.path().join("base"), DType::F32);
    let base = load::<B>(&folder.path().join("base"), DType::F32, &Default::default()).unwrap();
    // Input plus output width of each projection, with D = 20, H * Dh = 24, H_kv * Dh = 8, I = 28.
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
        for (name, tensor) in adapter_parameters(&model) {
            let largest = values(&tensor).iter().fold(0f32, |max, x| max.max(x.abs()));
            let bound = 1.0 / (tensor.dims()[1] as f32).sqrt();
            if name.ends_with("lora_A.weight") {
                assert!(largest <= bound && largest > 0.7 * bound, "{name}: {largest}")
            } else {
                assert_eq!(largest, 0.0, "{name}")
            }
        }
    }
    let error =
        attach(&mut base.clone(), &config(&["q_proj", "qproj"], false), 3, &Default::default());
    assert!(error.unwrap_err().to_string().contains("`qproj`"));
}

/// Returns an adapter with every option: ranks and scalings of single projections, biases, modules trained in full.
fn every_option() -> LoraConfig {
    LoraConfig {
        rank_pattern: Patterns(vec![("q_proj".into(), 2), (r".*\.1\.mlp\.up_proj".into(), 5)]),
        alpha_pattern: Patterns(vec![("layers.0.self_attn.v_proj".into(), 2.5)]),
        exclude_modules: ExcludeModules::Names(vec!["layers.1.self_attn.q_proj".into()]),
        lora_bias: true,
        modules_to_save: vec!["lm_head".into(), "embed_tokens".into(), "norm".into()],
        ..config(&[], true)
    }
}

/// The copies of the modules that are trained in full start as the modules, whatever the base is stored in, and without
/// the adapter the model is the base.
#[test]
fn new_copies_of_modules_change_no_logits() {
    for dtype in [DType::F32, DType::BF16] {
        let folder = tempfile::tempdir().unwrap();
        write_base(&folder.path().join("base"), dtype);
        for loaded in [DType::F32, DType::BF16] {
            let base = load::<B>(&folder.path().join("base"), loaded, &Default::default()).unwrap();
            let mut model = base.clone();
            attach(&mut model, &every_option(), 3, &Default::default()).unwrap();
            let saved = parameters::adapter_parameters(&model);
            let saved = saved.iter().filter(|parameter| parameter.role == Role::Saved).count();
            // Embedding, head, two norms per layer and the last one.
            assert_eq!(saved, 2 + 2 * 2 + 1);
            assert_close("new copies", &random_logits(&model), &random_logits(&base), 1e-6);
            for (_, module) in model.modules_mut() {
                if let ModuleMut::Norm(norm) = module {
                    norm.trained = norm.trained.take().map(|norm| norm.map(|weight| weight * 1.5));
                }
            }
            assert_ne!(random_logits(&model), random_logits(&base));
            assert_eq!(random_logits(&model.without_adapter()), random_logits(&base));
        }
    }
}

#[test]
fn saving_and_loading_changes_no_bit() {
    let dora = LoraConfig { use_dora: true, lora_bias: false, ..every_option() };
    let configs = TARGETS.map(|targets| config(targets, true)).into_iter();
    for config in configs.chain([every_option(), dora]) {
        let targets = &config.target_modules;
        let (_folder, base, adapter_folder, model) = base_and_adapter(&config, DType::F32);
        let mut again = load::<B>(&base, DType::F32, &Default::default()).unwrap();
        let read = peft::load(&mut again, &adapter_folder, &Default::default()).unwrap();
        assert_eq!(read.modules_to_save, config.modules_to_save);
        let bits = |model: &Decoder<B>| -> Vec<(String, Vec<u32>)> {
            let all = adapter_parameters(model).into_iter();
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
        let error = peft::load(&mut model, &adapter_folder, &Default::default()).unwrap_err();
        assert_eq!(random_logits(&model), before, "the model has changed");
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
        let error = peft::load(&mut model, &adapter_folder, &Default::default()).unwrap_err();
        let error = error.to_string();
        assert!(error.contains("adapter_model.safetensors"), "cut at {length}: {error}");
        assert_eq!(random_logits(&model), before, "cut at {length}");
    }
    fs::remove_file(&weights).unwrap();
    assert!(peft::load(&mut model, &adapter_folder, &Default::default()).is_err());
}

/// PEFT saves patterns sorted, and the first one counts. In any other order, they must not contradict each other.
#[test]
fn patterns_that_sorting_would_change_are_refused() {
    let options = LoraConfig {
        alpha_pattern: Patterns(vec![("q_proj".into(), 2.0), (".*_proj".into(), 3.0)]),
        ..config(&["q_proj", "v_proj"], false)
    };
    let (_folder, base, adapter_folder, _) =
        base_and_adapter(&config(&["q_proj", "v_proj"], false), DType::F32);
    let write = |patterns: Vec<(&str, f64)>| {
        let path = adapter_folder.join("adapter_config.json");
        let mut file = json_file(&path);
        let patterns = patterns.into_iter().map(|(key, alpha)| (key.to_string(), alpha.into()));
        file["alpha_pattern"] = Value::Object(patterns.collect());
        fs::write(&path, file.to_string()).unwrap();
        let mut model = load::<B>(&base, DType::F32, &Default::default()).unwrap();
        peft::load(&mut model, &adapter_folder, &Default::default())
    };
    let error = write(vec![("q_proj", 2.0), (".*_proj", 3.0)]).unwrap_err().to_string();
    assert!(
        error.contains("adapter_config.json: alpha_pattern: ") && error.contains("order"),
        "{error}"
    );
    let sorted = write(vec![(".*_proj", 3.0), ("q_proj", 2.0)]).unwrap();
    let scaling = |module: &str| sorted.at(module).unwrap().unwrap().scaling;
    assert_eq!(scaling("model.layers.0.self_attn.q_proj"), 1.0);
    let mut model = load::<B>(&base, DType::F32, &Default::default()).unwrap();
    let error = attach(&mut model, &options, 3, &Default::default()).unwrap_err().to_string();
    assert!(error.starts_with("lora.alpha_pattern: "), "{error}");
}

/// Rewrites the tensors of an adapter under other names.
fn rename(adapter_folder: &Path, name: impl Fn(&str) -> String) {
    let weights = adapter_folder.join("adapter_model.safetensors");
    let renamed: Vec<_> = load_safetensors_f32(&weights)
        .unwrap()
        .into_iter()
        .map(|(old, (shape, values))| (name(&old), shape, values))
        .collect();
    save_safetensors(&weights, &renamed).unwrap();
}

#[test]
fn errors_name_the_form_of_an_unusable_adapter() {
    let config = config(&["q_proj", "v_proj"], false);
    let error = |change: &dyn Fn(&Path)| {
        let (_folder, base, adapter_folder, _) = base_and_adapter(&config, DType::F32);
        change(&adapter_folder);
        let mut model = load::<B>(&base, DType::F32, &Default::default()).unwrap();
        let loaded = peft::load(&mut model, &adapter_folder, &Default::default());
        let error = loaded.unwrap_err().to_string();
        assert!(error.len() < 1500 && error.lines().count() < 10, "{error}");
        error
    };
    let named = error(&|folder| rename(folder, |name| name.replace(".weight", ".default.weight")));
    assert!(
        named.contains("has the adapter's name in it") && named.contains("\"default\""),
        "{named}"
    );
    let bare = error(&|folder| rename(folder, |name| name.replace("base_model.model.", "")));
    assert!(bare.contains("lacks the prefix \"base_model.model.\""), "{bare}");
    let other = error(&|folder| rename(folder, |name| name.replace("q_proj", "k_proj")));
    assert!(
        other.contains("8 tensors do not fit the model: ") && other.contains("and 5 more"),
        "{other}"
    );
    let pickled = error(&|folder| {
        let weights = folder.join("adapter_model.safetensors");
        fs::rename(weights, folder.join("adapter_model.bin")).unwrap();
    });
    assert!(pickled.contains("pickled weights (adapter_model.bin)"), "{pickled}");
    let nested = error(&|folder| {
        let inner = folder.join("default");
        fs::create_dir(&inner).unwrap();
        fs::rename(folder.join("adapter_config.json"), inner.join("adapter_config.json")).unwrap();
    });
    assert!(nested.contains("holds no adapter_config.json, but folders in it do"), "{nested}");
    assert!(nested.contains("/default"), "{nested}");
}

/// Checks that `--adapter RUN` loads the adapter in the run's folder.
#[test]
fn a_run_folder_can_be_given_as_its_adapter() {
    let config = config(&["q_proj", "v_proj"], false);
    let (_folder, base, adapter_folder, _) = base_and_adapter(&config, DType::F32);
    let run = tempfile::tempdir().unwrap();
    fs::rename(&adapter_folder, run.path().join("adapter")).unwrap();
    let logits = |folder: &Path| {
        let mut model = load::<B>(&base, DType::F32, &Default::default()).unwrap();
        peft::load(&mut model, folder, &Default::default()).unwrap();
        random_logits(&model)
    };
    assert_eq!(logits(run.path()), logits(&run.path().join("adapter")));
}

/// Compares logits for adapters saved by PEFT: plain, rsLoRA, and `target_modules` as a pattern.
#[test]
fn logits_with_peft_adapters_equal_pefts() {
    for name in ["plain", "rslora", "target_regex", "use_dora", "init_pissa_converted"] {
        let Some(folder) = reference(&format!("peft_adapters/{name}")) else { continue };
        let mut model =
            load::<B>(&reference("models/tiny-a").unwrap(), DType::F32, &Default::default())
                .unwrap();
        peft::load(&mut model, &folder, &Default::default()).unwrap();
        let expected = Tensors::open(&folder.join("expected.safetensors"));
        assert_close(name, &golden_logits(&model, &expected), &expected.f32("logits").1, 1e-4);
    }
}

#[test]
fn adapters_are_written_as_peft_writes_them() {
    let out = tempfile::tempdir().unwrap();
    for (name, folder, run) in runs() {
        let mut model = load::<B>(&base_folder(&run), DType::F32, &Default::default()).unwrap();
        let config = peft::load(&mut model, &folder, &Default::default()).unwrap();
        let scaling = run["lora"]["scaling"].as_f64().unwrap_or(2.0);
        let branches = model.projections().filter_map(|(_, linear)| linear.lora.as_ref());
        branches.for_each(|lora| assert_eq!(lora.scaling, scaling, "{name}"));
        let base = run["model"].as_str().unwrap();
        save_adapter(&model, &config, base, out.path());

        let read = |folder: &Path| load_safetensors_f32(&folder.join("adapter_model.safetensors"));
        assert_eq!(read(out.path()).unwrap(), read(&folder).unwrap(), "{name}");
        let ours = json_file(&out.path().join("adapter_config.json"));
        let theirs = json_file(&folder.join("adapter_config.json"));
        for (key, value) in ours.as_object().unwrap() {
            // PEFT writes a set in any order.
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
    let written = json_file(&adapter_folder.join("adapter_config.json"));
    let names = ["down_proj", "gate_proj", "k_proj", "o_proj", "q_proj", "up_proj", "v_proj"];
    assert_eq!(written["target_modules"], serde_json::json!(names));
}
