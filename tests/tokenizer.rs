//! Text to ids and back: against Hugging Face's ids, and against a plain BPE on our own tiny tokenizers.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs;
use std::path::{Path, PathBuf};

use arithmo::data::tokenizer::{TOKENIZER_FILES, Tokenizer, copy_tokenizer_files};
use serde::Deserialize;

#[derive(Deserialize)]
struct Golden {
    text: String,
    ids: Vec<u32>,
    decoded: Option<String>,
    decoded_with_special: Option<String>,
}

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/tokenizer").join(name)
}

fn golden(path: &Path) -> Vec<Golden> {
    let text = fs::read_to_string(path).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// The golden data beside the checkout, or `None` with a plain note.
fn reference() -> Option<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../shared/reference");
    if folder.is_dir() {
        return Some(folder);
    }
    eprintln!("SKIPPED: the golden data (../shared/reference) is not beside this checkout");
    None
}

#[test]
fn the_mistral_tokenizer_agrees_with_hugging_face_on_every_id_and_text() {
    let Some(reference) = reference() else { return };
    let tokenizer = Tokenizer::from_folder(&reference.join("mistral-tokenizer")).unwrap();
    let lines = golden(&reference.join("tokenizer_golden.jsonl"));
    assert_eq!(lines.len(), 200);
    for Golden { text, ids, decoded, decoded_with_special } in lines {
        assert_eq!(tokenizer.encode(&text, true).unwrap(), ids, "{text:?}");
        assert_eq!(tokenizer.encode(&text, false).unwrap(), ids[1..], "{text:?}");
        assert_eq!(Some(tokenizer.decode(&ids, true).unwrap()), decoded, "{text:?}");
        assert_eq!(Some(tokenizer.decode(&ids, false).unwrap()), decoded_with_special, "{text:?}");
    }
    assert_eq!((tokenizer.bos_id(), tokenizer.eos_id(), tokenizer.pad_id()), (Some(1), 2, 2));
    assert_eq!((tokenizer.eos_token(), tokenizer.vocab_size()), ("</s>", 32000));
}

#[test]
fn our_tiny_tokenizers_agree_with_a_plain_bpe() {
    for (name, pad) in [("sentencepiece-like", 2), ("byte-level", 0)] {
        let tokenizer = Tokenizer::from_folder(&fixture(name)).unwrap();
        assert_eq!((tokenizer.bos_id(), tokenizer.eos_id()), (Some(1), 2));
        assert_eq!((tokenizer.pad_id(), tokenizer.eos_token()), (pad, "</s>"));
        let lines = golden(&fixture(name).join("golden.jsonl"));
        assert!(lines.len() > 10);
        for Golden { text, ids, .. } in lines {
            assert_eq!(tokenizer.encode(&text, true).unwrap(), ids, "{name}: {text:?}");
            if !text.contains('<') {
                assert_eq!(tokenizer.decode(&ids, true).unwrap(), text, "{name}");
            }
        }
    }
}

/// A copy of a fixture whose files a test may change.
fn changed(changes: &[(&str, &str)]) -> arithmo::Result<Tokenizer> {
    let folder = tempfile::tempdir().unwrap();
    copy_tokenizer_files(&fixture("sentencepiece-like"), folder.path()).unwrap();
    for (name, text) in changes {
        fs::write(folder.path().join(name), text).unwrap();
    }
    Tokenizer::from_folder(folder.path())
}

#[test]
fn special_tokens_are_found_in_the_next_file_where_one_names_none() {
    let no_config = ("tokenizer_config.json", "{}");
    let map =
        ("special_tokens_map.json", r#"{"eos_token": {"content": "<s>"}, "pad_token": "<unk>"}"#);
    let tokenizer = changed(&[no_config, map]).unwrap();
    assert_eq!((tokenizer.eos_id(), tokenizer.pad_id(), tokenizer.bos_id()), (1, 0, None));
    let ids = ("config.json", r#"{"eos_token_id": [2, 1], "bos_token_id": 1}"#);
    let tokenizer = changed(&[no_config, ids]).unwrap();
    assert_eq!(
        (tokenizer.eos_token(), tokenizer.eos_id(), tokenizer.bos_id()),
        ("</s>", 2, Some(1))
    );
    let generation = ("generation_config.json", r#"{"eos_token_id": 1}"#);
    assert_eq!(changed(&[no_config, ids, generation]).unwrap().eos_id(), 1);
}

#[test]
fn a_folder_that_cannot_work_says_why() {
    let cases: [(&[(&str, &str)], &str); 4] = [
        (&[("tokenizer_config.json", "{}")], "names no EOS token"),
        (
            &[("tokenizer_config.json", r#"{"eos_token": "<end>"}"#)],
            "\"<end>\" is not in the vocabulary",
        ),
        (&[("tokenizer_config.json", "{")], "tokenizer_config.json: is not JSON"),
        (&[("tokenizer.json", "{}")], "tokenizer.json: is not a tokenizer"),
    ];
    for (changes, wanted) in cases {
        let error = changed(changes).unwrap_err().to_string();
        assert!(error.contains(wanted), "{error}");
    }
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("tokenizer.model"), b"x").unwrap();
    let error = Tokenizer::from_folder(folder.path()).unwrap_err().to_string();
    assert!(error.contains("SentencePiece"), "{error}");
}

#[test]
fn lengths_stored_in_the_file_cut_and_pad_nothing() {
    let text = fs::read_to_string(fixture("sentencepiece-like").join("tokenizer.json")).unwrap();
    let mut json: serde_json::Value = serde_json::from_str(&text).unwrap();
    json["truncation"] = serde_json::json!(
        {"direction": "Right", "max_length": 3, "strategy": "LongestFirst", "stride": 0});
    json["padding"] = serde_json::json!({"strategy": {"Fixed": 64}, "direction": "Right",
        "pad_to_multiple_of": null, "pad_id": 2, "pad_type_id": 0, "pad_token": "</s>"});
    let limited = changed(&[("tokenizer.json", &json.to_string())]).unwrap();
    let plain = changed(&[]).unwrap();
    let text = "The answer is 48, and then some more.";
    assert_eq!(limited.encode(text, true).unwrap(), plain.encode(text, true).unwrap());
}

#[test]
fn copying_takes_every_tokenizer_file_and_nothing_else() {
    let (from, to) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    for name in TOKENIZER_FILES.into_iter().chain(["model.safetensors"]) {
        fs::write(from.path().join(name), name).unwrap();
    }
    let target = to.path().join("new");
    copy_tokenizer_files(from.path(), &target).unwrap();
    let mut copied: Vec<_> = fs::read_dir(&target)
        .unwrap()
        .map(|e| e.unwrap().file_name().into_string().unwrap())
        .collect();
    copied.sort();
    let mut wanted = TOKENIZER_FILES.to_vec();
    wanted.sort_unstable();
    assert_eq!(copied, wanted);
}
