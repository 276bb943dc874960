//! Reads and writes quantized matrices in safetensors with the tensor names and bytes of bitsandbytes, so that
//! transformers can open the files written here and the reverse.
//!
//! Besides `X.weight` (the packed codes) a file holds `X.weight.absmax`, `X.weight.quant_map` (the code's values) and
//! `X.weight.quant_state.bitsandbytes__nf4`, JSON as bytes. With double quantization `absmax` holds codes, and
//! `X.weight.nested_absmax` and `X.weight.nested_quant_map` are added.

use arithmo_backends::Format;
use arithmo_backends::ops::packed::{BLOCK, NESTED_BLOCK, dynamic_code};
use burn::tensor::DType;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::{HostScales, Quantization, Quantized};
use crate::error::{Error, Result};
use crate::model::weights::WeightFiles;

/// Infix between a quantized tensor's name and its format in the name of its state tensor.
pub const STATE: &str = ".quant_state.bitsandbytes__";

/// Bytes reserved for the JSON of a state, so that its length does not depend on its numbers.
const STATE_BYTES: usize = 256;

const REQUANTIZE: &str =
    "quantize the full-precision model instead: --quantization, or model.quantization in run.toml";

/// The JSON description of a quantized tensor, with bitsandbytes' keys.
#[derive(Serialize, Deserialize)]
struct State {
    quant_type: String,
    blocksize: usize,
    dtype: String,
    shape: Vec<usize>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    nested_blocksize: Option<usize>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    nested_dtype: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    nested_offset: Option<f64>,
}

impl Quantization {
    /// Returns the name of the format in files, configurations and on the command line.
    pub fn name(&self) -> &'static str {
        match self.format {
            Format::Nf4 => "nf4",
            Format::Fp4 => "fp4",
            Format::Int8 => "int8",
            Format::Bf16 => "bf16",
        }
    }

    /// Returns the settings in the form of `run.toml`: `{"quantization": "nf4", "double_quant": true}`.
    pub fn description(&self) -> Value {
        json!({"quantization": self.name(), "double_quant": self.double_quant})
    }

    /// Parses the result of [`Self::description`].
    pub fn from_description(description: &Value) -> Option<Self> {
        let formats = [Format::Nf4, Format::Fp4, Format::Int8];
        let double_quant = description.get("double_quant")?.as_bool()?;
        let mut all = formats.into_iter().map(|format| Self { format, double_quant });
        let name = description.get("quantization")?.as_str()?;
        all.find(|quantization| quantization.name() == name)
    }

    /// Returns the `quantization_config` of `config.json` for a model quantized this way; `dtype` is that of its
    /// other weights.
    pub fn to_json(&self, dtype: Option<&str>) -> Value {
        match self.format {
            // No layer of transformers reads these codes.
            Format::Int8 => json!({"quant_method": INT8_METHOD, "double_quant": self.double_quant}),
            _ => json!({
                "quant_method": "bitsandbytes",
                "load_in_4bit": true,
                "load_in_8bit": false,
                "bnb_4bit_compute_dtype": dtype.unwrap_or("float32"),
                "bnb_4bit_quant_storage": "uint8",
                "bnb_4bit_quant_type": self.name(),
                "bnb_4bit_use_double_quant": self.double_quant,
            }),
        }
    }

    /// Parses a `quantization_config`, the reverse of [`Self::to_json`]; returns `None` for any other quantization.
    pub fn from_json(config: &Value) -> Option<Self> {
        let flag = |key: &str| config.get(key).and_then(Value::as_bool).unwrap_or(false);
        let text = |key: &str| config.get(key).and_then(Value::as_str);
        match text("quant_method")? {
            INT8_METHOD => Some(Self { format: Format::Int8, double_quant: flag("double_quant") }),
            "bitsandbytes" if flag("load_in_4bit") => Some(Self {
                format: match text("bnb_4bit_quant_type") {
                    Some("nf4") => Format::Nf4,
                    None | Some("fp4") => Format::Fp4,
                    Some(_) => return None,
                },
                double_quant: flag("bnb_4bit_use_double_quant"),
            }),
            _ => None,
        }
    }
}

/// The `quant_method` of a model in blockwise 8 bits, which transformers does not know.
const INT8_METHOD: &str = "arithmo_blockwise_int8";

/// One of the tensors that store a quantized matrix.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Part {
    /// Name of the tensor.
    pub name: String,
    /// Dtype of the tensor: F32 or U8.
    pub dtype: DType,
    /// Shape of the tensor.
    pub shape: Vec<usize>,
}

impl Part {
    /// Returns the tensor's size in bytes.
    pub fn bytes(&self) -> usize {
        self.shape.iter().product::<usize>() * self.dtype.size()
    }
}

/// Lists the tensors that store the matrix `name` of `dims`, in the order of [`bytes()`]: the f32 tensors first, and
/// a multiple of eight bytes in total, so that each tensor is aligned if the first one is.
pub fn parts(name: &str, dims: [usize; 2], to: Quantization) -> Vec<Part> {
    let count = dims[0] * dims[1];
    let blocks = count.div_ceil(BLOCK);
    let part = |suffix: &str, dtype, shape| Part { name: format!("{name}{suffix}"), dtype, shape };
    let code_bytes = (count * to.format.bits()).div_ceil(8);
    let codes = vec![to.format.code().len()];
    let mut parts = if to.double_quant {
        vec![
            part(".nested_absmax", DType::F32, vec![blocks.div_ceil(NESTED_BLOCK)]),
            part(".nested_quant_map", DType::F32, vec![dynamic_code().len()]),
        ]
    } else {
        vec![part(".absmax", DType::F32, vec![blocks])]
    };
    parts.push(part(".quant_map", DType::F32, codes));
    parts.push(part("", DType::U8, vec![code_bytes, 1]));
    if to.double_quant {
        parts.push(part(".absmax", DType::U8, vec![blocks]));
    }
    let total: usize = parts.iter().map(Part::bytes).sum();
    let state = (total + STATE_BYTES).next_multiple_of(8) - total;
    parts.push(part(&format!("{STATE}{}", to.name()), DType::U8, vec![state]));
    parts
}

/// Serializes the tensors of [`parts`] one after another; `dtype` is the original dtype of the values, named as in
/// transformers.
pub fn bytes(name: &str, quantized: &Quantized, dtype: &str) -> Vec<u8> {
    let to = quantized.quantization();
    let parts = parts(name, quantized.dims, to);
    let state = state(quantized, to, dtype);
    let mut out = Vec::with_capacity(parts.iter().map(Part::bytes).sum());
    let floats = |out: &mut Vec<u8>, values: &[f32]| {
        out.extend(values.iter().flat_map(|value| value.to_le_bytes()));
    };
    for part in &parts {
        let end = out.len() + part.bytes();
        match (&part.name[name.len()..], &quantized.scales) {
            ("", _) => out.extend(quantized.words.iter().flat_map(|word| word.to_le_bytes())),
            (".quant_map", _) => floats(&mut out, to.format.code()),
            (".nested_quant_map", _) => floats(&mut out, dynamic_code()),
            (".absmax", HostScales::Plain(absmax)) => floats(&mut out, absmax),
            (".nested_absmax", HostScales::Double { absmax, .. }) => floats(&mut out, absmax),
            (".absmax", HostScales::Double { words, .. }) => {
                out.extend(words.iter().flat_map(|word| word.to_le_bytes()));
            }
            _ => out.extend(state.bytes()),
        }
        // Packed words are padded with zeros, the JSON of a state with spaces.
        out.resize(end, b' ');
    }
    out
}

/// Returns the JSON of a quantized tensor's state.
fn state(quantized: &Quantized, to: Quantization, dtype: &str) -> String {
    let offset = match quantized.scales {
        HostScales::Double { offset, .. } => Some(f64::from(offset)),
        HostScales::Plain(_) => None,
    };
    let state = State {
        quant_type: to.name().to_string(),
        blocksize: BLOCK,
        dtype: dtype.to_string(),
        shape: quantized.dims.to_vec(),
        nested_blocksize: offset.map(|_| NESTED_BLOCK),
        nested_dtype: offset.map(|_| "float32".to_string()),
        nested_offset: offset,
    };
    // Serializing a struct of numbers and strings cannot fail.
    serde_json::to_string(&state).unwrap_or_default()
}

/// Reads the quantized matrix `name` of `dims`.
///
/// # Errors
/// The matrix is quantized in an unsupported way, its tensors do not fit together, or a file cannot be read.
pub fn read(files: &WeightFiles, name: &str, dims: [usize; 2]) -> Result<Quantized> {
    let group = Group { files, name };
    let (to, state) = group.description()?;
    if state.shape != dims {
        let shape = state.shape;
        return Err(group.bad(format!("is {shape:?}, the config asks for {dims:?}")));
    }
    group.expect_map(".quant_map", to.format.code())?;
    let blocks = (dims[0] * dims[1]).div_ceil(BLOCK);
    let scales = match state.nested_offset {
        None => HostScales::Plain(group.floats(".absmax", blocks)?),
        Some(offset) => {
            group.expect_map(".nested_quant_map", dynamic_code())?;
            HostScales::Double {
                words: group.words(".absmax", blocks)?,
                absmax: group.floats(".nested_absmax", blocks.div_ceil(NESTED_BLOCK))?,
                offset: offset as f32,
            }
        }
    };
    let bytes = (dims[0] * dims[1] * to.format.bits()).div_ceil(8);
    Ok(Quantized { format: to.format, dims, words: group.words("", bytes)?, scales })
}

/// The tensors of one quantized matrix.
struct Group<'a> {
    files: &'a WeightFiles,
    name: &'a str,
}

impl Group<'_> {
    /// Returns an error about this matrix.
    fn bad(&self, problem: impl std::fmt::Display) -> Error {
        Error::file(self.files.place(), format!("{} {problem}", self.name), REQUANTIZE)
    }

    /// Reads the state of the matrix and determines its quantization.
    fn description(&self) -> Result<(Quantization, State)> {
        let formats = [Format::Nf4, Format::Fp4, Format::Int8]
            .map(|format| Quantization { format, double_quant: false });
        let state_name = |to: &Quantization| format!("{}{STATE}{}", self.name, to.name());
        let found = formats.into_iter().find(|to| self.files.contains(&state_name(to)));
        let to = found.ok_or_else(|| self.bad("is quantized neither as nf4, fp4 nor int8"))?;
        let state: State = serde_json::from_slice(&self.files.bytes(&state_name(&to))?)
            .map_err(|e| self.bad(format!("has a quant_state that cannot be read: {e}")))?;
        let nested = state.nested_blocksize.unwrap_or(NESTED_BLOCK);
        if (state.blocksize, nested) != (BLOCK, NESTED_BLOCK) {
            let problem = format!(
                "is quantized in blocks of {} (scales: {nested}); only blocks of {BLOCK} (scales: {NESTED_BLOCK}) are supported",
                state.blocksize
            );
            return Err(self.bad(problem));
        }
        Ok((to, state))
    }

    /// Checks that the stored code is the built-in one.
    fn expect_map(&self, suffix: &str, code: &[f32]) -> Result<()> {
        let stored = self.files.tensor_f32(&format!("{}{suffix}", self.name))?;
        let same = |(a, b): (&f32, &f32)| (a - b).abs() <= 1e-6;
        if stored.len() == code.len() && stored.iter().zip(code).all(same) {
            Ok(())
        } else {
            Err(self.bad(format!("has custom codes ({suffix}), which are not supported")))
        }
    }

    /// Reads `count` finite scales.
    fn floats(&self, suffix: &str, count: usize) -> Result<Vec<f32>> {
        let values = self.files.tensor_f32(&format!("{}{suffix}", self.name))?;
        let len = values.len();
        if !values.iter().all(|value| value.is_finite()) {
            return Err(self.bad(format!("has scales ({suffix}) that are not finite")));
        }
        if len != count {
            return Err(self.bad(format!("has {len} scales ({suffix}), must have {count}")));
        }
        Ok(values)
    }

    /// Reads a tensor of the given number of bytes as words.
    fn words(&self, suffix: &str, bytes: usize) -> Result<Vec<u32>> {
        let name = format!("{}{suffix}", self.name);
        let stored = self.files.byte_count(&name)?;
        if stored != bytes {
            return Err(self.bad(format!("has {stored} bytes ({suffix}), must have {bytes}")));
        }
        self.files.words(&name)
    }
}
