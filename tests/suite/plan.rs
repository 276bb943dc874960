//! Compares the memory that `plan` predicts with the memory that `train` uses, on models of tens of megabytes.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use arithmo::model::config::DecoderConfig;
use arithmo::model::quantize::Quantization;
use arithmo::model::quantize::cache::Cache;
use arithmo::model::weights::WeightFiles;
use arithmo::progress::ProgressMode;
use arithmo_backends::Format;
use serde_json::{Value, json};

#[path = "../fixtures/tiny/mod.rs"]
pub mod tiny;

/// Vocabulary size, hidden size, intermediate size, layers, attention heads and key-value heads of a model.
type Shape = [usize; 6];

pub const SMALL: Shape = [2000, 256, 704, 6, 4, 2];
pub const WIDE: Shape = [4000, 512, 1408, 4, 8, 4];
pub const LONG_HEAD: Shape = [32000, 256, 512, 2, 4, 4];
/// The vocabularies of Qwen and Gemma.
pub const LARGE_VOCABULARIES: [Shape; 2] =
    [[151_936, 64, 128, 1, 2, 2], [262_144, 48, 96, 1, 2, 2]];

/// A training run to compare.
pub struct Case {
    pub shape: Shape,
    /// Tokens of a sequence, and of its prompt.
    pub tokens: [usize; 2],
    /// Arguments of `--set`.
    pub settings: &'static [&'static str],
    /// Whether the model's files are quantized already (nf4, 8-bit scales).
    pub packed: bool,
    /// Keys of `config.json` that make the model one of another family.
    pub family: &'static str,
}

/// No other family.
pub const MISTRAL: &str = "{}";

/// Cases of other families: biases, norms of heads, norms behind the halves of a layer, windows in some layers.
pub const FAMILIES: &[Case] = &[
    Case {
        shape: SMALL,
        tokens: [512, 100],
        settings: &["train.gradient_checkpointing=false", "lora.target_modules=all-linear"],
        packed: false,
        family: r#"{"model_type": "qwen2", "use_sliding_window": true, "sliding_window": 64, "max_window_layers": 3}"#,
    },
    Case {
        shape: SMALL,
        tokens: [512, 100],
        settings: &["train.gradient_checkpointing=false"],
        packed: false,
        family: r#"{"model_type": "qwen3", "head_dim": 80, "tie_word_embeddings": true}"#,
    },
    Case {
        shape: WIDE,
        tokens: [300, 16],
        settings: &["train.gradient_checkpointing=true", "lora.target_modules=all-linear"],
        packed: false,
        family: r#"{"model_type": "llama", "attention_bias": true, "mlp_bias": true}"#,
    },
    Case {
        shape: WIDE,
        tokens: [300, 100],
        settings: &["train.gradient_checkpointing=false", "lora.target_modules=all-linear"],
        packed: false,
        family: r#"{"model_type": "gemma3_text", "sliding_window": 64, "tie_word_embeddings": true}"#,
    },
    Case {
        shape: SMALL,
        tokens: [400, 100],
        settings: &["train.gradient_checkpointing=false", "lora.target_modules=all-linear"],
        packed: false,
        family: r#"{"model_type": "granite", "embedding_multiplier": 3.0, "residual_multiplier": 0.6,
            "logits_scaling": 2.0}"#,
    },
    Case {
        shape: WIDE,
        tokens: [300, 100],
        settings: &["train.gradient_checkpointing=false"],
        packed: false,
        family: r#"{"model_type": "ministral3", "rope_parameters": {"rope_type": "yarn", "rope_theta": 1e6,
            "factor": 16.0, "original_max_position_embeddings": 16, "llama_4_scaling_beta": 0.1}}"#,
    },
    Case {
        shape: SMALL,
        tokens: [400, 100],
        settings: &["train.gradient_checkpointing=false", "lora.target_modules=all-linear"],
        packed: false,
        family: r#"{"model_type": "olmo2"}"#,
    },
    Case {
        shape: SMALL,
        tokens: [400, 100],
        settings: &["train.gradient_checkpointing=false", "lora.target_modules=all-linear"],
        packed: false,
        family: r#"{"model_type": "phi3", "partial_rotary_factor": 0.75}"#,
    },
];

/// Cases with different lengths, layers, widths, ranks, checkpointing, passes and target modules.
pub const CASES: &[Case] = &[
    Case {
        shape: SMALL,
        tokens: [256, 16],
        settings: &["train.gradient_checkpointing=false"],
        packed: false,
        family: MISTRAL,
    },
    Case {
        shape: SMALL,
        tokens: [512, 200],
        settings: &[
            "train.gradient_checkpointing=true",
            "lora.target_modules=all-linear",
            "lora.r=32",
        ],
        packed: false,
        family: MISTRAL,
    },
    Case {
        shape: SMALL,
        tokens: [512, 100],
        settings: &["train.gradient_checkpointing=false", "train.per_device_train_batch_size=2"],
        packed: false,
        family: MISTRAL,
    },
    Case {
        shape: SMALL,
        tokens: [400, 100],
        settings: &[
            "train.gradient_checkpointing=false",
            "lora.target_modules=all-linear",
            "train.gradient_accumulation_steps=2",
            "train.max_tokens_per_pass=750",
        ],
        packed: false,
        family: MISTRAL,
    },
    Case {
        shape: WIDE,
        tokens: [300, 16],
        settings: &["train.gradient_checkpointing=false", "lora.target_modules=all-linear"],
        packed: false,
        family: MISTRAL,
    },
    Case {
        shape: WIDE,
        tokens: [300, 100],
        settings: &["train.gradient_checkpointing=true", "lora.r=64"],
        packed: false,
        family: MISTRAL,
    },
    Case {
        shape: LONG_HEAD,
        tokens: [300, 16],
        settings: &["train.gradient_checkpointing=false"],
        packed: false,
        family: MISTRAL,
    },
    Case {
        shape: LARGE_VOCABULARIES[0],
        tokens: [200, 16],
        settings: &["train.gradient_checkpointing=false"],
        packed: false,
        family: MISTRAL,
    },
    Case {
        shape: LARGE_VOCABULARIES[1],
        tokens: [200, 16],
        settings: &["train.gradient_checkpointing=false"],
        packed: false,
        family: MISTRAL,
    },
    Case {
        shape: SMALL,
        tokens: [512, 200],
        settings: &[
            "train.gradient_checkpointing=false",
            "lora.target_modules=all-linear",
            "lora.use_dora=true",
        ],
        packed: false,
        family: MISTRAL,
    },
];

/// Cases that train modules in full, and biases, beside an adapter.
pub const SAVED: &[Case] = &[
    Case {
        shape: LONG_HEAD,
        tokens: [300, 100],
        settings: &[
            "train.gradient_checkpointing=true",
            "lora.modules_to_save=[\"lm_head\", \"norm\"]",
        ],
        packed: false,
        family: MISTRAL,
    },
    Case {
        shape: SMALL,
        tokens: [256, 16],
        settings: &[
            "train.gradient_checkpointing=false",
            "lora.modules_to_save=[\"embed_tokens\", \"mlp.up_proj\"]",
            "lora.lora_bias=true",
        ],
        packed: false,
        family: MISTRAL,
    },
];

/// Cases that train all weights.
pub const FULL: &[Case] = &[Case {
    shape: SMALL,
    tokens: [256, 16],
    settings: &["train.gradient_checkpointing=false", "model.use_peft=false"],
    packed: false,
    family: MISTRAL,
}];

/// Cases of other methods: one that scores sequences without a gradient first, and one that scores prompts.
pub const METHODS: &[Case] = &[
    Case {
        shape: SMALL,
        tokens: [300, 100],
        settings: &[
            "method=kto",
            "train.per_device_train_batch_size=2",
            "train.gradient_checkpointing=true",
        ],
        packed: false,
        family: MISTRAL,
    },
    Case {
        shape: LONG_HEAD,
        tokens: [300, 200],
        settings: &["method=orpo", "train.gradient_checkpointing=false"],
        packed: false,
        family: MISTRAL,
    },
];

/// Cases with a quantized base: once quantized in the files, once quantized while they are read.
pub const PACKED: &[Case] = &[
    Case {
        shape: WIDE,
        tokens: [200, 16],
        settings: &["lora.target_modules=all-linear"],
        packed: true,
        family: MISTRAL,
    },
    Case {
        shape: WIDE,
        tokens: [200, 16],
        settings: &[
            "lora.target_modules=all-linear",
            "model.quantization=nf4",
            "model.double_quant=true",
        ],
        packed: false,
        family: MISTRAL,
    },
];

/// Planned and measured peak memory, in bytes.
#[derive(Clone, Copy, Debug)]
pub struct Compared {
    pub planned: u64,
    pub measured: u64,
}

impl Compared {
    /// Returns the relative error of the plan.
    pub fn error(&self) -> f64 {
        self.planned as f64 / self.measured as f64 - 1.0
    }
}

/// Runs each case on `backend`, prints a table, and panics if a plan is off by more than 5 %.
pub fn within_five_percent(backend: &str, cases: &[Case]) {
    let folder = tempfile::tempdir().unwrap();
    let mut far = Vec::new();
    for (index, case) in cases.iter().enumerate() {
        let compared = compare(backend, case, folder.path(), index);
        let line = format!(
            "{:?} {:?} {} {}: planned {:.1} MB, measured {:.1} MB, {:+.1} %",
            case.shape,
            case.tokens,
            case.settings.join(" "),
            case.family,
            compared.planned as f64 / 1e6,
            compared.measured as f64 / 1e6,
            100.0 * compared.error()
        );
        eprintln!("{line}");
        if compared.error().abs() > 0.05 {
            far.push(line);
        }
    }
    assert!(far.is_empty(), "{}", far.join("\n"));
}

fn compare(backend: &str, case: &Case, folder: &Path, index: usize) -> Compared {
    let config = config_of_family(case);
    let mut model = folder.join(format!("model-{:?}-{:?}", case.shape, config.family));
    if !model.is_dir() {
        tiny::write_model(&model, &config, 1);
    }
    if case.packed {
        model = packed(&model, folder);
    }
    let run = folder.join(format!("run-{index}"));
    let toml = write_run(folder, &model, case, &run);
    let command = |name: &str| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_arithmo"));
        command.args(["--backend", backend, "--quiet", name, "--config"]);
        command.arg(&toml);
        for setting in case.settings {
            command.args(["--set", setting]);
        }
        command.stdin(Stdio::null());
        command
    };
    let plan = command("plan").args(["--no-timing", "--json"]).output();
    let plan = plan.unwrap();
    assert!(plan.status.success(), "{plan:?}");
    let plan: Value = serde_json::from_slice(&plan.stdout).unwrap();
    assert_eq!(plan["lengths"], "data");
    // The process may reach its peak after its last line of metrics, when it writes the checkpoint.
    let process_peak = resident_peak(&mut command("train"));
    let metrics = fs::read_to_string(run.join("metrics.jsonl")).unwrap();
    let last: Value = serde_json::from_str(metrics.lines().last().unwrap()).unwrap();
    let logged = last["peak_memory_bytes"].as_f64().unwrap() as u64;
    Compared {
        planned: plan["total_bytes"].as_u64().unwrap(),
        measured: match backend {
            "ndarray" => process_peak.max(logged),
            _ => logged,
        },
    }
}

/// Quantizes `model` into a folder of its own inside `folder`. Returns that folder.
fn packed(model: &Path, folder: &Path) -> PathBuf {
    let to = Quantization { format: Format::Nf4, double_quant: true };
    let cache =
        Cache { folder: Some(folder.join("packed")), worth: 0, progress: ProgressMode::Quiet };
    let (shape, files) = (DecoderConfig::load(model), WeightFiles::open(model));
    let packed = cache.quantized_folder(model, &shape.unwrap(), &files.unwrap(), to);
    packed.unwrap().unwrap()
}

/// Runs `command` to its end. Returns its peak resident set in bytes, or 0 where the system does not report it.
fn resident_peak(command: &mut Command) -> u64 {
    let mut child = command.stdout(Stdio::null()).stderr(Stdio::inherit()).spawn().unwrap();
    let status = format!("/proc/{}/status", child.id());
    let mut peak = 0;
    loop {
        let text = fs::read_to_string(&status).unwrap_or_default();
        // For an instant after `spawn` the child still shows the memory of this process, and its name.
        let started = text.starts_with("Name:\tarithmo\n");
        let line = text.lines().filter(|_| started).find_map(|line| line.strip_prefix("VmHWM:"));
        let kibibytes = line.and_then(|line| line.trim().strip_suffix("kB")?.trim().parse().ok());
        peak = peak.max(1024 * kibibytes.unwrap_or(0u64));
        if let Some(status) = child.try_wait().unwrap() {
            assert!(status.success());
            return peak;
        }
        std::thread::sleep(Duration::from_millis(2));
    }
}

pub fn config([vocabulary, width, inner, layers, heads, kv_heads]: Shape) -> DecoderConfig {
    DecoderConfig {
        vocab_size: vocabulary,
        hidden_size: width,
        intermediate_size: inner,
        num_hidden_layers: layers,
        num_attention_heads: heads,
        num_key_value_heads: kv_heads,
        head_dim: None,
        max_position_embeddings: 1024,
        sliding_window: None,
        tie_word_embeddings: false,
        initializer_range: 0.02,
        ..tiny::config()
    }
}

/// Returns the shape of a case's model.
fn config_of_family(case: &Case) -> DecoderConfig {
    let mut object = config(case.shape).to_json();
    let keys: Value = serde_json::from_str(case.family).unwrap();
    object.as_object_mut().unwrap().extend(keys.as_object().unwrap().clone());
    DecoderConfig::parse(&object.to_string(), "config.json".as_ref()).unwrap()
}

/// Writes pairs with the case's numbers of tokens and the `run.toml` of a run of two steps. Returns the path of the
/// latter.
fn write_run(folder: &Path, model: &Path, case: &Case, run: &Path) -> PathBuf {
    // The byte-level tokenizer turns each of these letters into one token, and TRL's rules add one </s>.
    let text = |count: usize, seed: usize| -> String {
        let letter = |at: usize| char::from(b'A' + ((at * 7 + seed) % 5) as u8);
        (0..count).map(letter).collect()
    };
    let [tokens, prompt] = case.tokens;
    let pair = |seed: usize| {
        let completion = tokens - prompt - 1;
        json!({
            "prompt": text(prompt, seed),
            "chosen": text(completion, seed),
            "rejected": text(completion, seed + 1),
        })
        .to_string()
    };
    let pairs = folder.join(format!("pairs-{tokens}-{prompt}.jsonl"));
    let lines: String = (0..8).map(|seed| pair(seed) + "\n").collect();
    fs::write(&pairs, lines).unwrap();
    let toml = format!(
        "output_dir = {run:?}\n[model]\nmodel_name_or_path = {model:?}\n[data]\ntrain_file = {pairs:?}\n\
         [train]\nmax_steps = 2\nwarmup_steps = 0\ngradient_accumulation_steps = 1\n"
    );
    let file = folder.join("run.toml");
    fs::write(&file, toml).unwrap();
    file
}
