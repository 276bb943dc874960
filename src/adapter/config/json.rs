//! PEFT's `adapter_config.json`: reads and writes the settings of an adapter.

use std::collections::BTreeSet;

use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::{
    ExcludeModules, LayerChoice, LoraBias, LoraConfig, LoraInit, MAX_RANK, MERGE_IN_PEFT, Patterns,
    TargetModules,
};
use crate::error::{Error, Result};

impl LoraConfig {
    /// Parses `adapter_config.json`; errors name `place`. Absent keys, and a `target_modules` of `null`, get PEFT's
    /// defaults. Unknown keys of later PEFT versions are accepted if they are off.
    ///
    /// # Errors
    /// A key has the wrong type, or the adapter uses an unsupported feature.
    pub fn from_json(text: &str, place: &str) -> Result<Self> {
        let keys = Keys {
            map: serde_json::from_str(text).map_err(|error| {
                let problem = format!("not a JSON object: {error}");
                Error::invalid(place, problem, "save the adapter again")
            })?,
            place,
        };
        keys.check_kind()?;
        refuse_unsupported(&keys)?;
        let r = keys.get("r").map_or(Some(8), Value::as_u64);
        let r = r.filter(|r| (1..=MAX_RANK as u64).contains(r));
        let targets = keys.get("target_modules");
        let config = Self {
            r: r.ok_or_else(|| keys.wrong("r", &format!("an integer from 1 to {MAX_RANK}")))?
                as usize,
            lora_alpha: keys.number("lora_alpha", 8.0)?,
            lora_dropout: keys.number("lora_dropout", 0.0)?,
            target_modules: match targets {
                None => TargetModules::default(),
                Some(value) => target_modules(value)
                    .ok_or_else(|| keys.wrong("target_modules", "a list of names or a pattern"))?,
            },
            use_rslora: keys.flag("use_rslora")?,
            use_dora: keys.flag("use_dora")?,
            init: keys.init()?,
            rank_pattern: keys.patterns("rank_pattern", "integers from 1", |value| {
                let r = value.as_u64().filter(|r| (1..=MAX_RANK as u64).contains(r));
                r.map(|r| r as usize)
            })?,
            alpha_pattern: keys.patterns("alpha_pattern", "numbers", Value::as_f64)?,
            exclude_modules: keys.exclude_modules()?,
            layers: LayerChoice {
                indices: keys.one_or_many("layers_to_transform", "layer indices", |value| {
                    value.as_u64().map(|index| index as usize)
                })?,
                patterns: keys.texts("layers_pattern")?,
            },
            bias: keys.bias()?,
            lora_bias: keys.flag("lora_bias")?,
            modules_to_save: keys.names("modules_to_save")?,
        };
        config.check_layers(|key| format!("{place}: {key}"))?;
        config.check_bias(|key| format!("{place}: {key}"))?;
        Ok(config)
    }

    /// Returns the smallest `adapter_config.json` that every PEFT since 0.4 opens, with keys sorted as PEFT sorts
    /// them.
    ///
    /// `targets` is the value to write as `target_modules`; `base_model` and `revision` name the model the adapter is for.
    /// Keys that PEFT added later are written only if they are in use.
    pub fn to_json(&self, targets: &Value, base_model: &str, revision: Option<&str>) -> String {
        let init = match self.init {
            LoraInit::Gaussian => json!("gaussian"),
            _ => json!(true),
        };
        let mut config = json!({
            "alpha_pattern": sorted(&self.alpha_pattern, number),
            "auto_mapping": null,
            "base_model_name_or_path": base_model,
            "bias": self.bias,
            "fan_in_fan_out": false,
            "inference_mode": true,
            "init_lora_weights": init,
            "layers_pattern": one_or_many(&self.layers.patterns),
            "layers_to_transform": match self.layers.indices.as_slice() {
                [] => Value::Null,
                indices => json!(indices),
            },
            "lora_alpha": number(self.lora_alpha),
            "lora_dropout": self.lora_dropout,
            "modules_to_save": match self.modules_to_save.as_slice() {
                [] => Value::Null,
                names => json!(names),
            },
            "peft_type": "LORA",
            "r": self.r,
            "rank_pattern": sorted(&self.rank_pattern, |r| json!(r)),
            "revision": revision,
            "target_modules": targets,
            "task_type": "CAUSAL_LM",
            "use_dora": self.use_dora,
            "use_rslora": self.use_rslora,
        });
        let excluded = match &self.exclude_modules {
            ExcludeModules::Names(names) => json!(BTreeSet::from_iter(names)),
            ExcludeModules::Pattern(pattern) => json!(pattern),
        };
        let later = [
            ("exclude_modules", !self.exclude_modules.is_empty(), excluded),
            ("lora_bias", self.lora_bias, json!(true)),
        ];
        if let Some(keys) = config.as_object_mut() {
            let used = later.into_iter().filter(|(_, is_used, _)| *is_used);
            keys.extend(used.map(|(key, _, value)| (key.to_string(), value)));
            keys.sort_keys();
        }
        format!("{config:#}")
    }
}

/// Returns a number as PEFT writes it: whole ones without a fraction.
fn number(value: f64) -> Value {
    if value.fract() == 0.0 { json!(value as i64) } else { json!(value) }
}

/// Returns patterns as an object with sorted keys, as PEFT writes them.
fn sorted<T: Copy>(patterns: &Patterns<T>, value: impl Fn(T) -> Value) -> Value {
    let mut object: Map<String, Value> =
        patterns.0.iter().map(|(pattern, entry)| (pattern.clone(), value(*entry))).collect();
    object.sort_keys();
    Value::Object(object)
}

/// Returns no text as null, one as a text, and several as a list.
fn one_or_many(texts: &[String]) -> Value {
    match texts {
        [] => Value::Null,
        [one] => json!(one),
        many => json!(many),
    }
}

/// Parses a `target_modules` value.
fn target_modules(value: &Value) -> Option<TargetModules> {
    match value {
        Value::String(all) if all.eq_ignore_ascii_case("all-linear") => {
            Some(TargetModules::AllLinear)
        }
        Value::String(pattern) => Some(TargetModules::Pattern(pattern.clone())),
        _ => list(value, text).map(TargetModules::Names),
    }
}

/// Parses every element of a list.
fn list<T>(value: &Value, element: impl Fn(&Value) -> Option<T>) -> Option<Vec<T>> {
    value.as_array()?.iter().map(element).collect()
}

fn text(value: &Value) -> Option<String> {
    value.as_str().map(String::from)
}

/// The keys of one `adapter_config.json`, read with errors that name the key.
struct Keys<'a> {
    map: Map<String, Value>,
    place: &'a str,
}

impl Keys<'_> {
    /// Returns the value of `key`; an explicit `null` counts as absent.
    fn get(&self, key: &str) -> Option<&Value> {
        self.map.get(key).filter(|value| !value.is_null())
    }

    /// Returns the error for a key that is not as `wanted`.
    fn wrong(&self, key: &str, wanted: &str) -> Error {
        let found = self.map.get(key).map_or("absent".into(), Value::to_string);
        Error::invalid(
            format!("{}: {key}", self.place),
            format!("must be {wanted}, is {found}"),
            "save the adapter again with PEFT",
        )
    }

    /// Refuses adapters that are not LoRA: IA3, prompt tuning and others.
    fn check_kind(&self) -> Result<()> {
        const KEY: &str = "peft_type";
        match self.get(KEY) {
            Some(Value::String(kind)) if kind == "LORA" => Ok(()),
            Some(Value::String(kind)) => Err(Error::invalid(
                format!("{}: {KEY}", self.place),
                format!("{kind:?} is another kind of adapter: only \"LORA\" is supported here"),
                MERGE_IN_PEFT,
            )),
            _ => Err(self.wrong(KEY, "\"LORA\"")),
        }
    }

    /// Returns a finite number, or `default` if the key is absent.
    fn number(&self, key: &str, default: f64) -> Result<f64> {
        let number = self.get(key).map_or(Some(default), Value::as_f64);
        let number = number.filter(|number| number.is_finite());
        number.ok_or_else(|| self.wrong(key, "a number"))
    }

    /// Returns a table of values by pattern, in the order of the file; empty if the key is absent. `wanted` describes the
    /// values.
    fn patterns<T>(
        &self,
        key: &str,
        wanted: &str,
        parse: impl Fn(&Value) -> Option<T>,
    ) -> Result<Patterns<T>> {
        let Some(value) = self.get(key) else {
            return Ok(Patterns(Vec::new()));
        };
        let entries = value.as_object().and_then(|entries| {
            let entry =
                |(pattern, value): (&String, &Value)| Some((pattern.clone(), parse(value)?));
            entries.iter().map(entry).collect()
        });
        let wanted = format!("a table of {wanted} by pattern");
        entries.map(Patterns).ok_or_else(|| self.wrong(key, &wanted))
    }

    /// Returns the elements of a list, or a single element; none if the key is absent.
    fn one_or_many<T>(
        &self,
        key: &str,
        wanted: &str,
        parse: impl Fn(&Value) -> Option<T>,
    ) -> Result<Vec<T>> {
        let Some(value) = self.get(key) else {
            return Ok(Vec::new());
        };
        let elements = match parse(value) {
            Some(one) => Some(vec![one]),
            None => list(value, parse),
        };
        elements.ok_or_else(|| self.wrong(key, &format!("one or a list of {wanted}")))
    }

    /// Returns texts; a text that is empty counts as absent.
    fn texts(&self, key: &str) -> Result<Vec<String>> {
        let texts = self.one_or_many(key, "texts", text)?;
        Ok(texts.into_iter().filter(|text| !text.is_empty()).collect())
    }

    /// Returns a list of texts; empty if the key is absent.
    fn names(&self, key: &str) -> Result<Vec<String>> {
        let names = self.get(key).map_or(Some(Vec::new()), |value| list(value, text));
        names.ok_or_else(|| self.wrong(key, "a list of names"))
    }

    /// Returns the excluded modules.
    fn exclude_modules(&self) -> Result<ExcludeModules> {
        const KEY: &str = "exclude_modules";
        match self.get(KEY) {
            None => Ok(ExcludeModules::default()),
            Some(Value::String(pattern)) => Ok(ExcludeModules::Pattern(pattern.clone())),
            Some(names) => list(names, text)
                .map(ExcludeModules::Names)
                .ok_or_else(|| self.wrong(KEY, "a list of names or a pattern")),
        }
    }

    /// Returns the biases that are trained.
    fn bias(&self) -> Result<LoraBias> {
        const KEY: &str = "bias";
        let Some(value) = self.get(KEY) else {
            return Ok(LoraBias::None);
        };
        let parsed = LoraBias::deserialize(value);
        parsed.map_err(|_| self.wrong(KEY, "\"none\", \"lora_only\" or \"all\""))
    }

    /// Returns a boolean, false if the key is absent.
    fn flag(&self, key: &str) -> Result<bool> {
        let flag = self.get(key).map_or(Some(false), Value::as_bool);
        flag.ok_or_else(|| self.wrong(key, "true or false"))
    }

    /// Returns the initialization of the branches. Some initializations change the base weights too, and PEFT repeats
    /// that whenever it opens the adapter; as a plain adapter, it would be added to the wrong weights, so these are
    /// refused.
    fn init(&self) -> Result<LoraInit> {
        const KEY: &str = "init_lora_weights";
        const CHANGE_THE_BASE: [&str; 6] =
            ["pissa", "pissa_niter_", "olora", "corda", "lora_ga", "loftq"];
        let Some(value) = self.get(KEY) else {
            return Ok(LoraInit::KaimingUniform);
        };
        match value {
            Value::Bool(_) => return Ok(LoraInit::KaimingUniform),
            Value::String(name) => match name.to_lowercase().as_str() {
                "gaussian" => return Ok(LoraInit::Gaussian),
                // These initialize other matrices and leave the base unchanged.
                "eva" | "orthogonal" => return Ok(LoraInit::KaimingUniform),
                changing if CHANGE_THE_BASE.iter().any(|name| changing.starts_with(name)) => {
                    return Err(Error::invalid(
                        format!("{}: {KEY}", self.place),
                        format!(
                            "{name:?} changes the base weights when the adapter is opened, which is not supported here"
                        ),
                        "convert it in PEFT with save_pretrained(.., path_initial_model_for_weight_conversion=..), or merge it \
                         there and use the merged model",
                    ));
                }
                _ => {}
            },
            _ => {}
        }
        Err(self.wrong(KEY, "true, false, \"gaussian\", \"eva\" or \"orthogonal\""))
    }
}

/// Refuses settings that would change the result and are not supported.
fn refuse_unsupported(keys: &Keys<'_>) -> Result<()> {
    let off = |value: &Value| match value {
        Value::Null | Value::Bool(false) => true,
        Value::Object(map) => map.is_empty(),
        Value::Array(list) => list.is_empty(),
        _ => false,
    };
    const REFUSED: [&str; 11] = [
        "fan_in_fan_out",
        "trainable_token_indices",
        "target_parameters",
        "layer_replication",
        "use_qalora",
        "use_bdlora",
        "alora_invocation_tokens",
        "arrow_config",
        // KaSA subtracts the smallest singular values from the base weights; all three add tensors to the branches.
        "kasa_config",
        "monteclora_config",
        "velora_config",
    ];
    // An empty table of settings enables its feature, with PEFT's defaults for all settings.
    let on = |key: &str| {
        keys.get(key)
            .is_some_and(|value| !off(value) || (key.ends_with("_config") && value.is_object()))
    };
    let refused = REFUSED.into_iter().find(|key| on(key));
    // Features that a later PEFT version may enable.
    let unknown = || {
        let mut flags = keys.map.iter().filter(|(_, value)| **value == true);
        let known = ["use_rslora", "use_dora"];
        let used = flags.find(|(key, _)| key.starts_with("use_") && !known.contains(&key.as_str()));
        used.map(|(key, _)| key.as_str())
    };
    let Some(key) = refused.or_else(unknown) else {
        return Ok(());
    };
    let value = keys.map.get(key).map_or(String::new(), Value::to_string);
    Err(Error::invalid(
        format!("{}: {key}", keys.place),
        format!("{value} is not supported here"),
        MERGE_IN_PEFT,
    ))
}
