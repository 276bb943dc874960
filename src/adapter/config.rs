//! The settings of an adapter.

mod json;

use serde::{Deserialize, Serialize};

use super::modules::is_part_of;
pub use super::modules::{ExcludeModules, LayerChoice, Patterns, TargetModules};
use crate::error::{Error, Result};

/// Largest rank: more than the width of any model, and small enough that multiplied sizes do not overflow.
pub const MAX_RANK: usize = 1 << 20;

/// The remedy for an adapter that only PEFT understands.
const MERGE_IN_PEFT: &str = "merge this adapter into its base with PEFT, where its kind allows that, and start from the merged model";

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
    /// Ranks of single projections, which replace [`Self::r`].
    pub rank_pattern: Patterns<usize>,
    /// Numerators of the scaling of single projections, which replace [`Self::lora_alpha`].
    pub alpha_pattern: Patterns<f64>,
    /// Projections without a branch, even if [`Self::target_modules`] has them.
    pub exclude_modules: ExcludeModules,
    /// Layers whose projections get a branch.
    pub layers: LayerChoice,
    /// Biases that are trained too.
    pub bias: LoraBias,
    /// Whether each `lora_b` has a bias.
    pub lora_bias: bool,
    /// Ends of the names of modules that are trained in full: see [`saved_modules`](super::saved::saved_modules).
    pub modules_to_save: Vec<String>,
}

/// Biases of the model that are trained too (PEFT's `bias`), see [`biases`](super::biases). In a model without biases this
/// only changes the adapter's settings.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LoraBias {
    /// None.
    #[default]
    None,
    /// The biases of the projections with a branch.
    LoraOnly,
    /// All.
    All,
}

/// The settings of one branch.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct BranchConfig {
    /// Rank.
    pub r: usize,
    /// Factor on the branch's output: `alpha / r`, or `alpha / sqrt(r)` with rsLoRA.
    pub scaling: f64,
}

impl Default for LoraConfig {
    /// Returns PEFT's defaults for a model of these families.
    fn default() -> Self {
        Self {
            r: 8,
            lora_alpha: 8.0,
            lora_dropout: 0.0,
            target_modules: TargetModules::default(),
            use_rslora: false,
            use_dora: false,
            init: LoraInit::KaimingUniform,
            rank_pattern: Patterns::default(),
            alpha_pattern: Patterns::default(),
            exclude_modules: ExcludeModules::default(),
            layers: LayerChoice::default(),
            bias: LoraBias::None,
            lora_bias: false,
            modules_to_save: Vec::new(),
        }
    }
}

impl LoraConfig {
    /// Returns the settings of the branch on the projection `module` (`model.layers.0.self_attn.q_proj`); `None` if it
    /// gets none. Every part of the program asks this function.
    ///
    /// # Errors
    /// A pattern is not a valid regular expression, or matching it takes too many steps.
    pub fn at(&self, module: &str) -> Result<Option<BranchConfig>> {
        if !self.targets(module)? {
            return Ok(None);
        }
        let r = self.rank_pattern.get("rank_pattern", module)?.unwrap_or(self.r);
        let alpha = self.alpha_pattern.get("alpha_pattern", module)?.unwrap_or(self.lora_alpha);
        let divisor = if self.use_rslora { (r as f64).sqrt() } else { r as f64 };
        Ok(Some(BranchConfig { r, scaling: alpha / divisor }))
    }

    /// Returns whether the projection `module` gets a branch, as PEFT's `check_target_module_exists`.
    fn targets(&self, module: &str) -> Result<bool> {
        Ok(self.target_modules.matches(module)?
            && self.layers.contains(module)?
            && !self.exclude_modules.matches(module)?
            && !is_part_of(&self.modules_to_save, module)?)
    }

    /// Returns the settings of the adapter in files. If the initialization moved a part of the base into the adapter, these
    /// are the settings of the one that belongs to the original base: every branch has twice the rank and the same scaling.
    pub fn for_original_base(&self) -> Self {
        if !self.init.changes_base() {
            return self.clone();
        }
        let factor = if self.use_rslora { std::f64::consts::SQRT_2 } else { 2.0 };
        Self {
            r: 2 * self.r,
            lora_alpha: factor * self.lora_alpha,
            rank_pattern: self.rank_pattern.map(|r| 2 * r),
            alpha_pattern: self.alpha_pattern.map(|alpha| factor * alpha),
            init: LoraInit::KaimingUniform,
            ..self.clone()
        }
    }

    /// Checks every regular expression, whichever projections a model has.
    ///
    /// # Errors
    /// One is invalid; the place of the error is its key.
    pub fn check_expressions(&self) -> Result<()> {
        const NAME: &str = "model.layers.0.self_attn.q_proj";
        self.target_modules.matches(NAME)?;
        self.exclude_modules.matches(NAME)?;
        for pattern in &self.layers.patterns {
            LayerChoice { indices: vec![0], patterns: vec![pattern.clone()] }.contains(NAME)?;
        }
        is_part_of(&self.modules_to_save, NAME)?;
        for (pattern, _) in &self.rank_pattern.0 {
            Patterns(vec![(pattern.clone(), ())]).get("rank_pattern", NAME)?;
        }
        for (pattern, _) in &self.alpha_pattern.0 {
            Patterns(vec![(pattern.clone(), ())]).get("alpha_pattern", NAME)?;
        }
        Ok(())
    }

    /// Checks that the choice of layers has an effect, as PEFT does. `place` makes the place of a key in errors.
    ///
    /// # Errors
    /// The targets are a pattern, which chooses the layers itself, or there are patterns of layers without indices.
    pub fn check_layers(&self, place: impl Fn(&str) -> String) -> Result<()> {
        let LayerChoice { indices, patterns } = &self.layers;
        let is_list = matches!(self.target_modules, TargetModules::Names(_));
        let (key, problem, remedy) = if !is_list && !indices.is_empty() {
            (
                "layers_to_transform",
                "needs a list of names as target_modules, as in PEFT",
                "list the names, or choose the layers in the pattern",
            )
        } else if !patterns.is_empty() && indices.is_empty() {
            (
                "layers_pattern",
                "has no effect without layers_to_transform",
                "set layers_to_transform, or remove the key",
            )
        } else {
            return Ok(());
        };
        Err(Error::invalid(place(key), problem, remedy))
    }

    /// Checks that an adapter with magnitudes has no biases, as PEFT does. `place` makes the place of a key in errors.
    ///
    /// # Errors
    /// It has both.
    pub fn check_bias(&self, place: impl Fn(&str) -> String) -> Result<()> {
        if !(self.lora_bias && self.use_dora) {
            return Ok(());
        }
        let problem = "is not possible with use_dora = true, as in PEFT";
        Err(Error::invalid(place("lora_bias"), problem, "remove one of the keys"))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn config() -> LoraConfig {
        LoraConfig {
            r: 4,
            lora_alpha: 12.0,
            lora_dropout: 0.25,
            target_modules: TargetModules::Names(vec!["q_proj".into()]),
            use_dora: true,
            ..LoraConfig::default()
        }
    }

    fn scaling(config: &LoraConfig) -> f64 {
        config.at("model.layers.0.self_attn.q_proj").unwrap().unwrap().scaling
    }

    #[test]
    fn scaling_is_alpha_over_r_or_its_root() {
        assert_eq!(scaling(&config()), 3.0);
        assert_eq!(scaling(&LoraConfig { use_rslora: true, ..config() }), 6.0);
    }

    #[test]
    fn the_converted_adapter_has_twice_the_rank_and_the_same_scaling() {
        for use_rslora in [false, true] {
            let init = LoraInit::Pissa { niter: None };
            let config = LoraConfig {
                init,
                use_rslora,
                target_modules: TargetModules::AllLinear,
                rank_pattern: Patterns(vec![("k_proj".into(), 3), ("v_proj".into(), 5)]),
                alpha_pattern: Patterns(vec![("v_proj".into(), 7.0), ("o_proj".into(), 1.5)]),
                ..config()
            };
            let converted = config.for_original_base();
            assert_eq!(converted.init, LoraInit::KaimingUniform);
            for (name, r) in [("q_proj", 4), ("k_proj", 3), ("v_proj", 5), ("o_proj", 4)] {
                let at = |config: &LoraConfig| {
                    config.at(&format!("model.layers.0.self_attn.{name}")).unwrap().unwrap()
                };
                let (started, written) = (at(&config), at(&converted));
                assert_eq!((started.r, written.r), (r, 2 * r), "{name}");
                assert!((started.scaling - written.scaling).abs() < 1e-12, "{name}");
            }
        }
        assert_eq!(config().for_original_base(), config());
    }

    #[test]
    fn json_round_trips() {
        let every_key = LoraConfig {
            rank_pattern: Patterns(vec![("a.*".into(), 3), ("q_proj".into(), 2)]),
            alpha_pattern: Patterns(vec![("v_proj".into(), 1.5)]),
            exclude_modules: ExcludeModules::Pattern(r".*\.k_proj".into()),
            layers: LayerChoice { indices: vec![1, 3], patterns: vec!["layers".into()] },
            bias: LoraBias::LoraOnly,
            use_dora: false,
            lora_bias: true,
            modules_to_save: vec!["norm".into(), "lm_head".into()],
            ..config()
        };
        for config in [config(), every_key] {
            let text = config.to_json(&json!(["q_proj"]), "owner/base", Some("main"));
            assert_eq!(LoraConfig::from_json(&text, "adapter_config.json").unwrap(), config);
        }
    }

    /// Rank and alpha are looked up separately, and rsLoRA divides by the root of the module's own rank.
    #[test]
    fn each_projection_has_its_own_rank_and_scaling() {
        let config = LoraConfig {
            rank_pattern: Patterns(vec![("q_proj".into(), 9)]),
            alpha_pattern: Patterns(vec![(r"layers\.1\..*".into(), 6.0)]),
            exclude_modules: ExcludeModules::Names(vec!["layers.0.mlp.up_proj".into()]),
            target_modules: TargetModules::AllLinear,
            use_rslora: true,
            ..config()
        };
        let at = |module: &str| {
            let at = config.at(&format!("model.layers.{module}")).unwrap();
            at.map(|branch| (branch.r, branch.scaling))
        };
        assert_eq!(at("0.self_attn.q_proj"), Some((9, 4.0)));
        assert_eq!(at("1.self_attn.q_proj"), Some((9, 2.0)));
        assert_eq!(at("1.mlp.up_proj"), Some((4, 3.0)));
        assert_eq!(at("0.mlp.up_proj"), None);
    }

    #[test]
    fn layers_need_a_list_of_names_and_patterns_need_layers() {
        let error = |change: &dyn Fn(&mut Value)| {
            let text = config().to_json(&json!(["q_proj"]), "b", None);
            let mut object = serde_json::from_str(&text).unwrap();
            change(&mut object);
            LoraConfig::from_json(&object.to_string(), "a").unwrap_err().to_string()
        };
        let pattern = error(&|object| {
            object["target_modules"] = json!(".*q_proj");
            object["layers_to_transform"] = json!(1);
        });
        assert!(pattern.starts_with("a: layers_to_transform: "), "{pattern}");
        let alone = error(&|object| object["layers_pattern"] = json!("layers"));
        assert!(alone.starts_with("a: layers_pattern: "), "{alone}");
    }

    #[test]
    fn biases_with_magnitudes_are_refused() {
        let error = with("lora_bias", json!(true)).unwrap_err().to_string();
        assert!(error.starts_with("adapter_config.json: lora_bias: "), "{error}");
        assert!(error.contains("use_dora"), "{error}");
    }

    #[test]
    fn unsupported_settings_are_refused_by_name() {
        let text = config().to_json(&json!(["q_proj"]), "b", None);
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
        let text = config().to_json(&json!(["q_proj"]), "b", None);
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
        assert_eq!((bare.r, bare.lora_alpha, scaling(&bare)), (8, 8.0, 1.0));
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
            ("bias", json!("some")),
            ("rank_pattern", json!({"q_proj": 0})),
            ("alpha_pattern", json!({"q_proj": "1"})),
            ("exclude_modules", json!([1])),
            ("layers_to_transform", json!([-1])),
            ("layers_pattern", json!(2)),
            ("use_something_new", json!(true)),
        ] {
            let error = with(key, value).unwrap_err().to_string();
            assert!(error.starts_with(&format!("adapter_config.json: {key}: ")), "{error}");
        }
    }
}
