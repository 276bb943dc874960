//! Tests of merging an adapter into its base: weights and logits equal PEFT's, the output is a complete model folder,
//! and existing files are kept.

use std::fs;
use std::path::Path;

use crate::suite::adapters::{
    base_and_adapter, base_folder, base_of_shape_and_adapter, base_quantization, config,
    golden_logits, random_logits, runs, runs_of, shape,
};
use crate::suite::families;
use crate::suite::golden::{Tensors, assert_close, json_file, reference};
use crate::suite::support::shared;
use crate::suite::tiny::write_changed_model;
use arithmo::adapter::config::LoraBias;
use arithmo::adapter::merge::{MergeConfig, MergeSummary, MergeTarget, merge, merged_model};
use arithmo::adapter::modules::Patterns;
use arithmo::adapter::{LoraConfig, peft};
use arithmo::model::config::DecoderConfig;
use arithmo::model::load::{load, load_as};
use arithmo::model::names::{ModelTensor, projections};
use arithmo::model::quantize::Quantization;
use arithmo::model::quantize::cache::Cache;
use arithmo::model::save::{load_safetensors_f32, save_safetensors};
use arithmo::model::weights::WeightFiles;
use arithmo_backends::Format;
use burn::tensor::DType;
use serde_json::{Value, json};

type B = burn_ndarray::NdArray<f32>;

/// Compares logits with the adapter, and of the merged model, with those after PEFT's `merge_and_unload`.
#[test]
fn merged_logits_equal_pefts() {
    let mut compared = 0;
    for (name, folder, run) in runs() {
        let golden = folder.join("merged_logits.safetensors");
        // In the run on a base of bitsandbytes, nothing was merged.
        let merged = run["base_precision"] != "bnb4";
        if golden.is_file() && merged {
            compare_merged(&name, &run, &folder, &Tensors::open(&golden), true);
            compared += 1;
        }
    }
    let wanted = if runs().len() > 50 { 10 } else { 1 };
    assert!(compared >= wanted, "only {compared} runs compared");
}

/// Compares logits with and without the adapter, and of the merged model, for every option of an adapter.
#[test]
#[ignore = "compares with data that are not in the tree"]
fn merged_logits_of_every_kind_of_adapter_equal_pefts() {
    let mut compared = 0;
    for (name, folder, run) in runs_of("adapter") {
        let config = json_file(&folder.join("adapter_config.json"));
        let changes_base =
            ["pissa", "olora"].iter().any(|kind| config["init_lora_weights"] == *kind);
        let golden = folder.join("merged_logits.safetensors");
        // PEFT does not merge an adapter with biases.
        if !golden.is_file() || config["lora_bias"] == true {
            continue;
        }
        // The form of the original base, whose logits without adapter are not those of the base that PEFT changed.
        let adapter = if changes_base { folder.join("converted") } else { folder };
        compare_merged(&name, &run, &adapter, &Tensors::open(&golden), !changes_base);
        compared += 1;
    }
    assert!(compared >= 19 || shared("reference/adapter").is_none(), "only {compared} compared");
}

/// Compares logits with the adapter, and of the merged model, for models whose norms lie elsewhere or whose projections are
/// fused.
#[test]
fn merged_logits_of_other_families_equal_pefts() {
    for name in ["olmo2", "phi3"] {
        let folder = reference(&format!("families/trl/{name}")).unwrap();
        let golden = Tensors::open(&folder.join("merged_logits.safetensors"));
        compare_merged(name, &json_file(&folder.join("config.json")), &folder, &golden, true);
    }
}

/// Compares logits with and without the adapter, and of the merged model, for a model of every family.
#[test]
#[ignore = "compares with data that are not in the tree"]
fn merged_logits_of_every_family_equal_pefts() {
    let mut compared = 0;
    for (name, folder, run) in runs_of("families/trl") {
        let golden = folder.join("merged_logits.safetensors");
        compare_merged(&name, &run, &folder, &Tensors::open(&golden), true);
        compared += 1;
    }
    let is_absent = shared("reference/families").is_none();
    assert!(compared >= 14 || is_absent, "only {compared} compared");
}

/// Compares the logits with the adapter and of the merged model, and those without the adapter if `same_base` is set.
fn compare_merged(name: &str, run: &Value, adapter: &Path, golden: &Tensors, same_base: bool) {
    let (base, bf16) = (base_folder(run), run["base_precision"] == "bf16");
    let quantization = base_quantization(run);
    let (_, theirs) = golden.f32("merged_logits");

    let mut model =
        load_as::<B>(&base, DType::F32, quantization, &Cache::none(), &Default::default()).unwrap();
    peft::load(&mut model, adapter, &Default::default()).unwrap();
    let active = golden_logits(&model, golden);
    let folder = tempfile::tempdir().unwrap();
    let output = folder.path().join("merged");
    let settings =
        MergeConfig { base_quantization: quantization, ..settings(&base, adapter, &output, None) };
    merge::<B>(&settings, &Default::default(), |_| ()).unwrap();
    let merged = load::<B>(&output, DType::F32, &Default::default()).unwrap();
    let merged = golden_logits(&merged, golden);
    // PEFT computed the logits of a bf16 model in bf16, so they differ by rounding and allow only a loose comparison.
    let tolerance = if bf16 { 0.15 } else { 2e-4 };
    let what = |which: &str| format!("{name}: {which}");
    assert_close(&what("merged and active"), &merged, &active, tolerance);
    assert_close(&what("merged"), &merged, &theirs, tolerance);
    assert_close(&what("active"), &active, &theirs, tolerance);
    if same_base && golden.names().iter().any(|name| name == "disabled_logits") {
        let (_, disabled) = golden.f32("disabled_logits");
        let ours = golden_logits(&model.without_adapter(), golden);
        assert_close(&what("without adapter"), &ours, &disabled, tolerance);
    }

    let names = golden.names();
    let weight = names.iter().find_map(|name| name.strip_prefix("merged.")).unwrap();
    let files = WeightFiles::open(&output).unwrap();
    let ours = files.tensor_f32(&format!("model.{weight}")).unwrap();
    let (_, theirs) = golden.f32(&format!("merged.{weight}"));
    let largest = theirs.iter().fold(0f32, |max, x| max.max(x.abs()));
    // PEFT rounds both B A and the sum, this program only the sum. They differ by at most one unit in the last of
    // bf16's 8 bits.
    let tolerance = if bf16 { largest / 128.0 } else { 1e-6 };
    assert_close(&what(weight), &ours, &theirs, tolerance);
}

/// An adapter with ranks of its own for single projections and modules trained in full is merged into the model that
/// was trained, and one with biases is refused.
#[test]
fn every_option_but_biases_is_merged() {
    let options = LoraConfig {
        rank_pattern: Patterns(vec![("q_proj".into(), 2)]),
        alpha_pattern: Patterns(vec![("v_proj".into(), 2.5)]),
        modules_to_save: vec!["lm_head".into(), "embed_tokens".into(), "norm".into()],
        ..config(&[], true)
    };
    let (folder, base, adapter_folder, model) = base_and_adapter(&options, DType::F32);
    let output = folder.path().join("merged");
    let summary = run_merge(&base, &adapter_folder, &output, None).unwrap();
    // Seven projections and two norms in each of two layers, the last norm, head and embedding.
    assert_eq!(summary, MergeSummary { merged: 2 * 9 + 3, copied: 0 });
    let merged = load::<B>(&output, DType::F32, &Default::default()).unwrap();
    assert_close("merged", &random_logits(&merged), &random_logits(&model), 2e-5);

    let biases = LoraConfig { lora_bias: true, ..config(&[], false) };
    let (folder, base, adapter_folder, _) = base_and_adapter(&biases, DType::F32);
    let refused = run_merge(&base, &adapter_folder, &folder.path().join("merged"), None);
    let error = refused.unwrap_err().to_string();
    assert!(error.contains("lora_bias") && !folder.path().join("merged").exists(), "{error}");
}

/// The model of every family is merged with LoRA and DoRA, whole and on a base in 4 and 8 bits; where it has biases, also with
/// an adapter that trains them, and where every projection has one, with an adapter that has biases of its own.
#[test]
fn models_of_every_family_are_merged_and_quantized() {
    let device = Default::default();
    for shape in families::shapes() {
        let family = shape.family;
        let all_have_biases = projections(&shape).iter().all(|projection| projection.has_bias);
        let plain = config(&[], false);
        let dora = LoraConfig { use_dora: true, ..plain.clone() };
        let biased = LoraConfig { lora_bias: true, ..plain.clone() };
        let has_biases = projections(&shape).iter().any(|projection| projection.has_bias);
        let trains_biases = LoraConfig { bias: LoraBias::All, ..plain.clone() };
        let adapters = [
            Some(plain),
            Some(dora),
            all_have_biases.then_some(biased),
            has_biases.then_some(trains_biases),
        ];
        for adapter in adapters.into_iter().flatten() {
            let (folder, base, adapter_folder, model) =
                base_of_shape_and_adapter(&shape, &adapter, DType::F32);
            let output = folder.path().join("merged");
            run_merge(&base, &adapter_folder, &output, None).unwrap();
            let merged = load::<B>(&output, DType::F32, &device).unwrap();
            let what = format!("{family:?}, DoRA {}", adapter.use_dora);
            assert_close(&what, &random_logits(&merged), &random_logits(&model), 1e-4);

            // The merged model has the dequantized weights.
            for to in [
                Quantization { format: Format::Nf4, double_quant: true },
                Quantization { format: Format::Int8, double_quant: false },
            ] {
                let mut packed =
                    load_as::<B>(&base, DType::F32, Some(to), &Cache::none(), &device).unwrap();
                peft::load(&mut packed, &adapter_folder, &device).unwrap();
                let output = folder.path().join(to.name());
                let settings = MergeConfig {
                    base_quantization: Some(to),
                    ..settings(&base, &adapter_folder, &output, None)
                };
                merge::<B>(&settings, &device, |_| ()).unwrap();
                let merged = load::<B>(&output, DType::F32, &device).unwrap();
                let what = format!("{what}, {}", to.name());
                assert_close(&what, &random_logits(&merged), &random_logits(&packed), 1e-4);
            }
        }
    }
}

/// The factors of Granite are those of a Llama whose weights are multiplied by them.
#[test]
fn a_granite_model_equals_a_llama_with_scaled_weights() {
    let parse = |keys: serde_json::Value| {
        let mut all = json!({"vocab_size": 37, "hidden_size": 20, "intermediate_size": 28, "num_hidden_layers": 2,
            "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 4, "max_position_embeddings": 32});
        all.as_object_mut().unwrap().extend(keys.as_object().unwrap().clone());
        DecoderConfig::parse(&all.to_string(), "config.json".as_ref()).unwrap()
    };
    let granite = parse(
        json!({"model_type": "granite", "embedding_multiplier": 3.0, "attention_multiplier": 0.3,
        "residual_multiplier": 0.6, "logits_scaling": 5.0}),
    );
    let llama = parse(json!({"model_type": "llama"}));
    let folder = tempfile::tempdir().unwrap();
    let [first, second] = ["granite", "llama"].map(|name| folder.path().join(name));
    write_changed_model(&first, &granite, DType::F32, |_, _| ());
    write_changed_model(&second, &llama, DType::F32, |name, values| {
        let factor = match name.rsplit('.').nth(1).unwrap() {
            "embed_tokens" => 3.0,
            // The square root of the width of a head is 2.
            "q_proj" => 0.3 * 2.0,
            "o_proj" | "down_proj" => 0.6,
            "lm_head" => 1.0 / 5.0,
            _ => 1.0,
        };
        values.iter_mut().for_each(|value| *value *= factor);
    });
    let [ours, expected] = [first, second]
        .map(|folder| random_logits(&load::<B>(&folder, DType::F32, &Default::default()).unwrap()));
    assert_close("logits", &ours, &expected, 2e-5);
}

fn run_merge(
    base: &Path,
    adapter: &Path,
    output: &Path,
    dtype: Option<DType>,
) -> arithmo::Result<MergeSummary> {
    let config = settings(base, adapter, output, dtype);
    merge::<B>(&config, &Default::default(), |_| ())
}

fn settings(base: &Path, adapter: &Path, output: &Path, dtype: Option<DType>) -> MergeConfig {
    MergeConfig {
        model: base.to_path_buf(),
        adapter: adapter.to_path_buf(),
        output: output.to_path_buf(),
        dtype,
        base_quantization: None,
        target: MergeTarget::default(),
        overwrite: false,
    }
}

/// Merges an adapter of a quantized base into each target. Only the dequantized base gives the model that was trained,
/// and `merged_model`, which merges in memory, gives the model that `merge` writes.
#[test]
fn a_quantized_base_merges_into_three_targets() {
    for stored in [DType::F32, DType::BF16] {
        let (folder, base, adapter_folder, _) =
            base_and_adapter(&config(&["v_proj", "down_proj"], false), stored);
        for (format, double_quant) in
            [(Format::Nf4, true), (Format::Fp4, false), (Format::Int8, true)]
        {
            let to = Quantization { format, double_quant };
            let nowhere = Cache::none();
            let model = load_as::<B>(&base, DType::F32, Some(to), &nowhere, &Default::default());
            let mut model = model.unwrap();
            peft::load(&mut model, &adapter_folder, &Default::default()).unwrap();
            let trained = random_logits(&model);
            let max_difference = |logits: &[f32]| {
                let differences = logits.iter().zip(&trained).map(|(a, b)| (a - b).abs());
                differences.fold(0f32, f32::max)
            };
            let targets =
                [MergeTarget::Dequantized, MergeTarget::Original, MergeTarget::Requantized];
            let outputs = targets.map(|target| {
                let output = folder.path().join(format!("{to:?} {target:?}"));
                let settings = MergeConfig {
                    base_quantization: Some(to),
                    target,
                    ..settings(&base, &adapter_folder, &output, None)
                };
                merge::<B>(&settings, &Default::default(), |_| ()).unwrap();
                let written = load::<B>(&output, DType::F32, &Default::default()).unwrap();
                let requantized = (target == MergeTarget::Requantized).then_some(to);
                assert_eq!(written.config.quantization, requantized);
                let in_memory = merged_model::<B>(&settings, DType::F32, &Default::default());
                let (written, in_memory) =
                    (random_logits(&written), random_logits(&in_memory.unwrap()));
                assert_close(&format!("{target:?}"), &in_memory, &written, 1e-5);
                written
            });
            let [exact, original, requantized] = outputs.map(|logits| max_difference(&logits));
            let rounding = if stored == DType::F32 { 3e-5 } else { 0.2 };
            assert!(exact < rounding, "{to:?}: {exact}");
            if stored == DType::F32 {
                assert!(original > 100.0 * exact && requantized > 100.0 * exact, "{to:?}");
            }
        }
    }
}

#[test]
fn merging_writes_a_complete_model_and_changes_only_targets() {
    for (dtype, tolerance) in [(DType::F32, 2e-5), (DType::BF16, 0.2)] {
        let (folder, base, adapter_folder, model) =
            base_and_adapter(&config(&["k_proj", "up_proj"], true), dtype);
        fs::write(base.join("tokenizer.json"), "{}").unwrap();
        let output = folder.path().join("merged");
        let summary = run_merge(&base, &adapter_folder, &output, None).unwrap();
        let total = shape().tensors().len();
        assert_eq!(summary, MergeSummary { merged: 4, copied: total - 4 });
        assert!(output.join("tokenizer.json").is_file());

        let (before, after) =
            (WeightFiles::open(&base).unwrap(), WeightFiles::open(&output).unwrap());
        for ModelTensor { name, .. } in shape().tensors() {
            assert_eq!(after.dtype(&name).unwrap(), dtype, "{name}");
            let same = before.bytes(&name).unwrap()[..] == after.bytes(&name).unwrap()[..];
            let target = name.contains("k_proj") || name.contains("up_proj");
            assert_eq!(same, !target, "{name}");
        }
        let merged = load::<B>(&output, DType::F32, &Default::default()).unwrap();
        assert_close("merged", &random_logits(&merged), &random_logits(&model), tolerance);

        let narrow = folder.path().join("narrow");
        run_merge(&base, &adapter_folder, &narrow, Some(DType::F16)).unwrap();
        let narrow = WeightFiles::open(&narrow).unwrap();
        assert!(narrow.names().all(|name| narrow.dtype(name).unwrap() == DType::F16));
    }
}

#[test]
fn merging_keeps_existing_files() {
    let (folder, base, adapter_folder, _) =
        base_and_adapter(&config(&["q_proj"], false), DType::F32);
    let run = |output: &Path, overwrite| {
        let config = MergeConfig { overwrite, ..settings(&base, &adapter_folder, output, None) };
        let result = merge::<B>(&config, &Default::default(), |_| ());
        result.map_err(|error| error.to_string())
    };
    let output = folder.path().join("merged");
    run(&output, false).unwrap();
    fs::write(output.join("mine.txt"), "kept").unwrap();
    assert!(run(&output, false).unwrap_err().contains("--overwrite"));
    assert!(output.join("mine.txt").is_file());

    // A broken adapter replaces nothing and leaves no temporary folder.
    let weights = adapter_folder.join("adapter_model.safetensors");
    let good = fs::read(&weights).unwrap();
    let mut tensors: Vec<_> =
        load_safetensors_f32(&weights).unwrap().into_iter().map(|(n, (s, v))| (n, s, v)).collect();
    tensors[0].2[0] = f32::NAN;
    save_safetensors(&weights, &tensors).unwrap();
    assert!(run(&output, true).unwrap_err().contains("not finite"));
    assert!(output.join("mine.txt").is_file());
    fs::write(&weights, good).unwrap();

    run(&output, true).unwrap();
    assert!(output.join("mine.txt").is_file());
    assert!(run(&base, true).unwrap_err().contains("base model"));
    let plain = folder.path().join("plain");
    fs::create_dir(&plain).unwrap();
    fs::write(plain.join("notes.txt"), "").unwrap();
    assert!(run(&plain, true).unwrap_err().contains("not a model folder"));
    fs::write(folder.path().join("config.json"), "{}").unwrap();
    assert!(run(folder.path(), true).unwrap_err().contains("base model"));
    let names =
        fs::read_dir(folder.path()).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap());
    assert!(names.into_iter().all(|name| !name.starts_with(".part")), "a temporary folder is left");
}
