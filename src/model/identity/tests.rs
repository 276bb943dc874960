use std::fs::{self, OpenOptions};
use std::io::{Seek, SeekFrom, Write};
use std::path::PathBuf;

use super::*;

/// Creates a model folder with one matrix of 100,000 bytes.
fn model() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let header = br#"{"a":{"dtype":"U8","shape":[100000],"data_offsets":[0,100000]}}"#;
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend(header);
    bytes.extend([7; 100_000]);
    fs::write(folder.path().join("model.safetensors"), &bytes).unwrap();
    let write = |name: &str, text: &str| fs::write(folder.path().join(name), text).unwrap();
    write("config.json", r#"{"a": 1, "b": {"c": 2, "d": 1e-5}}"#);
    write("tokenizer.json", "{}");
    folder
}

fn copy(from: &Path) -> (tempfile::TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let to = folder.path().join("other name");
    fs::create_dir(&to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        fs::write(to.join(entry.file_name()), fs::read(entry.path()).unwrap()).unwrap();
    }
    (folder, to)
}

#[test]
fn a_copied_folder_is_the_same_model_and_so_is_reformatted_json() {
    let model = model();
    let identity = ModelIdentity::read(model.path()).unwrap();
    let (_kept, other) = copy(model.path());
    fs::write(
        other.join("config.json"),
        "{\"b\":{\"d\":0.00001,\"c\":2},\n\"transformers_version\":\"5\",\"a\":1}",
    )
    .unwrap();
    let copied = ModelIdentity::read(&other).unwrap();
    assert_eq!(copied, identity);
    assert!(identity.differences(&copied).is_empty());
    assert_eq!(identity.fingerprint(), copied.fingerprint());
    let text = serde_json::to_string(&identity).unwrap();
    assert!(text.starts_with(r#"{"config.json":""#), "{text}");
    assert_eq!(serde_json::from_str::<ModelIdentity>(&text).unwrap(), identity);
}

/// Flips one bit in the first byte, in the middle of a tensor (far from the first bytes) and in the last byte.
#[test]
fn a_changed_bit_of_the_weights_is_named() {
    let model = model();
    let path = model.path().join("model.safetensors");
    let before = ModelIdentity::read(model.path()).unwrap();
    for from_end in [100_000, 40_000, 1] {
        let whole = fs::read(&path).unwrap();
        let mut file = OpenOptions::new().write(true).open(&path).unwrap();
        file.seek(SeekFrom::End(-from_end)).unwrap();
        file.write_all(&[6]).unwrap();
        let now = ModelIdentity::read(model.path()).unwrap();
        assert_eq!(before.differences(&now), ["the weights of the model changed"]);
        fs::write(&path, whole).unwrap();
    }
    assert_eq!(ModelIdentity::read(model.path()).unwrap(), before);
}

#[test]
fn changed_added_and_removed_files_are_named() {
    let model = model();
    let before = ModelIdentity::read(model.path()).unwrap();
    let write = |name: &str, text: &str| fs::write(model.path().join(name), text).unwrap();
    write("config.json", r#"{"a": 2, "quantization_config": {"load_in_4bit": true}}"#);
    write("chat_template.jinja", "{{ messages }}");
    write("generation_config.json", r#"{"eos_token_id": [2, 3]}"#);
    write("README.md", "does not count");
    fs::remove_file(model.path().join("tokenizer.json")).unwrap();
    let now = ModelIdentity::read(model.path()).unwrap();
    assert_eq!(
        before.differences(&now),
        [
            "chat_template.jinja of the model was added",
            "config.json of the model changed",
            "generation_config.json of the model was added",
            "quantization_config of the model was added",
            "tokenizer.json of the model was removed",
        ]
    );
    assert_ne!(before.fingerprint(), now.fingerprint());
}

/// The hash covers tensors: the shard that holds them and other header entries do not count; dtypes and shapes do.
#[test]
fn weights_hash_the_same_however_they_are_sharded() {
    let folder = tempfile::tempdir().unwrap();
    let digest = |name: &str, header: &str, data: &[u8]| {
        let path = folder.path().join(name);
        let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
        bytes.extend(header.as_bytes());
        bytes.extend(data);
        fs::write(&path, &bytes).unwrap();
        hex(WeightFiles::open_file(&path).unwrap().digest().unwrap())
    };
    let plain = digest(
        "plain",
        r#"{"a":{"dtype":"U8","shape":[2],"data_offsets":[0,2]},"b":{"dtype":"U8","shape":[2],"data_offsets":[2,4]}}"#,
        b"wxyz",
    );
    let swapped = digest(
        "swapped",
        r#"{"__metadata__":{"format":"pt"},"b":{"dtype":"U8","shape":[2],"data_offsets":[0,2]},"a":{"dtype":"U8","shape":[2],"data_offsets":[2,4]}}"#,
        b"yzwx",
    );
    assert_eq!(plain, swapped);
    let shaped = digest(
        "shaped",
        r#"{"a":{"dtype":"U8","shape":[2,1],"data_offsets":[0,2]},"b":{"dtype":"U8","shape":[2],"data_offsets":[2,4]}}"#,
        b"wxyz",
    );
    assert_ne!(plain, shaped);
    let typed = digest(
        "typed",
        r#"{"a":{"dtype":"I8","shape":[2],"data_offsets":[0,2]},"b":{"dtype":"U8","shape":[2],"data_offsets":[2,4]}}"#,
        b"wxyz",
    );
    assert_ne!(plain, typed);
}

#[test]
fn settings_and_weights_of_an_adapter_count() {
    let (model, adapter) = (model(), tempfile::tempdir().unwrap());
    let write = |name: &str, text: &str| fs::write(adapter.path().join(name), text).unwrap();
    write("adapter_config.json", r#"{"lora_alpha": 16}"#);
    write("adapter_model.safetensors", "weights");
    let base = ModelIdentity::read(model.path()).unwrap();
    let identity = || base.clone().with_adapter(adapter.path()).unwrap();
    let before = identity();
    assert_eq!(base.differences(&before).len(), 2);
    write("adapter_config.json", r#"{"lora_alpha": 32}"#);
    assert_eq!(before.differences(&identity()), ["adapter_config.json of the adapter changed"]);
    write("adapter_config.json", r#"{"lora_alpha": 16}"#);
    write("adapter_model.safetensors", "others");
    assert_eq!(
        before.differences(&identity()),
        ["adapter_model.safetensors of the adapter changed"]
    );
}
