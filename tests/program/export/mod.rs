//! Tests of `arithmo export`: what the file holds, read by a reader of its own, and what is refused.

mod reader;

use std::fs;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::process::Output;

use arithmo::model::save::load_safetensors_f32;
use serde_json::{Value, json};
use tempfile::TempDir;

use self::reader::Gguf;
use crate::calls::{arithmo, message, printed};
use crate::support::{copy, file_names, json_file, reference};

/// A folder with a model `model` and, for some, an adapter `adapter`.
struct Desk(TempDir);

impl Desk {
    /// Copies a golden model.
    fn with(model: &str) -> Self {
        let desk = Self(tempfile::tempdir().unwrap());
        copy(&reference(model).unwrap(), &desk.at("model"));
        desk
    }

    fn at(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// Runs `arithmo export --model model --output out.gguf` with further flags.
    fn export(&self, flags: &[&str]) -> Output {
        let start = ["export", "--model", "model", "--output", "out.gguf"];
        arithmo(self.0.path(), &[&start, flags].concat())
    }

    /// Exports and reads the file.
    #[track_caller]
    fn exported(&self, flags: &[&str]) -> Gguf {
        let output = self.export(&[&["--overwrite"], flags].concat());
        assert!(output.status.success(), "{flags:?}: {}", message(&output));
        assert_eq!(output.stdout, b"out.gguf\n");
        Gguf::read(&self.at("out.gguf"))
    }

    /// Panics unless the export fails with each of `parts` in its message, and without leaving a file.
    #[track_caller]
    fn refused(&self, flags: &[&str], parts: &[&str]) {
        let before = file_names(self.0.path());
        let output = self.export(flags);
        let text = message(&output);
        assert_eq!(output.status.code(), Some(1), "{text}");
        for part in parts {
            assert!(text.contains(part), "no {part:?} in {text}");
        }
        assert_eq!(file_names(self.0.path()), before);
    }

    /// Changes a JSON file of the model.
    fn edit(&self, name: &str, change: impl FnOnce(&mut Value)) {
        let path = self.at("model").join(name);
        let mut json = json_file(&path);
        change(&mut json);
        fs::write(path, json.to_string()).unwrap();
    }
}

/// Returns where the values of a tensor lie in the bytes of a safetensors file.
fn range_of(bytes: &[u8], name: &str) -> Range<usize> {
    let start = 8 + u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let header: Value = serde_json::from_slice(&bytes[8..start]).unwrap();
    let [begin, end] = [0, 1].map(|at| header[name]["data_offsets"][at].as_u64().unwrap() as usize);
    start + begin..start + end
}

/// Returns the name in the file for a tensor of a model of Llama's shape.
fn name_in_file(name: &str) -> String {
    let mut name = name.to_string();
    for (from, to) in [
        ("model.embed_tokens", "token_embd"),
        ("model.norm", "output_norm"),
        ("lm_head", "output"),
        ("model.layers", "blk"),
        ("self_attn.q_proj", "attn_q"),
        ("self_attn.k_proj", "attn_k"),
        ("self_attn.v_proj", "attn_v"),
        ("self_attn.o_proj", "attn_output"),
        ("mlp.gate_proj", "ffn_gate"),
        ("mlp.up_proj", "ffn_up"),
        ("mlp.down_proj", "ffn_down"),
        ("input_layernorm", "attn_norm"),
        ("post_attention_layernorm", "ffn_norm"),
    ] {
        name = name.replace(from, to);
    }
    name
}

/// Returns where row `row` of a head's rows lies in Hugging Face's order, if `row` counts in that of the file: rows `i` and
/// `i + d / 2` there are neighbors here.
fn original_row(row: usize, head_dim: usize) -> usize {
    let (head, inside) = (row / head_dim, row % head_dim);
    head * head_dim + inside % 2 * (head_dim / 2) + inside / 2
}

/// Panics unless the file holds exactly the weights of the folder. `interleaved_heads` is the width of the heads whose rows
/// are reordered, or 0.
fn assert_weights(file: &Gguf, folder: &Path, head_dim: usize) {
    let weights = load_safetensors_f32(&folder.join("model.safetensors")).unwrap();
    let mut compared = 0;
    for (name, (shape, values)) in weights {
        let Some(tensor) = file.tensors.get(&name_in_file(&name)) else {
            assert_eq!(name, "lm_head.weight", "not in the file");
            continue;
        };
        assert_eq!(tensor.shape, shape, "{name}");
        let rotated = name.contains("q_proj") || name.contains("k_proj");
        let width = values.len() / shape[0];
        for (row, found) in tensor.f32s().chunks(width).enumerate() {
            let from = if rotated && head_dim > 0 { original_row(row, head_dim) } else { row };
            assert_eq!(found, &values[from * width..][..width], "{name}, row {row}");
        }
        compared += 1;
    }
    assert_eq!(file.tensors.len(), compared);
}

#[test]
fn a_mistral_model_is_written_with_its_weights_keys_and_tokens() {
    let desk = Desk::with("models/tiny-a");
    let file = desk.exported(&["--type", "f32"]);
    assert_weights(&file, &desk.at("model"), 16);
    for (key, value) in [
        ("general.architecture", json!("llama")),
        ("general.name", json!("model")),
        ("general.file_type", json!(0)),
        ("llama.block_count", json!(2)),
        ("llama.context_length", json!(1024)),
        ("llama.embedding_length", json!(64)),
        ("llama.feed_forward_length", json!(128)),
        ("llama.attention.head_count", json!(4)),
        ("llama.attention.head_count_kv", json!(2)),
        ("llama.attention.key_length", json!(16)),
        ("llama.rope.dimension_count", json!(16)),
        ("llama.rope.freq_base", json!(10000.0)),
        ("llama.attention.layer_norm_rms_epsilon", json!(1e-6f32)),
        ("tokenizer.ggml.model", json!("llama")),
        ("tokenizer.ggml.bos_token_id", json!(1)),
        ("tokenizer.ggml.eos_token_id", json!(2)),
        ("tokenizer.ggml.unknown_token_id", json!(0)),
        ("tokenizer.ggml.add_bos_token", json!(true)),
        ("tokenizer.ggml.add_eos_token", json!(false)),
        ("tokenizer.ggml.add_space_prefix", json!(true)),
    ] {
        assert_eq!(file.keys.get(key), Some(&value), "{key}");
    }
    let tokenizer = json_file(&desk.at("model/tokenizer.json"));
    let tokens = file.texts("tokenizer.ggml.tokens");
    assert_eq!(tokens.len(), 512);
    for (text, id) in tokenizer["model"]["vocab"].as_object().unwrap() {
        assert_eq!(tokens[id.as_u64().unwrap() as usize], text);
    }
    let types = file.keys["tokenizer.ggml.token_type"].as_array().unwrap();
    assert_eq!(types[..4], [json!(2), json!(3), json!(3), json!(6)]);
    // The first merge of the list has the highest score of all joined tokens.
    let first = tokenizer["model"]["merges"][0].as_array().unwrap();
    let joined = format!("{}{}", first[0].as_str().unwrap(), first[1].as_str().unwrap());
    let id = tokens.iter().position(|token| *token == joined).unwrap();
    assert_eq!(file.keys["tokenizer.ggml.scores"][id], json!(-0.0f32));
}

#[test]
fn byte_level_tokens_have_merges_and_rows_without_token_are_unused() {
    let desk = Desk::with("families/models/qwen2");
    // Two tokens fewer than the model has rows.
    desk.edit("tokenizer.json", |json| {
        let vocabulary = json["model"]["vocab"].as_object_mut().unwrap();
        vocabulary.retain(|_, id| id.as_u64().unwrap() < 510);
        let kept = vocabulary.clone();
        json["model"]["merges"].as_array_mut().unwrap().retain(|merge| {
            let joined = format!("{}{}", merge[0].as_str().unwrap(), merge[1].as_str().unwrap());
            kept.contains_key(&joined)
        });
    });
    fs::write(desk.at("model/chat_template.jinja"), "{{ messages[0].content }}").unwrap();
    let file = desk.exported(&["--type", "f32"]);
    assert_weights(&file, &desk.at("model"), 0);
    let tokens = file.texts("tokenizer.ggml.tokens");
    assert_eq!(tokens[510..], ["[PAD510]", "[PAD511]"]);
    let types = file.keys["tokenizer.ggml.token_type"].as_array().unwrap();
    assert_eq!((&types[0], &types[509], &types[510]), (&json!(3), &json!(1), &json!(5)));
    let tokenizer = json_file(&desk.at("model/tokenizer.json"));
    let merges = tokenizer["model"]["merges"].as_array().unwrap();
    let text =
        |merge: &Value| format!("{} {}", merge[0].as_str().unwrap(), merge[1].as_str().unwrap());
    let expected: Vec<String> = merges.iter().map(text).collect();
    assert_eq!(file.texts("tokenizer.ggml.merges"), expected);
    for (key, value) in [
        ("general.architecture", json!("qwen2")),
        ("tokenizer.ggml.model", json!("gpt2")),
        // The rules of the family, which transformers uses whatever tokenizer.json says.
        ("tokenizer.ggml.pre", json!("qwen2")),
        ("tokenizer.ggml.add_bos_token", json!(false)),
        ("tokenizer.ggml.padding_token_id", json!(0)),
        ("tokenizer.chat_template", json!("{{ messages[0].content }}")),
    ] {
        assert_eq!(file.keys.get(key), Some(&value), "{key}");
    }
    // Tied embeddings are stored once.
    assert!(!file.tensors.contains_key("output.weight"));
}

#[test]
fn ministral_3_has_the_keys_of_its_rotations() {
    let desk = Desk::with("families/models/ministral3");
    let file = desk.exported(&["--type", "f32"]);
    assert_weights(&file, &desk.at("model"), 24);
    for (key, value) in [
        ("mistral3.rope.scaling.type", json!("yarn")),
        ("mistral3.rope.scaling.factor", json!(16.0)),
        ("mistral3.rope.scaling.original_context_length", json!(16)),
        ("mistral3.rope.scaling.yarn_beta_fast", json!(32.0)),
        ("mistral3.rope.scaling.yarn_log_multiplier", json!(1.0)),
        ("mistral3.attention.temperature_scale", json!(0.1f32)),
    ] {
        assert_eq!(file.keys.get(key), Some(&value), "{key}");
    }
}

/// Numbers of `ggml_type` and of `llama_ftype`. Rows of 64 and 128 are no multiples of 256, so the types of 256 values fall
/// back.
#[test]
fn every_type_has_its_number_and_norms_stay_f32() {
    let desk = Desk::with("models/tiny-a");
    for (name, file_type, matrix, head) in [
        ("f32", 0, 0, 0),
        ("f16", 1, 1, 1),
        ("bf16", 32, 30, 30),
        ("q8_0", 7, 8, 8),
        ("q4_0", 2, 2, 8),
        ("q4_k_m", 15, 6, 8),
    ] {
        let file = desk.exported(&["--type", name]);
        assert_eq!(file.keys["general.file_type"], file_type, "{name}");
        assert_eq!(file.tensors["blk.0.attn_q.weight"].kind, matrix, "{name}");
        assert_eq!(file.tensors["output.weight"].kind, head, "{name}");
        assert_eq!(file.tensors["blk.1.ffn_norm.weight"].kind, 0, "{name}");
    }
}

#[test]
fn an_adapter_is_merged_as_merge_does() {
    for name in ["plain", "use_dora"] {
        let desk = Desk::with("models/tiny-a");
        copy(&reference(&format!("peft_adapters/{name}")).unwrap(), &desk.at("adapter"));
        let file = desk.exported(&["--type", "f32", "--adapter", "adapter"]);
        let merge = ["merge", "--model", "model", "--adapter", "adapter", "--output", "merged"];
        printed(desk.0.path(), &merge);
        assert_weights(&file, &desk.at("merged"), 16);
        let base = desk.exported(&["--type", "f32"]);
        let q = "blk.0.attn_q.weight";
        assert_ne!(base.tensors[q].bytes, file.tensors[q].bytes, "{name}");
    }
}

#[test]
fn an_adapter_of_a_quantized_base_is_merged_into_the_dequantized_weights() {
    let desk = Desk::with("models/tiny-a");
    copy(&reference("peft_adapters/plain").unwrap(), &desk.at("adapter"));
    let quantized = ["--adapter", "adapter", "--quantization", "nf4"];
    let file = desk.exported(&[&["--type", "f32"], &quantized[..]].concat());
    let merge = ["merge", "--model", "model", "--output", "merged", "--no-measure"];
    printed(desk.0.path(), &[&merge, &quantized[..]].concat());
    assert_weights(&file, &desk.at("merged"), 16);
    desk.refused(
        &[&["--type", "f32", "--overwrite", "--target", "requantized"], &quantized[..]].concat(),
        &["--target: requantized", "which GGUF cannot hold"],
    );
}

/// llama.cpp's OLMo 2 has no tied embeddings.
#[test]
fn a_tied_head_is_written_where_the_architecture_needs_one() {
    let desk = Desk::with("families/models/olmo2");
    let head = |file: &Gguf| file.tensors.get("output.weight").map(|head| head.bytes.clone());
    assert!(head(&desk.exported(&["--type", "f32"])).is_some());
    desk.edit("config.json", |json| json["tie_word_embeddings"] = json!(true));
    // A head beside tied embeddings has to equal them.
    let weights = desk.at("model/model.safetensors");
    let mut bytes = fs::read(&weights).unwrap();
    let [embedding, head_range] =
        ["model.embed_tokens.weight", "lm_head.weight"].map(|name| range_of(&bytes, name));
    bytes.copy_within(embedding, head_range.start);
    fs::write(&weights, bytes).unwrap();
    let tied = desk.exported(&["--type", "f32"]);
    assert_eq!(head(&tied).unwrap(), tied.tensors["token_embd.weight"].bytes);
}

/// Notes name what GGUF cannot say; templates that cannot be used are no reason to refuse the weights.
#[test]
fn notes_name_what_is_lost() {
    let desk = Desk::with("families/models/qwen2");
    let notes = || {
        let output = desk.export(&["--type", "q8_0", "--overwrite"]);
        assert!(output.status.success(), "{}", message(&output));
        message(&output)
    };
    assert!(!notes().contains("note:"), "{}", notes());
    desk.edit("tokenizer.json", |json| json["added_tokens"][1]["rstrip"] = json!(true));
    assert!(notes().contains("note: GGUF cannot say that tokens take spaces"), "{}", notes());
    fs::write(desk.at("model/generation_config.json"), r#"{"eos_token_id": [2, 17, 18]}"#).unwrap();
    assert!(notes().contains("note: generation also ends at"), "{}", notes());
    fs::write(desk.at("model/chat_template.jinja"), "{% for %}").unwrap();
    assert!(notes().contains("chat_template.jinja: is not a chat template"), "{}", notes());
}

#[test]
fn both_chat_templates_are_written() {
    let desk = Desk::with("models/tiny-a");
    fs::write(desk.at("model/chat_template.jinja"), "plain").unwrap();
    fs::create_dir(desk.at("model/additional_chat_templates")).unwrap();
    fs::write(desk.at("model/additional_chat_templates/tool_use.jinja"), "tools").unwrap();
    let file = desk.exported(&["--type", "q8_0"]);
    assert_eq!(file.keys["tokenizer.chat_template"], "plain");
    assert_eq!(file.keys["tokenizer.chat_template.tool_use"], "tools");
    assert_eq!(file.keys["tokenizer.chat_templates"], json!(["tool_use"]));
}

#[test]
fn what_gguf_cannot_hold_is_refused_before_anything_is_written() {
    let desk = Desk::with("families/models/qwen2");
    let q8 = ["--type", "q8_0"];
    desk.edit("config.json", |json| {
        json["rope_scaling"] = json!({
            "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
            "original_max_position_embeddings": 64,
        });
    });
    desk.refused(&q8, &["scaled by \"llama3\", which GGUF's architecture \"qwen2\" lacks"]);
    let desk = Desk::with("models/tiny-b");
    desk.edit("tokenizer.json", |json| json["normalizer"] = json!({"type": "Lowercase"}));
    desk.refused(&q8, &["tokenizer.json", "rules that have no known name in GGUF", "Lowercase"]);
    let desk = Desk::with("models/tiny-a");
    desk.edit("tokenizer_config.json", |json| json["pad_token"] = json!("<a new token>"));
    desk.refused(&q8, &["\"<a new token>\" the id 512", "embeddings for 512 tokens"]);
}

#[test]
fn broken_input_and_existing_output_leave_everything_as_it_was() {
    let desk = Desk::with("models/tiny-a");
    let q8 = ["--type", "q8_0"];
    fs::write(desk.at("out.gguf"), "mine").unwrap();
    desk.refused(&q8, &["out.gguf: exists already", "--overwrite"]);
    let weights = "model/model.safetensors";
    let start = ["export", "--model", "model", "--type", "f16", "--overwrite"];
    let output = arithmo(desk.0.path(), &[&start[..], &["--output", weights]].concat());
    assert!(message(&output).contains("belongs to the input"), "{}", message(&output));
    let again = ["--type", "q8_0", "--overwrite"];
    copy(&reference("peft_adapters/plain").unwrap(), &desk.at("adapter"));
    desk.edit("config.json", |json| json["hidden_size"] = json!(32));
    desk.refused(&again, &["tensors do not fit"]);
    desk.edit("config.json", |json| json["hidden_size"] = json!(64));
    let other = Desk::with("models/tiny-b");
    copy(&desk.at("adapter"), &other.at("adapter"));
    other.refused(&["--type", "q8_0", "--adapter", "adapter"], &["adapter_model.safetensors"]);
    let bytes = fs::read(desk.at(weights)).unwrap();
    fs::write(desk.at(weights), &bytes[..bytes.len() - 100]).unwrap();
    desk.refused(&again, &["model.safetensors", "fetch it again"]);
    fs::write(desk.at(weights), bytes).unwrap();
    fs::remove_file(desk.at("model/tokenizer.json")).unwrap();
    desk.refused(&again, &["contains no tokenizer.json"]);
    assert_eq!(fs::read(desk.at("out.gguf")).unwrap(), b"mine");
}

#[test]
fn values_beyond_f16_are_named_with_the_types_that_hold_them() {
    let desk = Desk::with("models/tiny-a");
    let weights = desk.at("model/model.safetensors");
    let mut bytes = fs::read(&weights).unwrap();
    // The first value of a projection.
    let start = range_of(&bytes, "model.layers.0.mlp.up_proj.weight").start;
    bytes[start..start + 4].copy_from_slice(&1e6f32.to_le_bytes());
    fs::write(&weights, bytes).unwrap();
    for kind in ["f16", "q8_0", "q4_k_m"] {
        desk.refused(&["--type", kind], &["1000000 is too large", "--type bf16 or f32"]);
    }
    desk.exported(&["--type", "bf16"]);
}

/// A limit on the size of files stands for a full disk: the write that would pass it fails.
#[cfg(unix)]
#[test]
fn a_full_disk_leaves_nothing() {
    let desk = Desk::with("models/tiny-a");
    let program = env!("CARGO_BIN_EXE_arithmo");
    let script = format!(
        "trap '' XFSZ; ulimit -f 64; exec {program} --backend ndarray export --model model --output out.gguf --type f32"
    );
    let mut bash = std::process::Command::new("bash");
    let output = bash.args(["-c", &script]).current_dir(desk.0.path()).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(message(&output).contains("cannot write"), "{}", message(&output));
    assert_eq!(file_names(desk.0.path()), ["model"]);
}
