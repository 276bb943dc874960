//! The small model: a byte-level BPE tokenizer trained on rows and problems, and weights trained
//! from random ones on arithmetic lessons by `configs/sft.toml`.

use std::collections::HashSet;
use std::fs;
use std::path::Path;

use arithmo::config::RunConfig;
use arithmo::demo::arithmetic::{Split, lessons, problems};
use arithmo::model::config::DecoderConfig;
use arithmo::model::family::mistral;
use arithmo::model::names::ModelTensor;
use arithmo::model::save::{ModelFolder, OutTensor, load_safetensors_f32};
use arithmo::model::switches::Switches;
use arithmo::output::write_whole;
use arithmo::progress::ProgressMode;
use arithmo::train::folder::Existing;
use arithmo::train::run::{RunOptions, run};
use arithmo::{Error, Result};
use arithmo_backends::ndarray::Cpu;
use burn::tensor::DType;
use serde_json::{Value, json};
use tokenizers::decoders::byte_level::ByteLevel as ByteLevelDecoder;
use tokenizers::models::bpe::{BPE, BpeTrainer};
use tokenizers::normalizers::NFC;
use tokenizers::pre_tokenizers::PreTokenizerWrapper;
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::pre_tokenizers::digits::Digits;
use tokenizers::pre_tokenizers::sequence::Sequence;
use tokenizers::processors::template::TemplateProcessing;
use tokenizers::{AddedToken, TokenizerBuilder};

const VOCAB_SIZE: usize = 768;
const SPECIAL: [&str; 3] = ["<unk>", "<s>", "</s>"];

/// The seed and the number of the lessons that the model is trained on.
const LESSONS: (u64, usize) = (1, 90_000);

/// Returns the files of the model folder except the weights, with their paths below `assets/demo`.
pub(crate) fn files(rows: &[Value]) -> Result<Vec<(String, Vec<u8>)>> {
    let folder = tempfile::tempdir().map_err(|e| Error::io("a temporary folder", "make", e))?;
    let config = config();
    config.save(folder.path())?;
    let path = folder.path().join("config.json");
    let config_json = fs::read(&path).map_err(|e| Error::io(path, "read", e))?;
    let pretty = |value: Value| format!("{value:#}\n").into_bytes();
    let tokenizer_config = json!({
        "add_bos_token": true,
        "bos_token": SPECIAL[1],
        "eos_token": SPECIAL[2],
        "model_max_length": config.max_position_embeddings,
        "tokenizer_class": "PreTrainedTokenizerFast",
        "unk_token": SPECIAL[0],
    });
    let generation_config = json!({"bos_token_id": 1, "eos_token_id": 2});
    let files = [
        ("config.json", config_json),
        ("generation_config.json", pretty(generation_config)),
        ("tokenizer.json", tokenizer(rows)?),
        ("tokenizer_config.json", pretty(tokenizer_config)),
    ];
    Ok(files.map(|(name, bytes)| (format!("model/{name}"), bytes)).into())
}

/// Writes the input of `configs/sft.toml`: the model's shape and tokenizer, and the lessons.
pub(crate) fn write_training(work: &Path) -> Result<()> {
    for (name, bytes) in super::files()? {
        if name.starts_with("model/") {
            write_whole(&work.join(name), &bytes)?;
        }
    }
    let (seed, count) = LESSONS;
    let line = |lesson: arithmo::demo::arithmetic::Problem| {
        let completion = format!(" {}", lesson.solution);
        format!("{}\n", json!({"prompt": lesson.prompt, "completion": completion}))
    };
    let lines: String = lessons(seed, count).into_iter().map(line).collect();
    write_whole(&work.join("lessons.jsonl"), lines.as_bytes())
}

/// Trains the model.
pub(crate) fn train() -> Result<()> {
    let run_config = RunConfig::load(&super::root().join("configs/sft.toml"), &[])?;
    let options = RunOptions {
        existing: Existing::Overwrite,
        dry_run: false,
        progress: ProgressMode::detect(false),
    };
    run::<Cpu>(&run_config, &options, &Default::default()).map(|_| ())
}

/// Returns the file of the trained weights in bfloat16.
pub(crate) fn weights(work: &Path) -> Result<(String, Vec<u8>)> {
    let mut weights = load_safetensors_f32(&work.join("run/model/model.safetensors"))?;
    let out = work.join("bf16");
    arithmo::output::remove(&out)?;
    let tensors = config().tensors().into_iter().map(|ModelTensor { name, shape, .. }| {
        let values = weights.remove(&name).map(|(_, values)| values);
        let missing = Error::run(format!("{name} was not trained"), "fix this example");
        OutTensor::new(name, shape, DType::BF16, move || values.ok_or(missing))
    });
    ModelFolder::new(&out, &config()).save(tensors)?;
    let path = out.join("model.safetensors");
    let bytes = fs::read(&path).map_err(|e| Error::io(path, "read", e))?;
    Ok(("model/model.safetensors".to_string(), bytes))
}

fn config() -> DecoderConfig {
    DecoderConfig {
        family: &mistral::FAMILY,
        switches: Switches::default(),
        is_text_part: false,
        vocab_size: VOCAB_SIZE,
        hidden_size: 160,
        intermediate_size: 416,
        num_hidden_layers: 6,
        num_attention_heads: 5,
        num_key_value_heads: 1,
        head_dim: Some(32),
        max_position_embeddings: 512,
        rms_norm_eps: 1e-5,
        rope_theta: 10000.0,
        sliding_window: None,
        tie_word_embeddings: false,
        initializer_range: 0.02,
        attention_dropout: 0.0,
        bos_token_id: Some(1),
        eos_token_id: vec![2],
        pad_token_id: None,
        torch_dtype: Some("bfloat16".to_string()),
        quantization: None,
    }
}

/// Returns `tokenizer.json`, which splits digits as Mistral's tokenizer does and prepends `<s>`.
fn tokenizer(rows: &[Value]) -> Result<Vec<u8>> {
    let special = SPECIAL.map(|token| AddedToken::from(token, true)).to_vec();
    let mut trainer = BpeTrainer::builder()
        .show_progress(false)
        .vocab_size(VOCAB_SIZE)
        .min_frequency(2)
        .special_tokens(special)
        .initial_alphabet(ByteLevel::alphabet().into_iter().collect::<HashSet<char>>())
        .build();
    let fail = |e: &dyn std::fmt::Display| Error::run(e, "fix this example");
    let front = TemplateProcessing::builder()
        .try_single("<s> $A")
        .and_then(|builder| builder.try_pair("<s> $A <s> $B"))
        .map(|builder| builder.special_tokens(vec![("<s>", 1)]).build())
        .map_err(|e| fail(&e))?
        .map_err(|e| fail(&e))?;
    let pieces = vec![
        PreTokenizerWrapper::Digits(Digits::new(true)),
        PreTokenizerWrapper::ByteLevel(ByteLevel::new(false, true, true)),
    ];
    let mut tokenizer = TokenizerBuilder::new()
        .with_model(BPE::default())
        .with_normalizer(None::<NFC>)
        .with_pre_tokenizer(Some(Sequence::new(pieces)))
        .with_post_processor(Some(front))
        .with_decoder(Some(ByteLevelDecoder::default()))
        .build()
        .map_err(|e| fail(&e))?;
    let texts = texts(rows);
    tokenizer.train(&mut trainer, texts.iter()).map_err(|e| fail(&e))?;
    let json = tokenizer.to_string(true).map_err(|e| fail(&e))?;
    Ok((json + "\n").into_bytes())
}

/// Returns texts similar to those the model will see: arithmetic problems, and rows without tags
/// and the most common entities.
fn texts(rows: &[Value]) -> Vec<String> {
    let problems = problems(Split::Train, 1, 2000).into_iter();
    let mut texts: Vec<String> = problems
        .map(|problem| format!("Question: {}\n\nAnswer: {}", problem.prompt, problem.solution))
        .collect();
    for row in rows {
        let answers = row["answers"].as_array().into_iter().flatten();
        let all = answers.map(|answer| &answer["text"]).chain([&row["question"]]);
        texts.extend(all.filter_map(Value::as_str).map(plain));
    }
    texts
}

fn plain(html: &str) -> String {
    let mut text = String::new();
    let mut inside = false;
    for c in html.chars() {
        match c {
            '<' => inside = true,
            '>' if inside => inside = false,
            c if !inside => text.push(c),
            _ => {}
        }
    }
    text.replace("&#39;", "'").replace("&nbsp;", " ").replace("&amp;", "&")
}
