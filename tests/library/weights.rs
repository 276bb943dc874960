//! Tests of reading and writing model folders: every stored dtype, shards, and broken files.

use crate::support;
use crate::tiny::fixture;
use std::fs;
use std::path::Path;

use arithmo::data::batch::TokenRows;
use arithmo::model::config::DecoderConfig;
use arithmo::model::decoder::Decoder;
use arithmo::model::input::ModelInput;
use arithmo::model::linear::{StoredWeight, WeightParam};
use arithmo::model::load::load;
use arithmo::model::names::{ModelTensor, TensorRole};
use arithmo::model::save::{ModelFolder, OutTensor, load_safetensors_f32, save_safetensors};
use arithmo::model::weights::WeightFiles;
use arithmo_backends::Format;
use burn::tensor::DType;
use half::{bf16, f16};
use serde_json::{Value, json};

/// Returns the bytes of a safetensors file with any header and data, which need not be valid.
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

/// Returns a header entry for a tensor of bytes `from..to`.
fn entry(dtype: &str, shape: &[u64], from: u64, to: u64) -> Value {
    json!({"dtype": dtype, "shape": shape, "data_offsets": [from, to]})
}

/// Returns values that test rounding, among them ties of bf16, and subnormals and the largest number of f16.
fn values() -> Vec<f64> {
    let mut values = vec![0.0, -1.5, 1.00390625, 1.01171875, 6.0e-8, 65504.0, 1e-3, -3.25];
    values.extend((0..9001).map(|i| (f64::from(i) * 0.7391).sin() * 3.0));
    values
}

/// A float dtype: its name in the file, the dtype, and its rounding of a number.
type FloatType = (&'static str, DType, fn(f64) -> f64);

const FLOAT_TYPES: [FloatType; 4] = [
    ("F64", DType::F64, |v| v),
    ("F32", DType::F32, |v| f64::from(v as f32)),
    ("BF16", DType::BF16, |v| bf16::from_f64(v).to_f64()),
    ("F16", DType::F16, |v| f16::from_f64(v).to_f64()),
];

/// Opens a file with `values` in each float dtype, after a single byte, so that no tensor is aligned.
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

/// Returns a header of two tensors: `a` of 8 bytes, and `b`.
fn header_with(b: Value) -> String {
    json!({"a": entry("F32", &[2], 0, 8), "b": b}).to_string()
}

#[test]
fn errors_for_a_file_of_the_wrong_length_name_the_byte() {
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
fn errors_for_an_invalid_header_name_the_tensor() {
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
fn every_truncation_of_a_valid_file_is_an_error() {
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
fn errors_name_the_format_of_unsupported_folders() {
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
fn one_error_names_all_tensors_that_do_not_fit() {
    let header = json!({"a": entry("F32", &[1], 0, 4), "extra": entry("F32", &[1], 4, 8),
        "lm_head.weight": entry("F32", &[1], 8, 12),
        "model.layers.0.self_attn.rotary_emb.inv_freq": entry("F32", &[1], 12, 16)});
    let weights = open_raw(&header.to_string(), &[0; 16]).unwrap();
    let expect = |list: &[(&str, &[usize])]| {
        let tensor = |(name, shape): &(&str, &[usize])| ModelTensor {
            name: name.to_string(),
            role: TensorRole::Norm,
            shape: shape.to_vec(),
        };
        weights.check(&list.iter().map(tensor).collect::<Vec<_>>())
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

/// The text part of a model of several kinds of input, under the names that transformers 4 and 5 give it, has the weights of
/// the same model of text alone; other weights are left out.
#[test]
fn the_text_part_of_a_larger_model_is_loaded() {
    let reference = support::reference("families/models/ministral3").unwrap();
    let text = DecoderConfig::load(&reference).unwrap();
    let tensors = load_safetensors_f32(&reference.join("model.safetensors")).unwrap();
    type Renamed = fn(&str) -> String;
    let as_in_4: Renamed = |name| format!("language_model.{name}");
    let as_in_5: Renamed = |name| match name.strip_prefix("model.") {
        Some(rest) => format!("model.language_model.{rest}"),
        None => name.to_string(),
    };
    for rename in [as_in_4, as_in_5] {
        let folder = tempfile::tempdir().unwrap();
        let renamed = tensors
            .iter()
            .map(|(name, (shape, values))| (rename(name), shape.clone(), values.clone()));
        let image = ("vision_tower.patch_conv.weight".to_string(), vec![2], vec![0.5f32; 2]);
        let all: Vec<_> = renamed.chain([image]).collect();
        save_safetensors(&folder.path().join("model.safetensors"), &all).unwrap();
        let config =
            json!({"model_type": "mistral3", "text_config": text.to_json(), "vision_config": {}});
        fs::write(folder.path().join("config.json"), config.to_string()).unwrap();
        let device = Default::default();
        let [ours, expected] = [folder.path(), reference.as_path()]
            .map(|folder| load::<burn_ndarray::NdArray<f32>>(folder, DType::F32, &device).unwrap());
        let weight = |model: &Decoder<_>| model.layers[1].mlp.down_proj.weight.floats(DType::F32);
        assert_eq!(weight(&ours).into_data(), weight(&expected).into_data());
        assert_eq!(ours.config.switches, expected.config.switches);
        // Weights that belong to no part of the model are still refused.
        let plain = text.to_json();
        fs::write(folder.path().join("config.json"), plain.to_string()).unwrap();
        assert!(load::<burn_ndarray::NdArray<f32>>(folder.path(), DType::F32, &device).is_err());
    }
}

/// Opens the golden model `path` and checks that its weights fit its configuration.
fn golden_model(path: &str) -> (DecoderConfig, WeightFiles) {
    let folder = support::reference(path).unwrap();
    let config = DecoderConfig::load(&folder).unwrap();
    let weights = WeightFiles::open(&folder).unwrap();
    weights.check(&config.tensors()).unwrap();
    (config, weights)
}

#[test]
fn the_golden_models_fit_their_configs() {
    let (a, _) = golden_model("models/tiny-a");
    let (b, _) = golden_model("models/tiny-b");
    assert_eq!((a.sliding_window, b.sliding_window), (None, Some(8)));
    assert_eq!((a.rms_norm_eps, b.rms_norm_eps, b.rope_theta), (1e-6, 1e-5, 10_000.0));
}

#[test]
#[ignore = "compares with data that are not in the tree"]
fn sharded_and_quantized_models_fit_their_configs() {
    if support::shared("reference").is_none() {
        return;
    }
    let (_, a_weights) = golden_model("models/tiny-a");
    let (c, c_weights) = golden_model("models/tiny-c");
    assert_eq!(c.torch_dtype.as_deref(), Some("bfloat16"));
    // tiny-c is tiny-a rounded to bf16, in five shards.
    for name in a_weights.names() {
        let rounded = a_weights.tensor_data(name, DType::BF16).unwrap();
        assert_eq!(rounded, c_weights.tensor_data(name, DType::BF16).unwrap(), "{name}");
    }
    let (_, packed) = golden_model("nf4/tiny-a-bnb4");
    let error = packed.tensor_f32("model.layers.0.mlp.up_proj.weight");
    let error = error.unwrap_err().to_string();
    assert!(error.contains("quantized by bitsandbytes"), "{error}");
}

/// Returns a shape of one layer with odd sizes, tied embeddings and `head_dim * heads != hidden_size`.
fn tiny_config() -> DecoderConfig {
    let text = json!({"model_type": "mistral", "vocab_size": 11, "hidden_size": 6, "intermediate_size": 7,
        "num_hidden_layers": 1, "num_attention_heads": 3, "num_key_value_heads": 1, "head_dim": 4,
        "tie_word_embeddings": true, "sliding_window": null, "eos_token_id": 2});
    DecoderConfig::parse(&text.to_string(), Path::new("config.json")).unwrap()
}

/// Returns values that differ between tensors and that bf16 and f16 must round.
fn tensor_values(name: &str, shape: &[usize]) -> Vec<f32> {
    let seed = name.bytes().map(f64::from).sum::<f64>();
    let n: usize = shape.iter().product();
    (0..n).map(|i| (seed + i as f64 * 1.37).sin() as f32).collect()
}

/// Returns tensors to write: norms in f32, all others in `dtype`.
fn out_tensors(config: &DecoderConfig, dtype: DType) -> Vec<OutTensor<'static>> {
    let tensor = |ModelTensor { name, shape, .. }: ModelTensor| {
        let dtype = if name.contains("norm") { DType::F32 } else { dtype };
        let make = (name.clone(), shape.clone());
        OutTensor::new(name, shape, dtype, move || Ok(tensor_values(&make.0, &make.1)))
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
            let tokenizer = fixture("tokenizer/byte-level");
            let folder = ModelFolder::new(&dir, &config).with_tokenizer(&tokenizer);
            folder.with_max_shard_bytes(max_bytes).save(tensors).unwrap();
            let weights = WeightFiles::open(&dir).unwrap();
            weights.check(&config.tensors()).unwrap();
            for ModelTensor { name, shape, .. } in config.tensors() {
                let norm = name.contains("norm");
                let as_saved = |v: f32| if norm { v } else { round(f64::from(v)) as f32 };
                let wanted: Vec<f32> =
                    tensor_values(&name, &shape).into_iter().map(as_saved).collect();
                assert_eq!(weights.tensor_f32(&name).unwrap(), wanted, "{name}");
            }
            let mut read = DecoderConfig::load(&dir).unwrap();
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

#[test]
fn a_failed_save_leaves_nothing_and_an_existing_folder_is_kept() {
    let parent = tempfile::tempdir().unwrap();
    let dir = parent.path().join("model");
    let config = tiny_config();
    let folder = ModelFolder::new(&dir, &config).with_max_shard_bytes(500);
    let with = |make: fn() -> arithmo::Result<Vec<f32>>| {
        let mut tensors = out_tensors(&config, DType::F32);
        tensors[5] =
            OutTensor::new(tensors[5].name.clone(), tensors[5].shape.clone(), DType::F32, make);
        folder.save(tensors)
    };
    let failed = with(|| Err(arithmo::Error::run("no values", "none")));
    assert!(failed.unwrap_err().to_string().contains("no values"));
    assert!(with(|| Ok(vec![1.0])).unwrap_err().to_string().contains("made with 1 values"));
    assert_eq!(fs::read_dir(parent.path()).unwrap().count(), 0);
    fs::create_dir(&dir).unwrap();
    folder.save(out_tensors(&config, DType::F32)).unwrap();
    let before = fs::read(dir.join("config.json")).unwrap();
    let again = folder.save(out_tensors(&config, DType::BF16));
    assert!(again.unwrap_err().to_string().contains("exists already"));
    assert_eq!(fs::read(dir.join("config.json")).unwrap(), before);
    assert_eq!(fs::read_dir(parent.path()).unwrap().count(), 1);
    let twice =
        out_tensors(&config, DType::F32).into_iter().chain(out_tensors(&config, DType::F32));
    let error = ModelFolder::new(&parent.path().join("b"), &config).save(twice).unwrap_err();
    assert!(error.to_string().contains("written twice"), "{error}");
}

#[test]
fn adapter_files_keep_every_bit_and_open_in_the_safetensors_crate() {
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

/// Checks that a backend that does not compute in bf16 can hold a model in bf16, with the same results as in f32.
#[test]
fn a_model_is_held_in_bf16_on_a_backend_without_bf16() {
    type B = burn_ndarray::NdArray<f32>;
    let device = Default::default();
    let folder = support::demo_model();
    let held = load::<B>(&folder, DType::BF16, &device).unwrap();
    let wide = load::<B>(&folder, DType::F32, &device).unwrap();
    let packed = |weight: &WeightParam<B>| match &weight.stored {
        StoredWeight::Packed(packed) => packed.format == Format::Bf16,
        StoredWeight::Float(_) | StoredWeight::Split(_) => false,
    };
    assert!(packed(&held.embed_tokens) && packed(held.lm_head.as_ref().unwrap()));
    assert!(held.projections().all(|(_, linear)| packed(&linear.weight)));
    assert!(wide.projections().all(|(_, linear)| !packed(&linear.weight)));

    // Few rows and many rows use different kernels.
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

    // Weights stored in f32 are rounded to nearest even.
    let config = tiny_config();
    let stored = tempfile::tempdir().unwrap();
    let stored = stored.path().join("model");
    let all = out_tensors(&config, DType::F32);
    let tokenizer = fixture("tokenizer/byte-level");
    ModelFolder::new(&stored, &config).with_tokenizer(&tokenizer).save(all).unwrap();
    let held = load::<B>(&stored, DType::BF16, &device).unwrap();
    let files = WeightFiles::open(&stored).unwrap();
    for (name, linear) in held.projections() {
        let values = files.tensor_f32(&format!("{name}.weight")).unwrap();
        let rounded: Vec<f32> = values.iter().map(|v| bf16::from_f32(*v).to_f32()).collect();
        let ours = linear.weight.floats(DType::F32).into_data();
        assert_eq!(ours.to_vec::<f32>().unwrap(), rounded, "{name}");
    }
}

/// transformers does not tie a head that differs from the embedding; a model that ignored it would compute something else.
#[test]
fn a_head_beside_tied_embeddings_must_equal_them() {
    let config = json!({"model_type": "llama", "vocab_size": 2, "hidden_size": 4, "intermediate_size": 8,
        "num_hidden_layers": 1, "num_attention_heads": 2, "tie_word_embeddings": true});
    let config = DecoderConfig::parse(&config.to_string(), Path::new("config.json")).unwrap();
    let embedding = [0.5, -1.0, 2.0, 0.25, f32::NAN, 1.0, 0.0, 3.0];
    let open = |head: [f32; 8]| {
        let folder = tempfile::tempdir().unwrap();
        let tensors = [("model.embed_tokens.weight", embedding), ("lm_head.weight", head)]
            .map(|(name, values)| (name.to_string(), vec![2, 4], values.to_vec()));
        save_safetensors(&folder.path().join("model.safetensors"), &tensors).unwrap();
        WeightFiles::open_model(folder.path(), &config)
    };
    open(embedding).unwrap();
    let mut other = embedding;
    other[7] = 3.5;
    let error = open(other).unwrap_err().to_string();
    assert!(error.contains("lm_head.weight differs") && error.contains("to false"), "{error}");
}
