//! Tests of `arithmo chat` as a user calls it, with questions on standard input and answers on standard output.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::signal;
use crate::suite::adapters::{attach_random, config, save_adapter};
use crate::suite::tiny::{text_shape, write_model_with_tokenizer};
use arithmo::data::chat::{ChatTemplate, Clock};
use arithmo::data::prompt::PromptTemplate;
use arithmo::data::prompt_format::{ChatPrompt, PromptFormat};
use arithmo::data::tokenizer::Tokenizer;
use arithmo::generate::{Conversation, GenerateConfig, complete};
use arithmo::model::config::DecoderConfig;
use arithmo::model::load::load;
use burn::tensor::DType;

type B = burn_ndarray::NdArray<f32>;

/// Writes a model with random weights and a tokenizer, and an adapter for it. Returns both folders.
fn model_and_adapter(folder: &Path) -> (PathBuf, PathBuf) {
    let (model, adapter) = (folder.join("model"), folder.join("adapter"));
    let shape = DecoderConfig { max_position_embeddings: 128, ..text_shape() };
    write_model_with_tokenizer(&model, &shape, DType::F32, "byte-level");
    let mut adapted = load::<B>(&model, DType::F32, &Default::default()).unwrap();
    let mut lora = config(&[], false);
    lora.lora_alpha = 90.0;
    attach_random(&mut adapted, &lora);
    fs::create_dir(&adapter).unwrap();
    save_adapter(&adapted, &lora, "owner/base", &adapter);
    (model, adapter)
}

/// Returns a `chat` command with all streams as pipes.
fn command(model: &Path, flags: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_arithmo"));
    command
        .args(["--backend", "ndarray", "chat", "--model"])
        .arg(model)
        .args(["--max-new-tokens", "6", "--prompt-template", "Q: {prompt} A:"])
        .args(flags)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    command
}

/// Runs `chat` with `lines` as input. Returns its standard output and standard error.
fn chat(model: &Path, flags: &[&str], lines: impl AsRef<[u8]>) -> (String, String) {
    let mut child = command(model, flags).spawn().unwrap();
    child.stdin.take().unwrap().write_all(lines.as_ref()).unwrap();
    let run = child.wait_with_output().unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    let (out, stderr) = (text(run.stdout), text(run.stderr));
    assert!(run.status.success(), "{stderr}");
    (out, stderr)
}

#[test]
fn the_adapter_can_be_turned_off_and_on() {
    let folder = tempfile::tempdir().unwrap();
    let (model, adapter) = model_and_adapter(folder.path());
    let adapter_flag = ["--adapter", adapter.to_str().unwrap()];
    let (on, _) = chat(&model, &adapter_flag, "How many clips?\n");
    let (off, _) = chat(&model, &[], "How many clips?");
    assert_ne!(on, off);
    assert!(off.ends_with('\n') && off.len() > 1, "{off:?}");
    let lines = "\nHow many clips?\n/reset\n/adapter off\nHow many clips?\n/reset\n/adapter on\n\
                 How many clips?\n/quit\nHow many clips?\n";
    let (both, stderr) = chat(&model, &adapter_flag, lines);
    assert_eq!(both, format!("{on}{off}{on}"), "{stderr}");
    assert!(stderr.contains("the adapter is off"), "{stderr}");
    let (_, stderr) = chat(&model, &[], "/adapter on\n/help\n");
    assert!(stderr.contains("--adapter DIR") && stderr.contains("/reset"), "{stderr}");
    let (none, stderr) = chat(&model, &adapter_flag, "/Adapter OFF\n/adapter\n/foo bar\n");
    assert!(none.is_empty(), "{none}");
    for part in ["the adapter is off", "takes on or off", "no command /foo bar"] {
        assert!(stderr.contains(part), "{part}: {stderr}");
    }
}

#[test]
fn a_line_that_is_not_utf8_is_skipped() {
    let folder = tempfile::tempdir().unwrap();
    let (model, _) = model_and_adapter(folder.path());
    let (plain, _) = chat(&model, &[], "How many clips?\n");
    let (out, stderr) = chat(&model, &[], b"caf\xe9\nHow many clips?\n");
    assert_eq!(out, plain);
    assert!(stderr.contains("not UTF-8"), "{stderr}");
}

/// Checks that sampled answers repeat with the same seed, and that every question of a chat draws its own random
/// numbers.
#[test]
fn a_seed_repeats_a_chat_and_no_question_repeats_another() {
    let folder = tempfile::tempdir().unwrap();
    let (model, _) = model_and_adapter(folder.path());
    let sampled =
        |more: &[&str], lines: &str| chat(&model, &[&["--temperature", "1"], more].concat(), lines);
    let twice = "How many clips?\n/reset\nHow many clips?\n";
    let (seven, stderr) = sampled(&["--seed", "7"], twice);
    assert_eq!(sampled(&["--seed", "7"], twice).0, seven);
    assert!(!stderr.contains("--seed"), "{stderr}");
    // The first answer equals that of a chat of one question. The same question after a reset gets another answer.
    let (first, _) = sampled(&["--seed", "7"], "How many clips?\n");
    let second = seven.strip_prefix(&first).unwrap();
    assert_ne!(second, first);
    // Without `--seed`, each chat chooses another seed and prints it.
    let (fresh, stderr) = sampled(&[], twice);
    let seed = stderr.split("--seed ").nth(1).unwrap();
    let seed = seed.split_whitespace().next().unwrap();
    assert_eq!(sampled(&["--seed", seed], twice).0, fresh);
    let (_, stderr_again) = sampled(&[], "");
    assert_ne!(stderr_again, stderr);
}

/// Checks that SIGTERM ends a chat that waits for a line.
#[cfg(unix)]
#[test]
fn sigterm_ends_a_chat_that_waits() {
    let folder = tempfile::tempdir().unwrap();
    let (model, _) = model_and_adapter(folder.path());
    let mut child = command(&model, &[]).spawn().unwrap();
    let mut lines = child.stdin.take().unwrap();
    lines.write_all(b"How many clips?\n").unwrap();
    let mut answer = String::new();
    let mut out = BufReader::new(child.stdout.take().unwrap());
    out.read_line(&mut answer).unwrap();
    signal::send("TERM", &child);
    assert_eq!(child.wait().unwrap().code(), Some(130));
    drop(lines);
}

/// Compares the answers of a conversation, which computes only new text, with completions of the whole text.
#[test]
fn a_conversation_equals_completions_of_the_whole_text() {
    let folder = tempfile::tempdir().unwrap();
    let (model, _) = model_and_adapter(folder.path());
    let tokenizer = Tokenizer::from_folder(&model).unwrap();
    let model = load::<B>(&model, DType::F32, &Default::default()).unwrap();
    let template = PromptTemplate::new("Q: {prompt} A:").unwrap();
    let format = template.clone().into();
    let config = GenerateConfig { max_new_tokens: 7, ..GenerateConfig::default() };
    let mut conversation = Conversation::new();
    let mut whole = String::new();
    for question in ["How many clips?", "12 and 30 make", "x", "How many?"] {
        let mut answer = String::new();
        let on_text = |text: &str| {
            answer.push_str(text);
            Ok(())
        };
        conversation.ask(&model, &tokenizer, question, &format, &config, on_text).unwrap();
        if !whole.is_empty() {
            whole.push_str("\n\n");
        }
        whole.push_str(&template.apply(question));
        let plain = PromptTemplate::default().into();
        let prompts = [whole.clone()];
        let expected = complete(&model, &tokenizer, &prompts, &plain, &config, |_| ()).unwrap();
        assert_eq!(answer, expected[0].completion, "after {whole:?}");
        whole.push_str(answer.trim_end());
    }
    // A question that is too long for the model is refused, and the conversation is unchanged.
    let long = "12 and 30 make ".repeat(30);
    let silent = |_: &str| Ok(());
    let refused = conversation.ask(&model, &tokenizer, &long, &format, &config, silent);
    assert!(refused.unwrap_err().to_string().contains("128 positions"));
    let again = conversation.ask(&model, &tokenizer, "x", &format, &config, silent);
    again.unwrap();
}

/// The same in a chat template: each question is asked after all messages before it.
#[test]
fn a_conversation_in_a_chat_template_equals_completions_of_the_whole_text() {
    let folder = tempfile::tempdir().unwrap();
    let (model, _) = model_and_adapter(folder.path());
    let tokenizer = Tokenizer::from_folder(&model).unwrap();
    let model = load::<B>(&model, DType::F32, &Default::default()).unwrap();
    let source = "{% for m in messages %}{{ m.role[0] }}: {{ m.content }};{% endfor %}";
    let format = PromptFormat::Chat(ChatPrompt {
        template: ChatTemplate::new("t", source, Vec::new(), Clock::Start),
        system: Some("Add.".to_string()),
        request: PromptTemplate::new("Q {prompt}").unwrap(),
    });
    let config = GenerateConfig { max_new_tokens: 5, ..GenerateConfig::default() };
    let mut conversation = Conversation::new();
    let mut whole = "s: Add.;".to_string();
    for question in ["How many clips?", "12 and 30 make", "x"] {
        let mut answer = String::new();
        let on_text = |text: &str| {
            answer.push_str(text);
            Ok(())
        };
        conversation.ask(&model, &tokenizer, question, &format, &config, on_text).unwrap();
        whole.push_str(&format!("u: Q {question};"));
        // The tokenizer of this model adds no BOS.
        let (plain, prompts) = (PromptTemplate::default().into(), [whole.clone()]);
        let expected = complete(&model, &tokenizer, &prompts, &plain, &config, |_| ()).unwrap();
        assert_eq!(answer, expected[0].completion, "after {whole:?}");
        whole.push_str(&format!("a: {};", answer.trim_end()));
    }
}

/// Checks that a chat that `nohup` started keeps running after its terminal is closed.
#[cfg(target_os = "linux")]
#[test]
fn a_hangup_that_was_ignored_stays_ignored() {
    let folder = tempfile::tempdir().unwrap();
    let (model, _) = model_and_adapter(folder.path());
    let plain = command(&model, &[]);
    let mut child = Command::new("sh")
        .args(["-c", "trap '' HUP; exec \"$0\" \"$@\""])
        .arg(plain.get_program())
        .args(plain.get_args())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = child.stdin.take().unwrap();
    let mut out = BufReader::new(child.stdout.take().unwrap());
    let mut answer = || {
        lines.write_all(b"How many clips?\n/reset\n").unwrap();
        let mut answer = String::new();
        out.read_line(&mut answer).unwrap();
        answer
    };
    let first = answer();
    signal::send("HUP", &child);
    assert_eq!(answer(), first);
    drop(lines);
    assert_eq!(child.wait().unwrap().code(), Some(0));
}
