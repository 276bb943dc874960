//! Reads and writes the settings of an adapter, `adapter_config.json` of PEFT.

use fancy_regex::Regex;
use serde_json::{Map, Value, json};

use crate::error::{Error, Result};

/// Largest rank: more than the width of any model, and small enough that multiplied sizes do not overflow.
pub const MAX_RANK: usize = 1 << 20;

/// What to do with an adapter that only PEFT understands.
const MERGE_IN_PEFT: &str = "merge this adapter into its base with PEFT, where its kind allows that, and start from the merged model";

/// The projections that get a low-rank branch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TargetModules {
    /// Every projection of every layer; never `lm_head`.
    AllLinear,
    /// Modules whose full name is one of these, or ends in `.` and one of these.
    Names(Vec<String>),
    /// Modules whose full name matches this regular expression from start to end.
    Pattern(String),
}

/// Initialization of the branches; `lora_b` is zero with the first two.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum LoraInit {
    /// PEFT's default: `kaiming_uniform(a = sqrt(5))`, which is uniform in `±1 / sqrt(D_in)`.
    #[default]
    KaimingUniform,
    /// Normal with standard deviation `1 / r`.
    Gaussian,
    /// Both matrices from the largest singular values of the weight, which the base loses: see
    /// [`residual`](super::residual). With `niter`, they are found by so many subspace iterations.
    Pissa {
        /// The number of iterations; `None` computes all singular values.
        niter: Option<usize>,
    },
    /// Both matrices from the weight's QR decomposition, which the base loses: see [`residual`](super::residual).
    Olora,
    /// Both matrices as the best approximation of the quantization error: see [`loftq`](super::loftq). Before that,
    /// and in saved files, the default, because PEFT would repeat LoftQ whenever it opens the adapter.
    LoftQ,
}

impl LoraInit {
    /// Returns whether the base loses a part to the adapter.
    pub fn changes_base(self) -> bool {
        matches!(self, Self::Pissa { .. } | Self::Olora)
    }
}

/// Settings of an adapter, with PEFT's names and meanings.
#[derive(Clone, Debug, PartialEq)]
pub struct LoraConfig {
    /// Rank of the low-rank branch.
    pub r: usize,
    /// Numerator of the scaling.
    pub lora_alpha: f64,
    /// Probability of zeroing an element of the branch's input while training.
    pub lora_dropout: f64,
    /// Projections that get a branch.
    pub target_modules: TargetModules,
    /// Whether to scale by `alpha / sqrt(r)` (arXiv 2312.03732) instead of `alpha / r`.
    pub use_rslora: bool,
    /// Whether magnitudes of the weights' rows are trained too (DoRA, arXiv 2402.09353).
    pub use_dora: bool,
    /// Initialization of `lora_a`.
    pub init: LoraInit,
}

impl LoraConfig {
    /// Returns the factor on the branch's output.
    pub fn scaling(&self) -> f64 {
        if self.use_rslora {
            self.lora_alpha / (self.r as f64).sqrt()
        } else {
            self.lora_alpha / self.r as f64
        }
    }

    /// Returns the settings of the adapter in files. If the initialization moved a part of the base into the adapter, that
    /// is the one of twice the rank, with the same scaling, that belongs to the original base.
    pub fn for_original_base(&self) -> Self {
        if !self.init.changes_base() {
            return self.clone();
        }
        let factor = if self.use_rslora { std::f64::consts::SQRT_2 } else { 2.0 };
        let (r, lora_alpha) = (2 * self.r, factor * self.lora_alpha);
        Self { r, lora_alpha, init: LoraInit::KaimingUniform, ..self.clone() }
    }

    /// Parses `adapter_config.json`; errors name `place`. Absent keys, and a `target_modules` of `null`, get PEFT's
    /// defaults for a Mistral model. Unknown keys of later PEFT versions are accepted if they are off.
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
        Ok(Self {
            r: r.ok_or_else(|| keys.wrong("r", &format!("an integer from 1 to {MAX_RANK}")))?
                as usize,
            lora_alpha: keys.number("lora_alpha", 8.0)?,
            lora_dropout: keys.number("lora_dropout", 0.0)?,
            target_modules: targets.map_or_else(TargetModules::peft_default, |value| {
                TargetModules::from_json(value)
                    .ok_or_else(|| keys.wrong("target_modules", "a list of names or a pattern"))
            })?,
            use_rslora: keys.flag("use_rslora")?,
            use_dora: keys.flag("use_dora")?,
            init: keys.init()?,
        })
    }

    /// Returns the smallest `adapter_config.json` that every PEFT since 0.4 opens, with keys sorted as PEFT sorts
    /// them.
    ///
    /// `targets` are the names to write as `target_modules`; `base_model` and `revision` name the model the adapter
    /// is for.
    pub fn to_json(&self, targets: &[String], base_model: &str, revision: Option<&str>) -> String {
        let lora_alpha = if self.lora_alpha.fract() == 0.0 {
            json!(self.lora_alpha as i64)
        } else {
            json!(self.lora_alpha)
        };
        let init = match self.init {
            LoraInit::Gaussian => json!("gaussian"),
            _ => json!(true),
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
            "lora_alpha": lora_alpha,
            "lora_dropout": self.lora_dropout,
            "modules_to_save": null,
            "peft_type": "LORA",
            "r": self.r,
            "rank_pattern": {},
            "revision": revision,
            "target_modules": targets,
            "task_type": "CAUSAL_LM",
            "use_dora": self.use_dora,
            "use_rslora": self.use_rslora,
        });
        format!("{config:#}")
    }
}

impl TargetModules {
    /// Returns whether the module `name` (`model.layers.0.self_attn.q_proj`) gets a branch.
    ///
    /// # Errors
    /// The pattern is not a valid regular expression, or matching it takes too many steps.
    pub fn matches(&self, name: &str) -> Result<bool> {
        match self {
            Self::AllLinear => Ok(true),
            Self::Names(names) => Ok(names.iter().any(|target| {
                name.strip_suffix(target.as_str())
                    .is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
            })),
            Self::Pattern(pattern) => {
                let unusable = |error: fancy_regex::Error| {
                    Error::invalid(
                        "target_modules",
                        format!("`{pattern}` is not a usable regular expression: {error}"),
                        "use a list of module names instead",
                    )
                };
                // As Python's re.fullmatch, with its look-around and back references.
                let translated = with_end_of_text(pattern);
                let regex = Regex::new(&format!(r"\A(?:{translated})\z")).map_err(unusable)?;
                regex.is_match(name).map_err(unusable)
            }
        }
    }

    /// Returns the modules that PEFT targets in a Mistral model by default.
    fn peft_default() -> Result<Self> {
        Ok(Self::Names(["q_proj", "v_proj"].map(String::from).to_vec()))
    }

    /// Parses a `target_modules` value.
    fn from_json(value: &Value) -> Option<Self> {
        match value {
            Value::String(all) if all.eq_ignore_ascii_case("all-linear") => Some(Self::AllLinear),
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

/// Translates a regular expression from Python's syntax to Rust's: the end of the text is `\Z` in Python and `\z` in Rust.
fn with_end_of_text(pattern: &str) -> String {
    let mut translated = String::with_capacity(pattern.len());
    let mut letters = pattern.chars();
    while let Some(letter) = letters.next() {
        translated.push(letter);
        if letter == '\\' {
            // A backslash takes the letter behind it along, another backslash too.
            let escaped = letters.next();
            translated.extend(escaped.map(|letter| if letter == 'Z' { 'z' } else { letter }));
        }
    }
    translated
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
    const REFUSED: [&str; 17] = [
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
    let bias = keys.get("bias").is_some_and(|bias| bias != "none");
    // Features that a later PEFT version may enable.
    let unknown = || {
        let mut flags = keys.map.iter().filter(|(_, value)| **value == true);
        let known = ["use_rslora", "use_dora"];
        let used = flags.find(|(key, _)| key.starts_with("use_") && !known.contains(&key.as_str()));
        used.map(|(key, _)| key.as_str())
    };
    let Some(key) = refused.or(bias.then_some("bias")).or_else(unknown) else {
        return Ok(());
    };
    let value = keys.map.get(key).map_or(String::new(), Value::to_string);
    Err(Error::invalid(
        format!("{}: {key}", keys.place),
        format!("{value} is not supported here"),
        MERGE_IN_PEFT,
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
            use_dora: true,
            init: LoraInit::KaimingUniform,
        }
    }

    #[test]
    fn scaling_is_alpha_over_r_or_its_root() {
        assert_eq!(config().scaling(), 3.0);
        assert_eq!(LoraConfig { use_rslora: true, ..config() }.scaling(), 6.0);
    }

    #[test]
    fn the_converted_adapter_has_twice_the_rank_and_the_same_scaling() {
        for use_rslora in [false, true] {
            let init = LoraInit::Pissa { niter: None };
            let config = LoraConfig { init, use_rslora, ..config() };
            let converted = config.for_original_base();
            assert_eq!((converted.r, converted.init), (8, LoraInit::KaimingUniform));
            assert!((converted.scaling() - config.scaling()).abs() < 1e-12);
        }
        assert_eq!(config().for_original_base(), config());
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
    fn unsupported_settings_are_refused_by_name() {
        let text = config().to_json(&["q_proj".into()], "b", None);
        let later = text.replacen('{', "{ \"key_of_a_later_peft\": null,", 1);
        assert!(LoraConfig::from_json(&later, "adapter_config.json").is_ok());
        // PEFT features that are enabled by a table of settings; KaSA changes the base weights.
        for kind in ["kasa_config", "velora_config", "monteclora_config", "arrow_config"] {
            for settings in [json!({"beta": 0.0001}), json!({})] {
                let error = with(kind, settings).unwrap_err().to_string();
                assert!(error.starts_with(&format!("adapter_config.json: {kind}: ")), "{error}");
            }
            assert!(with(kind, json!(null)).is_ok());
        }
        let all = with("target_modules", json!("All-Linear")).unwrap();
        assert_eq!(all.target_modules, TargetModules::AllLinear);
    }

    fn with(key: &str, value: Value) -> Result<LoraConfig> {
        let text = config().to_json(&["q_proj".into()], "b", None);
        let mut object: Value = serde_json::from_str(&text).unwrap();
        object[key] = value;
        LoraConfig::from_json(&object.to_string(), "adapter_config.json")
    }

    /// In PEFT's `update_layer`, these initializations subtract from the base weight whenever the adapter is opened.
    #[test]
    fn initializations_that_change_the_base_are_refused_by_name() {
        for name in ["pissa", "PiSSA", "pissa_niter_16", "olora", "corda", "lora_ga", "loftq"] {
            let error = with("init_lora_weights", json!(name)).unwrap_err();
            let error = error.to_string();
            assert!(
                error.starts_with("adapter_config.json: init_lora_weights: ")
                    && error.contains(name)
                    && error.contains("base weights"),
                "{error}"
            );
        }
        for plain in [json!(true), json!(false), json!(null), json!("eva"), json!("orthogonal")] {
            let read = with("init_lora_weights", plain).unwrap();
            assert_eq!(read.init, LoraInit::KaimingUniform);
        }
        let gaussian = with("init_lora_weights", json!("gaussian")).unwrap();
        assert_eq!(gaussian.init, LoraInit::Gaussian);
        for unknown in [json!("of_a_later_peft"), json!(1), json!([])] {
            let error = with("init_lora_weights", unknown).unwrap_err().to_string();
            assert!(error.contains("must be true, false"), "{error}");
        }
    }

    #[test]
    fn absent_keys_take_the_defaults_of_peft() {
        let bare = LoraConfig::from_json(r#"{"peft_type": "LORA"}"#, "a").unwrap();
        assert_eq!((bare.r, bare.lora_alpha, bare.scaling()), (8, 8.0, 1.0));
        let names = ["q_proj", "v_proj"].map(String::from).to_vec();
        assert_eq!(bare.target_modules, TargetModules::Names(names));
        let null = with("target_modules", json!(null)).unwrap();
        assert_eq!(null.target_modules, bare.target_modules);
    }

    #[test]
    fn other_kinds_of_adapters_are_named_with_what_helps() {
        for kind in ["IA3", "PROMPT_TUNING", "LOHA"] {
            let error = with("peft_type", json!(kind)).unwrap_err().to_string();
            assert!(error.starts_with("adapter_config.json: peft_type: "), "{error}");
            assert!(error.contains(kind) && error.contains("merge this adapter"), "{error}");
            assert!(!error.contains("save the adapter again"), "{error}");
        }
        assert!(with("peft_type", json!(null)).unwrap_err().to_string().contains("save"));
    }

    #[test]
    fn values_of_the_wrong_type_are_named() {
        for (key, value) in [
            ("use_rslora", json!("true")),
            ("lora_alpha", json!("16")),
            ("lora_dropout", json!("0.1")),
            ("r", json!(0)),
            ("r", json!(u64::MAX)),
            ("target_modules", json!([1])),
            ("use_dora", json!("false")),
            ("bias", json!(1)),
            ("use_something_new", json!(true)),
        ] {
            let error = with(key, value).unwrap_err().to_string();
            assert!(error.starts_with(&format!("adapter_config.json: {key}: ")), "{error}");
        }
    }

    #[test]
    fn patterns_follow_python() {
        let pattern = TargetModules::Pattern(r"^(?!.*lm_head).*(q_proj|v_proj)$".into());
        assert!(pattern.matches("model.layers.0.self_attn.q_proj").unwrap());
        assert!(!pattern.matches("model.layers.0.self_attn.k_proj").unwrap());
        assert!(!pattern.matches("lm_head.q_proj").unwrap());
        let end = TargetModules::Pattern(r".*(q_proj\Z|v_proj)".into());
        assert!(end.matches("layers.0.q_proj").unwrap() && end.matches("layers.0.v_proj").unwrap());
        // As in Python, not before a line end; and a backslash before a Z is a backslash.
        assert!(!TargetModules::Pattern(r"q_proj\Z\n".into()).matches("q_proj\n").unwrap());
        assert!(TargetModules::Pattern(r"a\\Z".into()).matches(r"a\Z").unwrap());
        // From end to end, as re.fullmatch, whatever a branch of the pattern says.
        let half = TargetModules::Pattern(r"model|.*q_proj\n?".into());
        assert!(!half.matches("model.layers.0").unwrap());
        assert!(!half.matches("q_proj.x").unwrap());
        let broken = TargetModules::Pattern("(".into());
        assert!(broken.matches("a").unwrap_err().to_string().contains("`(`"));
        // Exponential for a backtracking matcher: refused after a bounded number of steps.
        let slow = TargetModules::Pattern(r"(?=(a+)+$)\1b".into());
        assert!(slow.matches(&"a".repeat(64)).is_err() || !slow.matches(&"a".repeat(64)).unwrap());
    }
}
