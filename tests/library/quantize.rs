//! Tests of quantization: bytes and files equal those of bitsandbytes, the cache recovers from damage, and quantized
//! models compute the right logits.

use std::fs;
use std::path::{Path, PathBuf};

use crate::suite;
use crate::suite::adapters::{golden_logits, random_logits, shape, write_base};
use crate::suite::golden::{Tensors, assert_close, reference};
use crate::support::json_file;
use crate::tiny::fixture;
use arithmo::Result;
use arithmo::adapter::peft;
use arithmo::model::config::DecoderConfig;
use arithmo::model::decoder::Decoder;
use arithmo::model::linear::Linear;
use arithmo::model::load::{load, load_as};
use arithmo::model::names::ModelTensor;
use arithmo::model::quantize::cache::{self, Cache};
use arithmo::model::quantize::{HostScales, Quantization, Quantized, bitsandbytes};
use arithmo::model::weights::WeightFiles;
use arithmo::progress::ProgressMode;
use arithmo_backends::Format;
use burn::tensor::{DType, Tensor, TensorData};

type B = burn_ndarray::NdArray<f32>;

/// Opens the matrices and codes of `tests/fixtures/quantize/make.py`.
fn golden_weights() -> WeightFiles {
    WeightFiles::open_file(&fixture("quantize/golden.safetensors")).unwrap()
}

fn to(format: Format, double_quant: bool) -> Quantization {
    Quantization { format, double_quant }
}

/// Quantizes the matrix `name` of `files`.
fn packed(files: &WeightFiles, name: &str, to: Quantization) -> Quantized {
    let &[d_out, d_in] = files.shape(name).unwrap() else { panic!("{name} is no matrix") };
    cache::quantize_matrix(files, name, [d_out, d_in], to).unwrap()
}

/// Returns the first `count` bytes of little-endian `words`.
fn to_bytes(words: &[u32], count: usize) -> Vec<u8> {
    let bytes = words.iter().flat_map(|word| word.to_le_bytes());
    bytes.take(count).collect()
}

/// Compares 4-bit codes and scales with those of bitsandbytes, bit for bit.
#[track_caller]
fn check_four_bits(files: &WeightFiles, weight: &str, name: &str, format: Format) {
    let golden = |part: &str| files.bytes(&format!("{name}{part}")).unwrap();
    let floats = |part: &str| files.tensor_f32(&format!("{name}{part}")).unwrap();
    let plain = packed(files, weight, to(format, false));
    let theirs = golden("packed");
    assert_eq!(to_bytes(&plain.words, theirs.len()), theirs, "{name}");
    assert_eq!(plain.scales, HostScales::Plain(floats("absmax")), "{name}");
}

/// Compares scales that are quantized to 8 bits with those of bitsandbytes. Their mean is rounded once here, but torch
/// sums in f32, so its mean may differ in the last bit.
#[track_caller]
fn check_double(files: &WeightFiles, weight: &str, names: [&str; 3], format: Format) {
    let double = packed(files, weight, to(format, true));
    let HostScales::Double { words, absmax, offset } = &double.scales else {
        panic!("{:?}", double.scales)
    };
    let [codes, nested, mean] = names;
    let mean = files.tensor_f32(mean).unwrap()[0];
    assert!((offset - mean).abs() <= 2e-7 * mean.abs(), "{offset}, expected {mean}");
    let nested = files.tensor_f32(nested).unwrap();
    assert_close(weight, absmax, &nested, 2e-7 * mean.abs());
    let theirs = files.bytes(codes).unwrap();
    let ours = to_bytes(words, theirs.len());
    let different: Vec<_> = ours.iter().zip(&theirs).filter(|(a, b)| a != b).collect();
    let max = if *offset == mean { 0 } else { theirs.len() / 100 };
    assert!(different.len() <= max, "{weight}: {different:?} of {}", theirs.len());
    assert!(different.iter().all(|(a, b)| a.abs_diff(**b) == 1), "{different:?}");
}

#[test]
fn four_bit_codes_equal_bitsandbytes() {
    let files = golden_weights();
    for (name, format) in [("nf4", Format::Nf4), ("fp4", Format::Fp4)] {
        let code = files.tensor_f32(&format!("{name}.code")).unwrap();
        assert_eq!(code, format.code(), "{name}");
        for (weight, prefix) in [("weight", ""), ("ragged", "ragged.")] {
            let part = |part: &str| format!("{prefix}{name}.{part}");
            check_four_bits(&files, weight, &part(""), format);
            let names = ["double.absmax", "double.nested_absmax", "double.offset"].map(part);
            check_double(&files, weight, names.each_ref().map(String::as_str), format);
            if prefix == "ragged." {
                for (double, golden) in [(false, "dequantised"), (true, "double.dequantised")] {
                    let ours = packed(&files, weight, to(format, double)).dequantize();
                    let theirs = files.tensor_f32(&part(golden)).unwrap();
                    assert_close(&part(golden), &ours, &theirs, 1e-7);
                }
            }
        }
    }
}

#[test]
fn eight_bit_codes_equal_bitsandbytes() {
    let files = golden_weights();
    assert_eq!(files.tensor_f32("dynamic_map").unwrap(), Format::Int8.code());
    for (weight, name) in [("weight", "int8"), ("ragged", "ragged.int8")] {
        let ours = packed(&files, weight, to(Format::Int8, false));
        let scales = files.tensor_f32(&format!("{name}.absmax")).unwrap();
        assert_eq!(ours.scales, HostScales::Plain(scales));
        let theirs = files.bytes(&format!("{name}.codes")).unwrap();
        let ours = to_bytes(&ours.words, theirs.len());
        // The fifth block differs: its scale is so small that its inverse is infinite in bitsandbytes, but not here.
        let blocks = ours.chunks(64).zip(theirs.chunks(64)).enumerate();
        for (block, (ours, theirs)) in blocks.filter(|(block, _)| *block != 4) {
            assert_eq!(ours, theirs, "{weight}: block {block}");
        }
    }
    let ours = packed(&files, "ragged", to(Format::Int8, false)).dequantize();
    let theirs = files.tensor_f32("ragged.int8.dequantised").unwrap();
    assert_close("ragged int8", &ours, &theirs, 1e-7);
}

#[test]
#[ignore = "compares with data that are not in the tree"]
fn the_reference_matrix_is_quantized_as_by_bitsandbytes() {
    let Some(path) = reference("nf4/matrix.safetensors") else {
        return;
    };
    let files = WeightFiles::open_file(&path).unwrap();
    check_four_bits(&files, "weight", "", Format::Nf4);
    let ours = packed(&files, "weight", to(Format::Nf4, false)).dequantize();
    assert_eq!(ours, files.tensor_f32("dequantised").unwrap());
    let names = ["double.absmax_u8", "double.nested_absmax", "double.offset"];
    check_double(&files, "weight", names, Format::Nf4);

    // Dequantize the bytes of bitsandbytes.
    let words = |name: &str| files.words(name).unwrap();
    let theirs = Quantized {
        format: Format::Nf4,
        dims: [128, 256],
        words: words("double.packed"),
        scales: HostScales::Double {
            words: words("double.absmax_u8"),
            absmax: files.tensor_f32("double.nested_absmax").unwrap(),
            offset: files.tensor_f32("double.offset").unwrap()[0],
        },
    };
    let restored = files.tensor_f32("double.absmax_restored").unwrap();
    assert_close("scales", &theirs.scales.absmax(), &restored, 1e-7);
    let dequantised = files.tensor_f32("double.dequantised").unwrap();
    assert_close("values", &theirs.dequantize(), &dequantised, 1e-7);
}

/// Compares the quantization of bf16 weights, which are converted to f32 first.
#[test]
#[ignore = "compares with data that are not in the tree"]
fn bf16_weights_are_quantized_as_by_bitsandbytes() {
    let Some(path) = reference("nf4/matrix.safetensors") else {
        return;
    };
    let files = WeightFiles::open_file(&path).unwrap();
    let values = files.tensor_data("weight", DType::BF16).unwrap();
    let values: Vec<f32> = values.iter::<f32>().collect();
    let packed = Quantized::quantize("w", [128, 256], to(Format::Nf4, false), |first, out| {
        out.copy_from_slice(&values[first..first + out.len()]);
        Ok(())
    });
    let packed = packed.unwrap();
    let theirs = files.bytes("bf16.packed").unwrap();
    assert_eq!(to_bytes(&packed.words, theirs.len()), theirs);
    let scales = files.tensor_f32("bf16.absmax").unwrap();
    assert_eq!(packed.scales, HostScales::Plain(scales));
}

/// Quantizes a matrix that is larger than the part that a thread quantizes at once, and no multiple of it.
#[test]
fn matrices_are_quantized_in_parts() {
    let dims = [331, 407];
    let value = |at: usize| ((at * 7919) % 1013) as f32 / 500.0 - 1.0;
    let read = |first: usize, out: &mut [f32]| -> Result<()> {
        let values = out.iter_mut().enumerate();
        values.for_each(|(at, out)| *out = value(first + at));
        Ok(())
    };
    for format in [Format::Nf4, Format::Fp4, Format::Int8] {
        let packed = Quantized::quantize("w", dims, to(format, true), read).unwrap();
        let widest = format.code().iter().copied().map(f32::abs);
        assert_eq!(widest.fold(0.0, f32::max), 1.0);
        // Half the largest gap between codes for values up to 1, plus the rounding of the scales.
        let max_error = if format == Format::Int8 { 0.02 } else { 0.2 };
        for (at, ours) in packed.dequantize().into_iter().enumerate() {
            assert!((ours - value(at)).abs() < max_error, "{format:?} {at}: {ours}");
        }
    }
}

#[test]
fn elements_that_are_not_finite_are_named() {
    for wrong in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        let read = |first: usize, out: &mut [f32]| {
            out.fill(0.5);
            if let Some(at) = 70_000usize.checked_sub(first).filter(|at| *at < out.len()) {
                out[at] = wrong;
            }
            Ok(())
        };
        let error = Quantized::quantize("model.w", [300, 300], to(Format::Nf4, false), read);
        let error = error.unwrap_err().to_string();
        assert!(error.starts_with("model.w: element 70000 is "), "{error}");
    }
}

/// Reads the quantized matrices of a model's files.
fn projections(folder: &Path) -> Vec<(String, Quantized)> {
    let (config, files) =
        (DecoderConfig::load(folder).unwrap(), WeightFiles::open(folder).unwrap());
    let tensors = config.tensors().into_iter().filter(|tensor| files.is_quantized(&tensor.name));
    let read = |ModelTensor { name, shape, .. }: ModelTensor| {
        let packed = bitsandbytes::read(&files, &name, [shape[0], shape[1]]).unwrap();
        (name, packed)
    };
    tensors.map(read).collect()
}

/// Opens quantized models that transformers wrote. Compares their codes with those that this program makes, and their
/// logits with the dequantized model's and with golden ones.
///
/// The golden logits allow only a loose comparison, because bitsandbytes' CPU kernel rounds inputs, scales and outputs
/// of every projection to bf16.
#[test]
#[ignore = "compares with data that are not in the tree"]
fn quantized_models_of_transformers_open() {
    for (name, double) in [("tiny-a-bnb4", false), ("tiny-a-bnb4-dq", true)] {
        let Some(folder) = reference(&format!("nf4/{name}")) else {
            return;
        };
        let golden = Tensors::open(&folder.join("golden_logits.safetensors"));
        let theirs = golden.f32("logits").1;
        let model = load::<B>(&folder, DType::F32, &Default::default()).unwrap();
        let opened = golden_logits(&model, &golden);
        assert_close(name, &opened, &theirs, 0.15);

        let plain = reference("models/tiny-a").unwrap();
        let to = to(Format::Nf4, double);
        let all = projections(&folder);
        assert_eq!(all.len(), 14);
        let (files, nowhere) = (WeightFiles::open(&plain).unwrap(), Cache::none());
        for (weight, theirs) in &all {
            let ours = packed(&files, weight, to);
            assert_eq!(ours.words, theirs.words, "{weight}");
            assert!(double || ours.scales == theirs.scales, "{weight}");
        }
        let floats = with_floats(&plain, all);
        assert_close(name, &opened, &golden_logits(&floats, &golden), 1e-4);
        let model = load_as::<B>(&plain, DType::F32, Some(to), &nowhere, &Default::default());
        let model = model.unwrap();
        assert_eq!(model.config.quantization, Some(to));
        assert_close(name, &golden_logits(&model, &golden), &opened, 1e-4);
    }
}

/// Loads the model in `folder` and replaces its projections by the dequantized `packed` ones.
fn with_floats(folder: &Path, packed: Vec<(String, Quantized)>) -> Decoder<B> {
    let mut model = load::<B>(folder, DType::F32, &Default::default()).unwrap();
    for ((name, linear), (weight, packed)) in model.projections_mut().zip(packed) {
        assert_eq!(format!("{name}.weight"), weight);
        let data = TensorData::new(packed.dequantize(), packed.dims);
        *linear = Linear::frozen(Tensor::from_data(data, &Default::default()));
    }
    model
}

/// A tiny model and a cache in a temporary folder.
struct Work {
    folder: tempfile::TempDir,
    cache: Cache,
}

impl Work {
    fn new(dtype: DType) -> Self {
        let folder = tempfile::tempdir().unwrap();
        write_base(&folder.path().join("base"), dtype);
        let cache = Cache {
            folder: Some(folder.path().join("cache")),
            worth: 0,
            progress: ProgressMode::Quiet,
        };
        Self { folder, cache }
    }

    fn base(&self) -> PathBuf {
        self.folder.path().join("base")
    }

    fn load(&self, to: Quantization, cache: &Cache) -> Decoder<B> {
        load_as(&self.base(), DType::F32, Some(to), cache, &Default::default()).unwrap()
    }

    /// Returns the paths of the quantized models in the cache.
    fn cached(&self) -> Vec<PathBuf> {
        let Ok(entries) = fs::read_dir(self.folder.path().join("cache")) else {
            return Vec::new();
        };
        let mut cached: Vec<_> = entries.map(|entry| entry.unwrap().path()).collect();
        cached.sort();
        cached
    }
}

fn all_quantizations() -> Vec<Quantization> {
    let formats = [Format::Nf4, Format::Fp4, Format::Int8];
    formats.into_iter().flat_map(|format| [to(format, false), to(format, true)]).collect()
}

/// Checks that a model is the same when it is quantized while loading, when it is written to the cache and when it is
/// read from there, and that its weights are `code * absmax`.
#[test]
fn a_cached_model_equals_one_quantized_while_loading() {
    for dtype in [DType::BF16, DType::F32, DType::F16] {
        let work = Work::new(dtype);
        for (index, to) in all_quantizations().into_iter().enumerate() {
            let direct = random_logits(&work.load(to, &Cache::none()));
            assert_eq!(work.cached().len(), index);
            for _ in 0..2 {
                let cached = work.load(to, &work.cache);
                assert_eq!(cached.config.quantization, Some(to));
                assert_eq!(random_logits(&cached), direct, "{to:?} {dtype:?}");
                assert_eq!(work.cached().len(), index + 1, "{to:?}");
            }
            let files = WeightFiles::open(&work.base()).unwrap();
            let names = shape().tensors().into_iter().map(|tensor| tensor.name);
            let names = names.filter(|name| name.contains("_proj"));
            let all = names.map(|name| (name.clone(), packed(&files, &name, to)));
            let floats = with_floats(&work.base(), all.collect());
            assert_close(&format!("{to:?}"), &direct, &random_logits(&floats), 2e-4);
        }
    }
}

/// Checks that other libraries can read cached models: every tensor is aligned to its element size, as torch requires,
/// and weights that are not quantized keep their dtype and bytes.
#[test]
fn cached_models_suit_other_libraries() {
    let work = Work::new(DType::BF16);
    work.load(to(Format::Nf4, true), &work.cache);
    let folder = &work.cached()[0];
    let bytes = fs::read(folder.join("model.safetensors")).unwrap();
    let (start, metadata) = safetensors::SafeTensors::read_metadata(&bytes).unwrap();
    assert_eq!(start % 8, 0);
    for (name, info) in metadata.tensors() {
        let size = info.dtype.bitsize() / 8;
        assert_eq!(info.data_offsets.0 % size, 0, "{name}");
    }
    let files = WeightFiles::open(folder).unwrap();
    assert_eq!(files.dtype("model.embed_tokens.weight").unwrap(), DType::BF16);
    let source = WeightFiles::open(&work.base()).unwrap();
    for name in ["model.embed_tokens.weight", "lm_head.weight", "model.norm.weight"] {
        assert_eq!(files.bytes(name).unwrap(), source.bytes(name).unwrap());
    }
    let config = json_file(&folder.join("config.json"));
    assert_eq!(config["quantization_config"]["bnb_4bit_quant_type"], "nf4");
    assert_eq!(config["quantization_config"]["bnb_4bit_compute_dtype"], "bfloat16");
}

/// Checks that a model loads correctly if its cache entry is truncated, changed, of another format or of other weights.
#[test]
fn damaged_cache_entries_are_made_again() {
    let work = Work::new(DType::BF16);
    let to = to(Format::Nf4, true);
    let good = random_logits(&work.load(to, &work.cache));
    let folder = work.cached()[0].clone();
    let weights = folder.join("model.safetensors");
    let whole = fs::read(&weights).unwrap();
    let config = fs::read_to_string(folder.join("config.json")).unwrap();
    let fp4 = config.replace("nf4", "fp4");
    let theta = config.replace("10000.0", "10700.0");
    assert!(fp4 != config && theta != config);
    // This flips a bit of a code.
    let mut flipped = whole.clone();
    flipped[whole.len() / 2] ^= 4;
    let damage: [&dyn Fn(); 8] = [
        &|| fs::write(&weights, &flipped).unwrap(),
        &|| fs::write(folder.join("config.json"), &theta).unwrap(),
        &|| fs::remove_file(folder.join("checksums.json")).unwrap(),
        &|| fs::write(&weights, &whole[..whole.len() - 7]).unwrap(),
        &|| fs::remove_file(&weights).unwrap(),
        &|| fs::write(folder.join("config.json"), "{").unwrap(),
        &|| fs::write(folder.join("config.json"), &fp4).unwrap(),
        &|| {
            fs::remove_dir_all(&folder).unwrap();
            fs::write(&folder, "a file").unwrap();
        },
    ];
    for (index, damage) in damage.iter().enumerate() {
        damage();
        assert_eq!(random_logits(&work.load(to, &work.cache)), good, "{index}");
        assert_eq!(fs::read(&weights).unwrap(), whole, "{index}");
    }
    // Other weights of the same shape get an entry of their own.
    fs::remove_dir_all(work.base()).unwrap();
    suite::tiny::write_model(
        &work.base(),
        &DecoderConfig { vocab_size: 37, ..shape() },
        DType::F32,
    );
    let other = random_logits(&work.load(to, &work.cache));
    assert_ne!(other, good);
    assert_eq!(work.cached().len(), 2);
    let unfinished =
        work.cached().into_iter().filter(|path| path.to_string_lossy().contains(".part"));
    assert_eq!(unfinished.count(), 0);
}

#[test]
fn a_model_loads_without_a_usable_cache() {
    let work = Work::new(DType::BF16);
    let to = to(Format::Nf4, false);
    fs::write(work.folder.path().join("cache"), "a file").unwrap();
    let direct = random_logits(&work.load(to, &Cache::none()));
    assert_eq!(random_logits(&work.load(to, &work.cache)), direct);
    // By default, models this small are not cached.
    let other = Work::new(DType::BF16);
    let from_env =
        Cache { worth: Cache::from_env(ProgressMode::Quiet).worth, ..other.cache.clone() };
    other.load(to, &from_env);
    assert_eq!(other.cached().len(), 0);
}

#[test]
fn other_quantizations_and_non_finite_weights_are_refused() {
    let work = Work::new(DType::F32);
    let error = |folder: &Path, to: Quantization| {
        let loaded = load_as::<B>(folder, DType::F32, Some(to), &work.cache, &Default::default());
        loaded.map(|_| ()).unwrap_err().to_string()
    };
    work.load(to(Format::Nf4, true), &work.cache);
    let packed = work.cached()[0].clone();
    let message = error(&packed, to(Format::Fp4, false));
    assert!(message.contains("already quantized as nf4 with double_quant"), "{message}");
    // The same quantization is accepted.
    load_as::<B>(
        &packed,
        DType::F32,
        Some(to(Format::Nf4, true)),
        &work.cache,
        &Default::default(),
    )
    .unwrap();

    let broken = work.folder.path().join("broken");
    suite::tiny::write_not_finite(&broken, &shape(), "model.layers.1.mlp.up_proj.weight");
    let message = error(&broken, to(Format::Int8, false));
    assert!(
        message.starts_with("model.layers.1.mlp.up_proj.weight: element 5 is NaN"),
        "{message}"
    );
    assert_eq!(work.cached().len(), 1);
}

/// Compares the logits of a QLoRA run's adapter on its base with PEFT's. The tolerance is large, because bitsandbytes'
/// kernel rounds to bf16.
#[test]
#[ignore = "compares with data that are not in the tree"]
fn logits_with_an_adapter_on_a_quantized_base_equal_pefts() {
    let Some(run) = reference("trl/qlora_bnb_cpu") else {
        return;
    };
    let plain = reference("models/tiny-a").unwrap();
    let to = to(Format::Nf4, false);
    let model = load_as::<B>(&plain, DType::F32, Some(to), &Cache::none(), &Default::default());
    let mut model = model.unwrap();
    peft::load(&mut model, &run, &Default::default()).unwrap();
    let golden = Tensors::open(&run.join("merged_logits.safetensors"));
    let theirs = golden.f32("adapter_logits").1;
    assert_close("adapter_logits", &golden_logits(&model, &golden), &theirs, 0.15);
}
