//! Packed matrices in safetensors, under the names and in the bytes of bitsandbytes: transformers opens what is written
//! here, and what it wrote is opened here.
//!
//! Beside `X.weight` (the packed bytes) lie `X.weight.absmax`, `X.weight.quant_map` (the codes) and
//! `X.weight.quant_state.bitsandbytes__nf4`, JSON in bytes; with double quantisation `absmax` holds codes, and there are
//! `X.weight.nested_absmax` and `X.weight.nested_quant_map`.

use arithmo_backends::Format;
use arithmo_backends::ops::packed::{BLOCK, NESTED_BLOCK, dynamic_code};
use burn::tensor::DType;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::{HostScales, Quantization, Quantized};
use crate::error::{Error, Result};
use crate::model::weights::WeightFiles;

/// What stands between a packed tensor's name and its format's, in the name of its state.
pub const STATE: &str = ".quant_state.bitsandbytes__";

/// Room for the JSON of a state, so that its length does not depend on its numbers.
const STATE_BYTES: usize = 256;

const AGAIN: &str =
    "quantise the full-precision model instead: --quantization, or model.quantization in run.toml";

/// A packed tensor's description, by bitsandbytes' keys.
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
    /// The name of the format in files, configurations and on the command line.
    pub fn name(&self) -> &'static str {
        match self.format {
            Format::Nf4 => "nf4",
            Format::Fp4 => "fp4",
            Format::Int8 => "int8",
            Format::Bf16 => "bf16",
        }
    }

    /// As `run.toml` says it: `{"quantization": "nf4", "double_quant": true}`.
    pub fn description(&self) -> Value {
        json!({"quantization": self.name(), "double_quant": self.double_quant})
    }

    /// The reverse of [`Self::description`].
    pub fn from_description(description: &Value) -> Option<Self> {
        let formats = [Format::Nf4, Format::Fp4, Format::Int8];
        let double_quant = description.get("double_quant")?.as_bool()?;
        let mut all = formats.into_iter().map(|format| Self { format, double_quant });
        let name = description.get("quantization")?.as_str()?;
        all.find(|packed| packed.name() == name)
    }

    /// What `quantization_config` of a `config.json` says of a model packed so; `dtype` is the type its other weights have.
    pub fn to_json(&self, dtype: Option<&str>) -> Value {
        match self.format {
            // No layer of transformers has these codes.
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

    /// The reverse of [`Self::to_json`]; `None`: packed in another way.
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

/// `quant_method` of a model in blockwise 8 bits, which transformers does not know.
const INT8_METHOD: &str = "arithmo_blockwise_int8";

/// A tensor of a packed matrix's group in a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Part {
    /// Its name.
    pub name: String,
    /// F32, or U8.
    pub dtype: DType,
    /// Its shape.
    pub shape: Vec<usize>,
}

impl Part {
    /// Bytes it takes.
    pub fn bytes(&self) -> usize {
        self.shape.iter().product::<usize>() * self.dtype.size()
    }
}

/// The tensors of the packed matrix `name` of `dims`, in the order of [`bytes`]: the wide ones first and a multiple of
/// eight bytes in all, so that each is aligned where the first is.
pub fn parts(name: &str, dims: [usize; 2], to: Quantization) -> Vec<Part> {
    let count = dims[0] * dims[1];
    let blocks = count.div_ceil(BLOCK);
    let part = |suffix: &str, dtype, shape| Part { name: format!("{name}{suffix}"), dtype, shape };
    let packed = (count * to.format.bits()).div_ceil(8);
    let codes = vec![to.format.code().len()];
    let mut parts = match to.double_quant {
        false => vec![part(".absmax", DType::F32, vec![blocks])],
        true => vec![
            part(".nested_absmax", DType::F32, vec![blocks.div_ceil(NESTED_BLOCK)]),
            part(".nested_quant_map", DType::F32, vec![dynamic_code().len()]),
        ],
    };
    parts.push(part(".quant_map", DType::F32, codes));
    parts.push(part("", DType::U8, vec![packed, 1]));
    if to.double_quant {
        parts.push(part(".absmax", DType::U8, vec![blocks]));
    }
    let total: usize = parts.iter().map(Part::bytes).sum();
    let state = (total + STATE_BYTES).next_multiple_of(8) - total;
    parts.push(part(&format!("{STATE}{}", to.name()), DType::U8, vec![state]));
    parts
}

/// The bytes of [`parts`], one after another; `dtype` is the type the values had, as transformers names it.
pub fn bytes(name: &str, packed: &Quantized, dtype: &str) -> Vec<u8> {
    let to = packed.quantization();
    let parts = parts(name, packed.dims, to);
    let state = state(packed, to, dtype);
    let mut out = Vec::with_capacity(parts.iter().map(Part::bytes).sum());
    let floats = |out: &mut Vec<u8>, values: &[f32]| {
        out.extend(values.iter().flat_map(|value| value.to_le_bytes()));
    };
    for part in &parts {
        let end = out.len() + part.bytes();
        match (&part.name[name.len()..], &packed.scales) {
            ("", _) => out.extend(packed.words.iter().flat_map(|word| word.to_le_bytes())),
            (".quant_map", _) => floats(&mut out, to.format.code()),
            (".nested_quant_map", _) => floats(&mut out, dynamic_code()),
            (".absmax", HostScales::Plain(absmax)) => floats(&mut out, absmax),
            (".nested_absmax", HostScales::Double { absmax, .. }) => floats(&mut out, absmax),
            (".absmax", HostScales::Double { words, .. }) => {
                out.extend(words.iter().flat_map(|word| word.to_le_bytes()));
            }
            _ => out.extend(state.bytes()),
        }
        // Words end with zeros, a state's JSON with spaces.
        out.resize(end, b' ');
    }
    out
}

fn state(packed: &Quantized, to: Quantization, dtype: &str) -> String {
    let offset = match packed.scales {
        HostScales::Double { offset, .. } => Some(f64::from(offset)),
        HostScales::Plain(_) => None,
    };
    let state = State {
        quant_type: to.name().to_string(),
        blocksize: BLOCK,
        dtype: dtype.to_string(),
        shape: packed.dims.to_vec(),
        nested_blocksize: offset.map(|_| NESTED_BLOCK),
        nested_dtype: offset.map(|_| "float32".to_string()),
        nested_offset: offset,
    };
    // A struct of numbers and texts is always JSON.
    serde_json::to_string(&state).unwrap_or_default()
}

/// Reads the packed matrix `name` of `dims`.
///
/// # Errors
/// It is packed in a way that is not built here, its tensors do not fit together, or a file cannot be read.
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

/// The tensors of one packed matrix.
struct Group<'a> {
    files: &'a WeightFiles,
    name: &'a str,
}

impl Group<'_> {
    fn bad(&self, problem: impl std::fmt::Display) -> Error {
        Error::file(self.files.place(), format!("{} {problem}", self.name), AGAIN)
    }

    fn description(&self) -> Result<(Quantization, State)> {
        let formats = [Format::Nf4, Format::Fp4, Format::Int8]
            .map(|format| Quantization { format, double_quant: false });
        let of = |to: &Quantization| format!("{}{STATE}{}", self.name, to.name());
        let found = formats.into_iter().find(|to| self.files.contains(&of(to)));
        let to = found.ok_or_else(|| self.bad("is packed neither as nf4, fp4 nor int8"))?;
        let state: State = serde_json::from_slice(&self.files.bytes(&of(&to))?)
            .map_err(|e| self.bad(format!("has a quant_state that cannot be read: {e}")))?;
        let nested = state.nested_blocksize.unwrap_or(NESTED_BLOCK);
        if (state.blocksize, nested) != (BLOCK, NESTED_BLOCK) {
            let problem = format!(
                "is packed in blocks of {} (scales: {nested}); blocks of {BLOCK} ({NESTED_BLOCK}) are built",
                state.blocksize
            );
            return Err(self.bad(problem));
        }
        Ok((to, state))
    }

    /// A map of codes must be the one that is built in.
    fn expect_map(&self, suffix: &str, code: &[f32]) -> Result<()> {
        let stored = self.files.tensor_f32(&format!("{}{suffix}", self.name))?;
        let same = |(a, b): (&f32, &f32)| (a - b).abs() <= 1e-6;
        match stored.len() == code.len() && stored.iter().zip(code).all(same) {
            true => Ok(()),
            false => Err(self.bad(format!("has codes of its own ({suffix}), which are not built"))),
        }
    }

    fn floats(&self, suffix: &str, count: usize) -> Result<Vec<f32>> {
        let values = self.files.tensor_f32(&format!("{}{suffix}", self.name))?;
        let (len, finite) = (values.len(), values.iter().all(|value| value.is_finite()));
        match len == count && finite {
            true => Ok(values),
            false if finite => {
                Err(self.bad(format!("has {len} scales ({suffix}), must have {count}")))
            }
            false => Err(self.bad(format!("has scales ({suffix}) that are not finite"))),
        }
    }

    fn words(&self, suffix: &str, bytes: usize) -> Result<Vec<u32>> {
        let name = format!("{}{suffix}", self.name);
        let stored = self.files.byte_count(&name)?;
        match stored == bytes {
            true => self.files.words(&name),
            false => Err(self.bad(format!("has {stored} bytes ({suffix}), must have {bytes}"))),
        }
    }
}
