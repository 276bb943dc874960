//! `arithmo chat` as a user calls it: questions on standard input, answers on standard output, the adapter on and off.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod suite;

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use arithmo::data::prompt::PromptTemplate;
use arithmo::data::tokenizer::Tokenizer;
use arithmo::generate::{Conversation, GenerateConfig, complete};
use arithmo::model::config::MistralConfig;
use arithmo::model::load::load;
use burn::tensor::DType;
use suite::adapters::{attach_random, config, save_adapter};
use suite::tiny::write_model;

type B = burn_ndarray::NdArray<f32>;

/// A model with random weights and a tokenizer, and an adapter for it.
fn model_and_adapter(folder: &Path) -> (PathBuf, PathBuf) {
    let (model, adapter) = (folder.join("model"), folder.join("adapter"));
    let text = r#"{"model_type": "mistral", "vocab_size": 430, "hidden_size": 20, "intermediate_size": 28,
        "num_hidden_layers": 2, "num_attention_heads": 6, "num_key_value_heads": 2, "head_dim": 4,
        "max_position_embeddings": 128, "sliding_window": 40, "eos_token_id": 2}"#;
    let shape = MistralConfig::parse(text, "config.json".as_ref()).unwrap();
    write_model(&model, &shape, DType::F32);
    let fixture = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/tokenizer/byte-level");
    for name in ["tokenizer.json", "tokenizer_config.json"] {
        fs::copy(fixture.join(name), model.join(name)).unwrap();
    }
    let mut adapted = load::<B>(&model, DType::F32, &Default::default()).unwrap();
    let mut lora = config(&[], false);
    lora.lora_alpha = 90.0;
    attach_random(&mut adapted, &lora);
    fs::create_dir(&adapter).unwrap();
    save_adapter(&adapted, &lora, "owner/base", &adapter);
    (model, adapter)
}

/// Runs `chat` on `lines`; what it wrote to standard output and standard error.
fn chat(model: &Path, flags: &[&str], lines: &str) -> (String, String) {
    let mut child = Command::new(env!("CARGO_BIN_EXE_arithmo"))
        .args(["--backend", "ndarray", "chat", "--model"])
        .arg(model)
        .args(["--max-new-tokens", "6", "--prompt-template", "Q: {prompt} A:"])
        .args(flags)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(lines.as_bytes()).unwrap();
    let run = child.wait_with_output().unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    let (out, said) = (text(run.stdout), text(run.stderr));
    assert!(run.status.success(), "{said}");
    (out, said)
}

#[test]
fn answers_are_those_of_generate_with_and_without_the_adapter() {
    let folder = tempfile::tempdir().unwrap();
    let (model, adapter) = model_and_adapter(folder.path());
    let adapter_flag = ["--adapter", adapter.to_str().unwrap()];
    let (on, _) = chat(&model, &adapter_flag, "How many clips?\n");
    let (off, _) = chat(&model, &[], "How many clips?");
    assert_ne!(on, off);
    assert!(off.ends_with('\n') && off.len() > 1, "{off:?}");
    let lines = "\nHow many clips?\n/reset\n/adapter off\nHow many clips?\n/reset\n/adapter on\n\
                 How many clips?\n/quit\nHow many clips?\n";
    let (both, said) = chat(&model, &adapter_flag, lines);
    assert_eq!(both, format!("{on}{off}{on}"), "{said}");
    assert!(said.contains("the adapter is off"), "{said}");
    let (_, said) = chat(&model, &[], "/adapter on\n/help\n");
    assert!(said.contains("--adapter DIR") && said.contains("/reset"), "{said}");
}

/// Of a long conversation only what is new is computed; the answers are those of the whole text.
#[test]
fn a_conversation_goes_on_from_what_was_said() {
    let folder = tempfile::tempdir().unwrap();
    let (model, _) = model_and_adapter(folder.path());
    let tokenizer = Tokenizer::from_folder(&model).unwrap();
    let model = load::<B>(&model, DType::F32, &Default::default()).unwrap();
    let template = PromptTemplate::new("Q: {prompt} A:").unwrap();
    let config = GenerateConfig { max_new_tokens: 7, ..GenerateConfig::default() };
    let mut conversation = Conversation::new();
    let mut whole = String::new();
    for question in ["How many clips?", "12 and 30 make", "x", "How many?"] {
        let mut answer = String::new();
        let on_text = |text: &str| {
            answer.push_str(text);
            Ok(())
        };
        conversation.ask(&model, &tokenizer, question, &template, &config, on_text).unwrap();
        if !whole.is_empty() {
            whole.push_str("\n\n");
        }
        whole.push_str(&template.apply(question));
        let plain = PromptTemplate::default();
        let prompts = [whole.clone()];
        let expected = complete(&model, &tokenizer, &prompts, &plain, &config, |_| ()).unwrap();
        assert_eq!(answer, expected[0].completion, "after {whole:?}");
        whole.push_str(answer.trim_end());
    }
    // Too long for the model: said, and the conversation is as before.
    let long = "12 and 30 make ".repeat(30);
    let silent = |_: &str| Ok(());
    let refused = conversation.ask(&model, &tokenizer, &long, &template, &config, silent);
    assert!(refused.unwrap_err().to_string().contains("128 positions"));
    let again = conversation.ask(&model, &tokenizer, "x", &template, &config, silent);
    again.unwrap();
}
