//! The keys of rotary embeddings: `rope_theta` and `rope_scaling`, or transformers 5's `rope_parameters`.

use serde_json::{Map, Value, json};

use super::{DecoderConfig, Fields};
use crate::error::{Error, Result};
use crate::model::family::phi3;
use crate::model::switches::{LongRope, RopeScaling, Yarn};

/// The object with the parameters of rotary embeddings.
#[derive(Debug)]
pub struct RopeKeys<'a> {
    fields: &'a Fields<'a>,
    key: &'static str,
    object: Option<&'a Map<String, Value>>,
    is_of_layer_type: bool,
}

impl Fields<'_> {
    /// Returns the parameters of rotary embeddings: `rope_scaling` if it is not empty, as in transformers 5, or else
    /// `rope_parameters`. In an object with one object per type of layers, they are those of `layer_type`, or of
    /// `full_attention` if that is `None`.
    ///
    /// # Errors
    /// The value is not an object.
    pub fn rope(&self, layer_type: Option<&str>) -> Result<RopeKeys<'_>> {
        for key in ["rope_scaling", "rope_parameters"] {
            let Some(value) = self.get(key) else { continue };
            let all = value.as_object().ok_or_else(|| self.wrong(key, "an object"))?;
            if all.is_empty() {
                continue;
            }
            let one = all.get(layer_type.unwrap_or("full_attention")).and_then(Value::as_object);
            let object = one.unwrap_or(all);
            return Ok(RopeKeys {
                fields: self,
                key,
                object: Some(object),
                is_of_layer_type: one.is_some(),
            });
        }
        Ok(RopeKeys { fields: self, key: "rope_scaling", object: None, is_of_layer_type: false })
    }

    /// Returns the base of the frequencies: `rope_parameters.rope_theta` (transformers 5) or `rope_theta`.
    ///
    /// # Errors
    /// It is not a number.
    pub(super) fn rope_theta(&self) -> Result<f64> {
        match self.rope(None)?.number("rope_theta")? {
            Some(theta) => Ok(theta),
            None => self.number("rope_theta", 10_000.0),
        }
    }
}

impl RopeKeys<'_> {
    fn get(&self, key: &str) -> Option<&Value> {
        self.object?.get(key).filter(|value| !value.is_null())
    }

    /// Returns whether the parameters are those of one type of layers.
    pub fn is_of_layer_type(&self) -> bool {
        self.is_of_layer_type
    }

    /// Returns the number `key`; `None` if it is absent.
    ///
    /// # Errors
    /// It is not a finite number.
    pub fn number(&self, key: &str) -> Result<Option<f64>> {
        let Some(value) = self.get(key) else { return Ok(None) };
        let number = value.as_f64().filter(|number| number.is_finite());
        number.map(Some).ok_or_else(|| self.wrong(key, "a number"))
    }

    /// Returns the length of the texts of the first training phase. In a Phi 3, the key beside the parameters wins, as in
    /// transformers.
    ///
    /// # Errors
    /// It is not a positive integer.
    pub fn original_max_position_embeddings(&self) -> Result<usize> {
        const KEY: &str = "original_max_position_embeddings";
        let outside_wins = *self.fields.family == phi3::FAMILY;
        match self.get(KEY).filter(|_| !outside_wins) {
            Some(value) => {
                let size = value.as_f64().filter(|size| *size >= 1.0 && *size < 1e12);
                size.map(|size| size as usize).ok_or_else(|| self.wrong(KEY, "a positive integer"))
            }
            None => match self.fields.optional_size(KEY)? {
                Some(size) => Ok(size),
                None => self.fields.size("max_position_embeddings"),
            },
        }
    }

    /// Returns how the frequencies are scaled.
    ///
    /// # Errors
    /// A parameter is missing or out of range, or the kind of scaling is not implemented.
    pub(super) fn scaling(&self) -> Result<RopeScaling> {
        let kind = self.get("rope_type").or_else(|| self.get("type"));
        let kind = match kind {
            None => "default",
            Some(kind) => kind.as_str().ok_or_else(|| self.wrong("rope_type", "a name"))?,
        };
        Ok(match kind {
            "default" => RopeScaling::None,
            "linear" => RopeScaling::Linear { factor: self.positive("factor")? },
            "llama3" => RopeScaling::Llama3 {
                factor: self.positive("factor")?,
                low_freq_factor: self.positive("low_freq_factor")?,
                high_freq_factor: self.positive("high_freq_factor")?,
                original_max_position_embeddings: self.original_max_position_embeddings()?,
            },
            "yarn" => RopeScaling::Yarn(Yarn {
                factor: self.positive("factor")?,
                original_max_position_embeddings: self.original_max_position_embeddings()?,
                attention_factor: self.number("attention_factor")?,
                beta_fast: self.number("beta_fast")?.unwrap_or(32.0),
                beta_slow: self.number("beta_slow")?.unwrap_or(1.0),
                mscale: self.number("mscale")?,
                mscale_all_dim: self.number("mscale_all_dim")?,
                truncate: self.get("truncate").and_then(Value::as_bool).unwrap_or(true),
            }),
            "longrope" => RopeScaling::LongRope(self.longrope()?),
            other => {
                return Err(self.unsupported(format!(
                    "the rotary embeddings are scaled by {other:?}; only \"linear\", \"llama3\", \"yarn\" and \
                     \"longrope\" are implemented"
                )));
            }
        })
    }

    fn longrope(&self) -> Result<LongRope> {
        Ok(LongRope {
            short_factor: self.factors("short_factor")?,
            long_factor: self.factors("long_factor")?,
            original_max_position_embeddings: self.original_max_position_embeddings()?,
            max_position_embeddings: self.fields.size("max_position_embeddings")?,
            factor: self.number("factor")?,
            attention_factor: self.number("attention_factor")?,
        })
    }

    /// Returns a list of positive numbers.
    fn factors(&self, key: &str) -> Result<Vec<f64>> {
        let list = self.get(key).and_then(Value::as_array);
        let factor = |value: &Value| value.as_f64().filter(|f| *f > 0.0 && f.is_finite());
        let factors = list.and_then(|list| list.iter().map(factor).collect());
        factors.ok_or_else(|| self.wrong(key, "a list of numbers above 0"))
    }

    /// Returns the part of each head that is rotated: 1 for the whole head.
    ///
    /// # Errors
    /// It is not above 0 and at most 1.
    pub fn partial_rotary_factor(&self) -> Result<f64> {
        const KEY: &str = "partial_rotary_factor";
        let partial = match self.number(KEY)? {
            Some(partial) => partial,
            None => self.fields.number(KEY, 1.0)?,
        };
        if partial > 0.0 && partial <= 1.0 {
            return Ok(partial);
        }
        Err(self.unsupported(format!("{KEY} is {partial}, not above 0 and at most 1")))
    }

    /// Refuses heads that are rotated in part.
    ///
    /// # Errors
    /// They are.
    pub fn refuse_partial(&self) -> Result<()> {
        match self.partial_rotary_factor()? {
            1.0 => Ok(()),
            partial => Err(self.unsupported(format!(
                "partial_rotary_factor is {partial}; in models of this type only whole heads can be rotated"
            ))),
        }
    }

    /// Refuses a scaling; `problem` says what is not possible.
    ///
    /// # Errors
    /// There is one.
    pub fn refuse_scaling(&self, problem: &str) -> Result<()> {
        match self.scaling()? {
            RopeScaling::None => Ok(()),
            _ => Err(self.unsupported(problem.to_string())),
        }
    }

    fn positive(&self, key: &str) -> Result<f64> {
        let number = self.number(key)?.filter(|number| *number > 0.0);
        number.ok_or_else(|| self.wrong(key, "a number above 0"))
    }

    fn wrong(&self, key: &str, wanted: &str) -> Error {
        let found = self.get(key).map_or("missing".to_string(), |value| format!("is {value}"));
        Error::file(
            self.fields.path,
            format!("{}: {key} must be {wanted}, {found}", self.key),
            "take the config.json that belongs to these weights",
        )
    }

    fn unsupported(&self, problem: String) -> Error {
        Error::file(
            self.fields.path,
            format!("{}: {problem}", self.key),
            "choose a model whose rotary embeddings are implemented; without the key it would be another model",
        )
    }
}

impl DecoderConfig {
    /// Returns the parameters of rotary embeddings as transformers 5 writes them.
    pub fn rope_parameters(&self) -> Map<String, Value> {
        let mut object = self
            .rope_scaling()
            .unwrap_or_else(|| Map::from_iter([("rope_type".to_string(), json!("default"))]));
        object.insert("rope_theta".to_string(), json!(self.rope_theta));
        object
    }

    /// Returns the value of `rope_scaling`; `None` if the frequencies are not scaled.
    pub(super) fn rope_scaling(&self) -> Option<Map<String, Value>> {
        let value = match &self.switches.rope_scaling {
            RopeScaling::None => return None,
            RopeScaling::Linear { factor } => json!({"rope_type": "linear", "factor": factor}),
            RopeScaling::Llama3 {
                factor,
                low_freq_factor,
                high_freq_factor,
                original_max_position_embeddings,
            } => json!({
                "rope_type": "llama3",
                "factor": factor,
                "low_freq_factor": low_freq_factor,
                "high_freq_factor": high_freq_factor,
                "original_max_position_embeddings": original_max_position_embeddings,
            }),
            RopeScaling::Yarn(yarn) => json!({
                "rope_type": "yarn",
                "factor": yarn.factor,
                "original_max_position_embeddings": yarn.original_max_position_embeddings,
                "attention_factor": yarn.attention_factor,
                "beta_fast": yarn.beta_fast,
                "beta_slow": yarn.beta_slow,
                "mscale": yarn.mscale,
                "mscale_all_dim": yarn.mscale_all_dim,
                "truncate": yarn.truncate,
            }),
            RopeScaling::LongRope(longrope) => json!({
                "rope_type": "longrope",
                "short_factor": longrope.short_factor,
                "long_factor": longrope.long_factor,
                "original_max_position_embeddings": longrope.original_max_position_embeddings,
                "factor": longrope.factor,
                "attention_factor": longrope.attention_factor,
            }),
        };
        let Value::Object(mut object) = value else { return None };
        object.retain(|_, value| !value.is_null());
        Some(object)
    }
}
