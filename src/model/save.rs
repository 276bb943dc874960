//! Writes safetensors: a whole model folder in Hugging Face layout, tensor by tensor, or one small file.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::fmt;
use std::fs;
use std::io::Write;
use std::path::Path;

use burn::tensor::DType;
use half::{bf16, f16};
use serde_json::{Map, Value, json};

use super::config::DecoderConfig;
use super::quantize::bitsandbytes::{self, Part};
use super::quantize::{Quantization, Quantized};
use super::weights::WeightFiles;
use crate::data::tokenizer::{TOKENIZER_FILES, copy_tokenizer_files};
use crate::error::{Error, Result};
use crate::input_file;
use crate::interrupt;
use crate::output::folder::{publish_folder, refuse_foreign_among};
use crate::output::list::NAME;
use crate::output::target::resolve_folder;
use crate::output::{self, FileList, WholeFile, is_taken, part, write_whole};

/// Largest shard that transformers writes by default, in bytes.
pub const MAX_SHARD_BYTES: u64 = 5_000_000_000;

/// A tensor or quantized matrix to be written; its values are computed only when it is written.
pub struct OutTensor<'a> {
    /// Name in the file, such as `model.norm.weight`.
    pub name: String,
    /// Shape; weights are `[out, in]`.
    pub shape: Vec<usize>,
    /// Dtype in the file: F32, BF16 or F16, rounded to nearest even; for a quantized matrix, its dtype before
    /// quantization.
    pub dtype: DType,
    values: Values<'a>,
}

/// The function that computes the values.
enum Values<'a> {
    /// Returns the values, row-major, as many as the shape has.
    Floats(Box<dyn FnOnce() -> Result<Vec<f32>> + 'a>),
    Quantized(Quantization, Box<dyn FnOnce() -> Result<Quantized> + 'a>),
}

impl<'a> OutTensor<'a> {
    /// Creates a tensor whose values the function `values` computes on demand.
    pub fn new(
        name: impl Into<String>,
        shape: Vec<usize>,
        dtype: DType,
        values: impl FnOnce() -> Result<Vec<f32>> + 'a,
    ) -> Self {
        Self { name: name.into(), shape, dtype, values: Values::Floats(Box::new(values)) }
    }

    /// Creates a matrix `[D_out, D_in]` that `quantize` quantizes as `to` on demand; `dtype` is its dtype before
    /// quantization.
    pub fn quantized(
        name: impl Into<String>,
        dims: [usize; 2],
        dtype: DType,
        to: Quantization,
        quantize: impl FnOnce() -> Result<Quantized> + 'a,
    ) -> Self {
        Self {
            name: name.into(),
            shape: dims.to_vec(),
            dtype,
            values: Values::Quantized(to, Box::new(quantize)),
        }
    }

    /// Returns the tensors that represent it in the file, in order: itself, or the several tensors of a quantized matrix.
    fn parts(&self) -> Vec<Part> {
        match (&self.values, self.shape.as_slice()) {
            (Values::Quantized(to, _), &[d_out, d_in]) => {
                bitsandbytes::parts(&self.name, [d_out, d_in], *to)
            }
            _ => {
                vec![Part { name: self.name.clone(), dtype: self.dtype, shape: self.shape.clone() }]
            }
        }
    }

    /// Returns the number of bytes that its values take in the file.
    fn bytes(&self) -> u64 {
        self.parts().iter().map(|part| part.bytes() as u64).sum()
    }

    /// Returns the alignment in bytes that its values need. [`Self::bytes`] is a multiple of it.
    fn alignment(&self) -> usize {
        match self.values {
            Values::Floats(_) => self.dtype.size(),
            Values::Quantized(..) => 8,
        }
    }
}

impl fmt::Debug for OutTensor<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {:?} {:?}", self.name, self.shape, self.dtype)
    }
}

/// Writes a model folder that transformers opens: `config.json`, safetensors (with an index if there are several files),
/// and optionally the tokenizer files and `generation_config.json` of another model.
///
/// The folder appears under its name when everything is written, or not at all. One tensor is in memory at a time.
#[derive(Clone, Copy, Debug)]
pub struct ModelFolder<'a> {
    dir: &'a Path,
    config: &'a DecoderConfig,
    max_shard_bytes: u64,
    tokenizer_folder: Option<&'a Path>,
}

impl<'a> ModelFolder<'a> {
    /// Creates a writer of the folder `dir` for a model of the shape `config`, without a tokenizer. Nothing is written yet.
    pub fn new(dir: &'a Path, config: &'a DecoderConfig) -> Self {
        Self { dir, config, max_shard_bytes: MAX_SHARD_BYTES, tokenizer_folder: None }
    }

    /// Copies the tokenizer files and `generation_config.json` from `folder` too.
    #[must_use]
    pub fn with_tokenizer(self, folder: &'a Path) -> Self {
        Self { tokenizer_folder: Some(folder), ..self }
    }

    /// Sets the maximum number of bytes of tensors per safetensors file; by default [`MAX_SHARD_BYTES`].
    #[must_use]
    pub fn with_max_shard_bytes(self, bytes: u64) -> Self {
        Self { max_shard_bytes: bytes, ..self }
    }

    /// Writes the folder.
    ///
    /// # Errors
    /// `dir` exists and is not empty, a producer fails, the disk is full, or the user interrupts.
    pub fn save<'t>(self, tensors: impl IntoIterator<Item = OutTensor<'t>>) -> Result<()> {
        self.save_with(tensors, |_| Ok(()))
    }

    /// Writes the folder like [`save`](Self::save), and calls `finish` with its temporary path before it appears, so that
    /// `finish` can add files.
    ///
    /// # Errors
    /// Same as [`save`](Self::save), or `finish` fails.
    pub fn save_with<'t>(
        self,
        tensors: impl IntoIterator<Item = OutTensor<'t>>,
        finish: impl FnOnce(&Path) -> Result<()>,
    ) -> Result<()> {
        let dir = resolve_folder(self.dir)?;
        let check = || {
            if is_taken(&dir) {
                Err(Error::file(self.dir, "exists already", "choose a new folder"))
            } else {
                Ok(())
            }
        };
        check()?;
        let part = self.write_part(&dir, tensors, finish)?;
        // Another process may have published a model there in the meantime.
        check()?;
        publish_folder(part, &dir, "config.json")
    }

    /// Writes the folder like [`save_with`](Self::save_with), but replaces the model that this program wrote into `dir`
    /// before. Other files in `dir` are kept.
    ///
    /// # Errors
    /// Same as [`save_with`](Self::save_with), except that `dir` may have files; or a new file would replace one that this
    /// program did not write.
    pub fn replace_with<'t>(
        self,
        tensors: impl IntoIterator<Item = OutTensor<'t>>,
        finish: impl FnOnce(&Path) -> Result<()>,
    ) -> Result<()> {
        let dir = resolve_folder(self.dir)?;
        let part = self.write_part(&dir, tensors, finish)?;
        publish_folder(part, &dir, "config.json")
    }

    /// Writes the complete model folder under a temporary name: inside `dir` if that exists, because its parent may not be
    /// writable (`dir` may be a mount point), else beside it.
    fn write_part<'t>(
        self,
        dir: &Path,
        tensors: impl IntoIterator<Item = OutTensor<'t>>,
        finish: impl FnOnce(&Path) -> Result<()>,
    ) -> Result<part::Part> {
        let parent = if dir.is_dir() { dir } else { output::parent(dir) };
        fs::create_dir_all(parent).map_err(|e| Error::io(parent, "make the folder", e))?;
        let name = dir.file_name().unwrap_or_default().to_string_lossy();
        let part = part::Part::folder(parent, &name);
        let part = part.map_err(|e| Error::io(parent, "write in the folder", e))?;
        let tensors: Vec<OutTensor<'t>> = tensors.into_iter().collect();
        let mut config = self.config.clone();
        config.torch_dtype = common_dtype(&tensors).map(str::to_string);
        write_shards(part.path(), shards(tensors, self.max_shard_bytes))?;
        config.save(part.path())?;
        if let Some(source) = self.tokenizer_folder {
            copy_tokenizer_files(source, part.path())?;
            let generation = source.join(GENERATION);
            if generation.is_file() {
                let bytes =
                    input_file::read(&generation).map_err(|e| Error::io(&generation, "read", e))?;
                write_whole(&part.path().join(GENERATION), &bytes)?;
            }
        }
        finish(part.path())?;
        list_files(part.path())?;
        Ok(part)
    }
}

/// File name of the generation settings in a model folder.
const GENERATION: &str = "generation_config.json";

/// Returns whether `name` is a name that a file of a model has in the model's folder.
pub fn is_model_file(name: &str) -> bool {
    let others = ["config.json", GENERATION, "model.safetensors.index.json"];
    is_weights_file(name) || TOKENIZER_FILES.contains(&name) || others.contains(&name)
}

fn is_weights_file(name: &str) -> bool {
    name.starts_with("model") && name.ends_with(".safetensors")
}

/// Checks that [`ModelFolder::replace_with`] can write a model with the tokenizer of `source` into `dir`. It is called
/// before the weights are computed.
///
/// # Errors
/// The model would replace a file that this program did not write. The error names the first such file.
pub fn check_replaceable(dir: &Path, source: &Path) -> Result<()> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    let names: Vec<String> =
        entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
    let written = |name: &&str| match *name {
        "config.json" | "model.safetensors.index.json" | NAME => true,
        name => is_weights_file(name) || is_model_file(name) && source.join(name).exists(),
    };
    refuse_foreign_among(dir, names.iter().map(String::as_str).filter(written)).map(drop)
}

/// Writes the list of files of a folder that is about to be published.
fn list_files(folder: &Path) -> Result<()> {
    let entries = fs::read_dir(folder).map_err(|e| Error::io(folder, "list", e))?;
    let names = entries.flatten().map(|entry| entry.file_name());
    let names = names.map(|name| name.to_string_lossy().into_owned());
    FileList::new(names).write(folder)
}

/// Writes f32 tensors to one file, which appears complete or not at all. Used for adapters and checkpoints.
///
/// # Errors
/// The disk is full, or a tensor's values do not fill its shape.
pub fn save_safetensors(path: &Path, tensors: &[(String, Vec<usize>, Vec<f32>)]) -> Result<()> {
    let out = tensors.iter().map(|(name, shape, values)| {
        OutTensor::new(name, shape.clone(), DType::F32, || Ok(values.clone()))
    });
    write_file(path, out.collect(), || false)
}

/// Writes tensors to one file like [`save_safetensors`]. The values of one tensor at a time are in memory. A request to stop
/// does not end it: an adapter, the result of a run, takes less than a second.
///
/// # Errors
/// The disk is full, or a tensor's values do not fill its shape.
pub fn save_tensors(path: &Path, tensors: Vec<OutTensor<'_>>) -> Result<()> {
    write_file(path, tensors, || false)
}

/// Tensors by name: shape and row-major values.
pub type NamedTensors = BTreeMap<String, (Vec<usize>, Vec<f32>)>;

/// Reads all tensors of a file as f32.
///
/// # Errors
/// The file is missing or damaged, or holds something other than floats.
pub fn load_safetensors_f32(path: &Path) -> Result<NamedTensors> {
    let weights = WeightFiles::open_file(path)?;
    let tensor = |name: &str| {
        Ok((name.to_string(), (weights.shape(name)?.to_vec(), weights.tensor_f32(name)?)))
    };
    weights.names().map(tensor).collect()
}

/// Splits the tensors into shards in the given order; a tensor larger than `max_bytes` gets a shard of its own.
fn shards(tensors: Vec<OutTensor<'_>>, max_bytes: u64) -> Vec<Vec<OutTensor<'_>>> {
    let mut shards = vec![Vec::new()];
    let mut bytes = 0;
    for tensor in tensors {
        if bytes > 0 && bytes + tensor.bytes() > max_bytes {
            shards.push(Vec::new());
            bytes = 0;
        }
        bytes += tensor.bytes();
        if let Some(shard) = shards.last_mut() {
            shard.push(tensor);
        }
    }
    shards
}

/// Writes `model.safetensors`, or several shards and their index.
fn write_shards(folder: &Path, shards: Vec<Vec<OutTensor<'_>>>) -> Result<()> {
    let count = shards.len();
    if count == 1 {
        let single = shards.into_iter().flatten().collect();
        return write_file(&folder.join("model.safetensors"), single, interrupt::requested);
    }
    let total: u64 = shards.iter().flatten().map(OutTensor::bytes).sum();
    let mut weight_map = Map::new();
    for (tensors, number) in shards.into_iter().zip(1..) {
        let name = format!("model-{number:05}-of-{count:05}.safetensors");
        let names = tensors.iter().flat_map(OutTensor::parts);
        weight_map.extend(names.map(|part| (part.name, json!(name))));
        write_file(&folder.join(name), tensors, interrupt::requested)?;
    }
    weight_map.sort_keys();
    let index = json!({"metadata": {"total_size": total}, "weight_map": weight_map});
    write_whole(&folder.join("model.safetensors.index.json"), format!("{index:#}\n").as_bytes())
}

/// Writes one safetensors file, with quantized matrices and wide dtypes first, so that every tensor is aligned to its
/// elements. It ends without a file once `is_stopped` returns true.
fn write_file(
    path: &Path,
    mut tensors: Vec<OutTensor<'_>>,
    is_stopped: impl Fn() -> bool,
) -> Result<()> {
    tensors.sort_by_key(|tensor| Reverse(tensor.alignment()));
    let header = header(&tensors)?;
    let fail = |e| Error::io(path, "write", e);
    let mut file = WholeFile::create(path)?;
    file.write_all(&(header.len() as u64).to_le_bytes()).map_err(fail)?;
    file.write_all(header.as_bytes()).map_err(fail)?;
    for tensor in tensors {
        if is_stopped() {
            let note = format!("{} was not written", path.display());
            return Err(Error::Interrupted { note });
        }
        write_values(&mut file, tensor, path)?;
    }
    file.commit()
}

/// Builds the JSON header, padded with spaces to a multiple of 8 bytes.
fn header(tensors: &[OutTensor<'_>]) -> Result<String> {
    let mut entries = Map::new();
    entries.insert("__metadata__".to_string(), json!({"format": "pt"}));
    let mut start = 0;
    for tensor in tensors {
        for part in tensor.parts() {
            let Some(dtype) = stored_name(part.dtype) else {
                return Err(bug(&format!("{tensor:?}"), "cannot be written in this type"));
            };
            let end = start + part.bytes();
            let entry = json!({"dtype": dtype, "shape": part.shape, "data_offsets": [start, end]});
            if entries.insert(part.name, entry).is_some() {
                return Err(bug(&format!("{tensor:?}"), "would be written twice"));
            }
            start = end;
        }
    }
    let mut text = Value::Object(entries).to_string();
    text.push_str(&" ".repeat(text.len().next_multiple_of(8) - text.len()));
    Ok(text)
}

/// Converts and writes the values in blocks, without a second copy of the tensor.
fn write_values(file: &mut WholeFile, tensor: OutTensor<'_>, path: &Path) -> Result<()> {
    let (described, dtype) = (format!("{tensor:?}"), tensor.dtype);
    let wanted = tensor.shape.iter().product::<usize>();
    let values = match tensor.values {
        Values::Floats(values) => values()?,
        Values::Quantized(to, quantize) => {
            let quantized = quantize()?;
            if quantized.quantization() != to || quantized.dims != tensor.shape[..] {
                return Err(bug(&described, "was quantized differently"));
            }
            let dtype = dtype_name(dtype).unwrap_or("float32");
            let bytes = bitsandbytes::bytes(&tensor.name, &quantized, dtype);
            return file.write_all(&bytes).map_err(|e| Error::io(path, "write", e));
        }
    };
    if values.len() != wanted {
        let problem = format!("was made with {} values", values.len());
        return Err(bug(&described, &problem));
    }
    let mut bytes = Vec::with_capacity(1 << 18);
    for block in values.chunks(1 << 16) {
        bytes.clear();
        match dtype {
            DType::BF16 => {
                bytes.extend(block.iter().flat_map(|v| bf16::from_f32(*v).to_le_bytes()))
            }
            DType::F16 => bytes.extend(block.iter().flat_map(|v| f16::from_f32(*v).to_le_bytes())),
            _ => bytes.extend(block.iter().flat_map(|v| v.to_le_bytes())),
        }
        file.write_all(&bytes).map_err(|e| Error::io(path, "write", e))?;
    }
    Ok(())
}

/// Returns the error for a tensor that the calling code made wrongly.
fn bug(tensor: &str, problem: &str) -> Error {
    Error::run(format!("{tensor} {problem}"), "this is a defect of arithmo: please report it")
}

/// Returns the name of a dtype in safetensors.
fn stored_name(dtype: DType) -> Option<&'static str> {
    match dtype {
        DType::F32 => Some("F32"),
        DType::BF16 => Some("BF16"),
        DType::F16 => Some("F16"),
        DType::U8 => Some("U8"),
        _ => None,
    }
}

/// Returns the name of a dtype in `config.json`; `None` for dtypes other than f32, bf16 and f16.
fn dtype_name(dtype: DType) -> Option<&'static str> {
    match dtype {
        DType::F32 => Some("float32"),
        DType::BF16 => Some("bfloat16"),
        DType::F16 => Some("float16"),
        _ => None,
    }
}

/// Returns the value of `torch_dtype`: the dtype of most values.
fn common_dtype(tensors: &[OutTensor<'_>]) -> Option<&'static str> {
    let mut values = BTreeMap::new();
    for tensor in tensors {
        if let Some(name) = dtype_name(tensor.dtype) {
            *values.entry(name).or_insert(0) += tensor.shape.iter().product::<usize>();
        }
    }
    values.into_iter().max_by_key(|(_, count)| *count).map(|(name, _)| name)
}
