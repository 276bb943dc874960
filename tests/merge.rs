//! Merging an adapter into its base: PEFT's weights and logits, a whole model folder, and nothing lost on the way.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod suite;

use std::fs;
use std::path::Path;

use arithmo::lora::adapter;
use arithmo::lora::merge::{MergeConfig, MergeSummary, merge};
use arithmo::model::load::load;
use arithmo::model::save::{load_safetensors_f32, save_safetensors};
use arithmo::model::weights::WeightFiles;
use burn::tensor::DType;
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
