//! Hints for options of transformers, TRL and PEFT that `run.toml` does not have.

/// Options that change results and are not built yet, by their name in any table.
const NOT_BUILT: &[&str] = &[
    "layer_replication",
    "target_parameters",
    "trainable_token_indices",
    "loraplus_lr_embedding",
    "use_qalora",
    "eva_config",
    "corda_config",
    "lora_ga_config",
    "label_smoothing_factor",
    "neftune_noise_alpha",
    "group_by_length",
    "parallelism_config",
    "optim_target_modules",
    "router_aux_loss_coef",
    "ensure_weight_tying",
    "alora_invocation_tokens",
    "arrow_config",
    "kasa_config",
    "monteclora_config",
    "velora_config",
    "use_bdlora",
    "qalora_group_size",
];

/// Options that are unnecessary or have another name, as (name, remedy).
const REMEDIES: &[(&str, &str)] = &[
    ("report_to", TRACKERS),
    ("logging_dir", LOGS),
    ("run_name", LOGS),
    ("bf16", "set model.dtype = \"bf16\""),
    ("fp16", "set model.dtype = \"f16\""),
    ("tf32", "set model.dtype; each backend multiplies as accurately as it can"),
    ("bf16_full_eval", "set model.dtype = \"bf16\", for training and evaluation alike"),
    ("fp16_full_eval", "set model.dtype = \"f16\", for training and evaluation alike"),
    ("torch_dtype", "set model.dtype = \"auto\", \"f32\", \"bf16\" or \"f16\""),
    ("bnb_4bit_compute_dtype", "set model.dtype"),
    ("load_in_4bit", "set model.quantization = \"nf4\""),
    ("load_in_8bit", "set model.quantization = \"int8\""),
    ("bnb_4bit_quant_type", "set model.quantization = \"nf4\" or \"fp4\""),
    ("bnb_4bit_use_double_quant", "set model.double_quant = true"),
    (
        "gradient_checkpointing_kwargs",
        "remove the key: the only setting is train.gradient_checkpointing = \"auto\", true or false",
    ),
    ("dataloader_num_workers", ENCODED_ONCE),
    ("dataloader_pin_memory", ENCODED_ONCE),
    ("dataloader_prefetch_factor", ENCODED_ONCE),
    ("dataloader_persistent_workers", ENCODED_ONCE),
    ("dataset_num_proc", ENCODED_ONCE),
    ("remove_unused_columns", ENCODED_ONCE),
    (
        "dataloader_drop_last",
        "remove the key: the last, shorter batch of an epoch is trained on too",
    ),
    ("data_seed", "set seed, which also determines the order of the data"),
    ("full_determinism", "remove the key: runs on the CPU are always repeatable"),
    ("evaluation_strategy", "set train.eval_strategy, its name since transformers 4.41"),
    ("logging_first_step", "set train.logging_steps = 1"),
    ("save_safetensors", "remove the key: weights are always saved as safetensors"),
    ("save_only_model", "remove the key: checkpoints are always complete"),
    ("resume_from_checkpoint", "start with `arithmo train --resume`"),
    ("overwrite_output_dir", "start with `arithmo train --overwrite`"),
    ("do_train", "remove the key: `arithmo train` trains"),
    ("do_eval", "remove the key: data.eval_file is evaluated if it is given"),
    ("do_predict", "remove the key; use `arithmo evaluate`"),
    ("per_gpu_train_batch_size", "set train.per_device_train_batch_size"),
    ("per_gpu_eval_batch_size", "set train.per_device_eval_batch_size"),
    ("auto_find_batch_size", "remove the key; `arithmo plan` shows whether a run fits"),
    ("use_cpu", CPU),
    ("device_map", "choose the device with --backend and --device"),
    ("max_memory", "start with `arithmo train --device-memory`"),
    ("deepspeed", ONE_DEVICE),
    ("fsdp", ONE_DEVICE),
    ("fsdp_config", ONE_DEVICE),
    ("ddp_backend", ONE_DEVICE),
    ("local_rank", ONE_DEVICE),
    (
        "hub_token",
        "remove the key, since a token in a file is soon published, and set the environment variable HF_TOKEN",
    ),
    ("token", "set the environment variable HF_TOKEN"),
    ("use_auth_token", "set the environment variable HF_TOKEN"),
    ("trust_remote_code", "remove the key: code from the hub is never run"),
    (
        "attn_implementation",
        "remove the key: each backend has a single, exact attention implementation",
    ),
    ("torch_compile", "remove the key: PyTorch is not used"),
    ("use_liger_kernel", "remove the key: the loss is always fused"),
    ("use_liger_loss", "remove the key: the loss is always fused"),
    (
        "max_completion_length",
        "set data.max_length, which truncates prompt and completion together",
    ),
    (
        "dataset_name",
        "set data.train_file; `arithmo prepare --input hf://datasets/OWNER/NAME` fetches pairs",
    ),
    ("dataset_text_field", "name the columns of the data prompt and completion"),
    ("padding_value", "remove the key: sequences are packed, not padded"),
    ("pad_token", "remove the key: sequences are packed, not padded"),
    ("label_pad_token_id", "remove the key: prompts are never scored"),
    (
        "generate_during_eval",
        "remove the key; `arithmo generate` completes prompts with the adapter",
    ),
    ("activation_checkpointing", RECOMPUTE),
    ("activation_checkpointing_kwargs", RECOMPUTE),
    ("activation_offloading", RECOMPUTE),
    ("torch_compile_backend", "remove the key: PyTorch is not used"),
    ("torch_compile_mode", "remove the key: PyTorch is not used"),
    ("torch_empty_cache_steps", "remove the key: PyTorch is not used"),
    ("liger_kernel_config", "remove the key: the loss is always fused"),
    ("use_cache", "remove the key: training never uses a key-value cache, generation always does"),
    ("average_tokens_across_devices", ONE_DEVICE),
    ("accelerator_config", ONE_DEVICE),
    ("log_on_each_node", ONE_DEVICE),
    ("save_on_each_node", ONE_DEVICE),
    ("ddp_find_unused_parameters", ONE_DEVICE),
    ("ddp_bucket_cap_mb", ONE_DEVICE),
    ("ddp_broadcast_buffers", ONE_DEVICE),
    ("ddp_static_graph", ONE_DEVICE),
    ("ddp_timeout", ONE_DEVICE),
    ("megatron_config", ONE_DEVICE),
    ("megatron_core", ONE_DEVICE),
    ("eval_use_gather_object", ONE_DEVICE),
    (
        "logging_nan_inf_filter",
        "remove the key: a loss that is not finite ends the run and is never hidden",
    ),
    ("include_num_input_tokens_seen", "remove the key: num_tokens is always logged"),
    ("log_level", QUIET),
    ("log_level_replica", QUIET),
    ("disable_tqdm", QUIET),
    ("project", LOGS),
    ("trackio_space_id", LOGS),
    ("trackio_bucket_id", LOGS),
    ("trackio_static_space_id", LOGS),
    ("prediction_loss_only", HELD_OUT),
    ("eval_do_concat_batches", HELD_OUT),
    ("eval_accumulation_steps", HELD_OUT),
    ("include_for_metrics", HELD_OUT),
    ("batch_eval_metrics", HELD_OUT),
    ("enable_jit_checkpoint", "remove the key: Ctrl-C and SIGTERM save before the run ends"),
    ("hub_always_push", "remove the key: only the result is pushed, once"),
    ("ignore_data_skip", "remove the key: a resumed run continues with the next sample"),
    (
        "restore_callback_states_from_checkpoint",
        "remove the key: a resumed run always restores its whole state",
    ),
    ("dataloader_multiprocessing_context", ENCODED_ONCE),
    ("dataloader_in_order", ENCODED_ONCE),
    ("label_names", "name the columns of the data prompt, chosen and rejected"),
    ("train_sampling_strategy", "set data.shuffle = true (random) or false (sequential)"),
    ("shuffle_dataset", "set data.shuffle"),
    ("length_column_name", "remove the key: lengths are counted from the tokens"),
    ("debug", "remove the key; `arithmo doctor` checks every operation"),
    ("skip_memory_metrics", "remove the key: peak_memory_bytes is always logged"),
    ("model_init_kwargs", "set the keys of the table [model]"),
    ("pad_to_multiple_of", "remove the key: sequences are packed, not padded"),
    ("padding_free", PACKED),
    ("packing", PACKED),
    ("packing_strategy", PACKED),
    ("eval_packing", PACKED),
    ("completion_only_loss", "remove the key: only completions are scored"),
    ("dataset_kwargs", ENCODED_ONCE),
    ("chat_template_path", "put the template into the model's folder as chat_template.jinja"),
    ("eos_token", "remove the key: it is the tokenizer's"),
    ("is_encoder_decoder", "remove the key: the models are decoders"),
    ("model_revision", "set model.revision"),
    ("lora_r", "set lora.r"),
    ("lora_target_modules", "set lora.target_modules"),
    ("lora_modules_to_save", "set lora.modules_to_save"),
    ("lora_target_parameters", "remove the key: the models' projections are modules"),
    ("lora_task_type", "remove the key: it is always CAUSAL_LM"),
    ("use_bnb_nested_quant", "set model.double_quant = true"),
    ("bnb_4bit_quant_storage", "remove the key: quantized weights are stored as bytes"),
    ("dataset_config", DATASET),
    ("dataset_train_split", DATASET),
    ("dataset_test_split", DATASET),
    ("dataset_streaming", DATASET),
    ("ignore_bias_buffers", ONE_DEVICE),
    ("runtime_config", "remove the key: it does not affect training"),
    ("base_model_name_or_path", "set model.model_name_or_path"),
    ("auto_mapping", "remove the key: the model's class is known"),
    ("peft_version", "remove the key: it is written with the adapter"),
    ("task_type", "remove the key: it is always CAUSAL_LM"),
    ("peft_type", "remove the key: it is always LORA"),
    ("fan_in_fan_out", "remove the key: it is always false for these models"),
    ("inference_mode", "remove the key"),
];

const CPU: &str = "choose the CPU with --backend; `arithmo devices` lists the names";
const LOGS: &str = "remove the key: metrics.jsonl and TensorBoard's event files (runs/) are always written to output_dir";
const TRACKERS: &str = "remove the key: metrics.jsonl and TensorBoard's event files (runs/) are always written to output_dir. No maintained \
     Rust crate writes the formats of W&B, Trackio or MLflow; W&B reads the event files with `wandb sync --sync-tensorboard`, Trackio with \
     trackio.import_tf_events";
const ENCODED_ONCE: &str = "remove the key: the data is read and encoded once, before training";
const PACKED: &str = "remove the key: sequences are always packed, neither padded nor cut; train.max_tokens_per_pass sets how many \
     tokens are computed together";
const RECOMPUTE: &str = "set train.gradient_checkpointing = \"auto\", true or false";
const QUIET: &str = "start with --quiet to print errors only";
const HELD_OUT: &str = "remove the key: TRL's metrics of data.eval_file are computed, in batches of train.per_device_eval_batch_size";
const DATASET: &str = "remove the key: `arithmo prepare --input hf://datasets/OWNER/NAME` fetches and selects the rows; set data.train_file and data.eval_file to its outputs";
const ONE_DEVICE: &str =
    "remove the key: a run uses one device, chosen with --backend and --device";

/// Returns the problem and the remedy for a key that is an option of another library.
pub(super) fn other_library_hint(key: &str) -> Option<(&'static str, String)> {
    let name = key.rsplit('.').next().unwrap_or(key);
    if NOT_BUILT.contains(&name) {
        return Some(("not built yet", "remove the key".into()));
    }
    let (_, remedy) = REMEDIES.iter().find(|(known, _)| *known == name)?;
    Some(("not an option of this program", (*remedy).to_string()))
}

/// Names under which losses are known that are not methods of their own here, as (name, method, table and loss).
const METHODS: &[(&str, &str, &str)] = &[
    ("simpo", "cpo", "cpo.loss_type = \"simpo\" and cpo.cpo_alpha = 0"),
    ("cpo-simpo", "cpo", "cpo.loss_type = \"simpo\""),
    ("alphapo", "cpo", "cpo.loss_type = \"alphapo\""),
    ("ipo", "dpo", "dpo.loss_type = \"ipo\""),
    ("slic", "dpo", "dpo.loss_type = \"hinge\""),
    ("cdpo", "dpo", "dpo.loss_type = \"cdpo\""),
    ("dpop", "dpo", "dpo.loss_type = \"dpop\""),
    ("rpo", "dpo", "dpo.rpo_alpha = 1"),
    ("wpo", "dpo", "dpo.use_weighting = true"),
    ("ld-dpo", "dpo", "dpo.ld_alpha = 0.5"),
    ("tr-dpo", "dpo", "dpo.sync_ref_model = true"),
    ("bco", "dpo", "dpo.loss_type = \"bco_pair\""),
    ("nca", "dpo", "dpo.loss_type = \"nca_pair\""),
    ("sppo", "dpo", "dpo.loss_type = \"sppo_hard\""),
];

/// Trainers of TRL that sample answers while they train, or train another kind of model.
const OTHER_TRAINERS: &[&str] = &[
    "gkd",
    "grpo",
    "minillm",
    "nash-md",
    "online-dpo",
    "papo",
    "ppo",
    "prm",
    "reward",
    "rloo",
    "xpo",
];

/// Returns how to choose the loss called `name`, if it is one of a method, or what comes nearest to the trainer `name`.
pub(super) fn method_remedy(name: &str) -> Option<String> {
    let name = name.to_lowercase().replace('_', "-");
    if OTHER_TRAINERS.contains(&&*name) {
        let remedy = "this trainer is not built; `arithmo iterate` samples answers, checks them and trains DPO on them, in rounds";
        return Some(remedy.into());
    }
    let (_, method, setting) = METHODS.iter().find(|(known, ..)| *known == name)?;
    Some(format!("set method = \"{method}\" and {setting}"))
}

/// Other names of values, as (other name, name in `run.toml`).
const VALUE_ALIASES: &[(&str, &str)] = &[
    ("bfloat16", "bf16"),
    ("float32", "f32"),
    ("fp32", "f32"),
    ("float", "f32"),
    ("float16", "f16"),
    ("fp16", "f16"),
    ("half", "f16"),
    ("int4", "nf4"),
    ("4bit", "nf4"),
    ("8bit", "int8"),
    ("adamw", "adamw_torch"),
    ("adamw_hf", "adamw_torch"),
    ("adamw_torch_fused", "adamw_torch"),
    ("paged_adamw", "paged_adamw_32bit"),
];

/// Returns the known value that `value` is an alias or a misspelling of.
pub(super) fn nearest_value<'a>(value: &str, known: &[&'a str]) -> Option<&'a str> {
    let value = value.to_lowercase();
    let value = value.strip_prefix("torch.").unwrap_or(&value);
    let alias = VALUE_ALIASES.iter().find(|(other, _)| *other == value);
    let name = alias.map_or(value, |(_, ours)| ours);
    known
        .iter()
        .copied()
        .find(|known| *known == name)
        .or_else(|| super::suggest::nearest_name(name, known.iter().copied()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_option_is_listed_once() {
        let mut names: Vec<&str> = REMEDIES.iter().map(|(name, _)| *name).collect();
        names.extend(NOT_BUILT);
        let count = names.len();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), count);
    }

    #[test]
    fn losses_are_found_by_their_papers_names() {
        for (name, part) in [("simpo", "cpo.loss_type = \"simpo\""), ("TR_DPO", "sync_ref_model")] {
            let remedy = method_remedy(name).unwrap();
            assert!(remedy.contains(part), "{remedy}");
        }
        assert!(method_remedy("GRPO").unwrap().contains("arithmo iterate"));
        assert_eq!(method_remedy("dop"), None);
    }

    #[test]
    fn torch_dtypes_are_recognized() {
        let dtypes = ["auto", "f32", "bf16", "f16"];
        for (value, meant) in [
            ("bfloat16", Some("bf16")),
            ("torch.float32", Some("f32")),
            ("BF16", Some("bf16")),
            ("f8", None),
            ("yes", None),
        ] {
            assert_eq!(nearest_value(value, &dtypes), meant, "{value}");
        }
    }
}
