//! Reads safetensors, one file or shards with an index, tensor by tensor.
//!
//! The format is an 8-byte little-endian header length N, N bytes of JSON (`name -> dtype, shape, data_offsets`),
//! then the tensors' bytes without gaps. Headers are fully checked when a folder is opened, so that a truncated file
//! is found before any weight is used. All threads read a tensor at once. A tensor that is stored in the wanted dtype
//! is read straight into its destination, any other piece by piece: besides the resulting tensors, only one piece per
//! thread is in memory.

mod digest;
mod fit;
mod header;

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{File, Metadata};
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use burn::tensor::{DType, TensorData};
use bytemuck::Pod;
use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};
use rayon::prelude::*;
use serde::Deserialize;

use self::header::read_header;
use super::config::DecoderConfig;
use super::quantize::bitsandbytes::STATE;
use crate::error::{Error, Result};
use crate::input_file;
use crate::read_at::read_exact_at;

/// Number of elements that a thread reads at once; they stay in its cache until they are converted.
const PIECE: usize = 1 << 16;

const FETCH_AGAIN: &str = "the file is damaged or not fully downloaded: fetch it again";

/// The tensors of a model folder or of one safetensors file.
#[derive(Debug)]
pub struct WeightFiles {
    /// The opened folder or file, for messages.
    place: PathBuf,
    files: Vec<(PathBuf, File)>,
    tensors: BTreeMap<String, Entry>,
}

/// The location of one tensor.
#[derive(Debug)]
struct Entry {
    /// Index in `files`.
    file: usize,
    dtype: DType,
    shape: Vec<usize>,
    /// Offset of the first byte in the file.
    start: u64,
    /// Length in bytes.
    len: usize,
}

impl WeightFiles {
    /// Opens the weights of a Hugging Face folder: `model.safetensors`, or the shards that
    /// `model.safetensors.index.json` names.
    ///
    /// # Errors
    /// The folder has no safetensors (the error mentions `pytorch_model.bin` if there is one), a shard is missing, a
    /// header is truncated or inconsistent (file and byte are named), index and shards disagree, or the weights are
    /// quantized by LLM.int8().
    pub fn open(folder: &Path) -> Result<Self> {
        let single = folder.join("model.safetensors");
        let index = folder.join("model.safetensors.index.json");
        let weights = if single.is_file() {
            Self::from_files(folder, &[single])?
        } else if index.is_file() {
            Self::open_sharded(folder, &index)?
        } else {
            return Err(no_safetensors(folder));
        };
        weights.refuse_llm_int8()?;
        Ok(weights)
    }

    /// Opens the weights of the model that `config` describes, like [`open`](Self::open). Of a model of several kinds of
    /// input, they are those of its text part, under the names that they have in a model of text alone.
    ///
    /// # Errors
    /// Same as [`open`](Self::open), or the embeddings are tied and the files hold another head.
    pub fn open_model(folder: &Path, config: &DecoderConfig) -> Result<Self> {
        let mut weights = Self::open(folder)?;
        if config.is_text_part {
            let all = std::mem::take(&mut weights.tensors).into_iter();
            weights.tensors = all.filter_map(|(name, at)| Some((text_name(&name)?, at))).collect();
        }
        if config.tie_word_embeddings {
            weights.refuse_other_head()?;
        }
        Ok(weights)
    }

    /// Opens a single safetensors file with any tensors.
    ///
    /// # Errors
    /// Same as [`open`](Self::open).
    pub fn open_file(path: &Path) -> Result<Self> {
        Self::from_files(path, &[path.to_path_buf()])
    }

    /// Opens the shards that an index names, and checks that the two agree.
    fn open_sharded(folder: &Path, index_path: &Path) -> Result<Self> {
        #[derive(Deserialize)]
        struct Index {
            weight_map: BTreeMap<String, String>,
        }
        let text = input_file::read(index_path).map_err(|e| Error::io(index_path, "read", e))?;
        let index: Index = serde_json::from_slice(&text).map_err(|e| {
            Error::file(index_path, format!("is not an index of shards: {e}"), FETCH_AGAIN)
        })?;
        let shards: BTreeSet<&String> = index.weight_map.values().collect();
        let mut paths = Vec::with_capacity(shards.len());
        for shard in shards {
            let path = folder.join(shard);
            if Path::new(shard).components().count() != 1 || !path.is_file() {
                return Err(Error::file(
                    index_path,
                    format!("names the shard {shard:?}, which is not in the folder"),
                    "fetch the missing file",
                ));
            }
            paths.push(path);
        }
        let weights = Self::from_files(folder, &paths)?;
        for (name, shard) in &index.weight_map {
            let stored = weights.tensors.get(name).map(|entry| entry.file);
            if stored.is_none_or(|file| weights.files[file].0 != folder.join(shard)) {
                return Err(Error::file(
                    index_path,
                    format!("says that {name} is in {shard}, but it is not"),
                    "fetch index and shards of one and the same revision",
                ));
            }
        }
        Ok(weights)
    }

    /// Opens safetensors files and reads their headers.
    fn from_files(place: &Path, paths: &[PathBuf]) -> Result<Self> {
        let mut weights = Self {
            place: place.to_path_buf(),
            files: Vec::with_capacity(paths.len()),
            tensors: BTreeMap::new(),
        };
        for (file, path) in paths.iter().enumerate() {
            let mut handle = input_file::open(path).map_err(|e| Error::io(path, "open", e))?;
            for (name, mut entry) in read_header(&mut handle, path)? {
                entry.file = file;
                if let Some(other) = weights.tensors.insert(name.clone(), entry) {
                    let first = &paths[other.file];
                    return Err(Error::file(
                        path,
                        format!("holds {name}, which {} holds too", first.display()),
                        "keep the shards of one revision only",
                    ));
                }
            }
            weights.files.push((path.clone(), handle));
        }
        Ok(weights)
    }

    /// Iterates over the names of all tensors, sorted.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.tensors.keys().map(String::as_str)
    }

    /// Returns whether a tensor of this name is stored.
    pub fn contains(&self, name: &str) -> bool {
        self.tensors.contains_key(name)
    }

    /// Returns the shape of a tensor as stored.
    ///
    /// # Errors
    /// There is no tensor of this name.
    pub fn shape(&self, name: &str) -> Result<&[usize]> {
        Ok(&self.entry(name)?.shape)
    }

    /// Returns the dtype of a tensor as stored.
    ///
    /// # Errors
    /// There is no tensor of this name.
    pub fn dtype(&self, name: &str) -> Result<DType> {
        Ok(self.entry(name)?.dtype)
    }

    /// Returns the opened folder or file.
    pub fn place(&self) -> &Path {
        &self.place
    }

    /// Returns whether a tensor is quantized by bitsandbytes: see
    /// [`quantize::bitsandbytes`](super::quantize::bitsandbytes).
    pub fn is_quantized(&self, name: &str) -> bool {
        let state = format!("{name}{STATE}");
        let mut from = self.tensors.range(state.clone()..);
        from.next().is_some_and(|(found, _)| found.starts_with(&state))
    }

    /// Returns the length in bytes of a tensor as stored.
    ///
    /// # Errors
    /// There is no tensor of this name.
    pub fn byte_count(&self, name: &str) -> Result<usize> {
        Ok(self.entry(name)?.len)
    }

    /// Returns the metadata of each opened file.
    ///
    /// # Errors
    /// The metadata cannot be read.
    pub fn metadata(&self) -> Result<Vec<Metadata>> {
        let files = self.files.iter();
        files.map(|(path, file)| file.metadata().map_err(|e| Error::io(path, "read", e))).collect()
    }

    /// Returns the number of bytes of all tensors together.
    pub fn total_bytes(&self) -> u64 {
        self.tensors.values().map(|entry| entry.len as u64).sum()
    }

    /// Reads the bytes of one tensor as stored, little-endian.
    ///
    /// # Errors
    /// There is no tensor of this name, or the file cannot be read.
    pub fn bytes(&self, name: &str) -> Result<Vec<u8>> {
        let entry = self.entry(name)?;
        let mut bytes = vec![0; entry.len];
        self.read_elements(entry, 0, &mut bytes)?;
        Ok(bytes)
    }

    /// Reads the bytes of one tensor as little-endian words, the last one padded with zeros.
    ///
    /// # Errors
    /// Same as [`bytes`](Self::bytes).
    pub fn words(&self, name: &str) -> Result<Vec<u32>> {
        let entry = self.entry(name)?;
        let (whole, rest) = (entry.len / 4, entry.len % 4);
        let mut words = room::<u32>(entry.len.div_ceil(4));
        let pieces = words[..whole].par_chunks_mut(PIECE).enumerate();
        pieces.try_for_each(|(index, piece)| self.read_elements(entry, index * PIECE, piece))?;
        if rest > 0 {
            let mut bytes = [0u8; 4];
            self.read_elements(entry, 4 * whole, &mut bytes[..rest])?;
            words[whole] = u32::from_le_bytes(bytes);
        }
        Ok(words)
    }

    /// Fills `values` with elements of a tensor as f32, starting with its element `first`.
    ///
    /// # Errors
    /// Same as [`tensor_f32`](Self::tensor_f32).
    ///
    /// # Panics
    /// Panics if the tensor has fewer elements.
    pub fn read_f32(&self, name: &str, first: usize, values: &mut [f32]) -> Result<()> {
        let entry = self.entry(name)?;
        let count: usize = entry.shape.iter().product();
        assert!(first + values.len() <= count, "{name} has {count} elements");
        match entry.dtype {
            DType::F32 => self.read_elements(entry, first, values),
            DType::F16 => self.read_piece(entry, first, values, |from: &[f16], to| {
                from.convert_to_f32_slice(to);
            }),
            DType::BF16 => self.read_piece(entry, first, values, each(bf16::to_f32)),
            DType::F64 => self.read_piece(entry, first, values, each(|v: f64| v as f32)),
            other => Err(self.not_a_float(name, other)),
        }
    }

    /// Reads elements that are stored as `S` and converts them, starting with element `first`.
    fn read_piece<S: Pod>(
        &self,
        entry: &Entry,
        first: usize,
        values: &mut [f32],
        convert: impl Fn(&[S], &mut [f32]),
    ) -> Result<()> {
        let mut stored = bytemuck::zeroed_vec::<S>(values.len());
        self.read_elements(entry, first, &mut stored)?;
        convert(&stored, values);
        Ok(())
    }

    /// Reads one tensor as f32, converted from F64, F32, F16 or BF16.
    ///
    /// # Errors
    /// There is no tensor of this name, it is not a float, or the file cannot be read.
    pub fn tensor_f32(&self, name: &str) -> Result<Vec<f32>> {
        match self.dtype(name)? {
            DType::F32 => self.stored(name),
            DType::F16 => self.converted(name, |from: &[f16], to| from.convert_to_f32_slice(to)),
            _ => self.read(name, |v| v, |v| v as f32),
        }
    }

    /// Reads one tensor in the dtype `target` (F64, F32, F16 or BF16), rounded to nearest even, ready for a device.
    ///
    /// # Errors
    /// Same as [`tensor_f32`](Self::tensor_f32), or `target` is none of the four.
    pub fn tensor_data(&self, name: &str, target: DType) -> Result<TensorData> {
        let stored = self.dtype(name)?;
        let shape = self.shape(name)?.to_vec();
        Ok(match (stored, target) {
            (_, DType::F32) => TensorData::new(self.tensor_f32(name)?, shape),
            (DType::BF16, DType::BF16) => TensorData::new(self.stored::<bf16>(name)?, shape),
            (DType::F16, DType::F16) => TensorData::new(self.stored::<f16>(name)?, shape),
            (DType::F64, DType::F64) => TensorData::new(self.stored::<f64>(name)?, shape),
            (_, DType::F64) => TensorData::new(self.read(name, f64::from, |v| v)?, shape),
            (_, DType::BF16) => {
                TensorData::new(self.read(name, bf16::from_f32, bf16::from_f64)?, shape)
            }
            (_, DType::F16) => {
                TensorData::new(self.read(name, f16::from_f32, f16::from_f64)?, shape)
            }
            (_, other) => return Err(self.not_a_float(name, other)),
        })
    }

    /// Reads a tensor of any float dtype and converts it to `T`.
    fn read<T: Pod + Send>(
        &self,
        name: &str,
        from_f32: impl Fn(f32) -> T + Sync,
        from_f64: impl Fn(f64) -> T + Sync,
    ) -> Result<Vec<T>> {
        match self.dtype(name)? {
            DType::F32 => self.converted(name, each(from_f32)),
            DType::F64 => self.converted(name, each(from_f64)),
            DType::BF16 => self.converted(name, each(|v: bf16| from_f32(v.to_f32()))),
            DType::F16 => self.converted(name, each(|v: f16| from_f32(v.to_f32()))),
            other => Err(self.not_a_float(name, other)),
        }
    }

    /// Reads a tensor that is stored as `T`.
    fn stored<T: Pod + Send>(&self, name: &str) -> Result<Vec<T>> {
        let entry = self.entry(name)?;
        let mut out = room(entry.shape.iter().product());
        let pieces = out.par_chunks_mut(PIECE).enumerate();
        pieces.try_for_each(|(index, piece)| self.read_elements(entry, index * PIECE, piece))?;
        Ok(out)
    }

    /// Reads a tensor that is stored as `S` and applies `convert` piece by piece.
    fn converted<S: Pod, T: Pod + Send>(
        &self,
        name: &str,
        convert: impl Fn(&[S], &mut [T]) + Sync,
    ) -> Result<Vec<T>> {
        let entry = self.entry(name)?;
        let mut out = room(entry.shape.iter().product());
        let pieces = out.par_chunks_mut(PIECE).enumerate();
        let room = || bytemuck::zeroed_vec::<S>(PIECE);
        pieces.try_for_each_init(room, |stored, (index, piece)| {
            let stored = &mut stored[..piece.len()];
            self.read_elements(entry, index * PIECE, stored)?;
            convert(stored, piece);
            Ok::<_, Error>(())
        })?;
        Ok(out)
    }

    /// Fills `elements` from the bytes of a tensor, starting with its element `first`.
    fn read_elements<T: Pod>(&self, entry: &Entry, first: usize, elements: &mut [T]) -> Result<()> {
        let (path, file) = &self.files[entry.file];
        let start = entry.start + (first * size_of::<T>()) as u64;
        let bytes: &mut [u8] = bytemuck::cast_slice_mut(elements);
        read_exact_at(file, bytes, start).map_err(|e| match e.kind() {
            ErrorKind::UnexpectedEof => {
                Error::file(path, "became shorter while being read", FETCH_AGAIN)
            }
            _ => Error::io(path, "read", e),
        })?;
        if cfg!(target_endian = "big") {
            bytes.chunks_exact_mut(size_of::<T>()).for_each(<[u8]>::reverse);
        }
        Ok(())
    }

    /// Returns the location of a tensor, or an error if there is none of this name.
    fn entry(&self, name: &str) -> Result<&Entry> {
        self.tensors.get(name).ok_or_else(|| {
            Error::file(&self.place, format!("holds no tensor {name}"), "check the model folder")
        })
    }

    /// Returns the error for a tensor whose dtype is not a float.
    fn not_a_float(&self, name: &str, dtype: DType) -> Error {
        if self.is_quantized(name) {
            let problem =
                format!("{name} is quantized by bitsandbytes, but full precision is needed");
            return Error::file(&self.place, problem, "name the full-precision model");
        }
        Error::file(
            &self.place,
            format!("{name}: {dtype:?} is not one of F64, F32, F16, BF16"),
            "use weights saved in one of these types",
        )
    }

    /// Refuses LLM.int8() of bitsandbytes, which stores one scale per row, `SCB`, beside each weight.
    fn refuse_llm_int8(&self) -> Result<()> {
        match self.names().find(|name| name.ends_with(".SCB")) {
            None => Ok(()),
            Some(name) => Err(Error::file(
                &self.place,
                format!("the weights are quantized by LLM.int8() ({name})"),
                "name the full-precision model and quantize it here with model.quantization",
            )),
        }
    }
}

/// Returns the name that a tensor of a model of several kinds of input has in a model of text alone; `None` if it does not
/// belong to the text part. Transformers 4 and 5 name them differently.
fn text_name(name: &str) -> Option<String> {
    match (name.strip_prefix("language_model."), name.strip_prefix("model.language_model.")) {
        (Some(rest), _) => Some(rest.to_string()),
        (None, Some(rest)) => Some(format!("model.{rest}")),
        (None, None) => name.starts_with("lm_head.").then(|| name.to_string()),
    }
}

/// Returns the error for a folder without safetensors.
fn no_safetensors(folder: &Path) -> Error {
    let pickled = ["pytorch_model.bin", "pytorch_model.bin.index.json", "consolidated.00.pth"];
    match pickled.iter().find(|name| folder.join(name).is_file()) {
        Some(name) => Error::file(
            folder,
            format!("holds pickled weights ({name}) and no model.safetensors"),
            "convert it: save_pretrained(folder, safe_serialization=True) in transformers",
        ),
        None => Error::file(
            folder,
            "holds neither model.safetensors nor model.safetensors.index.json",
            "name a model folder in Hugging Face layout or a hub id (owner/name)",
        ),
    }
}

/// Allocates `count` zeroed elements, on huge pages where Linux grants them on request: a page fault every 4 KiB
/// takes longer than reading the data.
fn room<T: Pod>(count: usize) -> Vec<T> {
    let mut room = bytemuck::zeroed_vec(count);
    #[cfg(target_os = "linux")]
    ask_for_huge_pages(bytemuck::cast_slice_mut(&mut room));
    room
}

/// Asks the kernel to back the whole huge pages within `bytes` by huge pages.
#[cfg(target_os = "linux")]
#[allow(
    unsafe_code,
    reason = "the advice goes to whole pages inside the slice, and changes neither their content nor who owns them"
)]
fn ask_for_huge_pages(bytes: &mut [u8]) {
    const HUGE: usize = 2 << 20;
    let skipped = bytes.as_ptr().align_offset(HUGE).min(bytes.len());
    let whole = (bytes.len() - skipped) / HUGE * HUGE;
    let pages = &mut bytes[skipped..skipped + whole];
    if !pages.is_empty() {
        // If the kernel refuses, only time is lost.
        let _ = unsafe { libc::madvise(pages.as_mut_ptr().cast(), whole, libc::MADV_HUGEPAGE) };
    }
}

/// Turns a conversion of elements into a conversion of slices.
fn each<S: Copy, T>(convert: impl Fn(S) -> T) -> impl Fn(&[S], &mut [T]) {
    move |from, to| {
        let pairs = to.iter_mut().zip(from);
        pairs.for_each(|(to, &from)| *to = convert(from));
    }
}
