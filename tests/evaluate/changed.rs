//! Checks that kept answers are reused only with the same model, data and settings. More problems may be added.

use std::fs;
use std::path::Path;

use serde_json::{Value, json};

use crate::answers::fixture;
use crate::calls::{model, printed, refused, text};
use crate::support::{copy, demo_model, json_file, json_lines};

/// Changes a JSON file, or creates it.
fn edit_json(path: &Path, edit: impl FnOnce(&mut Value)) {
    let mut value = if path.exists() { json_file(path) } else { json!({}) };
    edit(&mut value);
    fs::write(path, value.to_string()).unwrap();
}

#[test]
fn answers_of_a_changed_model_are_not_reused() {
    let folder = tempfile::tempdir().unwrap();
    let data = fixture("gsm8k.jsonl");
    let model = folder.path().join("model");
    copy(&demo_model(), &model);
    let (output, scores) = (folder.path().join("out"), folder.path().join("scores"));
    let answers =
        ["evaluate", "gsm8k", "--model", text(&model), "--data", text(&data), "--limit", "2"];
    let answers = [&answers[..], &["--max-new-tokens", "4", "--output", text(&output)]].concat();
    let pairs = folder.path().join("pairs.jsonl");
    fs::write(&pairs, json!({"prompt": "1 + 1?", "chosen": " 2", "rejected": " 3"}).to_string())
        .unwrap();
    let preference = ["evaluate", "preference", "--model", text(&model), "--data", text(&pairs)];
    let preference = [&preference[..], &["--output", text(&scores)]].concat();
    let own = folder.path().join("own.jsonl");
    let sampling =
        ["sample-pairs", "--model", text(&model), "--data", text(&data), "--samples", "2"];
    let sampling = [&sampling[..], &["--max-new-tokens", "4", "--output", text(&own)]].concat();
    for command in [&answers, &preference] {
        printed(command);
        // The model has not changed, so the kept answers are used.
        printed(command);
    }
    let partial = folder.path().join("own.partial.jsonl");
    refused(&sampling, 1);
    let settings = json_file(&folder.path().join("own.stats.json"))["asked"].clone();
    assert!(settings["model_identity"]["weights"].is_string(), "{settings}");

    let weights = model.join("model.safetensors");
    let bytes = fs::read(&weights).unwrap();
    let mut changed = bytes.clone();
    *changed.last_mut().unwrap() ^= 0x40;
    let changes: [(&str, &dyn Fn()); 4] = [
        ("weights", &|| fs::write(&weights, &changed).unwrap()),
        ("generation_config.json", &|| {
            edit_json(&model.join("generation_config.json"), |value| {
                value["eos_token_id"] = json!(5)
            });
        }),
        ("tokenizer_config.json", &|| {
            edit_json(&model.join("tokenizer_config.json"), |value| {
                value["chat_template"] = json!("{{ x }}")
            });
        }),
        ("chat_template.jinja", &|| {
            fs::write(model.join("chat_template.jinja"), "{{ messages }}").unwrap();
        }),
    ];
    for (name, change) in changes {
        change();
        for command in [&answers, &preference] {
            let message = refused(command, 1);
            assert!(message.contains(name) && message.contains("--overwrite"), "{name}: {message}");
        }
        fs::remove_dir_all(&model).unwrap();
        copy(&demo_model(), &model);
    }
    printed(&answers);
    // Answers of an interrupted evaluation are not continued if they do not name the model's weights.
    fs::remove_file(output.join("results.json")).unwrap();
    let line = json!({"form": 1, "settings": {"model": "m", "problems": 2}});
    for (kept, command) in [(output.join("answers.partial.jsonl"), &answers), (partial, &sampling)]
    {
        fs::write(&kept, format!("{line}\n")).unwrap();
        let message = refused(command, 1);
        assert!(message.contains("does not say which weights"), "{message}");
    }
    // Answers that an older version kept, with prompt and answer in one text, are not continued.
    let line = json!({"settings": {"model": "m", "problems": 2}});
    fs::write(output.join("answers.partial.jsonl"), format!("{line}\n")).unwrap();
    let message = refused(&answers, 1);
    assert!(message.contains("another version") && message.contains("--overwrite"), "{message}");
    printed(&[&answers[..], &["--overwrite"]].concat());
}

#[test]
fn a_larger_limit_reuses_kept_answers() {
    let folder = tempfile::tempdir().unwrap();
    let (data, model) = (fixture("gsm8k.jsonl"), model());
    let [grown, whole] = ["grown", "whole"].map(|name| folder.path().join(name));
    let call = |output: &Path, limit: &str, more: &[&str]| {
        let args =
            ["evaluate", "gsm8k", "--model", &model, "--data", text(&data), "--limit", limit];
        let length: &[&str] = if more.is_empty() { &["--max-new-tokens", "6"] } else { more };
        let args = [&args[..], &["--output", text(output)], length].concat();
        args.iter().map(ToString::to_string).collect::<Vec<_>>()
    };
    let run = |args: &[String]| printed(&args.iter().map(String::as_str).collect::<Vec<_>>());
    let refuse = |args: &[String]| refused(&args.iter().map(String::as_str).collect::<Vec<_>>(), 1);
    run(&call(&grown, "2", &[]));
    // A changed answer is still there afterwards, so kept answers are used.
    let file = grown.join("predictions.json");
    let unmarked = fs::read_to_string(&file).unwrap();
    edit_json(&file, |all| {
        all[1]["completion"] = json!(" kept");
        all[1]["prediction"] = json!(all[1]["prompt"].as_str().unwrap().to_string() + " kept");
    });
    run(&call(&grown, "4", &[]));
    assert_eq!(json_file(&file)[1]["completion"], json!(" kept"));
    assert_eq!(json_file(&grown.join("results.json"))["total"], 4);
    assert_eq!(json_file(&grown.join("results.json"))["settings"]["problems"], 4);

    // Without the change, the results equal those of one evaluation of all problems.
    fs::remove_dir_all(&grown).unwrap();
    run(&call(&grown, "2", &[]));
    assert_eq!(fs::read_to_string(&file).unwrap(), unmarked);
    run(&call(&grown, "4", &[]));
    run(&call(&whole, "4", &[]));
    for name in ["predictions.json", "results.json", "verdicts.jsonl"] {
        let [grown, whole] =
            [&grown, &whole].map(|side| fs::read_to_string(side.join(name)).unwrap());
        assert_eq!(grown, whole, "{name}");
    }
    // Fewer problems would discard answers, and another length would mix two kinds of answers.
    let message = refuse(&call(&grown, "3", &[]));
    assert!(message.contains("problems was 4, is 3"), "{message}");
    let message = refuse(&call(&grown, "5", &["--max-new-tokens", "7"]));
    assert!(message.contains("max_new_tokens was 6, is 7"), "{message}");
    assert_eq!(json_file(&grown.join("results.json"))["total"], 4);
    // Other problems at the beginning do not continue the evaluation.
    let other = folder.path().join("other.jsonl");
    let mut rows: Vec<String> = json_lines(&data).iter().map(Value::to_string).collect();
    rows.swap(0, 1);
    fs::write(&other, rows.join("\n")).unwrap();
    let mut args = call(&grown, "5", &[]);
    args[5] = text(&other).to_string();
    let message = refuse(&args);
    assert!(message.contains("the content of the problems changed"), "{message}");
    let zero = call(&grown, "0", &[]);
    let zero: Vec<&str> = zero.iter().map(String::as_str).collect();
    let message = refused(&zero, 2);
    assert!(message.contains("--limit"), "{message}");
}

#[test]
fn a_larger_limit_reuses_kept_scores() {
    let folder = tempfile::tempdir().unwrap();
    let pairs = folder.path().join("pairs.jsonl");
    let pair = |n: usize| {
        let row = json!({"prompt": format!("{n} + 1?"), "chosen": format!(" {}", n + 1), "rejected": " 0"});
        format!("{row}\n")
    };
    fs::write(&pairs, (0..4).map(pair).collect::<String>()).unwrap();
    let model = model();
    let [grown, whole] = ["grown", "whole"].map(|name| folder.path().join(name));
    let call = |output: &Path, limit: &str| {
        let args = ["evaluate", "preference", "--model", &model, "--data", text(&pairs)];
        printed(&[&args[..], &["--output", text(output), "--limit", limit]].concat());
        fs::read_to_string(output.join("pair-scores.jsonl")).unwrap()
    };
    let two = call(&grown, "2");
    let lines = |text: &str| text.lines().skip(1).map(String::from).collect::<Vec<_>>();
    let four = call(&grown, "4");
    assert_eq!(lines(&four)[..2], lines(&two)[..]);
    assert_eq!(lines(&four).len(), 4);
    call(&whole, "4");
    let [grown, whole] =
        [&grown, &whole].map(|side| fs::read_to_string(side.join("verdicts.jsonl")).unwrap());
    assert_eq!(grown, whole);
}
