//! Reading and writing model folders: every stored type, shards, and every way a file can be broken.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs;
use std::path::{Path, PathBuf};

use arithmo::data::batch::TokenRows;
use arithmo::model::config::MistralConfig;
use arithmo::model::input::ModelInput;
use arithmo::model::linear::WeightParam;
use arithmo::model::load::load;
use arithmo::model::save::{OutTensor, load_safetensors_f32, save_folder, save_safetensors};
use arithmo::model::weights::WeightFiles;
use arithmo_backends::Format;
use burn::tensor::DType;
use half::{bf16, f16};
use serde_json::{Value, json};

/// The golden data beside the checkout, or `None` with a plain note.
fn reference() -> Option<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../shared/reference");
    if folder.is_dir() {
        return Some(folder);
    }
    eprintln!("SKIPPED: the golden data (../shared/reference) is not beside this checkout");
    None
}

/// A safetensors file from a header and raw data, so that tests can lie in either.
fn raw_file(header: &str, data: &[u8]) -> Vec<u8> {
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend_from_slice(header.as_bytes());
    bytes.extend_from_slice(data);
    bytes
}

fn open_raw(header: &str, data: &[u8]) -> arithmo::Result<WeightFiles> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.safetensors");
    fs::write(&path, raw_file(header, data)).unwrap();
    WeightFiles::open(folder.path())
}

/// A header entry.
fn entry(dtype: &str, shape: &[u64], from: u64, to: u64) -> Value {
    json!({"dtype": dtype, "shape": shape, "data_offsets": [from, to]})
}

/// Values that show rounding: ties of bf16, subnormals of f16, its largest number.
fn values() -> Vec<f64> {
    let mut values = vec![0.0, -1.5, 1.00390625, 1.01171875, 6.0e-8, 65504.0, 1e-3, -3.25];
    values.extend((0..9001).map(|i| (f64::from(i) * 0.7391).sin() * 3.0));
    values
}

/// A float type of the format, and what a number becomes in it.
type FloatType = (&'static str, DType, fn(f64) -> f64);

const FLOAT_TYPES: [FloatType; 4] = [
    ("F64", DType::F64, |v| v),
    ("F32", DType::F32, |v| f64::from(v as f32)),
    ("BF16", DType::BF16, |v| bf16::from_f64(v).to_f64()),
    ("F16", DType::F16, |v| f16::from_f64(v).to_f64()),
];

/// `values` in each float type, behind a single byte, so that nothing is aligned.
fn open_float_types(values: &[f64]) -> WeightFiles {
    let n = values.len() as u64;
    let mut data = vec![7u8];
    let mut header = json!({"flag": entry("U8", &[1], 0, 1)});
    for (name, dtype, _) in FLOAT_TYPES {
        let from = data.len() as u64;
        for v in values {
            match dtype {
                DType::F64 => data.extend(v.to_le_bytes()),
                DType::F32 => data.extend((*v as f32).to_le_bytes()),
                DType::BF16 => data.extend(bf16::from_f64(*v).to_le_bytes()),
                _ => data.extend(f16::from_f64(*v).to_le_bytes()),
            }
        }
        header[name] = entry(name, &[1, n], from, data.len() as u64);
    }
    open_raw(&header.to_string(), &data).unwrap()
}

#[test]
fn every_float_type_is_read_as_every_other_at_an_odd_offset() {
    let values = values();
    let weights = open_float_types(&values);
    assert_eq!(weights.total_bytes(), 1 + (8 + 4 + 2 + 2) * values.len() as u64);
    for (name, dtype, round) in FLOAT_TYPES {
        assert_eq!(weights.dtype(name).unwrap(), dtype);
        assert_eq!(weights.shape(name).unwrap(), [1, values.len()]);
        let exact: Vec<f64> = values.iter().map(|v| round(*v)).collect();
        let single: Vec<f32> = exact.iter().map(|v| *v as f32).collect();
        assert_eq!(weights.tensor_f32(name).unwrap(), single);
        for (_, target, round) in FLOAT_TYPES {
            let data = weights.tensor_data(name, target).unwrap();
            let wanted: Vec<f64> = exact.iter().map(|v| round(*v)).collect();
            assert_eq!(data.dtype, target);
            assert_eq!(data.iter::<f64>().collect::<Vec<_>>(), wanted, "{name} as {target:?}");
        }
        assert!(weights.tensor_data(name, DType::I32).is_err());
    }
    let error = weights.tensor_f32("flag").unwrap_err().to_string();
    assert!(error.contains("flag: U8"), "{error}");
    assert!(weights.tensor_f32("none").unwrap_err().to_string().contains("none"));
}

/// Two tensors, `a` of 8 bytes and `b` as given.
fn header_with(b: Value) -> String {
    json!({"a": entry("F32", &[2], 0, 8), "b": b}).to_string()
}

#[test]
fn a_file_of_the_wrong_length_is_named_with_the_byte() {
    let good = header_with(entry("F32", &[1], 8, 12));
    assert!(open_raw(&good, &[0; 12]).is_ok());
    let end = 8 + good.len() + 12;
    let short = format!("ends at byte {}, but b reaches to byte {end}", end - 1);
    let long = format!("has 1 bytes after its last tensor (byte {end})");
    for (data, wanted) in [(11, short), (13, long)] {
        let error = open_raw(&good, &vec![0; data]).unwrap_err().to_string();
        assert!(error.contains("model.safetensors") && error.contains(&wanted), "{error}");
    }
    let folder = tempfile::tempdir().unwrap();
    for (bytes, wanted) in [
        (vec![], "is 0 bytes long"),
        (b"<!DOCTYPE html>".to_vec(), "not a safetensors file"),
        (raw_file(&good, &[])[..20].to_vec(), "ends at byte 20, inside its header"),
    ] {
        fs::write(folder.path().join("model.safetensors"), bytes).unwrap();
        let error = WeightFiles::open(folder.path()).unwrap_err().to_string();
        assert!(error.contains(wanted), "{error}");
    }
}

#[test]
fn a_header_that_contradicts_itself_is_named_with_the_tensor() {
    let b = |shape: &[u64], from, to| header_with(entry("F32", shape, from, to));
    let overlapping = b(&[1], 4, 8);
    let overlap = format!("b: at byte {} overlaps", 8 + overlapping.len() + 4);
    let a = entry("F32", &[2], 0, 8);
    let cases = [
        (overlapping, 8, overlap.as_str()),
        (b(&[1], 9, 13), 13, "leaves a gap"),
        (b(&[3], 8, 12), 12, "do not hold [3] of F32"),
        (b(&[1], 12, 8), 12, "bytes 12 to 8"),
        (b(&[u64::MAX, 2], 8, 12), 12, "do not hold"),
        (b(&[1], u64::MAX - 4, u64::MAX), 12, "impossible byte"),
        (header_with(entry("Q4", &[1], 8, 12)), 12, "Q4"),
        (format!("{{\"a\":{a},\"a\":{a}}}"), 8, "names a twice"),
        ("{\"a\": 3}".to_string(), 0, "not valid"),
        ("nonsense".to_string(), 0, "not valid"),
    ];
    for (header, data, wanted) in cases {
        let error = open_raw(&header, &vec![0; data]).unwrap_err().to_string();
        assert!(error.contains("model.safetensors") && error.contains(wanted), "{wanted}: {error}");
    }
}

#[test]
fn every_cut_of_a_good_file_is_an_error_and_never_a_panic() {
    let whole = raw_file(&json!({"w": entry("F32", &[3], 0, 12)}).to_string(), &[1; 12]);
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.safetensors");
    for cut in 0..whole.len() {
        fs::write(&path, &whole[..cut]).unwrap();
        assert!(WeightFiles::open(folder.path()).is_err(), "cut at {cut}");
    }
    fs::write(&path, &whole).unwrap();
    let weights = WeightFiles::open(folder.path()).unwrap();
    fs::write(&path, &whole[..whole.len() - 1]).unwrap();
    assert!(weights.tensor_f32("w").unwrap_err().to_string().contains("became shorter"));
}

#[test]
fn folders_that_are_not_safetensors_say_what_they_are() {
    let folder = tempfile::tempdir().unwrap();
    let message = || WeightFiles::open(folder.path()).unwrap_err().to_string();
    assert!(message().contains("neither model.safetensors"));
    fs::write(folder.path().join("pytorch_model.bin"), b"x").unwrap();
    assert!(message().contains("pytorch_model.bin"));
    let header = json!({"w": entry("I8", &[1], 0, 1), "w.SCB": entry("U8", &[1], 1, 2)});
    let error = open_raw(&header.to_string(), &[0, 0]).unwrap_err().to_string();
    assert!(error.contains("LLM.int8()"), "{error}");
}

#[test]
fn shards_and_index_must_agree() {
    let folder = tempfile::tempdir().unwrap();
    let write = |shard: &str, name: &str| {
        let header = json!({ name: entry("F32", &[1], 0, 4) }).to_string();
        fs::write(folder.path().join(shard), raw_file(&header, &2.5f32.to_le_bytes())).unwrap();
    };
    let index = |map: Value| {
        let text = json!({"weight_map": map}).to_string();
        fs::write(folder.path().join("model.safetensors.index.json"), text).unwrap();
        WeightFiles::open(folder.path())
    };
    write("1.safetensors", "a");
    write("2.safetensors", "b");
    let good = index(json!({"a": "1.safetensors", "b": "2.safetensors"})).unwrap();
    assert_eq!(good.names().collect::<Vec<_>>(), ["a", "b"]);
    assert_eq!(good.tensor_f32("b").unwrap(), [2.5]);
    let wrong = [
        (json!({"a": "2.safetensors", "b": "1.safetensors"}), "says that a is in 2.safetensors"),
        (json!({"a": "1.safetensors", "c": "2.safetensors"}), "says that c is in 2.safetensors"),
        (json!({"a": "3.safetensors"}), "\"3.safetensors\", which is not in the folder"),
        (json!({"a": "../1.safetensors"}), "which is not in the folder"),
        (json!(["a"]), "is not an index of shards"),
    ];
    for (map, wanted) in wrong {
        let error = index(map).unwrap_err().to_string();
        assert!(error.contains(wanted), "{error}");
    }
    write("2.safetensors", "a");
    let twice = index(json!({"a": "1.safetensors", "b": "2.safetensors"})).unwrap_err();
    assert!(twice.to_string().contains("holds a, which"));
}

#[test]
fn one_error_names_everything_that_does_not_fit() {
    let header = json!({"a": entry("F32", &[1], 0, 4), "extra": entry("F32", &[1], 4, 8),
        "lm_head.weight": entry("F32", &[1], 8, 12),
        "model.layers.0.self_attn.rotary_emb.inv_freq": entry("F32", &[1], 12, 16)});
    let weights = open_raw(&header.to_string(), &[0; 16]).unwrap();
    let expect = |list: &[(&str, &[usize])]| {
        let list: Vec<_> = list.iter().map(|(n, s)| (n.to_string(), s.to_vec())).collect();
        weights.check(&list)
    };
    expect(&[("a", &[1]), ("extra", &[1])]).unwrap();
    let error = expect(&[("a", &[1, 1]), ("b", &[3]), ("c", &[])]).unwrap_err().to_string();
    for part in [
        "4 tensors",
        "a is [1], the config asks for [1, 1]",
        "missing: b [3]",
        "missing: c",
        "not part of the model: extra",
    ] {
        assert!(error.contains(part), "{part}: {error}");
    }
}

#[test]
fn the_reference_models_fit_their_configs() {
    let Some(reference) = reference() else { return };
    let model = |name: &str| {
        let folder = reference.join("models").join(name);
        let config = MistralConfig::load(&folder).unwrap();
        let weights = WeightFiles::open(&folder).unwrap();
        weights.check(&config.tensors()).unwrap();
        (config, weights)
    };
    let (a, a_weights) = model("tiny-a");
    let (b, _) = model("tiny-b");
    let (c, c_weights) = model("tiny-c");
    assert_eq!((a.sliding_window, b.sliding_window), (None, Some(8)));
    assert_eq!((a.rms_norm_eps, b.rms_norm_eps, b.rope_theta), (1e-6, 1e-5, 10_000.0));
    assert_eq!(c.torch_dtype.as_deref(), Some("bfloat16"));
    // tiny-c is tiny-a rounded to bf16, in five shards.
    for name in a_weights.names() {
        let rounded = a_weights.tensor_data(name, DType::BF16).unwrap();
        assert_eq!(rounded, c_weights.tensor_data(name, DType::BF16).unwrap(), "{name}");
    }
    let (config, packed) = (
        MistralConfig::load(&reference.join("nf4/tiny-a-bnb4")).unwrap(),
        WeightFiles::open(&reference.join("nf4/tiny-a-bnb4")).unwrap(),
    );
    packed.check(&config.tensors()).unwrap();
    let error = packed.tensor_f32("model.layers.0.mlp.up_proj.weight");
    let error = error.unwrap_err().to_string();
    assert!(error.contains("packed by bitsandbytes"), "{error}");
}

/// A model of one layer with odd sizes, tied embeddings and a head width that does not follow from the hidden size.
fn tiny_config() -> MistralConfig {
    let text = json!({"model_type": "mistral", "vocab_size": 11, "hidden_size": 6, "intermediate_size": 7,
        "num_hidden_layers": 1, "num_attention_heads": 3, "num_key_value_heads": 1, "head_dim": 4,
        "tie_word_embeddings": true, "sliding_window": null, "eos_token_id": 2});
    MistralConfig::parse(&text.to_string(), Path::new("config.json")).unwrap()
}

/// Values no two tensors share, which bf16 and f16 must round.
fn values_of(name: &str, shape: &[usize]) -> Vec<f32> {
    let seed = name.bytes().map(f64::from).sum::<f64>();
    let n: usize = shape.iter().product();
    (0..n).map(|i| (seed + i as f64 * 1.37).sin() as f32).collect()
}

/// Norms in f32, everything else in `dtype`.
fn out_tensors(config: &MistralConfig, dtype: DType) -> Vec<OutTensor<'static>> {
    let tensor = |(name, shape): (String, Vec<usize>)| {
        let dtype = if name.contains("norm") { DType::F32 } else { dtype };
        let make = (name.clone(), shape.clone());
        OutTensor::new(name, shape, dtype, move || Ok(values_of(&make.0, &make.1)))
    };
    config.tensors().into_iter().map(tensor).collect()
}

#[test]
fn a_saved_folder_is_read_back_whole_or_in_shards() {
    let config = tiny_config();
    for (name, dtype, round) in &FLOAT_TYPES[1..] {
        for (max_bytes, wanted_shards) in [(u64::MAX, 1..=1), (500, 2..=10), (1, 11..=11)] {
            let parent = tempfile::tempdir().unwrap();
            let dir = parent.path().join("deep/model");
            let tensors = out_tensors(&config, *dtype);
            save_folder(&dir, &config, tensors, max_bytes, Some(&tokenizer_folder())).unwrap();
            let weights = WeightFiles::open(&dir).unwrap();
            weights.check(&config.tensors()).unwrap();
            for (name, shape) in config.tensors() {
                let norm = name.contains("norm");
                let as_saved = |v: f32| if norm { v } else { round(f64::from(v)) as f32 };
                let wanted: Vec<f32> = values_of(&name, &shape).into_iter().map(as_saved).collect();
                assert_eq!(weights.tensor_f32(&name).unwrap(), wanted, "{name}");
            }
            let mut read = MistralConfig::load(&dir).unwrap();
            let saved_as = read.torch_dtype.take().unwrap();
            assert_eq!(saved_as.replace("float", "F").replace("bF", "BF"), *name);
            assert_eq!(read, config);
            assert!(dir.join("tokenizer.json").is_file());
            let names = fs::read_dir(&dir).unwrap().map(|e| e.unwrap().file_name());
            let shards = names.filter(|n| n.to_string_lossy().ends_with(".safetensors")).count();
            assert!(wanted_shards.contains(&shards), "{shards}");
            assert_eq!(dir.join("model.safetensors.index.json").is_file(), shards > 1);
        }
    }
}

fn tokenizer_folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/tokenizer/byte-level")
}

#[test]
fn a_failed_save_leaves_nothing_and_an_existing_folder_is_kept() {
    let parent = tempfile::tempdir().unwrap();
    let dir = parent.path().join("model");
    let config = tiny_config();
    let with = |make: fn() -> arithmo::Result<Vec<f32>>| {
        let mut tensors = out_tensors(&config, DType::F32);
        tensors[5] =
            OutTensor::new(tensors[5].name.clone(), tensors[5].shape.clone(), DType::F32, make);
        save_folder(&dir, &config, tensors, 500, None)
    };
    let failed = with(|| Err(arithmo::Error::run("no values", "none")));
    assert!(failed.unwrap_err().to_string().contains("no values"));
    assert!(with(|| Ok(vec![1.0])).unwrap_err().to_string().contains("made with 1 values"));
    assert_eq!(fs::read_dir(parent.path()).unwrap().count(), 0);
    fs::create_dir(&dir).unwrap();
    save_folder(&dir, &config, out_tensors(&config, DType::F32), 500, None).unwrap();
    let before = fs::read(dir.join("config.json")).unwrap();
    let again = save_folder(&dir, &config, out_tensors(&config, DType::BF16), 500, None);
    assert!(again.unwrap_err().to_string().contains("exists already"));
    assert_eq!(fs::read(dir.join("config.json")).unwrap(), before);
    assert_eq!(fs::read_dir(parent.path()).unwrap().count(), 1);
    let twice =
        out_tensors(&config, DType::F32).into_iter().chain(out_tensors(&config, DType::F32));
    let error = save_folder(&parent.path().join("b"), &config, twice, u64::MAX, None).unwrap_err();
    assert!(error.to_string().contains("written twice"), "{error}");
}

#[test]
fn small_files_keep_every_bit_and_open_in_the_safetensors_crate() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("adapter_model.safetensors");
    let tensors = vec![
        (
            "b.weight".to_string(),
            vec![2, 3],
            vec![0.1, -0.0, f32::MIN_POSITIVE / 4.0, 3e38, 1.0, -7.5],
        ),
        ("a".to_string(), vec![], vec![0.3]),
        ("empty".to_string(), vec![0, 5], vec![]),
    ];
    save_safetensors(&path, &tensors).unwrap();
    let read = load_safetensors_f32(&path).unwrap();
    assert_eq!(read.len(), 3);
    for (name, shape, values) in &tensors {
        let bits = |v: &[f32]| v.iter().map(|v| v.to_bits()).collect::<Vec<_>>();
        assert_eq!((&read[name].0, bits(&read[name].1)), (shape, bits(values)));
    }
    let bytes = fs::read(&path).unwrap();
    let (start, metadata) = safetensors::SafeTensors::read_metadata(&bytes).unwrap();
    assert_eq!(start % 8, 0);
    assert_eq!(metadata.metadata().as_ref().unwrap()["format"], "pt");
    let theirs = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    assert_eq!(theirs.tensor("b.weight").unwrap().shape(), [2, 3]);
    let wrong = [("a".to_string(), vec![2], vec![0.3])];
    assert!(save_safetensors(&path, &wrong).is_err());
    assert_eq!(fs::read(&path).unwrap(), bytes);
}

/// On a backend that does not compute in bf16 a model is held in it all the same: half of the bytes, the same results.
#[test]
fn a_model_is_held_in_bf16_where_nothing_computes_in_it() {
    type B = burn_ndarray::NdArray<f32>;
    let device = Default::default();
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("assets/demo/model");
    let held = load::<B>(&folder, DType::BF16, &device).unwrap();
    let wide = load::<B>(&folder, DType::F32, &device).unwrap();
    let packed = |weight: &WeightParam<B>| match weight {
        WeightParam::Packed(packed) => packed.format == Format::Bf16,
        WeightParam::Float(_) | WeightParam::Split(_) => false,
    };
    assert!(packed(&held.embed_tokens) && packed(held.lm_head.as_ref().unwrap()));
    assert!(held.projections().all(|(_, linear)| packed(&linear.weight)));
    assert!(wide.projections().all(|(_, linear)| !packed(&linear.weight)));

    // Few rows and many, of which each has kernels of its own.
    for tokens in [3, 200] {
        let ids: Vec<u32> = (0..tokens).map(|at| at * 37 % 700).collect();
        let logits = [&held, &wide].map(|model| {
            let rows = TokenRows::right_padded(&[&ids], 0);
            let input = ModelInput::new(&rows, &model.position_table(256, &device), &device);
            model.forward(&input).into_data().to_vec::<f32>().unwrap()
        });
        let [held, wide] = logits;
        let away = held.iter().zip(&wide).map(|(a, b)| (a - b).abs());
        assert!(away.fold(0f32, f32::max) < 1e-4, "{tokens} tokens");
    }

    // What is stored in f32 is rounded, to nearest even as everywhere.
    let config = tiny_config();
    let stored = tempfile::tempdir().unwrap();
    let stored = stored.path().join("model");
    let all = out_tensors(&config, DType::F32);
    save_folder(&stored, &config, all, u64::MAX, Some(&tokenizer_folder())).unwrap();
    let held = load::<B>(&stored, DType::BF16, &device).unwrap();
    let files = WeightFiles::open(&stored).unwrap();
    for (name, linear) in held.projections() {
        let values = files.tensor_f32(&format!("{name}.weight")).unwrap();
        let rounded: Vec<f32> = values.iter().map(|v| bf16::from_f32(*v).to_f32()).collect();
        let ours = linear.weight.floats(DType::F32).into_data();
        assert_eq!(ours.to_vec::<f32>().unwrap(), rounded, "{name}");
    }
}
