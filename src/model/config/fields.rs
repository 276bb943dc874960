//! Reads the values of `config.json`.

use std::path::Path;

use serde_json::{Map, Value};

use crate::error::{Error, Result};
use crate::model::family::{Family, WITH_TEXT_PART, find, ministral, missing_feature, model_types};
use crate::model::quantize::Quantization;
use crate::model::switches::Activation;

/// The keys of one `config.json`, with the family's defaults for those that are absent. Errors name the key.
#[derive(Debug)]
pub struct Fields<'a> {
    pub(super) object: Map<String, Value>,
    pub(super) path: &'a Path,
    /// The family of the model.
    pub family: &'static Family,
    /// Whether the model is the text part of one with several kinds of input.
    pub is_text_part: bool,
}

impl<'a> Fields<'a> {
    /// Finds the family of the model that `object` describes.
    ///
    /// # Errors
    /// There is none.
    pub(super) fn new(object: Map<String, Value>, path: &'a Path) -> Result<Self> {
        let (mut object, is_text_part) = text_part(object);
        let family = family_of(&object, path)?;
        if let Value::Object(defaults) = (family.defaults)() {
            for (key, value) in defaults {
                // The old form of this key replaces the default.
                let has_old_form = object.get("rope_scaling").is_some_and(|old| !old.is_null());
                if key != "rope_parameters" || !has_old_form {
                    object.entry(key).or_insert(value);
                }
            }
        }
        Ok(Self { object, path, family, is_text_part })
    }
}

/// Returns the family of the model that `object` describes. A Mistral with `layer_types` is a Ministral, as in
/// transformers, where the first Ministral was published under Mistral's type.
fn family_of(object: &Map<String, Value>, path: &Path) -> Result<&'static Family> {
    let problem = match object.get("model_type").and_then(Value::as_str) {
        None => "model_type is missing".to_string(),
        Some("mistral") if object.contains_key("layer_types") => return Ok(&ministral::FAMILY),
        Some(model_type) => match (find(model_type), missing_feature(model_type)) {
            (Some(family), _) => return Ok(family),
            (None, Some(missing)) => {
                format!("model_type is {model_type:?}, which needs {missing}: not implemented")
            }
            (None, None) => format!("model_type is {model_type:?}, which is not implemented"),
        },
    };
    let remedy = format!("choose a model of one of these types: {}", model_types());
    Err(Error::file(path, problem, remedy))
}

/// Returns the description of the text part if `object` describes a model of several kinds of input, with the keys that
/// concern the whole model, and whether it does.
fn text_part(mut object: Map<String, Value>) -> (Map<String, Value>, bool) {
    let has_text_part = object
        .get("model_type")
        .and_then(Value::as_str)
        .is_some_and(|model_type| WITH_TEXT_PART.contains(&model_type));
    let Some(Value::Object(mut text)) = object.remove("text_config").filter(|_| has_text_part)
    else {
        return (object, false);
    };
    for key in ["quantization_config", "tie_word_embeddings"] {
        if let Some(value) = object.remove(key) {
            text.insert(key.to_string(), value);
        }
    }
    for key in ["torch_dtype", "dtype", "bos_token_id", "eos_token_id", "pad_token_id"] {
        if let Some(value) = object.remove(key) {
            text.entry(key).or_insert(value);
        }
    }
    (text, true)
}

impl Fields<'_> {
    /// Returns the value of `key`; an explicit `null` counts as absent.
    pub fn get(&self, key: &str) -> Option<&Value> {
        self.object.get(key).filter(|value| !value.is_null())
    }

    /// Returns the error for a key that is not as `wanted`.
    pub fn wrong(&self, key: &str, wanted: &str) -> Error {
        let problem = match self.get(key) {
            Some(value) => format!("{key} must be {wanted}, is {value}"),
            None => format!("{key} is missing; it must be {wanted}"),
        };
        Error::file(self.path, problem, "take the config.json that belongs to these weights")
    }

    /// Parses a positive integer, or `None` if the key is absent.
    ///
    /// # Errors
    /// The value is something else.
    pub fn optional_size(&self, key: &str) -> Result<Option<usize>> {
        let Some(value) = self.get(key) else {
            return Ok(None);
        };
        let size = value.as_u64().filter(|n| (1..=1 << 32).contains(n));
        let size = size.and_then(|n| usize::try_from(n).ok());
        size.map(Some).ok_or_else(|| self.wrong(key, "a positive integer"))
    }

    /// Parses a positive integer.
    ///
    /// # Errors
    /// The value is absent or something else.
    pub fn size(&self, key: &str) -> Result<usize> {
        self.optional_size(key)?.ok_or_else(|| self.wrong(key, "a positive integer"))
    }

    /// Parses a number, or returns `default` if the key is absent.
    ///
    /// # Errors
    /// The value is something else.
    pub fn number(&self, key: &str, default: f64) -> Result<f64> {
        match self.get(key) {
            None => Ok(default),
            Some(value) => value.as_f64().ok_or_else(|| self.wrong(key, "a number")),
        }
    }

    /// Parses a number above 0.
    ///
    /// # Errors
    /// The value is absent or something else.
    pub fn positive(&self, key: &str) -> Result<f64> {
        let number = self.get(key).and_then(Value::as_f64);
        let number = number.filter(|number| *number > 0.0 && number.is_finite());
        number.ok_or_else(|| self.wrong(key, "a number above 0"))
    }

    /// Parses a boolean, false if the key is absent.
    ///
    /// # Errors
    /// The value is something else.
    pub fn flag(&self, key: &str) -> Result<bool> {
        match self.get(key) {
            None => Ok(false),
            Some(value) => value.as_bool().ok_or_else(|| self.wrong(key, "true or false")),
        }
    }

    /// Parses one id, a list of ids, or none; old conversions write -1 for none.
    ///
    /// # Errors
    /// The value is something else.
    pub fn ids(&self, key: &str) -> Result<Vec<u32>> {
        let values = match self.get(key) {
            None => return Ok(Vec::new()),
            Some(Value::Array(values)) => values.as_slice(),
            Some(value) => std::slice::from_ref(value),
        };
        let id = |value: &Value| value.as_u64().and_then(|id| u32::try_from(id).ok());
        let named = values.iter().filter(|value| value.as_i64() != Some(-1));
        let ids: Option<Vec<u32>> = named.map(id).collect();
        ids.ok_or_else(|| self.wrong(key, "a token id or a list of them"))
    }

    /// Returns `torch_dtype`, or transformers 5's `dtype`.
    pub fn dtype(&self) -> Option<String> {
        let value = self.get("torch_dtype").or_else(|| self.get("dtype"))?;
        value.as_str().map(|name| name.trim_start_matches("torch.").to_string())
    }

    /// Returns how the weights are quantized, if they are.
    ///
    /// # Errors
    /// They are quantized in a way that cannot be read.
    pub fn quantization(&self) -> Result<Option<Quantization>> {
        let Some(config) = self.get("quantization_config") else {
            return Ok(None);
        };
        let quantization = Quantization::from_json(config);
        quantization.map(Some).ok_or_else(|| {
            let method = config.get("quant_method").unwrap_or(&Value::Null);
            Error::file(
                self.path,
                format!(
                    "the weights are quantized by {method}; the only supported quantization of stored weights is bitsandbytes' 4 bits"
                ),
                "name the full-precision model and quantize it here with model.quantization",
            )
        })
    }

    /// Parses an index from 0.
    ///
    /// # Errors
    /// It is absent or not a whole number.
    pub fn index(&self, key: &str) -> Result<usize> {
        let value = self.get(key).and_then(Value::as_u64).and_then(|n| usize::try_from(n).ok());
        value.ok_or_else(|| self.wrong(key, "an integer, 0 or more"))
    }

    /// Parses a list of one flag per layer, written as 0 and 1 or as false and true; empty if the key is absent.
    ///
    /// # Errors
    /// It is shorter than `layers`, or holds something else.
    pub fn flags(&self, key: &str, layers: usize) -> Result<Vec<bool>> {
        self.per_layer(key, layers, "a list of 0 and 1", |value| match value.as_u64() {
            Some(number @ 0..=1) => Some(number == 1),
            _ => value.as_bool(),
        })
    }

    /// Parses `layer_types`: whether each layer has the sliding window; empty if the key is absent.
    ///
    /// # Errors
    /// It is shorter than `layers`, or a layer is of another type.
    pub fn layer_types(&self, layers: usize) -> Result<Vec<bool>> {
        let wanted = "a list of \"full_attention\" and \"sliding_attention\"";
        self.per_layer("layer_types", layers, wanted, |value| match value.as_str() {
            Some("sliding_attention") => Some(true),
            Some("full_attention") => Some(false),
            _ => None,
        })
    }

    fn per_layer(
        &self,
        key: &str,
        layers: usize,
        wanted: &str,
        parse: impl Fn(&Value) -> Option<bool>,
    ) -> Result<Vec<bool>> {
        let Some(value) = self.get(key) else {
            return Ok(Vec::new());
        };
        let list = value.as_array().filter(|list| list.len() >= layers);
        let parsed = list.and_then(|list| list.iter().take(layers).map(parse).collect());
        parsed.ok_or_else(|| self.wrong(key, &format!("{wanted}, one for each of {layers} layers")))
    }

    /// Returns the activation of the feed-forward block.
    ///
    /// # Errors
    /// It is not implemented.
    pub fn activation(&self) -> Result<Activation> {
        let key =
            ["hidden_activation", "hidden_act"].into_iter().find(|key| self.get(key).is_some());
        let name = key.and_then(|key| self.get(key)).and_then(Value::as_str).unwrap_or("silu");
        match name {
            "silu" | "swish" => Ok(Activation::Silu),
            "gelu_pytorch_tanh" | "gelu_new" => Ok(Activation::GeluTanh),
            _ => Err(Error::file(
                self.path,
                format!(
                    "{} is {name:?}, only \"silu\" and \"gelu_pytorch_tanh\" are implemented",
                    key.unwrap_or("hidden_act")
                ),
                "choose a model with one of these",
            )),
        }
    }

    /// Refuses `key` if it has a value.
    ///
    /// # Errors
    /// It has one; `reason` says why the model cannot be used.
    pub fn refuse_set(&self, key: &str, reason: &str) -> Result<()> {
        match self.get(key) {
            None => Ok(()),
            Some(value) => Err(Error::file(
                self.path,
                format!("{key} is {value}; {reason}"),
                "choose another model",
            )),
        }
    }

    /// Refuses biases of projections in a family that has none.
    ///
    /// # Errors
    /// A key asks for them.
    pub fn refuse_biases(&self) -> Result<()> {
        for key in ["attention_bias", "mlp_bias"] {
            if self.flag(key)? {
                self.refuse_set(
                    key,
                    "no released model of this kind has biases, and they are not implemented",
                )?;
            }
        }
        Ok(())
    }
}
