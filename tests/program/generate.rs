//! Tests of `arithmo generate`: flags, files, streamed text and errors.

use std::fs;
use std::path::{Path, PathBuf};

use crate::suite::golden::{self, json_file, json_lines, reference};
use crate::suite::tiny::{text_shape, write_model_with_tokenizer};
use arithmo::cli::generate::{GenerateArgs, run};
use arithmo::data::prompt::PromptTemplate;
use arithmo::data::tokenizer::Tokenizer;
use arithmo::error::Error;
use arithmo::generate::stream::TextStream;
use arithmo::generate::{
    Completion, CompletionEvent, FinishReason, GenerateConfig, GenerateEvent, complete_each,
    generate_each, read_prompts, stop_ids,
};
use arithmo::model::config::DecoderConfig;
use arithmo::model::load::load;
use arithmo::progress::ProgressMode;
use burn::tensor::DType;
use clap::Parser;
use serde_json::{Value, json};

type B = burn_ndarray::NdArray<f32>;

#[derive(Parser)]
struct Program {
    #[command(flatten)]
    args: GenerateArgs,
}

/// Runs `generate` with `flags` on a model folder.
fn generate(model: &Path, flags: &[&str]) -> Result<(), String> {
    let model = model.to_str().unwrap();
    let all = ["generate", "--model", model].into_iter().chain(flags.iter().copied());
    let program = Program::try_parse_from(all).map_err(|error| error.to_string())?;
    run::<B>(&program.args, ProgressMode::Quiet, &Default::default()).map_err(|e| e.to_string())
}

/// Writes a model folder with random weights and a tokenizer of the fixtures. Returns it.
fn model_with_tokenizer(folder: &Path, tokenizer: &str) -> PathBuf {
    let model = folder.join("model");
    let (max_position_embeddings, sliding_window) = (64, Some(5));
    let shape = DecoderConfig { max_position_embeddings, sliding_window, ..text_shape() };
    write_model_with_tokenizer(&model, &shape, DType::BF16, tokenizer);
    model
}

fn write_prompts(folder: &Path, prompts: &[&str]) -> PathBuf {
    let path = folder.join("prompts.jsonl");
    let lines: Vec<String> =
        prompts.iter().map(|prompt| json!({"prompt": prompt}).to_string()).collect();
    fs::write(&path, lines.join("\n")).unwrap();
    path
}

/// Compares the text, ids and finish reasons that the command writes with those of transformers.
#[test]
fn golden_prompts_are_completed_as_by_transformers() {
    for name in ["tiny-a", "tiny-b"] {
        let Some(model) = reference(&format!("models/{name}")) else {
            return;
        };
        let folder = tempfile::tempdir().unwrap();
        let expected = json_file(&reference(&format!("forward/{name}.json")).unwrap());
        let expected = expected["generate"].as_array().unwrap();
        let prompts: Vec<&str> = expected.iter().map(|e| e["prompt"].as_str().unwrap()).collect();
        let (file, output) =
            (write_prompts(folder.path(), &prompts), folder.path().join("out/out.jsonl"));
        let (file, output_flag) = (file.to_str().unwrap(), output.to_str().unwrap());
        let flags = [
            "--prompts",
            file,
            "--output",
            output_flag,
            "--max-new-tokens",
            "32",
            "--batch-size",
            "2",
        ];
        generate(&model, &flags).unwrap();
        let tokenizer = Tokenizer::from_folder(&model).unwrap();
        let config = DecoderConfig::load(&model).unwrap();
        let stops = stop_ids(&model, &config, tokenizer.eos_id()).unwrap();
        let lines = json_lines(&output);
        assert_eq!(lines.len(), expected.len());
        for (line, expected) in lines.iter().zip(expected) {
            let all = golden::ids(&expected["new_ids"]);
            let end = all.iter().position(|id| stops.contains(id));
            let wanted = &all[..end.map_or(all.len(), |end| end + 1)];
            assert_eq!(line["prompt"], expected["prompt"], "{name}");
            assert_eq!(golden::ids(&line["token_ids"]), wanted, "{name}");
            assert_eq!(line["finish_reason"], end.map_or("length", |_| "eos"), "{name}");
            if end.is_none() {
                let mut text = expected["new_text"].as_str().unwrap().to_string();
                for special in ["<s>", "</s>", "<unk>", "<pad>"] {
                    text = text.replace(special, "");
                }
                assert_eq!(
                    line["completion"].as_str().unwrap().trim_start(),
                    text.trim_start(),
                    "{name}"
                );
            }
        }
    }
}

#[test]
fn prompt_plus_completion_is_the_whole_text() {
    for tokenizer in ["byte-level", "sentencepiece-like"] {
        let folder = tempfile::tempdir().unwrap();
        let model = model_with_tokenizer(folder.path(), tokenizer);
        let prompts = ["How many clips?", "12 and 30 make", "x"];
        let file = write_prompts(folder.path(), &prompts);
        let output = folder.path().join("out.jsonl");
        let mut flags =
            vec!["--prompts", file.to_str().unwrap(), "--output", output.to_str().unwrap()];
        flags.extend([
            "--max-new-tokens",
            "9",
            "--temperature",
            "0.8",
            "--top-k",
            "50",
            "--seed",
            "3",
        ]);
        flags.extend(["--prompt-template", "Question: {prompt} Answer:"]);
        generate(&model, &flags).unwrap();
        let tokenizer = Tokenizer::from_folder(&model).unwrap();
        let lines = json_lines(&output);
        for (line, prompt) in lines.iter().zip(prompts) {
            assert_eq!(line["prompt"], prompt);
            let keys: Vec<&String> = line.as_object().unwrap().keys().collect();
            assert_eq!(keys, ["prompt", "completion", "token_ids", "finish_reason"]);
            let full = format!("Question: {prompt} Answer:");
            let mut ids = tokenizer.encode(&full, true).unwrap();
            let before = tokenizer.decode(&ids, true).unwrap();
            ids.extend(golden::ids(&line["token_ids"]));
            let whole = tokenizer.decode(&ids, true).unwrap();
            assert_eq!(format!("{before}{}", line["completion"].as_str().unwrap()), whole);
        }
        let first = fs::read(&output).unwrap();
        flags.push("--overwrite");
        generate(&model, &flags).unwrap();
        assert_eq!(fs::read(&output).unwrap(), first, "the same seed gave another text");
    }
}

/// Runs generation. Returns the concatenated streamed texts of each prompt, and the completions in the order they
/// ended.
fn streamed(folder: &Path, config: &GenerateConfig) -> (Vec<String>, Vec<(usize, Completion)>) {
    let tokenizer = Tokenizer::from_folder(folder).unwrap();
    let model = load::<B>(folder, DType::F32, &Default::default()).unwrap();
    let prompts = ["How many clips?", "12 and 30 make", "x"].map(String::from);
    let template = PromptTemplate::default().into();
    let (mut texts, mut ended) = (vec![String::new(); 3], Vec::new());
    let result = complete_each(&model, &tokenizer, &prompts, &template, config, |event| {
        match event {
            CompletionEvent::Text { index, text } => texts[index].push_str(text),
            CompletionEvent::Finished { index, completion } => {
                ended.push((index, completion.clone()));
            }
            CompletionEvent::Step(_) => {}
        }
        Ok(())
    });
    result.unwrap();
    (texts, ended)
}

#[test]
fn streamed_text_has_whole_characters() {
    for name in ["byte-level", "sentencepiece-like"] {
        let folder = tempfile::tempdir().unwrap();
        let model = model_with_tokenizer(folder.path(), name);
        let tokenizer = Tokenizer::from_folder(&model).unwrap();
        let ids = |text: &str| tokenizer.encode(text, true).unwrap();
        let (prompt, text) = (ids("How many"), ids("How many clips? 12 é, 3 😀\n\nQuestion"));
        assert_eq!(text[..prompt.len()], prompt);
        for (stops, expected) in [
            (vec![], " clips? 12 é, 3 😀\n\nQuestion"),
            (vec!["\n\nQuestion".to_string(), " 😀".to_string()], " clips? 12 é, 3"),
            (vec!["\n\nQueue".to_string()], " clips? 12 é, 3 😀\n\nQuestion"),
        ] {
            let mut stream = TextStream::new(&tokenizer, &prompt, &stops);
            let mut told = String::new();
            for id in &text[prompt.len()..] {
                if stream.stopped() {
                    break;
                }
                told.push_str(stream.push(*id).unwrap());
            }
            told.push_str(stream.rest(stream.text()));
            assert_eq!(told, expected, "{name}");
            assert_eq!(stream.text(), expected, "{name}");
        }
    }
}

#[test]
fn text_streams_and_ends_before_a_stop() {
    let folder = tempfile::tempdir().unwrap();
    let model = model_with_tokenizer(folder.path(), "byte-level");
    let mut config =
        GenerateConfig { max_new_tokens: 40, temperature: 1.0, ..GenerateConfig::default() };
    let (texts, free) = streamed(&model, &config);
    assert_eq!(free.len(), 3);
    for (index, completion) in &free {
        assert_eq!(texts[*index], completion.completion);
        assert_eq!(completion.finish_reason, FinishReason::Length);
    }
    // One stop has several tokens, the other never occurs.
    let (first, whole) = &free[0];
    let chars: Vec<(usize, char)> = whole.completion.char_indices().collect();
    let stop = &whole.completion[chars[9].0..chars[14].0];
    config.stop = vec!["never there".into(), stop.into()];
    let (texts, stopped) = streamed(&model, &config);
    for (index, completion) in &stopped {
        let (_, free) = free.iter().find(|(free, _)| free == index).unwrap();
        let count = completion.token_ids.len();
        assert_eq!(completion.token_ids, free.token_ids[..count]);
        assert_eq!(texts[*index], completion.completion);
        match free.completion.find(stop) {
            Some(end) => {
                assert_eq!(completion.completion, free.completion[..end]);
                assert_eq!(completion.finish_reason, FinishReason::Stop);
                assert!(count < free.token_ids.len());
            }
            None => assert_eq!(completion, free),
        }
    }
    let ended = stopped.iter().find(|(index, _)| index == first).unwrap();
    assert_eq!(ended.1.finish_reason, FinishReason::Stop);
}

#[test]
fn an_error_of_the_callback_ends_generation() {
    let folder = tempfile::tempdir().unwrap();
    let model = model_with_tokenizer(folder.path(), "byte-level");
    let model = load::<B>(&model, DType::F32, &Default::default()).unwrap();
    let mut ended = 0;
    let prompts = [vec![5], vec![6], vec![7]];
    let config = GenerateConfig { batch_size: 1, max_new_tokens: 2, ..GenerateConfig::default() };
    let result = generate_each(&model, &prompts, &config, |event| match event {
        GenerateEvent::Finished { .. } if ended == 1 => Err(Error::run("the disk is full", "")),
        GenerateEvent::Finished { .. } => {
            ended += 1;
            Ok(())
        }
        GenerateEvent::Step(_) => Ok(()),
    });
    assert!(result.unwrap_err().to_string().contains("the disk is full"));
    assert_eq!(ended, 1);
}

#[test]
fn bad_input_is_refused_and_the_old_output_kept() {
    let folder = tempfile::tempdir().unwrap();
    let model = model_with_tokenizer(folder.path(), "byte-level");
    let output = folder.path().join("out.jsonl");
    fs::write(&output, "old").unwrap();
    let refused = |flags: &[&str]| {
        let output = ["--overwrite", "--output", output.to_str().unwrap()];
        let error = generate(&model, &[flags, output.as_slice()].concat()).unwrap_err();
        assert_eq!(fs::read_to_string(folder.path().join("out.jsonl")).unwrap(), "old");
        error
    };
    let long = "12 and 30 make ".repeat(40);
    for (flags, expected) in [
        (vec!["--prompt", "x", "--temperature", "-1"], "--temperature"),
        (vec!["--prompt", "x", "--top-p", "0.9"], "--temperature"),
        (vec!["--prompt", "x", "--prompt-template", "Q:"], "--prompt-template"),
        (vec!["--prompt", "x", "--adapter", "/nowhere"], "/nowhere: is not a folder"),
        (vec!["--prompt", "x", "--stop", ""], "--stop"),
        (vec!["--prompt", &long], "64 positions"),
        (vec!["--prompt", ""], "has no tokens"),
        (vec![], "--prompt"),
        (vec!["--prompt", "x", "--prompts", "y"], "cannot be used with"),
    ] {
        let error = refused(&flags);
        assert!(error.contains(expected), "{flags:?}: {error}");
    }
    let left = fs::read_dir(folder.path()).unwrap().count();
    assert_eq!(left, 2, "model and out.jsonl only");
}

#[test]
fn prompt_files_are_read_line_by_line_with_positions() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("p.jsonl");
    let read = |text: &str| {
        fs::write(&path, text).unwrap();
        read_prompts(&path).map_err(|error| error.to_string())
    };
    let text = "\u{feff}{\"prompt\": \"a\", \"id\": 1}\r\n\n{\"prompt\": \"b \\n c\"}\n";
    assert_eq!(read(text).unwrap(), ["a", "b \n c"]);
    assert!(read("{\"prompt\": \"a\"}\n\n{\"prompt\": 3}").unwrap_err().contains("p.jsonl:3"));
    assert!(read("{\"prompt\": \"a\"}\n{\"prom").unwrap_err().contains("p.jsonl:2: is not JSON"));
    assert!(read("\n").unwrap_err().contains("holds no prompt"));
    fs::write(&path, b"{\"prompt\": \"\xff\"}").unwrap();
    assert!(read_prompts(&path).is_err());
    assert!(read_prompts(&folder.path().join("absent")).is_err());
}

#[test]
fn stop_ids_come_from_the_most_specific_file() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("generation_config.json");
    let base = r#"{"model_type": "mistral", "vocab_size": 9, "hidden_size": 8, "intermediate_size": 8,
        "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 1}"#;
    let mut config = DecoderConfig::parse(base, "config.json".as_ref()).unwrap();
    let ids = |config: &DecoderConfig| stop_ids(folder.path(), config, 7);
    assert_eq!(ids(&config).unwrap(), [7]);
    config.eos_token_id = vec![3, 4];
    assert_eq!(ids(&config).unwrap(), [3, 4]);
    let cases: [(Value, &[u32]); 4] = [
        (json!({}), &[3, 4]),
        (json!({"eos_token_id": null}), &[3, 4]),
        (json!({"eos_token_id": 5}), &[5]),
        (json!({"eos_token_id": [5, 6]}), &[5, 6]),
    ];
    for (file, expected) in cases {
        fs::write(&path, file.to_string()).unwrap();
        assert_eq!(ids(&config).unwrap(), expected, "{file}");
    }
    for broken in ["{", "{\"eos_token_id\": \"</s>\"}", "{\"eos_token_id\": -1}"] {
        fs::write(&path, broken).unwrap();
        let error = ids(&config).unwrap_err().to_string();
        assert!(error.contains("generation_config.json"), "{error}");
    }
}
