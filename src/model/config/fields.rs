//! Reads the values of `config.json` and refuses what the model does not have.

use std::path::Path;

use serde_json::{Map, Value};

use crate::error::{Error, Result};
use crate::model::quantize::Quantization;

/// The keys of one `config.json`; errors name the key.
pub(super) struct Fields<'a> {
    pub(super) object: Map<String, Value>,
    pub(super) path: &'a Path,
}

impl Fields<'_> {
    /// Returns the value of `key`; an explicit `null` counts as absent.
    pub(super) fn get(&self, key: &str) -> Option<&Value> {
        self.object.get(key).filter(|value| !value.is_null())
    }

    /// Returns the error for a key that is not as `wanted`.
    pub(super) fn wrong(&self, key: &str, wanted: &str) -> Error {
        let problem = match self.get(key) {
            Some(value) => format!("{key} must be {wanted}, is {value}"),
            None => format!("{key} is missing; it must be {wanted}"),
        };
        Error::file(self.path, problem, "take the config.json that belongs to these weights")
    }

    /// Parses a positive integer, or `None` if the key is absent.
    pub(super) fn optional_size(&self, key: &str) -> Result<Option<usize>> {
        let Some(value) = self.get(key) else {
            return Ok(None);
        };
        let size = value.as_u64().filter(|n| (1..=1 << 32).contains(n));
        let size = size.and_then(|n| usize::try_from(n).ok());
        size.map(Some).ok_or_else(|| self.wrong(key, "a positive integer"))
    }

    /// Parses a positive integer.
    pub(super) fn size(&self, key: &str) -> Result<usize> {
        self.optional_size(key)?.ok_or_else(|| self.wrong(key, "a positive integer"))
    }

    /// Parses a number, or returns `default` if the key is absent.
    pub(super) fn number(&self, key: &str, default: f64) -> Result<f64> {
        match self.get(key) {
            None => Ok(default),
            Some(value) => value.as_f64().ok_or_else(|| self.wrong(key, "a number")),
        }
    }

    /// Parses a boolean, false if the key is absent.
    pub(super) fn flag(&self, key: &str) -> Result<bool> {
        match self.get(key) {
            None => Ok(false),
            Some(value) => value.as_bool().ok_or_else(|| self.wrong(key, "true or false")),
        }
    }

    /// Parses one id, a list of ids, or none; old conversions write -1 for none.
    pub(super) fn ids(&self, key: &str) -> Result<Vec<u32>> {
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
    pub(super) fn dtype(&self) -> Option<String> {
        let value = self.get("torch_dtype").or_else(|| self.get("dtype"))?;
        value.as_str().map(|name| name.trim_start_matches("torch.").to_string())
    }

    /// Returns how the weights are quantized, if they are.
    pub(super) fn quantization(&self) -> Result<Option<Quantization>> {
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

    /// Returns `rope_parameters.rope_theta` (transformers 5) or `rope_theta`.
    pub(super) fn rope_theta(&self) -> Result<f64> {
        match self.get("rope_parameters").and_then(|rope| rope.get("rope_theta")) {
            Some(theta) => theta
                .as_f64()
                .ok_or_else(|| self.wrong("rope_parameters", "an object with a number rope_theta")),
            None => self.number("rope_theta", 10_000.0),
        }
    }

    /// Returns an error if the model is of a kind that is not implemented.
    pub(super) fn refuse_unsupported(&self) -> Result<()> {
        let unsupported =
            |problem: String, remedy: &str| Err(Error::file(self.path, problem, remedy));
        let model_type = self.get("model_type").and_then(Value::as_str).unwrap_or("(none)");
        if model_type != "mistral" {
            return unsupported(
                format!("model_type is {model_type:?}, only \"mistral\" is implemented"),
                "choose a Mistral model",
            );
        }
        let act = self.get("hidden_act").and_then(Value::as_str).unwrap_or("silu");
        if !matches!(act, "silu" | "swish") {
            return unsupported(
                format!("hidden_act is {act:?}, only \"silu\" is implemented"),
                "choose a model with the SwiGLU MLP of Mistral",
            );
        }
        for key in ["attention_bias", "mlp_bias"] {
            if self.flag(key)? {
                return unsupported(
                    format!("{key} is true; biases are not implemented"),
                    "choose a model without biases, as every released Mistral",
                );
            }
        }
        self.refuse_rope_scaling()
    }

    /// Returns an error if the rotary embeddings are scaled or partial.
    pub(super) fn refuse_rope_scaling(&self) -> Result<()> {
        for key in ["rope_scaling", "rope_parameters"] {
            let Some(rope) = self.get(key) else { continue };
            let kind = rope.get("rope_type").or_else(|| rope.get("type"));
            let kind = kind.and_then(Value::as_str).unwrap_or("default");
            let partial = rope.get("partial_rotary_factor").and_then(Value::as_f64).unwrap_or(1.0);
            if !rope.is_object() || kind != "default" || partial != 1.0 {
                return Err(Error::file(
                    self.path,
                    format!("{key} is {rope}; only unscaled rotary embeddings are implemented"),
                    "choose a model without RoPE scaling",
                ));
            }
        }
        Ok(())
    }
}
