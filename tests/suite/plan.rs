//! The planner beside what runs take: models of tens of megabytes, trained by the real program.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use arithmo::model::config::MistralConfig;
use arithmo::model::quantize::Quantization;
use arithmo::model::quantize::cache::Cache;
use arithmo::model::weights::WeightFiles;
use arithmo::progress::ProgressMode;
use arithmo_backends::Format;
use serde_json::{Value, json};

#[path = "../fixtures/tiny/mod.rs"]
pub mod tiny;

/// A model's vocabulary, width, width inside the MLP, layers, heads and key heads.
type Shape = [usize; 6];

pub const SMALL: Shape = [2000, 256, 704, 6, 4, 2];
pub const WIDE: Shape = [4000, 512, 1408, 4, 8, 4];
pub const LONG_HEAD: Shape = [32000, 256, 512, 2, 4, 4];

/// A run: which model, tokens of a sequence and of its prompt, and what is set.
pub struct Case {
    pub shape: Shape,
    pub tokens: [usize; 2],
    pub settings: &'static [&'static str],
    /// Whether the model's files are packed already (nf4, scales in 8 bits).
    pub packed: bool,
}

/// What runs differ in that takes memory: lengths, layers, widths, ranks, what is kept, passes, what is trained.
pub const CASES: &[Case] = &[
    Case {
        shape: SMALL,
        tokens: [256, 16],
        settings: &["train.gradient_checkpointing=false"],
        packed: false,
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
    },
    Case {
        shape: SMALL,
        tokens: [512, 100],
        settings: &["train.gradient_checkpointing=false", "train.per_device_train_batch_size=2"],
        packed: false,
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
    },
    Case {
        shape: WIDE,
        tokens: [300, 16],
        settings: &["train.gradient_checkpointing=false", "lora.target_modules=all-linear"],
        packed: false,
    },
    Case {
        shape: WIDE,
        tokens: [300, 100],
        settings: &["train.gradient_checkpointing=true", "lora.r=64"],
        packed: false,
    },
    Case {
        shape: LONG_HEAD,
        tokens: [300, 16],
        settings: &["train.gradient_checkpointing=false"],
        packed: false,
    },
];

/// Cases that train all weights.
pub const FULL: &[Case] = &[Case {
    shape: SMALL,
    tokens: [256, 16],
    settings: &["train.gradient_checkpointing=false", "model.use_peft=false"],
    packed: false,
}];

/// Packed in the files, and packed while they are read: weights take as much.
pub const PACKED: &[Case] = &[
    Case {
        shape: WIDE,
        tokens: [200, 16],
        settings: &["lora.target_modules=all-linear"],
        packed: true,
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
    },
];

/// What was planned and what was taken.
#[derive(Clone, Copy, Debug)]
pub struct Compared {
    pub planned: u64,
    pub measured: u64,
}

impl Compared {
    pub fn error(&self) -> f64 {
        self.planned as f64 / self.measured as f64 - 1.0
    }
}

/// Runs each case on `backend`, prints a table, and fails where a plan is off by more than 5 %.
pub fn within_five_percent(backend: &str, cases: &[Case]) {
    let folder = tempfile::tempdir().unwrap();
    let mut far = Vec::new();
    for (index, case) in cases.iter().enumerate() {
        let compared = compare(backend, case, folder.path(), index);
        let line = format!(
            "{:?} {:?} {}: planned {:.1} MB, took {:.1} MB, {:+.1} %",
            case.shape,
            case.tokens,
            case.settings.join(" "),
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
    let mut model = folder.join(format!("model-{:?}", case.shape));
    if !model.is_dir() {
        tiny::write_model(&model, &config(case.shape), 1);
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
    // What the process takes may be more after its last line of metrics, when it writes the checkpoint.
    let of_process = resident_peak(&mut command("train"));
    let metrics = fs::read_to_string(run.join("metrics.jsonl")).unwrap();
    let last: Value = serde_json::from_str(metrics.lines().last().unwrap()).unwrap();
    let logged = last["peak_memory_bytes"].as_f64().unwrap() as u64;
    Compared {
        planned: plan["total_bytes"].as_u64().unwrap(),
        measured: match backend {
            "ndarray" => of_process.max(logged),
            _ => logged,
        },
    }
}

/// The model in `folder`, packed into a folder of its own.
fn packed(model: &Path, folder: &Path) -> PathBuf {
    let to = Quantization { format: Format::Nf4, double_quant: true };
    let cache =
        Cache { folder: Some(folder.join("packed")), worth: 0, progress: ProgressMode::Quiet };
    let (shape, files) = (MistralConfig::load(model), WeightFiles::open(model));
    let packed = cache.packed(model, &shape.unwrap(), &files.unwrap(), to);
    packed.unwrap().unwrap()
}

/// Runs to the end; the largest resident set that was seen, where the system tells.
fn resident_peak(command: &mut Command) -> u64 {
    let mut child = command.stdout(Stdio::null()).stderr(Stdio::inherit()).spawn().unwrap();
    let status = format!("/proc/{}/status", child.id());
    let mut peak = 0;
    loop {
        let text = fs::read_to_string(&status).unwrap_or_default();
        let line = text.lines().find_map(|line| line.strip_prefix("VmHWM:"));
        let kibibytes = line.and_then(|line| line.trim().strip_suffix("kB")?.trim().parse().ok());
        peak = peak.max(1024 * kibibytes.unwrap_or(0u64));
        if let Some(status) = child.try_wait().unwrap() {
            assert!(status.success());
            return peak;
        }
        std::thread::sleep(Duration::from_millis(2));
    }
}

pub fn config([vocabulary, width, inner, layers, heads, kv_heads]: Shape) -> MistralConfig {
    MistralConfig {
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

/// A run of two steps over pairs whose sides have the case's tokens.
fn write_run(folder: &Path, model: &Path, case: &Case, run: &Path) -> PathBuf {
    // The byte-level tokenizer makes one token of each of these letters, and TRL's rules add one </s>.
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
