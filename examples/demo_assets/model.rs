//! The tiny model: a byte-level BPE tokenizer trained on the rows, and random weights in Mistral's shape.

use std::collections::HashSet;
use std::fs;

use arithmo::data::arithmetic::{Split, problems};
use arithmo::model::config::MistralConfig;
use arithmo::model::save::{MAX_SHARD_BYTES, OutTensor, save_folder};
use arithmo::{Error, Result};
use burn::tensor::DType;
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};
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

/// The model folder's files, as paths below `assets/demo`.
pub(crate) fn files(rows: &[Value]) -> Result<Vec<(String, Vec<u8>)>> {
    let folder = tempfile::tempdir().map_err(|e| Error::io("a temporary folder", "make", e))?;
    let folder = folder.path().join("model");
    let config = config();
    save_folder(&folder, &config, weights(&config), MAX_SHARD_BYTES, None)?;
    let read = |name: &str| {
        let path = folder.join(name);
        fs::read(&path).map_err(|e| Error::io(path, "read", e))
    };
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
    Ok(vec![
        ("model/config.json".to_string(), read("config.json")?),
        (
            "model/generation_config.json".to_string(),
            pretty(generation_config),
        ),
        (
            "model/model.safetensors".to_string(),
            read("model.safetensors")?,
        ),
        ("model/tokenizer.json".to_string(), tokenizer(rows)?),
        (
            "model/tokenizer_config.json".to_string(),
            pretty(tokenizer_config),
        ),
    ])
}

fn config() -> MistralConfig {
    MistralConfig {
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
    }
}

/// Uniform weights of standard deviation 1 (embedding) or 1 / sqrt(inputs) (all others); norms are 1.
fn weights(config: &MistralConfig) -> Vec<OutTensor<'static>> {
    let mut generator = ChaCha8Rng::seed_from_u64(7);
    let tensor = |(name, shape): (String, Vec<usize>)| {
        let bound = match (name.contains("embed"), shape.as_slice()) {
            (_, [_]) => None,
            (true, _) => Some(3f64.sqrt()),
            (false, shape) => shape.last().map(|inputs| (3.0 / *inputs as f64).sqrt()),
        };
        let values = (0..shape.iter().product()).map(|_| match bound {
            None => 1.0,
            Some(bound) => {
                // 24 random bits are a multiple of 2^-24 in [0, 1): the same on every machine.
                let unit = f64::from(generator.next_u32() >> 8) / f64::from(1 << 24);
                ((2.0 * unit - 1.0) * bound) as f32
            }
        });
        let values: Vec<f32> = values.collect();
        OutTensor::new(name, shape, DType::BF16, move || Ok(values))
    };
    config.tensors().into_iter().map(tensor).collect()
}

/// `tokenizer.json`: digits one by one as Mistral has them, `<s>` in front.
fn tokenizer(rows: &[Value]) -> Result<Vec<u8>> {
    let special = SPECIAL.map(|token| AddedToken::from(token, true)).to_vec();
    let mut trainer = BpeTrainer::builder()
        .show_progress(false)
        .vocab_size(VOCAB_SIZE)
        .min_frequency(2)
        .special_tokens(special)
        .initial_alphabet(ByteLevel::alphabet().into_iter().collect::<HashSet<char>>())
        .build();
    let fail = |e: &dyn std::fmt::Display| Error::run(e, "mend this example");
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
    tokenizer
        .train(&mut trainer, texts.iter())
        .map_err(|e| fail(&e))?;
    let json = tokenizer.to_string(true).map_err(|e| fail(&e))?;
    Ok((json + "\n").into_bytes())
}

/// The texts the model will see, roughly: problems of arithmetic, and rows with tags and the commonest entities taken out.
fn texts(rows: &[Value]) -> Vec<String> {
    let problems = problems(Split::Train, 1, 2000).into_iter();
    let mut texts: Vec<String> = problems
        .map(|problem| format!("Question: {}\n\nAnswer: {}", problem.prompt, problem.solution))
        .collect();
    for row in rows {
        let answers = row["answers"].as_array().into_iter().flatten();
        let all = answers
            .map(|answer| &answer["text"])
            .chain([&row["question"]]);
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
    text.replace("&#39;", "'")
        .replace("&nbsp;", " ")
        .replace("&amp;", "&")
}
