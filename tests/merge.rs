//! Merging an adapter into its base: PEFT's weights and logits, a whole model folder, and nothing lost on the way.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod suite;

use std::fs;
use std::path::Path;

use arithmo::lora::adapter;
use arithmo::lora::merge::{MergeConfig, MergeSummary, MergeTarget, merge, merged_model};
use arithmo::model::load::{load, load_as};
use arithmo::model::quantize::Quantization;
use arithmo::model::quantize::cache::Cache;
use arithmo::model::save::{load_safetensors_f32, save_safetensors};
use arithmo::model::weights::WeightFiles;
use arithmo_backends::Format;
use burn::tensor::DType;
use serde_json::Value;
use suite::adapters::{
    base_and_adapter, base_of, config, logits, random_logits, refused_dora, runs, shape,
};
use suite::golden::{Tensors, assert_close, reference};

type B = burn_ndarray::NdArray<f32>;

/// Logits with the adapter, and of the merged model, against PEFT's `merge_and_unload`.
#[test]
fn merged_logits_equal_pefts() {
    let mut compared = 0;
    for (name, folder, run) in runs() {
        let golden = folder.join("merged_logits.safetensors");
        // Of the run with bitsandbytes itself nothing was merged.
        let merged = run["base_precision"] != "bnb4";
        if golden.is_file() && merged && !refused_dora(&folder) {
            compare_merged(&name, &run, &folder, &Tensors::open(&golden));
            compared += 1;
        }
    }
    assert!(compared >= 10 || reference("trl").is_none(), "only {compared} runs compared");
}

/// What a run's base was packed as.
fn packed_as(run: &Value) -> Option<Quantization> {
    let double_quant = run["base_precision"] == "nf4dq";
    let packed = double_quant || run["base_precision"] == "nf4";
    packed.then_some(Quantization { format: Format::Nf4, double_quant })
}

fn compare_merged(name: &str, run: &Value, adapter: &Path, golden: &Tensors) {
    let (base, bf16, packed) = (base_of(run), run["base_precision"] == "bf16", packed_as(run));
    let (shape, ids) = golden.i64("input_ids");
    let ids: Vec<u32> = ids.into_iter().map(|id| id as u32).collect();
    let ids: Vec<&[u32]> = ids.chunks(shape[1]).collect();
    let (_, theirs) = golden.f32("merged_logits");

    let mut model =
        load_as::<B>(&base, DType::F32, packed, &Cache::none(), &Default::default()).unwrap();
    adapter::load(&mut model, adapter, &Default::default()).unwrap();
    let active = logits(&model, &ids);
    let folder = tempfile::tempdir().unwrap();
    let output = folder.path().join("merged");
    let settings = MergeConfig { packed, ..settings(&base, adapter, &output, None) };
    merge::<B>(&settings, &Default::default(), |_| ()).unwrap();
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
    let config = settings(base, adapter, output, dtype);
    merge::<B>(&config, &Default::default(), |_| ())
}

fn settings(base: &Path, adapter: &Path, output: &Path, dtype: Option<DType>) -> MergeConfig {
    MergeConfig {
        model: base.to_path_buf(),
        adapter: adapter.to_path_buf(),
        output: output.to_path_buf(),
        dtype,
        packed: None,
        target: MergeTarget::default(),
        overwrite: false,
    }
}

/// Of a packed base: the floats it stands for make the model that was trained, whatever else is merged into makes another;
/// what is measured in memory is what is written.
#[test]
fn a_packed_base_merges_into_three_targets() {
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
            adapter::load(&mut model, &adapter_folder, &Default::default()).unwrap();
            let trained = random_logits(&model);
            let far = |logits: &[f32]| {
                let differences = logits.iter().zip(&trained).map(|(a, b)| (a - b).abs());
                differences.fold(0f32, f32::max)
            };
            let targets =
                [MergeTarget::Dequantized, MergeTarget::Original, MergeTarget::Requantized];
            let outputs = targets.map(|target| {
                let output = folder.path().join(format!("{to:?} {target:?}"));
                let settings = MergeConfig {
                    packed: Some(to),
                    target,
                    ..settings(&base, &adapter_folder, &output, None)
                };
                merge::<B>(&settings, &Default::default(), |_| ()).unwrap();
                let written = load::<B>(&output, DType::F32, &Default::default()).unwrap();
                let repacked = (target == MergeTarget::Requantized).then_some(to);
                assert_eq!(written.config.quantization, repacked);
                let measured = merged_model::<B>(&settings, DType::F32, &Default::default());
                let (written, measured) =
                    (random_logits(&written), random_logits(&measured.unwrap()));
                assert_close(&format!("{target:?}"), &measured, &written, 1e-5);
                written
            });
            let [exact, original, requantized] = outputs.map(|logits| far(&logits));
            let rounding = if stored == DType::F32 { 3e-5 } else { 0.2 };
            assert!(exact < rounding, "{to:?}: {exact}");
            if stored == DType::F32 {
                assert!(original > 100.0 * exact && requantized > 100.0 * exact, "{to:?}");
            }
        }
    }
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
        assert_eq!(summary, MergeSummary { merged: 4, copied: total - 4 });
        assert!(output.join("tokenizer.json").is_file());

        let (before, after) =
            (WeightFiles::open(&base).unwrap(), WeightFiles::open(&output).unwrap());
        for (name, _) in shape().tensors() {
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
fn merging_spares_what_is_there() {
    let (folder, base, adapter_folder, _) =
        base_and_adapter(&config(&["q_proj"], false), DType::F32);
    let settings = |output: &Path, overwrite| MergeConfig {
        model: base.clone(),
        adapter: adapter_folder.clone(),
        output: output.to_path_buf(),
        dtype: None,
        packed: None,
        target: MergeTarget::default(),
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
    let mut tensors: Vec<_> =
        load_safetensors_f32(&weights).unwrap().into_iter().map(|(n, (s, v))| (n, s, v)).collect();
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
    assert!(run(&plain, true).unwrap_err().contains("not a model folder"));
    fs::write(folder.path().join("config.json"), "{}").unwrap();
    assert!(run(folder.path(), true).unwrap_err().contains("base model"));
    let names =
        fs::read_dir(folder.path()).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap());
    assert!(names.into_iter().all(|name| !name.starts_with(".part")), "nothing is left over");
}
