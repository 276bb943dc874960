//! Tests of encoding and decoding text, against Hugging Face's ids, and against a plain BPE with tiny tokenizers.

use std::fs;
use std::path::{Path, PathBuf};

use arithmo::data::tokenizer::{TOKENIZER_FILES, Tokenizer, copy_tokenizer_files};
use serde::Deserialize;

use crate::support::{file_names, reference};
use crate::tiny;

#[derive(Deserialize)]
struct Golden {
    text: String,
    ids: Vec<u32>,
    decoded: Option<String>,
    decoded_with_special: Option<String>,
}

fn fixture(name: &str) -> PathBuf {
    tiny::fixture("tokenizer").join(name)
}

fn golden(path: &Path) -> Vec<Golden> {
    let text = fs::read_to_string(path).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[test]
#[ignore = "compares with data that are not in the tree"]
fn the_mistral_tokenizer_agrees_with_hugging_face_on_every_id_and_text() {
    let Some(folder) = reference("mistral-tokenizer") else { return };
    let tokenizer = Tokenizer::from_folder(&folder).unwrap();
    let lines = golden(&reference("tokenizer_golden.jsonl").unwrap());
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
fn tiny_tokenizers_agree_with_a_plain_bpe() {
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

/// Opens a copy of the `sentencepiece-like` tokenizer with some files, given by name and text, replaced.
fn changed(changes: &[(&str, &str)]) -> arithmo::Result<Tokenizer> {
    let folder = tempfile::tempdir().unwrap();
    copy_tokenizer_files(&fixture("sentencepiece-like"), folder.path()).unwrap();
    for (name, text) in changes {
        fs::write(folder.path().join(name), text).unwrap();
    }
    Tokenizer::from_folder(folder.path())
}

#[test]
fn special_tokens_are_read_from_the_first_file_that_names_them() {
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
    // As in transformers, the map comes before a tokenizer_config.json that does not describe the added tokens.
    let config = ("tokenizer_config.json", r#"{"eos_token": "</s>"}"#);
    assert_eq!(changed(&[config, map]).unwrap().eos_id(), 1);
    let decoder = ("tokenizer_config.json", r#"{"eos_token": "</s>", "added_tokens_decoder": {}}"#);
    assert_eq!(changed(&[decoder, map]).unwrap().eos_id(), 2);
}

#[test]
fn errors_say_why_a_folder_is_unusable() {
    let cases: [(&[(&str, &str)], &str); 4] = [
        (&[("tokenizer_config.json", "{}")], "names no EOS token"),
        (
            &[("tokenizer_config.json", r#"{"eos_token": "<end>"}"#)],
            "\"<end>\" is not in the vocabulary",
        ),
        (&[("tokenizer_config.json", "{")], "tokenizer_config.json: is not JSON"),
        (&[("tokenizer.json", "{}")], "tokenizer.json: is not a usable tokenizer"),
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

/// Opens the tokenizer with `config` as its `tokenizer_config.json`.
fn configured(config: serde_json::Value) -> arithmo::Result<Tokenizer> {
    changed(&[("tokenizer_config.json", &config.to_string())])
}

/// Checks that tokens of `added_tokens_decoder` that tokenizer.json lacks are added, as in transformers 4.57.6 and
/// 5.24. The vocabulary of tokenizer.json ends at id 421.
#[test]
fn tokens_that_only_the_config_names_are_added() {
    let token = |content: &str| serde_json::json!({"content": content, "special": true, "normalized": false});
    let decoder = serde_json::json!({
        "1": token("<s>"), "422": token("<|im_start|>"), "423": token("<|im_end|>"),
    });
    let plain = changed(&[]).unwrap();
    let text = "It is 4.";
    let before = plain.encode(text, true).unwrap();
    for eos in ["</s>", "<|im_end|>"] {
        let config = serde_json::json!({
            "bos_token": "<s>", "eos_token": eos, "added_tokens_decoder": decoder,
        });
        let tokenizer = configured(config).unwrap();
        let ids = tokenizer.encode(&format!("{text}<|im_end|>"), true).unwrap();
        assert_eq!(ids, [&before[..], &[423]].concat());
        assert_eq!(tokenizer.decode(&ids, true).unwrap(), text);
        let id = if eos == "</s>" { 2 } else { 423 };
        assert_eq!((tokenizer.eos_id(), tokenizer.vocab_size()), (id, 424));
    }
    // transformers ignores the id in the file and assigns the next free one, which the model's embedding does not
    // match.
    let gap = serde_json::json!({
        "eos_token": "</s>", "added_tokens_decoder": {"430": token("<|im_end|>")},
    });
    let error = configured(gap).unwrap_err().to_string();
    assert!(error.contains("\"<|im_end|>\" has the id 430 but would get 422"), "{error}");
    let nonsense =
        serde_json::json!({"eos_token": "</s>", "added_tokens_decoder": {"x": token("a")}});
    let error = configured(nonsense).unwrap_err().to_string();
    assert!(error.contains("added_tokens_decoder: \"x\" is not an id"), "{error}");
}

#[test]
fn additional_and_padding_tokens_are_added_in_the_order_of_transformers() {
    let config = serde_json::json!({
        "bos_token": "<s>", "eos_token": "</s>", "pad_token": "[PAD]",
        "additional_special_tokens": ["<|user|>", {"content": "<|end|>", "lstrip": false}],
    });
    let tokenizer = configured(config).unwrap();
    assert_eq!(tokenizer.pad_id(), 422);
    let ids = tokenizer.encode("<|user|><|end|>", false).unwrap();
    assert_eq!(ids.iter().filter(|id| **id > 421).copied().collect::<Vec<_>>(), [423, 424]);
}

/// Checks that tokens are added from a table in `extra_special_tokens`, and from special_tokens_map.json if
/// tokenizer_config.json has no `added_tokens_decoder`, as in transformers 5.24.
#[test]
fn special_tokens_in_a_table_or_in_the_map_are_added() {
    let added_ids = |files: &[(&str, serde_json::Value)]| {
        let texts: Vec<(&str, String)> = files.iter().map(|(f, j)| (*f, j.to_string())).collect();
        let texts: Vec<(&str, &str)> = texts.iter().map(|(f, text)| (*f, &**text)).collect();
        let tokenizer = changed(&texts).unwrap();
        let mut ids = tokenizer.encode("<|user|><|end|>", false).unwrap();
        ids.retain(|id| *id > 421);
        ids
    };
    let table = serde_json::json!({
        "eos_token": "</s>", "extra_special_tokens": {"end_token": "<|end|>", "user_token": "<|user|>"},
    });
    assert_eq!(added_ids(&[("tokenizer_config.json", table)]), [423, 422]);
    let config = serde_json::json!({"eos_token": "</s>"});
    let map = serde_json::json!({
        "pad_token": "[PAD]", "additional_special_tokens": ["<|user|>", {"content": "<|end|>"}],
    });
    let files = [("tokenizer_config.json", config), ("special_tokens_map.json", map.clone())];
    assert_eq!(added_ids(&files), [423, 424]);
    // With an `added_tokens_decoder`, the map is not read.
    let with_decoder = serde_json::json!({
        "eos_token": "</s>",
        "added_tokens_decoder": {"422": {"content": "<|end|>", "special": true}},
    });
    let map = serde_json::json!({"additional_special_tokens": ["<|user|>"]});
    let files = [("tokenizer_config.json", with_decoder), ("special_tokens_map.json", map)];
    assert_eq!(added_ids(&files), [422]);
}

#[test]
fn files_that_make_the_tokenizers_crate_panic_are_refused() {
    for name in ["panics-1.json", "panics-2.json"] {
        let damaged = fs::read_to_string(fixture("damaged").join(name)).unwrap();
        let work = |tokenizer: Tokenizer| {
            let ids = tokenizer.encode("It is 4 + 5 = 9, naïve 中文 \u{1f600}.", true)?;
            tokenizer.decode(&ids, true)
        };
        let error = changed(&[("tokenizer.json", &damaged)]).and_then(work);
        let error = error.unwrap_err().to_string();
        assert!(error.contains("tokenizer.json: "), "{error}");
        assert!(error.contains("not a usable tokenizer") || error.contains("cannot "), "{error}");
    }
}

#[test]
fn truncation_and_padding_settings_in_the_file_are_ignored() {
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
fn copying_copies_tokenizer_files_only() {
    let (from, to) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    for name in TOKENIZER_FILES.into_iter().chain(["model.safetensors"]) {
        fs::write(from.path().join(name), name).unwrap();
    }
    let target = to.path().join("new");
    copy_tokenizer_files(from.path(), &target).unwrap();
    let mut wanted = TOKENIZER_FILES.to_vec();
    wanted.sort_unstable();
    assert_eq!(file_names(&target), wanted);
}
