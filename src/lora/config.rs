//! The settings of an adapter, as PEFT's `adapter_config.json` holds them.

use regex::Regex;
use serde_json::{Map, Value, json};

use crate::error::{Error, Result};

/// Which projections get a branch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TargetModules {
    /// Every projection of every layer; never `lm_head`.
    AllLinear,
    /// Modules whose full name is, or ends in `.` and, one of these.
    Names(Vec<String>),
    /// Modules whose full name matches this regular expression from end to end.
    Pattern(String),
}

/// How `lora_a` starts; `lora_b` starts at zero, but for LoftQ.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum LoraInit {
    /// PEFT's default: `kaiming_uniform(a = sqrt(5))`, which is uniform in `±1 / sqrt(D_in)`.
    #[default]
    KaimingUniform,
    /// Normal with standard deviation `1 / r`.
    Gaussian,
    /// Both as the best approximation of what packing took from the weight: see [`loftq`](super::loftq). Until then, and in
    /// files, as the default: PEFT would compute it again whenever it opens the adapter.
    LoftQ,
}

/// Settings of an adapter. Names and meanings are PEFT's.
#[derive(Clone, Debug, PartialEq)]
pub struct LoraConfig {
    /// Rank.
    pub r: usize,
    /// Numerator of the scaling.
    pub lora_alpha: f64,
    /// Probability of zeroing an element of the branch's input while training.
    pub lora_dropout: f64,
    /// Where branches sit.
    pub target_modules: TargetModules,
    /// Scale by `alpha / sqrt(r)` (arXiv 2312.03732) instead of `alpha / r`.
    pub use_rslora: bool,
    /// How `lora_a` starts.
    pub init: LoraInit,
}

impl LoraConfig {
    /// The factor on the branch.
    pub fn scaling(&self) -> f64 {
        match self.use_rslora {
            true => self.lora_alpha / (self.r as f64).sqrt(),
            false => self.lora_alpha / self.r as f64,
        }
    }

    /// Reads `adapter_config.json`; `place` names it in errors. Keys PEFT added later are tolerated when they are off.
    ///
    /// # Errors
    /// A needed key is missing or of the wrong type, or the adapter uses something that is not built here.
    pub fn from_json(text: &str, place: &str) -> Result<Self> {
        let map: Map<String, Value> = serde_json::from_str(text).map_err(|error| {
            Error::invalid(place, format!("not a JSON object: {error}"), "save the adapter again")
        })?;
        let wrong = |key: &str, wanted: &str| {
            let found = map.get(key).map_or("nothing".to_string(), Value::to_string);
            let problem = format!("must be {wanted}, is {found}");
            Error::invalid(format!("{place}: {key}"), problem, "save the adapter again with PEFT")
        };
        if map.get("peft_type").and_then(Value::as_str) != Some("LORA") {
            return Err(wrong("peft_type", "\"LORA\""));
        }
        refuse_what_is_not_built(&map, place)?;
        let flag = |key: &str| map.get(key).and_then(Value::as_bool).unwrap_or(false);
        let r = map.get("r").and_then(Value::as_u64).filter(|r| *r > 0);
        Ok(Self {
            r: r.ok_or_else(|| wrong("r", "a positive integer"))? as usize,
            lora_alpha: (map.get("lora_alpha").and_then(Value::as_f64))
                .ok_or_else(|| wrong("lora_alpha", "a number"))?,
            lora_dropout: map.get("lora_dropout").and_then(Value::as_f64).unwrap_or(0.0),
            target_modules: TargetModules::from_json(map.get("target_modules"))
                .ok_or_else(|| wrong("target_modules", "a list of names or a pattern"))?,
            use_rslora: flag("use_rslora"),
            init: match map.get("init_lora_weights").and_then(Value::as_str) {
                Some("gaussian") => LoraInit::Gaussian,
                _ => LoraInit::KaimingUniform,
            },
        })
    }

    /// The smallest `adapter_config.json` that every PEFT since 0.4 opens, keys sorted as PEFT sorts them.
    ///
    /// `targets` are the names written for `target_modules`; `base_model` and `revision` say what the adapter is for.
    pub fn to_json(&self, targets: &[String], base_model: &str, revision: Option<&str>) -> String {
        let number = match self.lora_alpha.fract() == 0.0 {
            true => json!(self.lora_alpha as i64),
            false => json!(self.lora_alpha),
        };
        let init = match self.init {
            LoraInit::KaimingUniform | LoraInit::LoftQ => json!(true),
            LoraInit::Gaussian => json!("gaussian"),
        };
        let config = json!({
            "alpha_pattern": {},
            "auto_mapping": null,
            "base_model_name_or_path": base_model,
            "bias": "none",
            "fan_in_fan_out": false,
            "inference_mode": true,
            "init_lora_weights": init,
            "layers_pattern": null,
            "layers_to_transform": null,
            "lora_alpha": number,
            "lora_dropout": self.lora_dropout,
            "modules_to_save": null,
            "peft_type": "LORA",
            "r": self.r,
            "rank_pattern": {},
            "revision": revision,
            "target_modules": targets,
            "task_type": "CAUSAL_LM",
            "use_dora": false,
            "use_rslora": self.use_rslora,
        });
        format!("{config:#}")
    }
}

impl TargetModules {
    /// Whether the module called `name` (`model.layers.0.self_attn.q_proj`) gets a branch.
    ///
    /// # Errors
    /// The pattern is not a regular expression.
    pub fn matches(&self, name: &str) -> Result<bool> {
        match self {
            Self::AllLinear => Ok(true),
            Self::Names(names) => Ok(names.iter().any(|target| {
                name.strip_suffix(target.as_str())
                    .is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
            })),
            Self::Pattern(pattern) => {
                let regex = Regex::new(&format!("^(?:{pattern})$")).map_err(|error| {
                    Error::invalid("target_modules", error, "give a list of module names instead")
                })?;
                Ok(regex.is_match(name))
            }
        }
    }

    fn from_json(value: Option<&Value>) -> Option<Self> {
        match value? {
            Value::String(all) if all == "all-linear" => Some(Self::AllLinear),
            Value::String(pattern) => Some(Self::Pattern(pattern.clone())),
            Value::Array(names) => {
                let names: Option<Vec<String>> =
                    names.iter().map(|name| name.as_str().map(String::from)).collect();
                names.map(Self::Names)
            }
            _ => None,
        }
    }
}

/// Anything that would change the result and is not built must not be ignored.
fn refuse_what_is_not_built(map: &Map<String, Value>, place: &str) -> Result<()> {
    let off = |value: &Value| match value {
        Value::Null | Value::Bool(false) => true,
        Value::Object(map) => map.is_empty(),
        Value::Array(list) => list.is_empty(),
        _ => false,
    };
    const REFUSED: [&str; 14] = [
        "use_dora",
        "rank_pattern",
        "alpha_pattern",
        "modules_to_save",
        "layers_to_transform",
        "exclude_modules",
        "fan_in_fan_out",
        "lora_bias",
        "trainable_token_indices",
        "target_parameters",
        "layer_replication",
        "use_qalora",
        "use_bdlora",
        "alora_invocation_tokens",
    ];
    let on = REFUSED.iter().find(|key| map.get(**key).is_some_and(|value| !off(value)));
    let bias = map.get("bias").and_then(Value::as_str).unwrap_or("none");
    let key = match (on, bias) {
        (Some(key), _) => *key,
        (None, "none") => return Ok(()),
        (None, _) => "bias",
    };
    let value = map.get(key).map_or(String::new(), Value::to_string);
    Err(Error::invalid(
        format!("{place}: {key}"),
        format!("{value} is not supported here"),
        "merge this adapter into its base with PEFT, and start from the merged model",
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config() -> LoraConfig {
        LoraConfig {
            r: 4,
            lora_alpha: 12.0,
            lora_dropout: 0.25,
            target_modules: TargetModules::Names(vec!["q_proj".into()]),
            use_rslora: false,
            init: LoraInit::KaimingUniform,
        }
    }

    #[test]
    fn scaling_is_alpha_over_r_or_its_root() {
        assert_eq!(config().scaling(), 3.0);
        assert_eq!(LoraConfig { use_rslora: true, ..config() }.scaling(), 6.0);
    }

    #[test]
    fn json_round_trips() {
        let text = config().to_json(&["q_proj".into()], "owner/base", Some("main"));
        assert_eq!(LoraConfig::from_json(&text, "adapter_config.json").unwrap(), config());
    }

    #[test]
    fn names_match_whole_path_parts_only() {
        let targets = TargetModules::Names(vec!["q_proj".into(), "layers.1.mlp.up_proj".into()]);
        let matches = |name| targets.matches(name).unwrap();
        assert!(matches("model.layers.0.self_attn.q_proj"));
        assert!(!matches("model.layers.0.self_attn.xq_proj"));
        assert!(matches("model.layers.1.mlp.up_proj"));
        assert!(!matches("model.layers.11.mlp.up_proj"));
        let pattern = TargetModules::Pattern(r".*\.mlp\..*".into());
        assert!(pattern.matches("model.layers.0.mlp.up_proj").unwrap());
        assert!(!pattern.matches("model.layers.0.self_attn.q_proj").unwrap());
    }

    #[test]
    fn what_is_not_built_is_refused_by_name() {
        let text = config().to_json(&["q_proj".into()], "b", None);
        let dora = text.replace("\"use_dora\": false", "\"use_dora\": true");
        let error = LoraConfig::from_json(&dora, "adapter_config.json").unwrap_err().to_string();
        assert!(error.contains("use_dora"), "{error}");
        let later = text.replacen('{', "{ \"key_of_a_later_peft\": null,", 1);
        assert!(LoraConfig::from_json(&later, "adapter_config.json").is_ok());
    }
}
