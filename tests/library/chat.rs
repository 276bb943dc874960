//! Compares chat templates with transformers and TRL: the texts of conversations, their token ids, and Jinja's semantics.
//!
//! `tests/golden/chat` has the semantics and three templates, the full set thirty.

use std::path::{Path, PathBuf};

use arithmo::data::chat::{ChatTemplate, Clock, Message, RenderOptions};
use arithmo::data::encode::{Compat, EncodeConfig, EncodedExample, encode_answers, encode_pairs};
use arithmo::data::labeled::read_labeled;
use arithmo::data::pair::read_pairs;
use arithmo::data::sample::Sample;
use arithmo::data::tokenizer::Tokenizer;
use serde_json::{Map, Value, json};

use crate::suite::golden::ids;
use crate::support::{json_file, json_lines, reference, smollm2, whole_reference};

/// The time at which the golden texts were rendered.
fn clock() -> Clock {
    Clock::Fixed(jiff::civil::date(2025, 6, 5).at(9, 5, 7, 0))
}

fn messages(list: &Value) -> Vec<Message> {
    let list = list.as_array().unwrap().iter().cloned();
    list.map(|message| Message::from_value(message).unwrap()).collect()
}

/// A template of the golden data.
struct Golden {
    name: String,
    template: ChatTemplate,
    entry: Value,
    rows: Vec<Value>,
}

/// Returns the templates in the golden folder `folder`.
fn goldens(folder: &Path) -> Vec<Golden> {
    let index = json_file(&folder.join("index.json"));
    let entries = index["templates"].as_array().unwrap().iter();
    entries
        .map(|entry| {
            let name = entry["name"].as_str().unwrap().to_string();
            let path = folder.join(entry["template"].as_str().unwrap());
            let source = std::fs::read_to_string(&path).unwrap();
            let special = entry["special_tokens"].as_object().unwrap().iter();
            let special =
                special.map(|(key, text)| (key.clone(), text.as_str().unwrap().to_string()));
            let place = path.display().to_string();
            let template = ChatTemplate::new(&place, &source, special.collect(), clock());
            let rows = json_lines(&folder.join(format!("{name}.jsonl")));
            Golden { name, template, entry: entry.clone(), rows }
        })
        .collect()
}

/// The four texts of a row, by the names of the golden data: messages, and whether the answer's start is appended.
fn texts_of(row: &Value) -> Vec<(&'static str, Vec<Message>, bool)> {
    let source = row.get("extracted").unwrap_or(&row["row"]);
    let part = |name: &str| messages(&source[name]);
    let whole = |name: &str| [part("prompt"), part(name)].concat();
    vec![
        ("prompt", part("prompt"), false),
        ("prompt_with_generation_prompt", part("prompt"), true),
        ("prompt_chosen", whole("chosen"), false),
        ("prompt_rejected", whole("rejected"), false),
    ]
}

/// Compares every text of every row; returns the differences and the number of texts.
fn compare_texts(goldens: &[Golden]) -> (Vec<String>, usize) {
    let (mut wrong, mut compared) = (Vec::new(), 0);
    for golden in goldens {
        for row in &golden.rows {
            let variables = row["chat_template_kwargs"].as_object().unwrap();
            for (key, messages, add_generation_prompt) in texts_of(row) {
                let variables = Some(variables);
                let options = RenderOptions { add_generation_prompt, variables, tools: None };
                let rendered = golden.template.render(&messages, &options);
                let expected = row["text"].get(key).and_then(Value::as_str);
                assert!(expected.is_some() || row["errors"].get(key).is_some(), "{row}");
                let place = format!("{} {} {key}", golden.name, row["id"]);
                compared += 1;
                match (&rendered, expected) {
                    (Ok(rendered), Some(expected)) if rendered.text == expected => {
                        let spans = &row["generation_char_spans_of_prompt_chosen"];
                        if key == "prompt_chosen" && spans.is_array() {
                            let chars = |byte: usize| rendered.text[..byte].chars().count();
                            let found: Vec<_> = rendered
                                .generated
                                .iter()
                                .map(|r| [chars(r.start), chars(r.end)])
                                .collect();
                            assert_eq!(&json!(found), spans, "{place}");
                        }
                    }
                    (Err(_), None) => {}
                    _ => wrong.push(format!("{place}: {rendered:?}\n    expected {expected:?}")),
                }
            }
        }
    }
    (wrong, compared)
}

#[test]
fn conversations_are_rendered_as_by_transformers() {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/golden/chat");
    let (wrong, compared) = compare_texts(&goldens(&folder));
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert_eq!(compared, 3 * 17 * 4);
}

#[test]
#[ignore = "compares with data that are not in the tree"]
fn conversations_of_all_templates_are_rendered_as_by_transformers() {
    let goldens = goldens(&whole_reference("chat"));
    let (wrong, compared) = compare_texts(&goldens);
    assert!(wrong.is_empty(), "{} of {compared}\n{}", wrong.len(), wrong.join("\n"));
    assert!([3, 30].contains(&goldens.len()), "{} templates compared", goldens.len());
}

/// What minijinja cannot do: it has no methods as attributes, which are not called.
const METHODS_ARE_NO_ATTRIBUTES: &str = "is_tests";

#[test]
fn templates_mean_what_jinja_says() {
    let context = json_file(&reference("chat/jinja_context.json").unwrap());
    let messages = messages(&context["messages"]);
    let mut wrong = Vec::new();
    for case in json_lines(&reference("chat/jinja_semantics.jsonl").unwrap()) {
        let mut source = case["template"].as_str().unwrap().to_string();
        let name = case["name"].as_str().unwrap();
        let mut expected = case["text"].as_str().map(str::to_string);
        if name == METHODS_ARE_NO_ATTRIBUTES {
            source = source.replace(" {{ d.items is callable }}", "");
            expected = expected.map(|text| text.strip_suffix(" True").unwrap().to_string());
        }
        let template = ChatTemplate::new(name, &source, Vec::new(), clock());
        let variables = context["variables"].as_object();
        let options = RenderOptions { variables, ..RenderOptions::default() };
        let rendered = template.render(&messages, &options);
        match (&rendered, &expected) {
            (Ok(rendered), Some(text)) if rendered.text == *text => {
                if let Some(spans) = case.get("generation_char_spans") {
                    let found: Vec<_> =
                        rendered.generated.iter().map(|range| [range.start, range.end]).collect();
                    assert_eq!(&json!(found), spans, "{name}");
                }
            }
            (Err(_), None) => {}
            _ => wrong.push(format!("{name}: {rendered:?}\n    expected {expected:?}")),
        }
    }
    assert!(wrong.is_empty(), "{}\n{}", wrong.len(), wrong.join("\n"));
}

/// Checks that the templates in the golden folder `folder` render a conversation of 1,000 messages.
fn render_long_conversations(folder: &Path) {
    let text = "Natalia sold 48 clips in April, and 2 times as many in May. ".repeat(10);
    let turn = |index: usize| Message::new(["user", "assistant"][index % 2], &text);
    let messages: Vec<Message> = (0..1000).map(turn).collect();
    for golden in goldens(folder) {
        let rendered = golden.template.render(&messages, &RenderOptions::default());
        let rendered = rendered.unwrap_or_else(|problem| panic!("{}: {problem}", golden.name));
        assert!(rendered.text.len() > 10_000, "{}", golden.name);
    }
}

#[test]
fn long_conversations_are_rendered() {
    render_long_conversations(&reference("chat").unwrap());
}

#[test]
#[ignore = "compares with data that are not in the tree"]
fn long_conversations_are_rendered_by_all_templates() {
    render_long_conversations(&whole_reference("chat"));
}

/// A template that runs on is stopped after about a second, in an optimized build, however long the texts are that it works
/// on.
#[test]
fn hostile_loops_are_stopped_soon() {
    let user = [Message::new("user", &"ab c ".repeat(20_000))];
    for work in [
        "",
        "{% set x = messages|string %}",
        "{% set x = messages|tojson %}",
        "{% set x = messages[0].content[::-1] %}",
        "{% set x = messages[0].content == messages[0].content %}",
        "{% set x = messages[0].content.split('a') %}",
        "{% set x = messages[0].content.count('zz') %}",
    ] {
        let loops = format!(
            "{{% for a in range(99999) %}}{{% for b in range(99999) %}}{work}{{% endfor %}}{{% endfor %}}"
        );
        let template = ChatTemplate::new("t", &loops, Vec::new(), clock());
        let started = std::time::Instant::now();
        let problem = template.render(&user, &RenderOptions::default()).unwrap_err();
        assert!(problem.contains("does not end within 11"), "{work}: {problem}");
        let seconds = started.elapsed().as_secs();
        assert!(seconds < 60, "{work}: {seconds} s");
        eprintln!("{work}: {:?}", started.elapsed());
    }
}

#[test]
fn templates_without_end_are_stopped() {
    let user = [Message::new("user", "hi")];
    let render = |source: &str| {
        ChatTemplate::new("t", source, Vec::new(), clock()).render(&user, &RenderOptions::default())
    };
    let loops = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}";
    assert!(render(loops).unwrap_err().contains("does not end within"));
    let doubled = "{% set ns = namespace(s='x') %}{% for i in range(40) %}{% set ns.s = ns.s ~ ns.s %}{% endfor %}{{ ns.s }}";
    assert!(render(doubled).is_err());
    let written = "{% for a in range(99999) %}{{ 'x' * 9999 }}{% endfor %}";
    assert!(render(written).is_err());
    assert!(render("{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}").is_err());
    let nested = format!("{{{{ {}1{} }}}}", "(".repeat(5000), ")".repeat(5000));
    assert!(render(&nested).is_err());
    assert!(render("{{ '%999999999d' % 1 }}").is_err());
    assert!(render("{{ '{:>999999999}'.format(1) }}{{ '%-999999999s' | format('a') }}").is_err());
    assert!(render("{{ 'a'.center(999999999) }}").is_err());
    assert_eq!(render("{{ 'in 1234567 or %5d' % 7 }}").unwrap().text, "in 1234567 or     7");
    assert!(render("{% include '/etc/passwd' %}").is_err());
    let error = render("{{ raise_exception('no ' ~ messages[0].role) }}").unwrap_err();
    assert_eq!(error, "the template says: no user");
}

/// Writes the folder of a model with the tokenizer of a golden template; `None` if that is not in the golden data.
fn tokenizer(golden: &Golden, folder: &Path) -> Option<Tokenizer> {
    let mut config = Map::new();
    for (key, text) in golden.entry["special_tokens"].as_object().unwrap() {
        config.insert(key.clone(), text.clone());
    }
    let source = match golden.entry["tokenizer"].as_str().unwrap() {
        "bytes" => json_file(&reference("chat/tokenizer-bytes/tokenizer.json")?),
        "mistral" => {
            let mut source = json_file(&reference("mistral-tokenizer/tokenizer.json")?);
            let added = json_file(&reference("chat/tokenizer-mistral-added.json")?);
            // Tokens that only tokenizer_config.json names.
            let decoder = |token: &Value| (token["id"].to_string(), token.clone());
            let mut all: Map<String, Value> =
                source["added_tokens"].as_array().unwrap().iter().map(decoder).collect();
            all.extend(added["added"].as_array().unwrap().iter().map(decoder));
            config.insert("added_tokens_decoder".into(), all.into());
            source["padding"] = Value::Null;
            source
        }
        _ => json_file(&smollm2()?.join("tokenizer.json")),
    };
    std::fs::write(folder.join("tokenizer.json"), source.to_string()).unwrap();
    std::fs::write(folder.join("tokenizer_config.json"), Value::from(config).to_string()).unwrap();
    Some(Tokenizer::from_folder(folder).unwrap())
}

/// Encodes the row as each trainer does, and compares with the ids of TRL's. Returns how many were compared.
fn compare_ids(golden: &Golden, tokenizer: &Tokenizer, row: &Value, file: &Path) -> usize {
    let place = format!("{} {}", golden.name, row["id"]);
    let mut data = row["row"].clone();
    data["chat_template_kwargs"] = row["chat_template_kwargs"].clone();
    std::fs::write(file, data.to_string()).unwrap();
    let config = EncodeConfig { max_length: None, ..EncodeConfig::new(Compat::Trl1) };
    let read = read_pairs(file, Some(&golden.template));
    if row.get("trl_dpo_error").is_some() {
        assert!(read.is_err(), "{place}");
        return 0;
    }
    let pairs = read.unwrap();
    let (expected, encoded) = (&row["trl_dpo"], encode_pairs(tokenizer, &pairs, &config).unwrap());
    let pair = &encoded.pairs[0];
    for (side, name) in [(&pair.chosen, "chosen_ids"), (&pair.rejected, "rejected_ids")] {
        let (prompt, completion) = side.ids.split_at(side.completion_start);
        assert_eq!(prompt, ids(&expected["prompt_ids"]), "{place}");
        assert_eq!(completion, ids(&expected[name]), "{place} {name}");
    }
    // The texts of ORPO and CPO, which put BOS in front and EOS at the end where they lack.
    let answers = encode_answers(tokenizer, &pairs, &config);
    let texts = &row["trl_apply_chat_template"];
    if row.get("trl_apply_chat_template_error").is_some() {
        assert!(answers.is_err(), "{place}");
        return 1;
    }
    let split = pairs[0].rendered.as_ref().unwrap().split_for_answers();
    let (prompt, sides) = split.unwrap();
    let expected = ["prompt", "chosen", "rejected"].map(|key| texts[key].as_str().unwrap());
    assert_eq!([prompt, sides[0], sides[1]], expected, "{place}");
    2
}

#[test]
#[ignore = "compares with data that are not in the tree"]
fn conversations_have_the_token_ids_of_trl() {
    let folder = tempfile::tempdir().unwrap();
    let mut compared = 0;
    let goldens = goldens(&whole_reference("chat"));
    for golden in &goldens {
        let Some(tokenizer) = tokenizer(golden, folder.path()) else { continue };
        let file = folder.path().join("row.jsonl");
        for row in &golden.rows {
            compared += compare_ids(golden, &tokenizer, row, &file);
        }
    }
    assert!(compared > 1000 || goldens.len() < 30, "{compared} compared");
}

/// KTO's examples are a pair's sides, whose prompts end where each alone parts from the prompt.
#[test]
fn each_side_is_an_example_of_kto() {
    let golden = &goldens(&whole_reference("chat"))[0];
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("rows.jsonl");
    let row = golden.rows.iter().find(|row| row["id"] == "implicit").unwrap();
    std::fs::write(&file, row["row"].to_string()).unwrap();
    let examples = read_labeled(&file, Some(&golden.template)).unwrap();
    for (example, key) in examples.iter().zip(["prompt_chosen", "prompt_rejected"]) {
        let rendered = example.rendered.as_ref().unwrap();
        assert_eq!(rendered.prompt, row["text"]["prompt_with_generation_prompt"].as_str().unwrap());
        assert_eq!(rendered.wholes, [row["text"][key].as_str().unwrap()]);
    }
    assert_eq!(examples.iter().map(|example| example.desirable).collect::<Vec<_>>(), [true, false]);
}

/// The real tokenizer merges a line end at the end of the prompt with spaces that follow.
#[test]
#[ignore = "compares with data that are not in the tree"]
fn conversations_have_the_token_ids_of_smollm2() {
    let (Some(model), Some(rows)) = (smollm2(), reference("smollm2/chat_tokenized.jsonl")) else {
        return;
    };
    let tokenizer = Tokenizer::from_folder(&model).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("row.jsonl");
    let config = EncodeConfig { max_length: None, ..EncodeConfig::new(Compat::Trl1) };
    for row in json_lines(&rows) {
        std::fs::write(&file, row["row"].to_string()).unwrap();
        let pairs = read_pairs(&file, tokenizer.chat_template()).unwrap();
        let encoded = encode_pairs(&tokenizer, &pairs, &config).unwrap();
        let pair = &encoded.pairs[0];
        for (side, name) in [(&pair.chosen, "chosen_ids"), (&pair.rejected, "rejected_ids")] {
            let (prompt, completion) = side.ids.split_at(side.completion_start);
            assert_eq!(prompt, ids(&row["prompt_ids"]), "{row}");
            assert_eq!(completion, ids(&row[name]), "{row}");
        }
    }
}

#[test]
#[ignore = "compares with data that are not in the tree"]
fn further_templates_are_rendered_as_by_transformers() {
    let Some(cases) = reference("chat_templates.jsonl") else { return };
    for case in json_lines(&cases) {
        let text = |key: &str| case[key].as_str().unwrap().to_string();
        let special = ["bos_token", "eos_token"].map(|key| (key.to_string(), text(key)));
        let template = ChatTemplate::new("t", &text("template"), special.to_vec(), clock());
        let add_generation_prompt = case["add_generation_prompt"] == true;
        let options = RenderOptions { add_generation_prompt, ..RenderOptions::default() };
        let rendered = template.render(&messages(&case["messages"]), &options);
        assert_eq!(
            rendered.ok().map(|rendered| rendered.text).as_deref(),
            case["text"].as_str(),
            "{case}"
        );
    }
}

/// Returns a copy of the committed Qwen 2 with the chat template `source`.
fn model_with_template(source: &str) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let model = reference("families/models/qwen2").unwrap();
    for name in
        ["config.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"]
    {
        std::fs::copy(model.join(name), folder.path().join(name)).unwrap();
    }
    std::fs::write(folder.path().join("chat_template.jinja"), source).unwrap();
    folder
}

/// Token ids, and which of them are trained on, are those of TRL's `SFTTrainer` with `assistant_only_loss`: of whole
/// conversations and of prompts with completions, truncated at either end. Of TRL's data, conversations of which truncation
/// leaves nothing to learn are missing.
#[test]
fn only_what_the_assistant_wrote_is_trained_on() {
    let golden = json_file(&reference("families/sft/assistant_only.json").unwrap());
    let folder = model_with_template(golden["template"].as_str().unwrap());
    let tokenizer = Tokenizer::from_folder(folder.path()).unwrap();
    let file = folder.path().join("rows.jsonl");
    let mut compared = 0;
    for case in golden["cases"].as_array().unwrap() {
        let config = EncodeConfig {
            max_length: case["max_length"].as_u64().map(|length| length as usize),
            truncation_mode: serde_json::from_value(case["truncation_mode"].clone()).unwrap(),
            assistant_only_loss: true,
            ..EncodeConfig::new(Compat::Trl1)
        };
        for row in case["rows"].as_array().unwrap() {
            std::fs::write(&file, row["row"].to_string()).unwrap();
            let encoded = EncodedExample::load(&file, &tokenizer, &config).unwrap();
            if config.max_length.is_none() {
                assert_eq!(encoded.report.summary(), [""; 0]);
            }
            let example = &encoded.pairs[0];
            assert_eq!(example.sequence.ids, ids(&row["input_ids"]));
            let labels = row["labels"].as_array().unwrap().iter();
            // Nothing predicts the first token.
            let is_scored = |(index, label): (usize, &Value)| index > 0 && *label != -100;
            let theirs: Vec<bool> = labels.enumerate().map(is_scored).collect();
            let ours: Vec<bool> =
                (0..theirs.len()).map(|index| example.is_scored(0, index)).collect();
            assert_eq!(ours, theirs, "{row}");
            assert_eq!(example.scored_tokens(0), theirs.iter().filter(|scored| **scored).count());
            compared += 1;
        }
    }
    assert_eq!(compared, 16);
}

/// Rows that `assistant_only_loss` cannot be used with, and templates, are refused with what helps.
#[test]
fn what_the_assistant_wrote_must_be_marked() {
    let load = |source: &str, row: Value| {
        let folder = model_with_template(source);
        let tokenizer = Tokenizer::from_folder(folder.path()).unwrap();
        let file = folder.path().join("rows.jsonl");
        std::fs::write(&file, row.to_string()).unwrap();
        let config = EncodeConfig { assistant_only_loss: true, ..EncodeConfig::new(Compat::Trl1) };
        EncodedExample::load(&file, &tokenizer, &config)
    };
    let turn = |role: &str| json!({"role": role, "content": "a b"});
    let conversation = json!({"messages": [turn("user"), turn("assistant")]});
    let marked = "{% for m in messages %}{% if m.role == 'assistant' %}{% generation %}{{ m.content }}\
                  {% endgeneration %}{{ eos_token }}{% else %}{{ m.content }}{% endif %}{% endfor %}";
    let unmarked = marked.replace("{% generation %}", "").replace("{% endgeneration %}", "");
    for (template, row, wanted) in [
        (unmarked.as_str(), conversation.clone(), "has no {% generation %} blocks"),
        (marked, json!({"prompt": "a", "completion": "b"}), "is text"),
    ] {
        let error = load(template, row).unwrap_err().to_string();
        assert!(error.contains(wanted) && error.contains("assistant_only_loss"), "{error}");
    }
    let silent = load(marked, json!({"messages": [turn("user")]})).unwrap();
    let refused = silent.clone().settle(false, false).unwrap_err().to_string();
    assert!(refused.contains("mark nothing that the assistant wrote: 1 (ids 1)"), "{refused}");
    let none_left = silent.settle(false, true).unwrap_err().to_string();
    assert!(none_left.contains("none of 1 examples is left"), "{none_left}");
    // The end of the turn lies outside of the blocks.
    let encoded = load(marked, conversation).unwrap();
    let summary = encoded.report.summary().join("\n");
    assert!(summary.contains("does not learn to stop"), "{summary}");
}

/// As in transformers, where a block is a scope of its own.
#[test]
fn what_a_generation_block_sets_ends_with_it() {
    let source = "{% set a = 1 %}{% generation %}{% set a = 2 %}{% set b = 3 %}{{ a }}{{ b }}{% endgeneration %}{{ a }}{{ b }}";
    let template = ChatTemplate::new("t", source, Vec::new(), clock());
    let messages = [Message::new("user", "x")];
    let rendered = template.render(&messages, &RenderOptions::default()).unwrap();
    assert_eq!((rendered.text.as_str(), rendered.generated.len()), ("231", 1));
    assert_eq!(rendered.generated[0], 0..2);
}

/// A null content is named with its message, in a row of a file too.
#[test]
fn a_missing_content_names_the_message() {
    let folder = model_with_template("{% for m in messages %}{{ m.content + 'x' }}{% endfor %}");
    let tokenizer = Tokenizer::from_folder(folder.path()).unwrap();
    let file = folder.path().join("rows.jsonl");
    let good = json!({"role": "user", "content": "a"});
    let row = |content: Value| {
        json!({"prompt": [good], "chosen": [{"role": "assistant", "content": content}],
            "rejected": [{"role": "assistant", "content": "b"}]})
    };
    let text = format!("{}\n{}\n", row(json!("a")), row(json!(null)));
    std::fs::write(&file, text).unwrap();
    let error = read_pairs(&file, tokenizer.chat_template()).unwrap_err().to_string();
    for part in ["rows.jsonl:2", "message 2 of 2 (role \"assistant\") has no content"] {
        assert!(error.contains(part), "{error}");
    }
    assert!(!error.contains("line 1 of the template"), "{error}");
}
