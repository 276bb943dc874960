//! Packing weights in few bits: bitsandbytes' bytes, its files, a cache that forgives, a model that computes from them.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod suite;

use std::fs;
use std::path::{Path, PathBuf};

use arithmo::Result;
use arithmo::lora::adapter;
use arithmo::model::config::MistralConfig;
use arithmo::model::linear::Linear;
use arithmo::model::load::{load, load_as};
use arithmo::model::mistral::Mistral;
use arithmo::model::quantize::cache::{self, Cache};
use arithmo::model::quantize::{HostScales, Quantization, Quantized, bitsandbytes};
use arithmo::model::weights::WeightFiles;
use arithmo::progress::ProgressMode;
use arithmo_backends::Format;
use burn::tensor::{DType, Tensor, TensorData};
use suite::adapters::{logits, random_logits, shape, write_base};
use suite::golden::{Tensors, assert_close, reference};

type B = burn_ndarray::NdArray<f32>;

fn fixture() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/quantize/golden.safetensors")
}

fn to(format: Format, double_quant: bool) -> Quantization {
    Quantization { format, double_quant }
}

/// The matrix `name` of `files`, packed.
fn packed(files: &WeightFiles, name: &str, to: Quantization) -> Quantized {
    let &[d_out, d_in] = files.shape(name).unwrap() else { panic!("{name} is no matrix") };
    cache::pack(files, name, [d_out, d_in], to).unwrap()
}

fn bytes_of(words: &[u32], count: usize) -> Vec<u8> {
    let bytes = words.iter().flat_map(|word| word.to_le_bytes());
    bytes.take(count).collect()
}

/// bitsandbytes' bytes and scales, bit for bit.
#[track_caller]
fn check_four_bits(files: &WeightFiles, weight: &str, name: &str, format: Format) {
    let golden = |part: &str| files.bytes(&format!("{name}{part}")).unwrap();
    let floats = |part: &str| files.tensor_f32(&format!("{name}{part}")).unwrap();
    let plain = packed(files, weight, to(format, false));
    let theirs = golden("packed");
    assert_eq!(bytes_of(&plain.words, theirs.len()), theirs, "{name}");
    assert_eq!(plain.scales, HostScales::Plain(floats("absmax")), "{name}");
}

/// Scales packed in 8 bits. Their mean is rounded once here; torch sums in f32, and may be off by its last bit.
#[track_caller]
fn check_double(files: &WeightFiles, weight: &str, names: [&str; 3], format: Format) {
    let double = packed(files, weight, to(format, true));
    let HostScales::Double { words, absmax, offset } = &double.scales else {
        panic!("{:?}", double.scales)
    };
    let [codes, nested, mean] = names;
    let mean = files.tensor_f32(mean).unwrap()[0];
    assert!((offset - mean).abs() <= 2e-7 * mean.abs(), "{offset} for {mean}");
    let nested = files.tensor_f32(nested).unwrap();
    assert_close(weight, absmax, &nested, 2e-7 * mean.abs());
    let theirs = files.bytes(codes).unwrap();
    let ours = bytes_of(words, theirs.len());
    let others: Vec<_> = ours.iter().zip(&theirs).filter(|(a, b)| a != b).collect();
    let most = if *offset == mean { 0 } else { theirs.len() / 100 };
    assert!(others.len() <= most, "{weight}: {others:?} of {}", theirs.len());
    assert!(others.iter().all(|(a, b)| a.abs_diff(**b) == 1), "{others:?}");
}

#[test]
fn four_bits_are_bitsandbytes() {
    let files = WeightFiles::open_file(&fixture()).unwrap();
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
                    let ours = packed(&files, weight, to(format, double)).unpack();
                    let theirs = files.tensor_f32(&part(golden)).unwrap();
                    assert_close(&part(golden), &ours, &theirs, 1e-7);
                }
            }
        }
    }
}

#[test]
fn eight_bits_are_bitsandbytes() {
    let files = WeightFiles::open_file(&fixture()).unwrap();
    assert_eq!(files.tensor_f32("dynamic_map").unwrap(), Format::Int8.code());
    for (weight, name) in [("weight", "int8"), ("ragged", "ragged.int8")] {
        let ours = packed(&files, weight, to(Format::Int8, false));
        let scales = files.tensor_f32(&format!("{name}.absmax")).unwrap();
        assert_eq!(ours.scales, HostScales::Plain(scales));
        let theirs = files.bytes(&format!("{name}.codes")).unwrap();
        let ours = bytes_of(&ours.words, theirs.len());
        // Not the fifth block: bitsandbytes' inverse of its tiny scale is infinite, and ours is not.
        let blocks = ours.chunks(64).zip(theirs.chunks(64)).enumerate();
        for (block, (ours, theirs)) in blocks.filter(|(block, _)| *block != 4) {
            assert_eq!(ours, theirs, "{weight}: block {block}");
        }
    }
    let ours = packed(&files, "ragged", to(Format::Int8, false)).unpack();
    let theirs = files.tensor_f32("ragged.int8.dequantised").unwrap();
    assert_close("ragged int8", &ours, &theirs, 1e-7);
}

#[test]
fn the_reference_matrix_is_packed_alike() {
    let Some(path) = reference("nf4/matrix.safetensors") else {
        return;
    };
    let files = WeightFiles::open_file(&path).unwrap();
    check_four_bits(&files, "weight", "", Format::Nf4);
    let ours = packed(&files, "weight", to(Format::Nf4, false)).unpack();
    assert_eq!(ours, files.tensor_f32("dequantised").unwrap());
    let names = ["double.absmax_u8", "double.nested_absmax", "double.offset"];
    check_double(&files, "weight", names, Format::Nf4);

    // Their bytes, unpacked by us.
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
    assert_close("values", &theirs.unpack(), &dequantised, 1e-7);
}

/// Of the weights in bf16 too: what is read is converted before it is scaled.
#[test]
fn stored_types_are_packed_by_value() {
    let Some(path) = reference("nf4/matrix.safetensors") else {
        return;
    };
    let files = WeightFiles::open_file(&path).unwrap();
    let values = files.tensor_data("weight", DType::BF16).unwrap();
    let values: Vec<f32> = values.iter::<f32>().collect();
    let packed = Quantized::pack("w", [128, 256], to(Format::Nf4, false), |first, out| {
        out.copy_from_slice(&values[first..first + out.len()]);
        Ok(())
    });
    let packed = packed.unwrap();
    let theirs = files.bytes("bf16.packed").unwrap();
    assert_eq!(bytes_of(&packed.words, theirs.len()), theirs);
    let scales = files.tensor_f32("bf16.absmax").unwrap();
    assert_eq!(packed.scales, HostScales::Plain(scales));
}

/// Larger than what a thread packs at once, and not a multiple of it.
#[test]
fn pieces_join() {
    let dims = [331, 407];
    let value = |at: usize| ((at * 7919) % 1013) as f32 / 500.0 - 1.0;
    let read = |first: usize, out: &mut [f32]| -> Result<()> {
        let values = out.iter_mut().enumerate();
        values.for_each(|(at, out)| *out = value(first + at));
        Ok(())
    };
    for format in [Format::Nf4, Format::Fp4, Format::Int8] {
        let packed = Quantized::pack("w", dims, to(format, true), read).unwrap();
        let widest = format.code().iter().copied().map(f32::abs);
        assert_eq!(widest.fold(0.0, f32::max), 1.0);
        // Half the widest gap between codes, of values up to 1; the scales' own rounding beside it.
        let most = if format == Format::Int8 { 0.02 } else { 0.2 };
        for (at, ours) in packed.unpack().into_iter().enumerate() {
            assert!((ours - value(at)).abs() < most, "{format:?} {at}: {ours}");
        }
    }
}

#[test]
fn what_is_not_finite_is_named() {
    for wrong in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        let read = |first: usize, out: &mut [f32]| {
            out.fill(0.5);
            if let Some(at) = 70_000usize.checked_sub(first).filter(|at| *at < out.len()) {
                out[at] = wrong;
            }
            Ok(())
        };
        let error = Quantized::pack("model.w", [300, 300], to(Format::Nf4, false), read);
        let error = error.unwrap_err().to_string();
        assert!(error.starts_with("model.w: element 70000 is "), "{error}");
    }
}

/// The packed matrices of a model's files.
fn projections(folder: &Path) -> Vec<(String, Quantized)> {
    let (config, files) =
        (MistralConfig::load(folder).unwrap(), WeightFiles::open(folder).unwrap());
    let tensors = config.tensors().into_iter().filter(|(name, _)| files.is_packed(name));
    let read = |(name, shape): (String, Vec<usize>)| {
        let packed = bitsandbytes::read(&files, &name, [shape[0], shape[1]]).unwrap();
        (name, packed)
    };
    tensors.map(read).collect()
}

/// A folder that transformers wrote computes as there, and is what is made here of the plain model.
///
/// Exactly, it computes as the floats its codes stand for; the golden logits were computed by bitsandbytes' CPU kernel, which
/// rounds inputs, scales and outputs of every projection to bf16, and are a loose check only.
#[test]
fn folders_of_transformers_open() {
    for (name, double) in [("tiny-a-bnb4", false), ("tiny-a-bnb4-dq", true)] {
        let Some(folder) = reference(&format!("nf4/{name}")) else {
            return;
        };
        let golden = Tensors::open(&folder.join("golden_logits.safetensors"));
        let ids = golden.i64("input_ids").1.into_iter();
        let ids: Vec<u32> = ids.map(|id| id as u32).collect();
        let theirs = golden.f32("logits").1;
        let model = load::<B>(&folder, DType::F32, &Default::default()).unwrap();
        let opened = logits(&model, &[&ids]);
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
        assert_close(name, &opened, &logits(&floats, &[&ids]), 1e-4);
        let model = load_as::<B>(&plain, DType::F32, Some(to), &nowhere, &Default::default());
        let model = model.unwrap();
        assert_eq!(model.config.quantization, Some(to));
        assert_close(name, &logits(&model, &[&ids]), &opened, 1e-4);
    }
}

/// The model in `folder` with floats for projections: what the codes of `packed` stand for.
fn with_floats(folder: &Path, packed: Vec<(String, Quantized)>) -> Mistral<B> {
    let mut model = load::<B>(folder, DType::F32, &Default::default()).unwrap();
    for ((name, linear), (weight, packed)) in model.projections_mut().zip(packed) {
        assert_eq!(format!("{name}.weight"), weight);
        let data = TensorData::new(packed.unpack(), packed.dims);
        *linear = Linear::frozen(Tensor::from_data(data, &Default::default()));
    }
    model
}

/// A tiny model with bf16 weights, and a cache beside it.
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

    fn load(&self, to: Quantization, cache: &Cache) -> Mistral<B> {
        load_as(&self.base(), DType::F32, Some(to), cache, &Default::default()).unwrap()
    }

    /// The packed models kept.
    fn kept(&self) -> Vec<PathBuf> {
        let Ok(entries) = fs::read_dir(self.folder.path().join("cache")) else {
            return Vec::new();
        };
        let mut kept: Vec<_> = entries.map(|entry| entry.unwrap().path()).collect();
        kept.sort();
        kept
    }
}

fn all_ways() -> Vec<Quantization> {
    let formats = [Format::Nf4, Format::Fp4, Format::Int8];
    let ways = formats.into_iter().flat_map(|format| [to(format, false), to(format, true)]);
    ways.collect()
}

/// Packed while loading, when kept and when opened again: one and the same model, the one `code * absmax` describes.
#[test]
fn a_kept_model_is_the_one_packed_while_loading() {
    for dtype in [DType::BF16, DType::F32, DType::F16] {
        let work = Work::new(dtype);
        for (index, to) in all_ways().into_iter().enumerate() {
            let direct = random_logits(&work.load(to, &Cache::none()));
            assert_eq!(work.kept().len(), index);
            for _ in 0..2 {
                let kept = work.load(to, &work.cache);
                assert_eq!(kept.config.quantization, Some(to));
                assert_eq!(random_logits(&kept), direct, "{to:?} {dtype:?}");
                assert_eq!(work.kept().len(), index + 1, "{to:?}");
            }
            let files = WeightFiles::open(&work.base()).unwrap();
            let names = shape().tensors().into_iter().map(|(name, _)| name);
            let names = names.filter(|name| name.contains("_proj"));
            let all = names.map(|name| (name.clone(), packed(&files, &name, to)));
            let floats = with_floats(&work.base(), all.collect());
            assert_close(&format!("{to:?}"), &direct, &random_logits(&floats), 2e-4);
        }
    }
}

/// Every tensor of a kept model is aligned to its element, as torch wants it, and a bf16 embedding stays one.
#[test]
fn kept_models_are_laid_out_for_everybody() {
    let work = Work::new(DType::BF16);
    work.load(to(Format::Nf4, true), &work.cache);
    let folder = &work.kept()[0];
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
    let config = suite::golden::json(&folder.join("config.json"));
    assert_eq!(config["quantization_config"]["bnb_4bit_quant_type"], "nf4");
    assert_eq!(config["quantization_config"]["bnb_4bit_compute_dtype"], "bfloat16");
}

/// Cut short, flipped, of another kind, of other weights: whatever lies in the cache, the model is right.
#[test]
fn what_is_damaged_or_foreign_is_made_again() {
    let work = Work::new(DType::BF16);
    let to = to(Format::Nf4, true);
    let good = random_logits(&work.load(to, &work.cache));
    let folder = work.kept()[0].clone();
    let weights = folder.join("model.safetensors");
    let whole = fs::read(&weights).unwrap();
    let config = fs::read_to_string(folder.join("config.json")).unwrap();
    let fp4 = config.replace("nf4", "fp4");
    let theta = config.replace("10000.0", "10700.0");
    assert!(fp4 != config && theta != config);
    // One bit of a code in the middle.
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
    // Other weights of the same shape are another model.
    fs::remove_dir_all(work.base()).unwrap();
    suite::tiny::write_model(
        &work.base(),
        &MistralConfig { vocab_size: 37, ..shape() },
        DType::F32,
    );
    let other = random_logits(&work.load(to, &work.cache));
    assert_ne!(other, good);
    assert_eq!(work.kept().len(), 2);
    let rests = work.kept().into_iter().filter(|path| path.to_string_lossy().contains(".part"));
    assert_eq!(rests.count(), 0);
}

#[test]
fn where_nothing_can_be_kept_the_model_is_loaded_all_the_same() {
    let work = Work::new(DType::BF16);
    let to = to(Format::Nf4, false);
    fs::write(work.folder.path().join("cache"), "a file").unwrap();
    let direct = random_logits(&work.load(to, &Cache::none()));
    assert_eq!(random_logits(&work.load(to, &work.cache)), direct);
    // Models this small are not worth keeping.
    let other = Work::new(DType::BF16);
    let of_user = Cache { worth: Cache::of_user(ProgressMode::Quiet).worth, ..other.cache.clone() };
    other.load(to, &of_user);
    assert_eq!(other.kept().len(), 0);
}

#[test]
fn what_does_not_fit_is_refused() {
    let work = Work::new(DType::F32);
    let error = |folder: &Path, to: Quantization| {
        let loaded = load_as::<B>(folder, DType::F32, Some(to), &work.cache, &Default::default());
        loaded.map(|_| ()).unwrap_err().to_string()
    };
    work.load(to(Format::Nf4, true), &work.cache);
    let packed = work.kept()[0].clone();
    let message = error(&packed, to(Format::Fp4, false));
    assert!(message.contains("packed as nf4 with double_quant already"), "{message}");
    // As asked for already.
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
    assert_eq!(work.kept().len(), 1);
}

/// A QLoRA run's adapter on its base, as PEFT computed them together; loosely, as bitsandbytes' kernel rounds to bf16.
#[test]
fn an_adapter_on_a_packed_base_computes_as_in_peft() {
    let Some(run) = reference("trl/qlora_bnb_cpu") else {
        return;
    };
    let plain = reference("models/tiny-a").unwrap();
    let to = to(Format::Nf4, false);
    let model = load_as::<B>(&plain, DType::F32, Some(to), &Cache::none(), &Default::default());
    let mut model = model.unwrap();
    adapter::load(&mut model, &run, &Default::default()).unwrap();
    let golden = Tensors::open(&run.join("merged_logits.safetensors"));
    let (shape, ids) = golden.i64("input_ids");
    let ids: Vec<u32> = ids.into_iter().map(|id| id as u32).collect();
    let ids: Vec<&[u32]> = ids.chunks(shape[1]).collect();
    let theirs = golden.f32("adapter_logits").1;
    assert_close("adapter_logits", &logits(&model, &ids), &theirs, 0.15);
}
