//! Reading safetensors: one file or shards with an index, a tensor at a time.
//!
//! The format: 8 bytes little-endian header length N, N bytes of JSON (`name -> dtype, shape, data_offsets`), then the
//! tensors' bytes without gaps. The header is checked whole when a folder is opened, so that a file cut short is found
//! before any weight is used. A tensor is read by all threads at once, into where it stays if it is stored as it is wanted,
//! else a piece at a time: beside the tensors made, no more than a piece for each thread is in memory.

mod header;

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::time::UNIX_EPOCH;

use burn::tensor::{DType, TensorData};
use bytemuck::Pod;
use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};
use rayon::prelude::*;
use serde::Deserialize;

use self::header::read_header;
use super::quantize::bitsandbytes::STATE;
use crate::error::{Error, Result};
use crate::read_at::read_exact_at;

/// Elements a thread reads at once: they stay in its cache until they are converted.
const PIECE: usize = 1 << 16;

/// First bytes of a tensor that tell it from others.
const IDENTIFYING: usize = 4096;

const FETCH_AGAIN: &str = "the file is damaged or not fully downloaded: fetch it again";

/// The tensors of a model folder or of one safetensors file.
#[derive(Debug)]
pub struct WeightFiles {
    /// The folder or file opened, for messages.
    place: PathBuf,
    files: Vec<(PathBuf, File)>,
    tensors: BTreeMap<String, Entry>,
}

/// Where one tensor lies.
#[derive(Debug)]
struct Entry {
    /// Index in `files`.
    file: usize,
    dtype: DType,
    shape: Vec<usize>,
    /// First byte in the file.
    start: u64,
    /// Bytes.
    len: usize,
}

impl WeightFiles {
    /// Opens the weights of a Hugging Face folder: `model.safetensors`, or the shards that
    /// `model.safetensors.index.json` names.
    ///
    /// # Errors
    /// No safetensors there (a folder with only `pytorch_model.bin` says so), a shard is missing, a header is cut off
    /// or inconsistent (file and byte are named), index and shards disagree, or the weights are quantised by LLM.int8().
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

    /// Opens one safetensors file of any content.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub fn open_file(path: &Path) -> Result<Self> {
        Self::from_files(path, &[path.to_path_buf()])
    }

    fn open_sharded(folder: &Path, index_path: &Path) -> Result<Self> {
        #[derive(Deserialize)]
        struct Index {
            weight_map: BTreeMap<String, String>,
        }
        let text = fs::read(index_path).map_err(|e| Error::io(index_path, "read", e))?;
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

    fn from_files(place: &Path, paths: &[PathBuf]) -> Result<Self> {
        let mut weights = Self {
            place: place.to_path_buf(),
            files: Vec::with_capacity(paths.len()),
            tensors: BTreeMap::new(),
        };
        for (file, path) in paths.iter().enumerate() {
            let mut handle = File::open(path).map_err(|e| Error::io(path, "open", e))?;
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

    /// Names of all tensors, sorted.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.tensors.keys().map(String::as_str)
    }

    /// Whether a tensor of this name is stored.
    pub fn contains(&self, name: &str) -> bool {
        self.tensors.contains_key(name)
    }

    /// Shape of a tensor as stored.
    ///
    /// # Errors
    /// There is no tensor of this name.
    pub fn shape(&self, name: &str) -> Result<&[usize]> {
        Ok(&self.entry(name)?.shape)
    }

    /// Element type of a tensor as stored.
    ///
    /// # Errors
    /// There is no tensor of this name.
    pub fn dtype(&self, name: &str) -> Result<DType> {
        Ok(self.entry(name)?.dtype)
    }

    /// The folder or file opened.
    pub fn place(&self) -> &Path {
        &self.place
    }

    /// Whether a tensor is packed by bitsandbytes: see [`quantize::bitsandbytes`](super::quantize::bitsandbytes).
    pub fn is_packed(&self, name: &str) -> bool {
        let state = format!("{name}{STATE}");
        let mut from = self.tensors.range(state.clone()..);
        from.next().is_some_and(|(found, _)| found.starts_with(&state))
    }

    /// Bytes of a tensor as stored.
    ///
    /// # Errors
    /// There is no tensor of this name.
    pub fn byte_count(&self, name: &str) -> Result<usize> {
        Ok(self.entry(name)?.len)
    }

    /// Tells `hear` what distinguishes these weights from others without reading them all: each file's name, size and time,
    /// each tensor's description and first bytes.
    ///
    /// # Errors
    /// A file cannot be read.
    pub fn identify(&self, hear: &mut dyn FnMut(&[u8])) -> Result<()> {
        for (path, file) in &self.files {
            let data = file.metadata().map_err(|e| Error::io(path, "read", e))?;
            let time = data.modified().ok();
            let time = time.and_then(|time| time.duration_since(UNIX_EPOCH).ok());
            let text = format!("{:?} {} {time:?}\n", path.file_name(), data.len());
            hear(text.as_bytes());
        }
        for (name, entry) in &self.tensors {
            let (dtype, shape) = (entry.dtype, &entry.shape);
            hear(format!("{name} {dtype:?} {shape:?} {} {}\n", entry.file, entry.start).as_bytes());
            let mut first = vec![0u8; entry.len.min(IDENTIFYING)];
            self.read_elements(entry, 0, &mut first)?;
            hear(&first);
        }
        Ok(())
    }

    /// Bytes of all tensors together.
    pub fn total_bytes(&self) -> u64 {
        self.tensors.values().map(|entry| entry.len as u64).sum()
    }

    /// The bytes of one tensor as stored, little-endian.
    ///
    /// # Errors
    /// There is no tensor of this name, or the file cannot be read.
    pub fn bytes(&self, name: &str) -> Result<Vec<u8>> {
        let entry = self.entry(name)?;
        let mut bytes = vec![0; entry.len];
        self.read_elements(entry, 0, &mut bytes)?;
        Ok(bytes)
    }

    /// The bytes of one tensor as little-endian words, the last one filled with zeros.
    ///
    /// # Errors
    /// As [`bytes`](Self::bytes).
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

    /// Fills `values` with a tensor's as f32, from its element `first` on.
    ///
    /// # Errors
    /// As [`tensor_f32`](Self::tensor_f32).
    ///
    /// # Panics
    /// If it has fewer elements.
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

    /// As [`read_elements`](Self::read_elements), of a tensor that is stored as `S`.
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

    /// One tensor as f32, converted from F64, F32, F16 or BF16.
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

    /// One tensor ready for a device, in the element type `target` (F64, F32, F16 or BF16), rounded to nearest even.
    ///
    /// # Errors
    /// As [`tensor_f32`](Self::tensor_f32), or `target` is none of the four.
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

    /// Any float type as any other.
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

    /// One tensor in the element type it is stored in, which is `T`.
    fn stored<T: Pod + Send>(&self, name: &str) -> Result<Vec<T>> {
        let entry = self.entry(name)?;
        let mut out = room(entry.shape.iter().product());
        let pieces = out.par_chunks_mut(PIECE).enumerate();
        pieces.try_for_each(|(index, piece)| self.read_elements(entry, index * PIECE, piece))?;
        Ok(out)
    }

    /// What `convert` makes of one tensor, which is stored as `S`, piece by piece.
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

    /// Fills `elements` with a tensor's, from its element `first` on.
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

    /// Compares the stored tensors with the `expected` names and shapes; one error names everything that differs.
    ///
    /// `rotary_emb.inv_freq` buffers (old checkpoints) and an `lm_head.weight` that is not expected (tied embeddings)
    /// are ignored.
    ///
    /// # Errors
    /// Tensors are missing, left over, of another shape, or not floats.
    pub fn check(&self, expected: &[(String, Vec<usize>)]) -> Result<()> {
        let mut problems = Vec::new();
        for (name, shape) in expected {
            match self.tensors.get(name) {
                None => problems.push(format!("missing: {name} {shape:?}")),
                // Its shape stands in its state, which is checked when it is read.
                Some(_) if self.is_packed(name) => {}
                Some(entry) if entry.shape != *shape => problems.push(format!(
                    "wrong shape: {name} is {:?}, the config asks for {shape:?}",
                    entry.shape
                )),
                Some(entry) if !entry.dtype.is_float() => {
                    problems.push(format!("wrong type: {name} is {:?}", entry.dtype));
                }
                Some(_) => {}
            }
        }
        let known: BTreeSet<&str> = expected.iter().map(|(name, _)| name.as_str()).collect();
        let ignored =
            |name: &str| name.ends_with("rotary_emb.inv_freq") || name == "lm_head.weight";
        // `X.weight.absmax` and the like belong to a packed `X.weight`.
        let of_packed = |name: &str| {
            let base = name.find(".weight.").map(|at| &name[..at + ".weight".len()]);
            base.is_some_and(|base| known.contains(base) && self.is_packed(base))
        };
        let extra =
            self.names().filter(|name| !known.contains(name) && !ignored(name) && !of_packed(name));
        problems.extend(extra.map(|name| format!("not part of the model: {name}")));
        if problems.is_empty() {
            return Ok(());
        }
        Err(Error::file(
            &self.place,
            format!("{} tensors do not fit:\n    {}", problems.len(), problems.join("\n    ")),
            "take the config.json that belongs to these weights",
        ))
    }

    fn entry(&self, name: &str) -> Result<&Entry> {
        self.tensors.get(name).ok_or_else(|| {
            Error::file(&self.place, format!("holds no tensor {name}"), "check the model folder")
        })
    }

    fn not_a_float(&self, name: &str, dtype: DType) -> Error {
        if self.is_packed(name) {
            let problem = format!("{name} is packed by bitsandbytes, and is needed in full here");
            return Error::file(&self.place, problem, "give the full-precision model");
        }
        Error::file(
            &self.place,
            format!("{name}: {dtype:?} is not one of F64, F32, F16, BF16"),
            "give weights saved in one of these types",
        )
    }

    /// bitsandbytes' LLM.int8() stores a scale a row, `SCB`, beside each weight.
    fn refuse_llm_int8(&self) -> Result<()> {
        match self.names().find(|name| name.ends_with(".SCB")) {
            None => Ok(()),
            Some(name) => Err(Error::file(
                &self.place,
                format!("the weights are quantised by LLM.int8() ({name})"),
                "give the full-precision model; quantise it here with model.quantization",
            )),
        }
    }
}

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
            "give a model folder in Hugging Face layout or a hub id (owner/name)",
        ),
    }
}

/// Room for so many elements, to be filled once. Where Linux gives huge pages to those who ask, it is asked: a page fault
/// every 4 KiB takes longer than what is read into them.
fn room<T: Pod>(count: usize) -> Vec<T> {
    let mut room = bytemuck::zeroed_vec(count);
    #[cfg(target_os = "linux")]
    ask_for_huge_pages(bytemuck::cast_slice_mut(&mut room));
    room
}

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
        // Refused, nothing is lost but time.
        let _ = unsafe { libc::madvise(pages.as_mut_ptr().cast(), whole, libc::MADV_HUGEPAGE) };
    }
}

/// A conversion of slices, element by element.
fn each<S: Copy, T>(convert: impl Fn(S) -> T) -> impl Fn(&[S], &mut [T]) {
    move |from, to| {
        let pairs = to.iter_mut().zip(from);
        pairs.for_each(|(to, &from)| *to = convert(from));
    }
}
