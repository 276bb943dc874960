//! Writing safetensors: a whole model folder in Hugging Face layout, tensor by tensor, or one small file.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::fmt;
use std::fs::{self, File};
use std::io::Write;
use std::path::Path;

use burn::tensor::DType;
use half::{bf16, f16};
use serde_json::{Map, Value, json};

use super::config::MistralConfig;
use super::quantize::bitsandbytes::{self, Part};
use super::quantize::{Quantization, Quantized};
use super::weights::WeightFiles;
use crate::data::tokenizer::copy_tokenizer_files;
use crate::error::{Error, Result};
use crate::interrupt;
use crate::output::{WholeFile, write_whole};

/// Largest shard transformers writes by default, bytes.
pub const MAX_SHARD_BYTES: u64 = 5_000_000_000;

/// A tensor to be written, or a packed matrix; its values are asked for only when its turn comes.
pub struct OutTensor<'a> {
    /// Name in the file, as `model.norm.weight`.
    pub name: String,
    /// Shape; weights are `[out, in]`.
    pub shape: Vec<usize>,
    /// Type in the file: F32, BF16 or F16, rounded to nearest even; of a packed matrix, the type its values had.
    pub dtype: DType,
    values: Values<'a>,
}

/// What makes the values.
enum Values<'a> {
    /// Row-major, as many as the shape says.
    Floats(Box<dyn FnOnce() -> Result<Vec<f32>> + 'a>),
    Packed(Quantization, Box<dyn FnOnce() -> Result<Quantized> + 'a>),
}

impl<'a> OutTensor<'a> {
    /// A tensor whose values `values` makes when asked.
    pub fn new(
        name: impl Into<String>,
        shape: Vec<usize>,
        dtype: DType,
        values: impl FnOnce() -> Result<Vec<f32>> + 'a,
    ) -> Self {
        Self { name: name.into(), shape, dtype, values: Values::Floats(Box::new(values)) }
    }

    /// A matrix `[D_out, D_in]` that `pack` makes when asked, packed as `to`; its values were `dtype`.
    pub fn packed(
        name: impl Into<String>,
        dims: [usize; 2],
        dtype: DType,
        to: Quantization,
        pack: impl FnOnce() -> Result<Quantized> + 'a,
    ) -> Self {
        Self {
            name: name.into(),
            shape: dims.to_vec(),
            dtype,
            values: Values::Packed(to, Box::new(pack)),
        }
    }

    /// The tensors it becomes in the file, in order.
    fn parts(&self) -> Vec<Part> {
        match (&self.values, self.shape.as_slice()) {
            (Values::Packed(to, _), &[d_out, d_in]) => {
                bitsandbytes::parts(&self.name, [d_out, d_in], *to)
            }
            _ => {
                vec![Part { name: self.name.clone(), dtype: self.dtype, shape: self.shape.clone() }]
            }
        }
    }

    /// Bytes in the file.
    fn bytes(&self) -> u64 {
        self.parts().iter().map(|part| part.bytes() as u64).sum()
    }

    /// Bytes of which it takes a multiple.
    fn unit(&self) -> usize {
        match self.values {
            Values::Floats(_) => self.dtype.size(),
            Values::Packed(..) => 8,
        }
    }
}

impl fmt::Debug for OutTensor<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {:?} {:?}", self.name, self.shape, self.dtype)
    }
}

/// Writes a model folder that transformers opens: `config.json`, safetensors (sharded above `max_shard_bytes`, with an
/// index), and the tokenizer files and `generation_config.json` of `tokenizer_folder`, if given.
///
/// The folder appears under its name when everything is written, or not at all. One tensor is in memory at a time.
///
/// # Errors
/// `dir` exists and is not empty, a producer fails, the disk is full, or the user interrupts.
pub fn save_folder<'a>(
    dir: &Path,
    config: &MistralConfig,
    tensors: impl IntoIterator<Item = OutTensor<'a>>,
    max_shard_bytes: u64,
    tokenizer_folder: Option<&Path>,
) -> Result<()> {
    save_folder_with(dir, config, tensors, max_shard_bytes, tokenizer_folder, |_| Ok(()))
}

/// As [`save_folder`]; `finish` adds what is missing to the folder before it appears.
///
/// # Errors
/// As [`save_folder`], or `finish` fails.
pub fn save_folder_with<'a>(
    dir: &Path,
    config: &MistralConfig,
    tensors: impl IntoIterator<Item = OutTensor<'a>>,
    max_shard_bytes: u64,
    tokenizer_folder: Option<&Path>,
    finish: impl FnOnce(&Path) -> Result<()>,
) -> Result<()> {
    let taken = fs::read_dir(dir).is_ok_and(|mut entries| entries.next().is_some());
    if taken || dir.is_file() {
        return Err(Error::file(dir, "exists already", "choose a new folder, or remove this one"));
    }
    let parent = match dir.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    fs::create_dir_all(parent).map_err(|e| Error::io(parent, "make the folder", e))?;
    let part = tempfile::Builder::new().prefix(".part-").tempdir_in(parent);
    let part = part.map_err(|e| Error::io(parent, "write in the folder", e))?;
    let tensors: Vec<OutTensor<'a>> = tensors.into_iter().collect();
    let mut config = config.clone();
    config.torch_dtype = common_dtype(&tensors).map(str::to_string);
    write_shards(part.path(), shards(tensors, max_shard_bytes))?;
    config.save(part.path())?;
    if let Some(source) = tokenizer_folder {
        copy_tokenizer_files(source, part.path())?;
        let generation = source.join("generation_config.json");
        if generation.is_file() {
            let bytes = fs::read(&generation).map_err(|e| Error::io(&generation, "read", e))?;
            write_whole(&part.path().join("generation_config.json"), &bytes)?;
        }
    }
    finish(part.path())?;
    publish(part, dir)
}

/// Writes f32 tensors to one file, which appears whole or not at all. For adapters and checkpoints.
///
/// # Errors
/// The disk is full, or a tensor's values do not fill its shape.
pub fn save_safetensors(path: &Path, tensors: &[(String, Vec<usize>, Vec<f32>)]) -> Result<()> {
    let out = tensors.iter().map(|(name, shape, values)| {
        OutTensor::new(name, shape.clone(), DType::F32, || Ok(values.clone()))
    });
    write_file(path, out.collect())
}

/// Tensors by name: shape and row-major values.
pub type NamedTensors = BTreeMap<String, (Vec<usize>, Vec<f32>)>;

/// All tensors of a file as f32.
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

/// Splits in the given order; a tensor larger than `max_bytes` gets a shard of its own.
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

fn write_shards(folder: &Path, shards: Vec<Vec<OutTensor<'_>>>) -> Result<()> {
    let count = shards.len();
    if count == 1 {
        let single = shards.into_iter().flatten().collect();
        return write_file(&folder.join("model.safetensors"), single);
    }
    let total: u64 = shards.iter().flatten().map(OutTensor::bytes).sum();
    let mut weight_map = Map::new();
    for (tensors, number) in shards.into_iter().zip(1..) {
        let name = format!("model-{number:05}-of-{count:05}.safetensors");
        let names = tensors.iter().flat_map(OutTensor::parts);
        weight_map.extend(names.map(|part| (part.name, json!(name))));
        write_file(&folder.join(name), tensors)?;
    }
    weight_map.sort_keys();
    let index = json!({"metadata": {"total_size": total}, "weight_map": weight_map});
    write_whole(&folder.join("model.safetensors.index.json"), format!("{index:#}\n").as_bytes())
}

/// One safetensors file; packed matrices and wide types first, so that every tensor is aligned to its element.
fn write_file(path: &Path, mut tensors: Vec<OutTensor<'_>>) -> Result<()> {
    tensors.sort_by_key(|tensor| Reverse(tensor.unit()));
    let header = header(&tensors)?;
    let fail = |e| Error::io(path, "write", e);
    let mut file = WholeFile::create(path)?;
    file.write_all(&(header.len() as u64).to_le_bytes()).map_err(fail)?;
    file.write_all(header.as_bytes()).map_err(fail)?;
    for tensor in tensors {
        if interrupt::requested() {
            let note = format!("{} was not written", path.display());
            return Err(Error::Interrupted { note });
        }
        write_values(&mut file, tensor, path)?;
    }
    file.commit()
}

/// The JSON header, padded with spaces to a multiple of 8 bytes.
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

/// Converts and writes in blocks: no second copy of the tensor.
fn write_values(file: &mut WholeFile, tensor: OutTensor<'_>, path: &Path) -> Result<()> {
    let (what, dtype) = (format!("{tensor:?}"), tensor.dtype);
    let wanted = tensor.shape.iter().product::<usize>();
    let values = match tensor.values {
        Values::Floats(values) => values()?,
        Values::Packed(to, pack) => {
            let packed = pack()?;
            if packed.quantization() != to || packed.dims != tensor.shape[..] {
                return Err(bug(&what, "was packed otherwise"));
            }
            let dtype = dtype_name(dtype).unwrap_or("float32");
            let bytes = bitsandbytes::bytes(&tensor.name, &packed, dtype);
            return file.write_all(&bytes).map_err(|e| Error::io(path, "write", e));
        }
    };
    if values.len() != wanted {
        let problem = format!("was made with {} values", values.len());
        return Err(bug(&what, &problem));
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

fn bug(tensor: &str, problem: &str) -> Error {
    Error::run(format!("{tensor} {problem}"), "this is a defect of arithmo: please report it")
}

/// The name of a type in safetensors.
fn stored_name(dtype: DType) -> Option<&'static str> {
    match dtype {
        DType::F32 => Some("F32"),
        DType::BF16 => Some("BF16"),
        DType::F16 => Some("F16"),
        DType::U8 => Some("U8"),
        _ => None,
    }
}

/// The name of a type in `config.json`.
fn dtype_name(dtype: DType) -> Option<&'static str> {
    match dtype {
        DType::F32 => Some("float32"),
        DType::BF16 => Some("bfloat16"),
        DType::F16 => Some("float16"),
        _ => None,
    }
}

/// What `torch_dtype` says: the type of most values.
fn common_dtype(tensors: &[OutTensor<'_>]) -> Option<&'static str> {
    let mut values = BTreeMap::new();
    for tensor in tensors {
        if let Some(name) = dtype_name(tensor.dtype) {
            *values.entry(name).or_insert(0) += tensor.shape.iter().product::<usize>();
        }
    }
    values.into_iter().max_by_key(|(_, count)| *count).map(|(name, _)| name)
}

/// Renames the finished temporary folder to `dir`.
fn publish(part: tempfile::TempDir, dir: &Path) -> Result<()> {
    let fail = |e| Error::io(dir, "write", e);
    set_usual_permissions(part.path()).map_err(fail)?;
    // An empty folder of this name is replaced; a full one was refused at the start, and makes `rename` fail.
    fs::rename(part.path(), dir).map_err(fail)?;
    // The temporary name is gone: nothing is left to remove.
    let _ = part.keep();
    // Makes the rename itself durable; not every file system can, and then nothing is lost but time.
    if let Some(Ok(folder)) = dir.parent().map(File::open) {
        let _ = folder.sync_all();
    }
    Ok(())
}

/// Temporary folders are private to their owner; a finished one is readable like any other.
#[cfg(unix)]
fn set_usual_permissions(folder: &Path) -> std::io::Result<()> {
    use std::os::unix::fs::PermissionsExt;
    fs::set_permissions(folder, fs::Permissions::from_mode(0o755))
}

#[cfg(not(unix))]
fn set_usual_permissions(_folder: &Path) -> std::io::Result<()> {
    Ok(())
}
