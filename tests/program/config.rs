//! Tests of `run.toml`: defaults, overrides, errors that name file, line and key, and the presets in `configs/`.

use std::fs;
use std::path::{Path, PathBuf};

use arithmo::config::{
    GradientCheckpointing, InitLoraWeights, Method, ModelDtype, Optim, Quantization, RunConfig,
    TargetModules,
};
use arithmo::data::encode::{Compat, TruncationMode};
use arithmo::iterate::rounds::IterateConfig;
use arithmo::objective::losses::LossType;
use arithmo::train::policy::lora_config;
use arithmo::train::schedule::SchedulerType;

fn load(text: &str, overrides: &[&str]) -> Result<RunConfig, String> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("run.toml");
    fs::write(&path, text).unwrap();
    let overrides: Vec<String> = overrides.iter().map(|text| text.to_string()).collect();
    let prefix = format!("{}/", folder.path().display());
    RunConfig::load(&path, &overrides).map_err(|error| error.to_string().replace(&prefix, ""))
}

fn good(text: &str) -> RunConfig {
    load(text, &[]).unwrap()
}

fn refused(text: &str) -> String {
    load(text, &[]).map(|_| format!("accepted: {text}")).unwrap_or_else(|error| error)
}

/// Parses rows of `toml | expected | expected`, where ` ; ` is a line break of the TOML.
fn table(rows: &str) -> Vec<(String, String, String)> {
    let row = |row: &str| {
        let mut cells = row.splitn(3, " | ").map(|cell| cell.trim().replace(" ; ", "\n"));
        let mut next = || cells.next().unwrap_or_else(|| panic!("row `{row}`"));
        (next(), next(), next())
    };
    rows.trim().lines().map(row).collect()
}

#[test]
fn an_empty_file_gives_the_documented_defaults() {
    let config = good("");
    assert_eq!(config, RunConfig::default());
    assert_eq!(config.output_dir, PathBuf::from("runs/dpo"));
    assert_eq!(config.seed, 42);
    assert_eq!(config.data.max_length, 1024);
    assert_eq!(config.data.truncation_mode, TruncationMode::KeepStart);
    assert_eq!(config.data.max_prompt_length, None);
    assert_eq!((config.lora.r, config.lora.lora_alpha), (16, 32.0));
    let targets = TargetModules::Names(vec!["q_proj".into(), "v_proj".into()]);
    assert_eq!(config.lora.target_modules, targets);
    assert_eq!(config.dpo.loss_type, [LossType::Sigmoid]);
    let train = &config.train;
    assert_eq!((train.max_steps, train.warmup_steps), (2000, 100.0));
    assert_eq!((train.learning_rate, train.adam_epsilon), (5e-5, 1e-8));
    assert_eq!(train.lr_scheduler_type, SchedulerType::Cosine);
    assert_eq!(train.optim, Optim::AdamwTorch);
    assert!(train.disable_dropout);
    assert!(config.warnings().is_empty(), "{:?}", config.warnings());
}

#[test]
fn every_key_of_the_documented_form_is_read() {
    let config = good(
        "seed = 7\n[model]\ndtype = 'bf16'\n[data]\ncompat = 'trl-1'\ntruncation_mode = 'keep_end'\n\
         [lora]\ntarget_modules = 'all-linear'\nlora_alpha = 8\ninit_lora_weights = 'gaussian'\nbias = 'none'\n\
         [dpo]\nloss_type = ['sigmoid_norm']\nloss_weights = [1]\n\
         [train]\ngradient_checkpointing = false\nwarmup_steps = 0.03\nlr_scheduler_type = 'cosine_with_restarts'\n\
         lr_scheduler_kwargs = { num_cycles = 3 }\noptim = 'adamw_torch'\n",
    );
    assert_eq!(config.seed, 7);
    assert_eq!(config.model.dtype, ModelDtype::Bf16);
    assert_eq!(config.data.truncation_mode, TruncationMode::KeepEnd);
    assert_eq!(config.lora.target_modules, TargetModules::AllLinear);
    assert_eq!(config.lora.init_lora_weights, InitLoraWeights::Gaussian);
    let branch = lora_config(&config).at("model.layers.0.mlp.up_proj").unwrap().unwrap();
    assert_eq!(branch.scaling, 0.5);
    assert_eq!(config.dpo.loss_type, [LossType::SigmoidNorm]);
    let train = &config.train;
    assert_eq!(train.gradient_checkpointing, GradientCheckpointing::Off);
    assert_eq!(train.lr_scheduler_kwargs.num_cycles, Some(3.0));
    assert_eq!(train.resolved_warmup_steps(60), 2);
}

#[test]
fn unknown_keys_name_file_line_and_the_nearest_known_key() {
    let error = refused("seed = 1\n\n[lora]\nr = 8\nrnak = 8\n");
    assert_eq!(error, "run.toml:5: lora.rnak: unknown key\n  help: did you mean `lora.r`?");
    for (text, place, key) in table(
        r#"
        [train] ; learning_rat = 1 | run.toml:2: train.learning_rat: | train.learning_rate
        learning_rate = 1 | run.toml:1: learning_rate: | train.learning_rate
        [trian] ; max_steps = 1 | run.toml:1: trian: | train
        [lora] ; beta = 1 | run.toml:2: lora.beta: | dpo.beta
        train.lr_scheduler_kwargs.num_cycle = 1 | run.toml:1: train.lr_scheduler_kwargs.num_cycle: | train.lr_scheduler_kwargs.num_cycles
        [train] ; lr = 1 | run.toml:2: train.lr: | train.learning_rate
        [dopo] | run.toml:1: dopo: | dpo
        "#,
    ) {
        let error = refused(&text);
        assert!(error.starts_with(&place), "{text}: {error}");
        assert!(error.contains("unknown key"), "{error}");
        assert!(error.contains(&format!("`{key}")), "{text}: {error}");
    }
    // The error names the first of several unknown keys in the file.
    assert!(refused("[train]\nzzz = 1\n[lora]\naaa = 1\n").starts_with("run.toml:2: train.zzz"));
    assert!(refused("[lora]\ntarget_parameters = []\n").contains("not built yet"));
}

#[test]
fn wrong_types_name_file_line_and_key() {
    for (text, place, problem) in table(
        r#"
        [lora] ; # rank ; r = 'x' | run.toml:3: lora.r: | expected a whole number
        [lora] ; r = -1 | run.toml:2: lora.r: | -1
        [lora] ; r = 1.5 | run.toml:2: lora.r: | 1.5
        seed = -1 | run.toml:1: seed: | -1
        [model] ; revision = 1 | run.toml:2: model.revision: | expected a string
        [model] ; quantization = 'nf5' | run.toml:2: model.quantization: | `nf4`
        [data] ; shuffle = 'yes' | run.toml:2: data.shuffle: | expected a boolean
        [data] ; compat = 'trl-2' | run.toml:2: data.compat: | `trl-0.7.4`
        [lora] ; target_modules = true | run.toml:2: lora.target_modules: | all-linear
        [lora] ; target_modules = ['q_proj', 1] | run.toml:2: lora.target_modules: | list
        [lora] ; init_lora_weights = false | run.toml:2: lora.init_lora_weights: | gaussian
        [lora] ; r = { a = 1 } | run.toml:2: lora.r.a: | expected a whole number
        [dpo] ; loss_type = 'sigmoyd' | run.toml:2: dpo.loss_type: | name of a loss
        [train] ; lr_scheduler_kwargs = [0.5] | run.toml:2: train.lr_scheduler_kwargs: | found array
        lora = [8, 16.0] | run.toml:1: lora: | expected a table, found array
        [[lora]] | run.toml:1: lora: | expected a table
        lora = 3 | run.toml:1: lora: | expected a table, found integer
        [train] ; optim = 'adamax' | run.toml:2: train.optim: | adamw_torch
        [train] ; gradient_checkpointing = 'yes' | run.toml:2: train.gradient_checkpointing: | auto
        [train] ; max_steps = 99999999999999999999 | run.toml:2: | integer
        method = 'simpo' | run.toml:1: method: | set method = "cpo" and cpo.loss_type = "simpo"
        [train] ; hub_strategy = 'every_save' | run.toml:2: train.hub_strategy: | `end`
        [train] ; lr_scheduler_kwargs = 3 | run.toml:2: train.lr_scheduler_kwargs: | expected a table, found integer
        "#,
    ) {
        let error = refused(&text);
        assert!(error.starts_with(&place), "{text}: {error}");
        assert!(error.contains(&problem), "{text}: {error}");
    }
}

#[test]
fn broken_toml_names_its_line() {
    for (text, line) in [("seed = 1\n[lora\n", 2), ("a = \n", 1), ("[lora]\nr = 1\nr = 2\n", 3)] {
        let error = refused(text);
        assert!(error.starts_with(&format!("run.toml:{line}")), "{text}: {error}");
    }
    let error = RunConfig::load(Path::new("nowhere/run.toml"), &[]).unwrap_err();
    assert!(error.to_string().starts_with("nowhere/run.toml: cannot read"), "{error}");
}

/// Rows of a file with ` ; ` for its line breaks, the key that is refused, and a part of the error.
const REFUSED: &str = r#"
    output_dir = '' | output_dir | is empty
    [model] ; from_scratch = true | model.from_scratch | an adapter on random weights
    [model] ; quantization = 'int8' ; use_peft = false | model.quantization | cannot be trained themselves
    [lora] ; init_lora_weights = 'loftq' | lora.init_lora_weights | model.quantization is neither
    [model] ; quantization = 'int8' ; [lora] ; init_lora_weights = 'loftq' | lora.init_lora_weights | neither
    [model] ; quantization = 'nf4' ; [lora] ; init_lora_weights = 'loftq' ; adapter = 'a' | lora.init_lora_weights | brings its own
    [lora] ; init_lora_weights = 'pissa' ; adapter = 'a' | lora.init_lora_weights | brings its own
    [lora] ; init_lora_weights = 'pissa_niter_x' | lora.init_lora_weights | pissa_niter_N
    [model] ; quantization = 'nf4' ; [lora] ; init_lora_weights = 'olora' | lora.init_lora_weights | cannot hold the rest
    [lora] ; loftq_config = { loftq_bits = 2 } | lora.loftq_config.loftq_bits | 2 is not built yet
    [model] ; double_quant = true | model.double_quant | "none"
    [data] ; prompt_template = 'Q' | data.prompt_template | 0 times
    [data] ; prompt_template = '{prompt}{prompt}' | data.prompt_template | 2 times
    [data] ; max_length = 1 | data.max_length | is 1
    [data] ; max_prompt_length = 64 | data.max_prompt_length | no such option
    [data] ; compat = 'trl-0.7.4' ; max_prompt_length = 512 | data.max_prompt_length | train on nothing
    [data] ; skip_untrainable = true ; allow_empty_completions = true | data.skip_untrainable | contradicts
    [lora] ; r = 0 | lora.r | at least 1
    [lora] ; lora_alpha = 0 | lora.lora_alpha | above 0
    [lora] ; lora_dropout = 1.0 | lora.lora_dropout | less than 1
    [lora] ; lora_dropout = -0.1 | lora.lora_dropout | 0 to less than 1
    [lora] ; lora_dropout = nan | lora.lora_dropout | NaN
    [lora] ; target_modules = [] | lora.target_modules | is empty
    [lora] ; target_modules = ['q_proj', 'lm_head'] | lora.target_modules | `lm_head`
    [lora] ; target_modules = ['q_proj', 'q_proj'] | lora.target_modules | twice
    [lora] ; target_modules = 'q_proj' | lora.target_modules | matches none
    [lora] ; target_modules = '(q_proj' | lora.target_modules | not a usable regular expression
    [lora] ; exclude_modules = '(?q' | lora.exclude_modules | not a usable regular expression
    [lora] ; rank_pattern = { '[' = 2 } | lora.rank_pattern | not a usable regular expression
    [lora] ; rank_pattern = { q_proj = 0 } | lora.rank_pattern | 1 to 65536
    [lora] ; alpha_pattern = { q_proj = -1.5 } | lora.alpha_pattern | above 0
    [lora] ; rank_pattern = { q_proj = 'a' } | lora.rank_pattern | invalid type
    [lora] ; target_modules = 'all-linear' ; layers_to_transform = 1 | lora.layers_to_transform | needs a list of names
    [lora] ; layers_pattern = 'layers' | lora.layers_pattern | has no effect without layers_to_transform
    [lora] ; layers_to_transform = [0] ; layers_pattern = ['('] | lora.layers_pattern | not a usable regular expression
    [lora] ; lora_bias = true ; init_lora_weights = 'gaussian' | lora.lora_bias | only possible with
    [lora] ; lora_bias = true ; init_lora_weights = 'pissa' | lora.lora_bias | only possible with
    [lora] ; lora_bias = true ; use_dora = true | lora.lora_bias | not possible with use_dora
    [lora] ; modules_to_save = ['('] | lora.modules_to_save | not a usable regular expression
    [lora] ; loraplus_lr_ratio = 0 | lora.loraplus_lr_ratio | above 0
    [lora] ; loraplus_weight_decay = 0.1 | lora.loraplus_weight_decay | has no effect without
    [lora] ; loraplus_lr_ratio = 16 ; [train] ; weight_decay = 0.1 | train.weight_decay | no effect with lora.loraplus_lr_ratio
    [dpo] ; beta = 0 | dpo.beta | above 0
    [dpo] ; loss_type = [] | dpo.loss_type | is empty
    [dpo] ; loss_weights = [1.0, 2.0] | dpo.loss_weights | 2 weights for 1 losses
    [dpo] ; loss_weights = [-0.5] | dpo.loss_weights | 0 or more
    [dpo] ; label_smoothing = 0.5 | dpo.label_smoothing | less than 0.5
    [dpo] ; ld_alpha = 1.5 | dpo.ld_alpha | 0 to 1
    [dpo] ; f_divergence_type = 'js_divergence' ; loss_type = 'nca_pair' | dpo.f_divergence_type | no effect
    [dpo] ; f_alpha_divergence_coef = 0.7 | dpo.f_alpha_divergence_coef | no effect
    [dpo] ; discopop_tau = 0.1 | dpo.discopop_tau | no effect
    [dpo] ; discopop_tau = 0 ; loss_type = 'discopop' | dpo.discopop_tau | above 0
    [dpo] ; dpop_lambda = 10 | dpo.dpop_lambda | no effect
    [dpo] ; label_smoothing = 0.0 ; loss_type = 'exo_pair' | dpo.label_smoothing | above 0
    [dpo] ; reference = 'base' ; reference_free = true | dpo.reference | needs a reference
    [dpo] ; ld_alpha = nan | dpo.ld_alpha | 0 to 1
    [dpo] ; rpo_alpha = nan | dpo.rpo_alpha | must be
    [dpo] ; loss_weights = [0.0] | dpo.loss_weights | nothing would be trained
    [dpo] ; precompute_ref_batch_size = 4 | dpo.precompute_ref_batch_size | no effect
    [dpo] ; loss_type = 'dpop' ; reference_free = true | dpo.loss_type | needs a reference
    [dpo] ; reference_free = true ; precompute_ref_log_probs = true | dpo.precompute_ref_log_probs | needs a reference
    [dpo] ; reference_free = true ; f_divergence_type = 'forward_kl' | dpo.f_divergence_type | needs a reference
    [dpo] ; precompute_ref_batch_size = 0 | dpo.precompute_ref_batch_size | at least 1
    [train] ; per_device_train_batch_size = 0 | train.per_device_train_batch_size | at least 1
    [train] ; gradient_accumulation_steps = 0 | train.gradient_accumulation_steps | at least 1
    [train] ; logging_steps = 0 | train.logging_steps | at least 1
    [train] ; learning_rate = -1e-5 | train.learning_rate | -0.00001
    [train] ; learning_rate = inf | train.learning_rate | finite
    [train] ; adam_beta2 = 1.0 | train.adam_beta2 | less than 1
    [train] ; max_steps = 0 | train.max_steps | is 0
    [train] ; num_train_epochs = 0 | train.num_train_epochs | above 0
    [train] ; warmup_steps = 2.5 | train.warmup_steps | whole number
    [train] ; warmup_ratio = 1.5 | train.warmup_ratio | from 0 to 1
    [train] ; lr_scheduler_type = 'reduce_lr_on_plateau' | train.lr_scheduler_type | data.eval_file
    data.eval_file = 'e.jsonl' ; [train] ; lr_scheduler_type = 'reduce_lr_on_plateau' | train.lr_scheduler_type | before the last step
    [train] ; lr_scheduler_kwargs.factor = 0.5 | train.lr_scheduler_kwargs.factor | does not use it
    [train] ; load_best_model_at_end = true | train.load_best_model_at_end | data.eval_file
    data.eval_file = 'e.jsonl' ; [train] ; load_best_model_at_end = true ; eval_strategy = 'no' | train.load_best_model_at_end | before the last step
    data.eval_file = 'e.jsonl' ; [train] ; load_best_model_at_end = true ; eval_steps = 5 ; save_strategy = 'epoch' | train.save_strategy | is not train.eval_strategy
    data.eval_file = 'e.jsonl' ; [train] ; load_best_model_at_end = true ; eval_steps = 5 ; save_steps = 12 | train.save_steps | no multiple of train.eval_steps = 5
    data.eval_file = 'e.jsonl' ; [train] ; load_best_model_at_end = true ; eval_steps = 5 ; save_steps = 0 | train.save_steps | is 0
    data.eval_file = 'e.jsonl' ; [train] ; early_stopping_patience = 3 | train.early_stopping_patience | before the last step
    data.eval_file = 'e.jsonl' ; [train] ; early_stopping_patience = 0 ; eval_steps = 5 | train.early_stopping_patience | must be 1
    [train] ; early_stopping_threshold = 0.1 | train.early_stopping_threshold | no effect
    [train] ; greater_is_better = true | train.greater_is_better | no effect
    [train] ; metric_for_best_model = 'loss' | train.metric_for_best_model | data.eval_file
    [train] ; eval_on_start = true | train.eval_on_start | data.eval_file
    [train] ; eval_strategy = 'no' ; eval_delay = 3 | train.eval_delay | no effect
    [train] ; lr_scheduler_kwargs.power = 2 | train.lr_scheduler_kwargs.power | does not use it
    [train] ; eval_steps = 5 | train.eval_steps | data.eval_file
    [train] ; optim = 'sgd' ; optim_args = 'alpha=0.9' | train.optim_args | `alpha`
    [train] ; optim_args = 'momentum=0.9' | train.optim_args | `momentum`
    [train] ; optim = 'rmsprop' ; adam_epsilon = 1e-6 | train.adam_epsilon | no effect
    [train] ; optim = 'lion_32bit' ; adam_epsilon = 1e-6 | train.adam_epsilon | no effect
    [data] ; compat = 'trl-0.7.4' ; [dpo] ; f_divergence_type = 'js_divergence' | dpo.f_divergence_type | TRL 0.7.4 has no
    [data] ; compat = 'trl-0.7.4' ; [dpo] ; use_weighting = true | dpo.use_weighting | TRL 0.7.4 has no WPO
    [data] ; compat = 'trl-0.7.4' ; [dpo] ; sync_ref_model = true | dpo.sync_ref_model | TRL 0.7.4 has no TR-DPO
    [train] ; hub_model_id = 'owner/name' | train.hub_model_id | train.push_to_hub is false
    [train] ; hub_private_repo = true | train.hub_private_repo | train.push_to_hub is false
    data.eval_file = 'e.jsonl' ; [train] ; eval_steps = 5 ; save_strategy = 'best' | train.save_strategy | metric_for_best_model is not set
"#;

#[test]
fn contradictory_and_unsupported_settings_are_refused_at_their_line() {
    for (text, key, problem) in table(REFUSED) {
        let error = refused(&text);
        let name = key.rsplit('.').next().unwrap();
        let line = 1 + text.lines().position(|line| line.contains(&format!("{name} ="))).unwrap();
        assert!(error.starts_with(&format!("run.toml:{line}: {key}: ")), "{text}: {error}");
        assert!(error.contains(&problem), "{text}: {error}");
        assert!(error.contains("\n  help: "), "{text}: {error}");
    }
}

#[test]
fn set_overrides_the_file_and_is_named_in_errors() {
    let text = "[train]\nlearning_rate = 1e-3\n";
    let config = load(
        text,
        &[
            "train.learning_rate=1e-5",
            "data.train_file=some/pairs=1.jsonl",
            "model.revision=1234567",
            "lora.target_modules=[\"o_proj\"]",
            "train.gradient_checkpointing=true",
            "train.lr_scheduler_kwargs.num_cycles=1.5",
            "seed = 3",
            "output_dir=\"runs/a b\"",
        ],
    )
    .unwrap();
    assert_eq!(config.train.learning_rate, 1e-5);
    assert_eq!(config.data.train_file, PathBuf::from("some/pairs=1.jsonl"));
    assert_eq!(config.model.revision, "1234567");
    assert_eq!(config.lora.target_modules, TargetModules::Names(vec!["o_proj".into()]));
    assert_eq!(config.train.gradient_checkpointing, GradientCheckpointing::On);
    assert_eq!(config.train.lr_scheduler_kwargs.num_cycles, Some(1.5));
    assert_eq!((config.seed, config.output_dir), (3, PathBuf::from("runs/a b")));
    for (setting, problem) in [
        ("lora.rnak=1", "--set lora.rnak: unknown key"),
        ("lora.r=x", "--set lora.r: invalid type"),
        ("lora.r=0", "--set lora.r: must be at least 1"),
        ("lora.r", "--set lora.r: has no `=`"),
        ("=1", "--set =1: has no key"),
        ("lora..r=1", "has no key"),
        ("seed.x=1", "--set seed.x: "),
        ("train.learning_rate.x=1", "goes through a key that is not a table"),
        ("lora={r=1}", "one key at a time"),
        ("train.learning_rate=nan", "--set train.learning_rate: must be a finite number"),
    ] {
        let error = load(text, &[setting]).unwrap_err();
        assert!(error.contains(problem), "{setting}: {error}");
    }
}

#[test]
fn defaults_that_depend_on_other_keys() {
    let old = good("data.compat = 'trl-0.7.4'").data;
    assert_eq!(old.compat, Compat::Trl074);
    assert_eq!((old.max_length, old.max_prompt_length), (512, Some(128)));
    assert_eq!(old.truncation_mode, TruncationMode::KeepEnd);
    let chosen =
        good("[data]\ncompat = 'trl-0.7.4'\ntruncation_mode = 'keep_start'\nmax_length = 256");
    assert_eq!(chosen.data.truncation_mode, TruncationMode::KeepStart);
    assert_eq!(chosen.data.max_length, 256);

    // 47 pairs in batches of 1 x 4 are 12 steps per epoch, the last one with 3 pairs.
    let epochs = good("[train]\nnum_train_epochs = 2\nwarmup_steps = 0.1").train;
    assert_eq!((epochs.max_steps, epochs.steps_per_epoch(47)), (-1, 12));
    assert_eq!(epochs.total_steps(47), 24);
    assert_eq!(epochs.resolved_warmup_steps(24), 3);
    assert_eq!(good("[train]\nnum_train_epochs = 0.5").train.total_steps(47), 6);
    assert_eq!(good("train.max_steps = -1").train.total_steps(47), 36);
    assert_eq!(good("").train.total_steps(47), 2000);
    let ratio = good("[train]\nwarmup_ratio = 0.1").train;
    assert_eq!((ratio.warmup_steps, ratio.resolved_warmup_steps(61)), (0.0, 7));
}

#[test]
fn unlikely_settings_give_a_warning() {
    for (text, key) in [
        ("dpo.label_smoothing = 0.1", "dpo.label_smoothing"),
        ("lora.lora_dropout = 0.1", "lora.lora_dropout"),
        ("dpo.reference = 'initial'", "dpo.reference"),
        ("[train]\nmax_steps = 2000\nnum_train_epochs = 1", "train.num_train_epochs"),
        ("[train]\nwarmup_steps = 5\nwarmup_ratio = 0.1", "train.warmup_ratio"),
        ("train.max_steps = 100", "train.warmup_steps"),
        ("dpo.loss_type = 'sft'\ndpo.beta = 0.3", "dpo.beta"),
        (
            "[data]\ncompat = 'trl-0.7.4'\nmax_prompt_length = 512\nallow_empty_completions = true",
            "data.max_prompt_length",
        ),
    ] {
        let warnings = good(text).warnings();
        assert_eq!(warnings.len(), 1, "{text}: {warnings:?}");
        assert!(warnings[0].starts_with(&format!("{key}: ")), "{warnings:?}");
    }
    assert!(
        good("[lora]\nlora_dropout = 0.1\n[train]\ndisable_dropout = false").warnings().is_empty()
    );
    assert!(good("[train]\nmax_steps = 9\nlr_scheduler_type = 'constant'").warnings().is_empty());
}

#[test]
fn configurations_are_read_back_from_toml_and_json() {
    let config = good(
        "data.compat = 'trl-0.7.4'\ndata.eval_file = 'e.jsonl'\nlora.target_modules = 'all-linear'\n\
         train.gradient_checkpointing = true\ntrain.learning_rate = 1.2345678901234567e-5\n\
         train.num_train_epochs = 1.5\nlora.init_lora_weights = 'gaussian'\ndpo.loss_type = 'hinge'\n",
    );
    assert_eq!(good(&config.to_toml().unwrap()), config);
    let json = serde_json::to_string(&config).unwrap();
    assert_eq!(serde_json::from_str::<RunConfig>(&json).unwrap(), config);
}

#[test]
fn diff_lists_only_keys_that_change_results() {
    let before = good("");
    let after = good(
        "output_dir = 'elsewhere'\ndata.eval_file = 'e.jsonl'\n[train]\nlearning_rate = 1e-4\nsave_steps = 5\n\
         save_total_limit = 9\nlogging_steps = 2\ngradient_checkpointing = true\n",
    );
    assert_eq!(
        before.diff(&after),
        ["data.eval_file: not set -> \"e.jsonl\"", "train.learning_rate: 5e-5 -> 0.0001"]
    );
    assert!(before.diff(&before).is_empty());
}

#[test]
fn every_preset_is_valid() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("configs");
    let load =
        |name: &str| RunConfig::load(&folder.join(name), &[]).unwrap_or_else(|e| panic!("{e}"));
    let mut names: Vec<_> = fs::read_dir(&folder)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    // tests/program/prepare.rs reads the rules of `prepare`.
    names.retain(|name| !name.starts_with("prepare-"));
    names.sort();
    assert_eq!(
        names,
        [
            "iterate.toml",
            "llama-3.2-1b-lora.toml",
            "ministral-3-3b-lora.toml",
            "mistral-7b-lora.toml",
            "mistral-7b-qlora.toml",
            "original.toml",
            "qwen2.5-math-1.5b-lora.toml",
            "qwen2.5-math-1.5b-qlora.toml",
            "qwen2.5-math-7b-lora.toml",
            "qwen2.5-math-7b-qlora.toml",
            "sft.toml",
            "tiny-own.toml",
            "tiny.toml"
        ]
    );
    let iterate = IterateConfig::load(&folder.join("iterate.toml")).unwrap();
    assert_eq!(iterate.run, Path::new("configs/tiny.toml"));
    let sft = load("sft.toml");
    assert_eq!(sft.method, Method::Sft);
    assert!(sft.model.from_scratch && !sft.model.use_peft);

    let original = load("original.toml");
    assert_eq!(original.data.compat, Compat::Trl074);
    assert_eq!((original.data.max_length, original.data.max_prompt_length), (512, Some(512)));
    assert_eq!(
        (original.lora.r, original.lora.lora_alpha, original.lora.lora_dropout),
        (16, 32.0, 0.05)
    );
    let train = &original.train;
    assert_eq!((train.per_device_train_batch_size, train.gradient_accumulation_steps), (1, 4));
    assert_eq!((train.max_steps, train.warmup_steps, train.learning_rate), (2000, 100.0, 5e-5));
    assert_eq!(original.dpo.beta, 0.1);
}

#[test]
fn recommended_presets_give_no_warnings() {
    let load = |name: &str| {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("configs");
        RunConfig::load(&folder.join(name), &[]).unwrap()
    };
    let recommended = load("mistral-7b-lora.toml");
    assert_eq!(recommended.lora.target_modules, TargetModules::AllLinear);
    assert_eq!(recommended.data.prompt_template, "Question: {prompt}\n\nAnswer:");
    assert!(recommended.warnings().is_empty());
    for name in ["mistral-7b", "qwen2.5-math-1.5b", "qwen2.5-math-7b"] {
        let packed = load(&format!("{name}-qlora.toml"));
        assert_eq!(packed.model.quantization, Quantization::Nf4);
        assert!(packed.model.double_quant && packed.warnings().is_empty());
    }
    for name in ["llama-3.2-1b", "ministral-3-3b", "qwen2.5-math-1.5b", "qwen2.5-math-7b"] {
        let preset = load(&format!("{name}-lora.toml"));
        assert_eq!(preset.lora.target_modules, TargetModules::AllLinear);
        assert!(preset.warnings().is_empty());
    }
    assert!(load("tiny.toml").warnings().is_empty());
    assert!(load("tiny-own.toml").warnings().is_empty());
}

/// Checks the errors for options and values of other libraries, and for names that resemble no key.
#[test]
fn errors_for_options_of_other_libraries_name_the_replacement() {
    for (text, expected, unexpected) in table(
        r#"
        [train] ; report_to = 'wandb' | TensorBoard | warmup_ratio
        [train] ; dataloader_num_workers = 4 | encoded once | did you mean
        [train] ; bf16 = true | model.dtype = "bf16" | did you mean
        [train] ; gradient_checkpointing_kwargs = {} | train.gradient_checkpointing | did you mean
        fp16 = true | model.dtype = "f16" | did you mean
        [train] ; completely_unheard_of = 1 | docs/configuration.md | did you mean
        [model] ; dtype = 'bfloat16' | did you mean "bf16"? | zzz
        [model] ; dtype = 'torch.float32' | did you mean "f32"? | zzz
        [model] ; quantization = 'nf5' | did you mean "nf4"? | zzz
        [train] ; optim = true | expected text in quotes, found boolean | unit variant
        [train] ; lr_scheduler_type = 3 | expected text in quotes, found integer | unit variant
        "#,
    ) {
        let error = refused(&text);
        assert!(error.contains(&expected) && !error.contains(&unexpected), "{text}: {error}");
    }
    // Options that change results are unsupported in every table.
    for key in
        ["train.neftune_noise_alpha", "lora.loraplus_lr_embedding", "dpo.router_aux_loss_coef"]
    {
        assert!(refused(&format!("{key} = 1\n")).contains("not built yet"), "{key}");
    }
}

/// Checks that errors name the keys of numbers that would overflow or need more memory than exists.
#[test]
fn extreme_numbers_are_refused() {
    let huge = i64::MAX;
    for key in [
        "data.max_length",
        "lora.r",
        "dpo.precompute_ref_batch_size",
        "train.per_device_train_batch_size",
        "train.per_device_eval_batch_size",
        "train.gradient_accumulation_steps",
        "train.max_steps",
        "train.logging_steps",
        "train.eval_steps",
        "train.save_steps",
        "train.save_total_limit",
        "train.early_stopping_patience",
        "train.max_tokens_per_pass",
    ] {
        let error = refused(&format!("data.eval_file = 'e.jsonl'\n{key} = {huge}\n"));
        assert!(error.contains(&format!("{key}: must be")), "{error}");
    }
    for key in [
        "lora.lora_alpha",
        "dpo.beta",
        "train.learning_rate",
        "train.warmup_steps",
        "train.num_train_epochs",
        "train.max_grad_norm",
        "train.weight_decay",
        "train.adam_epsilon",
    ] {
        for value in ["1e308", "inf", "nan", "-1.0", "-1e308"] {
            let error = refused(&format!("{key} = {value}\n"));
            assert!(error.contains(&format!("{key}: must be")), "{value}: {error}");
        }
    }
    let error = refused("train.max_steps = -9223372036854775808\n");
    assert!(error.contains("train.max_steps: must be"), "{error}");
    let largest = good("seed = 9223372036854775807\n");
    assert_eq!(largest.seed, i64::MAX as u64);
    let kwargs =
        "[train]\nlr_scheduler_type = 'cosine'\nlr_scheduler_kwargs = { num_cycles = 1e300 }\n";
    assert!(refused(kwargs).contains("num_cycles: must be"));
}

/// Checks that `--set` resolves escapes in a template like `--prompt-template`, unless the value is a quoted TOML
/// string.
#[test]
fn escapes_in_templates_are_resolved_or_give_a_warning() {
    let template = |text: &str, set: &[&str]| load(text, set).unwrap().data.prompt_template;
    let wanted = "Question: {prompt}\n\nAnswer:";
    let typed = r"data.prompt_template=Question: {prompt}\n\nAnswer:";
    assert_eq!(template("", &[typed]), wanted);
    let quoted = r#"data.prompt_template="Question: {prompt}\n\nAnswer:""#;
    assert_eq!(template("", &[quoted]), wanted);
    let latex = r"data.prompt_template=Put $\neq$ or $\text{a}$ in \boxed{}: {prompt}";
    assert_eq!(template("", &[latex]), &latex["data.prompt_template=".len()..]);
    let unclear = load("", &[r"data.prompt_template={prompt}\nanswer"]).unwrap_err();
    assert!(unclear.starts_with("--set data.prompt_template: "), "{unclear}");

    let literal = good(r"data.prompt_template = 'Question: {prompt}\n\nAnswer:'");
    let warnings = literal.warnings();
    assert!(
        warnings.len() == 1 && warnings[0].contains("data.prompt_template: contains a backslash"),
        "{warnings:?}"
    );
    assert!(good(r"data.prompt_template = '$\neq$ {prompt}'").warnings().is_empty());
}

#[test]
fn unlikely_learning_rates_and_warmups_give_a_warning() {
    let warnings = |text: &str| good(text).warnings();
    for (text, expected) in [
        ("train.learning_rate = 5.0\n", "train.learning_rate: 5 is very large"),
        ("train.learning_rate = 0\n", "train.learning_rate: is 0"),
        ("train.max_steps = 101\n", "train.warmup_steps: 100 is more than half of max_steps = 101"),
        ("train.max_steps = 100\n", "train.warmup_steps: 100 is not less than max_steps = 100"),
        ("train.warmup_ratio = 0.9\n", "train.warmup_ratio: 1800 is more than half"),
    ] {
        let warnings = warnings(text);
        assert!(warnings.len() == 1 && warnings[0].contains(expected), "{text}: {warnings:?}");
    }
    assert!(warnings("train.max_steps = 200\n").is_empty());
    assert!(warnings("train.max_steps = 101\ntrain.lr_scheduler_type = 'constant'\n").is_empty());
    // In epochs, the number of steps is known only with the data.
    let epochs = good("train.num_train_epochs = 1\n");
    assert!(epochs.warnings().is_empty());
    assert!(epochs.warmup_warning(150).unwrap().contains("the 150 steps of this run"));
    assert_eq!(epochs.warmup_warning(1000), None);
}

#[test]
fn errors_for_typos_in_iterate_toml_name_line_and_key() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("iterate.toml");
    let text = "output_dir = 'r'\nrounds = 1\nrun = 'run.toml'\n\n[sample]\ntemprature = 1.0\n";
    fs::write(&path, text).unwrap();
    let error = IterateConfig::load(&path).unwrap_err().to_string();
    assert!(error.contains("iterate.toml:6: temprature: unknown key"), "{error}");
    assert!(error.contains("did you mean `temperature`?"), "{error}");
}

#[test]
fn the_error_for_a_missing_file_has_its_absolute_path() {
    let error = RunConfig::load(Path::new("nope.toml"), &[]).unwrap_err().to_string();
    let whole = std::env::current_dir().unwrap().join("nope.toml");
    assert!(error.starts_with("nope.toml: cannot read"), "{error}");
    assert!(error.contains(&whole.display().to_string()), "{error}");
}
