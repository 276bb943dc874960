//! Writes models as GGUF files, which llama.cpp and the programs built on it read.
//!
//! - `file`: the file format; `value`: keys;
//! - `architecture`, `rope`, `names`: what describes the model, and the names and order of its tensors;
//! - `tokenizer`: tokens and the rules by which text is split;
//! - `mixture`: the type of each tensor; `tensor_type`, `blocks`, `super_blocks`: quantization.
//!
//! Names and keys are those of llama.cpp's converter (`convert_hf_to_gguf.py`) and loader. What they cannot express of a
//! model is refused, because the file would silently be another model.

mod architecture;
mod blocks;
mod file;
mod mixture;
mod names;
mod rope;
mod super_blocks;
mod tensor_type;
mod tokenizer;
mod value;

use std::collections::BTreeMap;
use std::path::Path;

use half::bf16;

use self::architecture::Architecture;
use self::file::TensorInfo;
pub use self::mixture::FileType;
pub use self::tensor_type::TensorType;
use self::value::Keys;
use super::config::DecoderConfig;
use super::names::{EMBEDDING, ModelTensor, TensorRole};
use super::switches::RopeScaling;
use crate::data::tokenizer::Tokenizer;
use crate::error::{Error, Result};

/// Version of ggml's quantizations (`GGML_QNT_VERSION`).
const QUANTIZATION_VERSION: usize = 2;

/// Largest magnitude in f16; scales of blocks are stored in it too.
const F16_MAX: f32 = 65_504.0;

/// What is written besides the weights.
#[derive(Clone, Copy, Debug)]
pub struct GgufSettings<'a> {
    /// Folder of the model, for messages.
    pub folder: &'a Path,
    /// Name of the model, `general.name`.
    pub name: &'a str,
    /// The type of most tensors.
    pub file_type: FileType,
    /// The model's tokenizer.
    pub tokenizer: &'a Tokenizer,
    /// The tokens that end generation.
    pub stop_ids: &'a [u32],
}

/// A GGUF file that is about to be written.
#[derive(Debug)]
pub struct GgufFile {
    keys: Keys,
    tensors: Vec<(TensorInfo, Source)>,
    notes: Vec<String>,
}

/// Where the values of a tensor come from.
#[derive(Debug)]
enum Source {
    /// A weight of the model.
    Weight {
        /// Name in Hugging Face's files.
        name: String,
        /// Number of heads whose rows are reordered, or `None`.
        interleaved_heads: Option<usize>,
        /// A number that is added to each value.
        offset: f32,
    },
    /// Computed values.
    Values(Vec<f32>),
}

impl GgufFile {
    /// Describes the file of the model `config`.
    ///
    /// # Errors
    /// GGUF cannot express the model or its tokenizer, or these do not fit together.
    pub fn new(config: &DecoderConfig, settings: GgufSettings<'_>) -> Result<Self> {
        let architecture = Architecture::of_model(config, settings.folder)?;
        let mut keys = Keys::default();
        keys.set_text("general.architecture", architecture.name);
        keys.set_text("general.type", "model");
        let tokenizer_json = settings.tokenizer.to_json()?;
        keys.set_text("general.name", tokenizer::model_name(settings.name, &tokenizer_json));
        keys.set_u32("general.file_type", settings.file_type.id());
        keys.set_u32("general.quantization_version", QUANTIZATION_VERSION);
        architecture.set_keys(config, &mut keys);
        let mut notes = tokenizer::tokenizer_keys(
            settings.tokenizer,
            &tokenizer_json,
            config.vocab_size,
            settings.stop_ids,
            &mut keys,
        )?;
        let context = architecture.context_length(config);
        if context < config.max_position_embeddings {
            notes.push(format!(
                "GGUF's architecture {:?} has no sliding window; the file names {context} tokens, the model's window, as its \
                 longest text, and programs that read it should not go beyond",
                architecture.name
            ));
        }
        if let RopeScaling::LongRope(longrope) = &config.switches.rope_scaling {
            let original = longrope.original_max_position_embeddings;
            notes.push(format!(
                "llama.cpp stretches rotations by long_factor as soon as its context (--ctx-size) is longer than {original} tokens, \
                 even for short texts; the model was trained here with short_factor, so give it a context of at most {original}"
            ));
        }
        let mut tensors = Vec::new();
        for (name, divisors) in rope::divisors(config) {
            let (name, shape) = (name.to_string(), vec![divisors.len()]);
            let info = TensorInfo { name, shape, kind: TensorType::F32 };
            tensors.push((info, Source::Values(divisors)));
        }
        let is_tied = config.tie_word_embeddings && !architecture.needs_head;
        let written = DecoderConfig { tie_word_embeddings: is_tied, ..config.clone() };
        for tensor in written.tensors() {
            let name =
                names::gguf_name(&tensor, config.switches.norm_placement).ok_or_else(|| {
                    let problem = format!("{} has no name in GGUF", tensor.name);
                    Error::run(problem, "this is a defect of arithmo: please report it")
                })?;
            let kind = settings.file_type.tensor_type(&tensor, &written);
            let shape = tensor.shape.clone();
            tensors.push((TensorInfo { name, shape, kind }, architecture.source(tensor, config)));
        }
        Ok(Self { keys, tensors, notes })
    }

    /// Returns what the user should know about the file.
    pub fn notes(&self) -> &[String] {
        &self.notes
    }

    /// Returns the number of tensors.
    pub fn tensor_count(&self) -> usize {
        self.tensors.len()
    }

    /// Returns the bytes of all tensors together.
    pub fn tensor_bytes(&self) -> u64 {
        self.tensors.iter().map(|(info, _)| info.bytes() as u64).sum()
    }

    /// Returns the number of tensors of each type, the most frequent first.
    pub fn types(&self) -> Vec<(TensorType, usize)> {
        let mut counts = BTreeMap::new();
        for (info, _) in &self.tensors {
            *counts.entry(info.kind).or_insert(0) += 1;
        }
        let mut counts: Vec<_> = counts.into_iter().collect();
        counts.sort_by_key(|(_, count)| std::cmp::Reverse(*count));
        counts
    }

    /// Writes the file, which appears complete or not at all. `values` returns the values of a weight by its name in Hugging
    /// Face's files; only those of one weight are in memory. `on_tensor` is called after each tensor.
    ///
    /// # Errors
    /// `values` fails, a value is too large for its type, the disk is full, or the user interrupts.
    pub fn write(
        &self,
        path: &Path,
        mut values: impl FnMut(&str) -> Result<Vec<f32>>,
        on_tensor: impl Fn(),
    ) -> Result<()> {
        let infos: Vec<TensorInfo> = self.tensors.iter().map(|(info, _)| info.clone()).collect();
        file::write_file(path, &self.keys, &infos, |index| {
            let (info, source) = &self.tensors[index];
            let values = match source {
                Source::Values(values) => values.clone(),
                Source::Weight { name, interleaved_heads, offset } => {
                    let mut values = values(name)?;
                    if *offset != 0.0 {
                        values.iter_mut().for_each(|value| *value += offset);
                    }
                    match interleaved_heads {
                        Some(heads) => {
                            names::interleave_rotated_rows(&values, *heads, info.shape[0])
                        }
                        None => values,
                    }
                }
            };
            check_range(&info.name, &values, info.kind)?;
            let bytes = info.kind.encode(&values);
            on_tensor();
            Ok(bytes)
        })
    }
}

impl Architecture {
    /// Returns where the values of a tensor come from.
    fn source(&self, tensor: ModelTensor, config: &DecoderConfig) -> Source {
        let heads = names::rotated_heads(&tensor, config);
        let is_offset = config.switches.unit_offset_norm && tensor.role == TensorRole::Norm;
        let is_embedding = config.tie_word_embeddings && tensor.role == TensorRole::Head;
        Source::Weight {
            interleaved_heads: heads.filter(|_| self.interleaves_rows),
            offset: if is_offset { 1.0 } else { 0.0 },
            name: if is_embedding { format!("{EMBEDDING}.weight") } else { tensor.name },
        }
    }
}

/// Checks that every value stays finite in `kind`.
fn check_range(name: &str, values: &[f32], kind: TensorType) -> Result<()> {
    let fits = |value: &f32| match kind {
        TensorType::F32 => value.is_finite(),
        TensorType::BF16 => bf16::from_f32(*value).is_finite(),
        _ => value.abs() <= F16_MAX,
    };
    match values.iter().find(|value| !fits(value)) {
        None => Ok(()),
        Some(value) => Err(Error::run(
            format!("{name}: {value} is too large for {kind:?}"),
            "export with --type bf16 or f32",
        )),
    }
}
