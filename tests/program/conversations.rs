//! Conversations as a user sees them: training on rows of messages, and commands that ask with the model's chat template.
//!
//! The template of these tests writes BOS, the messages, and EOS after the assistant's. So a conversation has the tokens of
//! the same row as text, and a run on conversations must equal the run on text.

use std::fs;
use std::path::{Path, PathBuf};

use arithmo::demo::arithmetic::Split;
use serde_json::{Value, json};

use crate::calls::{arithmo, lines, message, printed, write_problems};
use crate::support::{copy, demo_model};

const TEMPLATE: &str = "{{ bos_token }}{% for m in messages %}\
    {% if m.role == 'tool' %}{{ raise_exception('no tools here') }}{% endif %}\
    {{ m.content }}{% if m.role == 'assistant' %}{{ eos_token }}{% endif %}{% endfor %}";

/// A folder with the demo's model, with and without a chat template.
struct Desk(tempfile::TempDir);

impl Desk {
    fn new() -> Self {
        let desk = Self(tempfile::tempdir().unwrap());
        for name in ["plain", "chatty"] {
            copy(&demo_model(), &desk.path(name));
        }
        fs::write(desk.path("chatty/chat_template.jinja"), TEMPLATE).unwrap();
        desk
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// Writes rows of JSON to the file `name`.
    fn write(&self, name: &str, rows: &[Value]) {
        let rows: String = rows.iter().map(|row| format!("{row}\n")).collect();
        fs::write(self.path(name), rows).unwrap();
    }

    /// Trains two steps by `method` on the rows of `data`. Returns the arguments of the call.
    fn config(&self, run: &str, model: &str, method: &str, data: &str) -> Vec<String> {
        let text = format!(
            "output_dir = \"{run}\"\nmethod = \"{method}\"\n[model]\nmodel_name_or_path = \"{model}\"\n\
             [data]\ntrain_file = \"{data}\"\nmax_length = 96\n[lora]\nr = 2\n\
             [train]\nmax_steps = 2\nper_device_train_batch_size = 2\ngradient_accumulation_steps = 1\nlearning_rate = 1e-2\n"
        );
        fs::write(self.path("run.toml"), text).unwrap();
        ["train", "--config", "run.toml"].map(String::from).to_vec()
    }

    /// Trains, and returns the metrics without those that measure time and memory, and what was said.
    fn train(&self, run: &str, model: &str, method: &str, data: &str) -> (Vec<Value>, String) {
        let arguments = self.config(run, model, method, data);
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        let output = arithmo(self.0.path(), &arguments);
        assert!(output.status.success(), "{}", message(&output));
        let mut metrics = lines(&self.path(run).join("metrics.jsonl"));
        for line in metrics.iter_mut().filter_map(Value::as_object_mut) {
            line.retain(|key, _| {
                !["seconds", "tokens_per_second", "peak_memory_bytes"].contains(&&**key)
            });
        }
        (metrics, message(&output))
    }

    /// Returns the message of a command that must fail.
    #[track_caller]
    fn refused(&self, arguments: &[&str]) -> String {
        let output = arithmo(self.0.path(), arguments);
        assert_eq!(output.status.code(), Some(1), "{}", message(&output));
        message(&output)
    }
}

fn says(role: &str, content: &str) -> Value {
    json!({"role": role, "content": content})
}

/// Three questions with a right and a wrong answer.
const ROWS: [[&str; 3]; 3] =
    [["2 + 3 =", " 5", " 6"], ["7 - 4 =", " 3", " 11"], ["4 * 5 =", " 20", " 9"]];

#[test]
fn runs_on_conversations_equal_runs_on_text() {
    let desk = Desk::new();
    let rows = |row: fn([&str; 3]) -> Value| ROWS.map(row).to_vec();
    let text = rows(|[p, c, r]| json!({"prompt": p, "chosen": c, "rejected": r}));
    let explicit = rows(
        |[p, c, r]| json!({"prompt": [says("user", p)], "chosen": [says("assistant", c)], "rejected": [says("assistant", r)]}),
    );
    let implicit = rows(|[p, c, r]| {
        let side = |answer| json!([says("user", p), says("assistant", answer)]);
        json!({"chosen": side(c), "rejected": side(r)})
    });
    desk.write("text.jsonl", &text);
    desk.write("explicit.jsonl", &explicit);
    desk.write("implicit.jsonl", &implicit);
    for method in ["dpo", "kto", "orpo", "cpo", "sft"] {
        let (expected, _) = desk.train(&format!("{method}-text"), "plain", method, "text.jsonl");
        assert_eq!(expected.len(), 2, "{method}");
        for data in ["explicit", "implicit"] {
            let run = format!("{method}-{data}");
            let (metrics, said) = desk.train(&run, "chatty", method, &format!("{data}.jsonl"));
            assert_eq!(metrics, expected, "{method} on {data} conversations");
            // ORPO learns the prompt of the chosen side too.
            let marked = if method == "orpo" { " 6</s>" } else { " 5</s>" };
            let marked = ["<s>2 + 3 =\u{27e6}", marked, "\u{27e7} ("].concat();
            assert!(said.contains(&marked), "{said}");
        }
    }
    // KTO's own rows, SFT's own rows.
    let labeled = rows(
        |[p, c, _]| json!({"prompt": [says("user", p)], "completion": [says("assistant", c)], "label": c != " 3"}),
    );
    let labeled_text = rows(|[p, c, _]| json!({"prompt": p, "completion": c, "label": c != " 3"}));
    desk.write("labeled.jsonl", &labeled);
    desk.write("labeled-text.jsonl", &labeled_text);
    for method in ["kto", "sft"] {
        let (metrics, _) = desk.train(&format!("{method}-a"), "chatty", method, "labeled.jsonl");
        let (expected, _) =
            desk.train(&format!("{method}-b"), "plain", method, "labeled-text.jsonl");
        assert_eq!(metrics, expected, "{method}");
    }
}

/// TRL's `SFTTrainer` learns the whole of `messages`.
#[test]
fn a_list_of_messages_is_learned_as_a_whole() {
    let desk = Desk::new();
    let rows = ROWS.map(|[p, c, _]| json!({"messages": [says("user", p), says("assistant", c)]}));
    desk.write("messages.jsonl", &rows);
    let (metrics, said) = desk.train("run", "chatty", "sft", "messages.jsonl");
    assert_eq!(metrics.len(), 2);
    assert!(said.contains("sample 1, completion: <s>\u{27e6}2 + 3 = 5</s>\u{27e7}"), "{said}");
    // As text, the completion holds the same tokens, which begin after BOS.
    let text = ROWS.map(|[p, c, _]| json!({"prompt": "", "completion": format!("{p}{c}")}));
    desk.write("text.jsonl", &text);
    let (expected, _) = desk.train("run-text", "plain", "sft", "text.jsonl");
    assert_eq!(metrics, expected);
    let other = ROWS.map(|[p, c, _]| {
        json!({"conversations": [{"from": "user", "value": p}, {"from": "assistant", "value": c}]})
    });
    desk.write("other.jsonl", &other);
    assert_eq!(desk.train("run-other", "chatty", "sft", "other.jsonl").0, expected);
}

#[test]
fn rows_that_cannot_be_rendered_are_named() {
    let desk = Desk::new();
    let user = says("user", "2 + 3 =");
    let row = |answer: Value| json!({"prompt": [user], "chosen": [says("assistant", " 5")], "rejected": [answer]});
    let (good, tool) = (row(says("assistant", " 6")), row(says("tool", "6")));
    desk.write("tool.jsonl", &[good.clone(), tool]);
    desk.write("good.jsonl", std::slice::from_ref(&good));
    desk.write("mixed.jsonl", &[good, json!({"prompt": "2", "chosen": "a", "rejected": "b"})]);
    let train = |model: &str, data: &str, more: &[&str]| {
        let arguments = desk.config("run", model, "dpo", data);
        let arguments: Vec<&str> =
            arguments.iter().map(String::as_str).chain(more.iter().copied()).collect();
        let said = desk.refused(&arguments);
        assert!(!desk.path("run").exists());
        said
    };
    let said = train("chatty", "tool.jsonl", &[]);
    for part in ["tool.jsonl:2", "chatty/chat_template.jinja", "the template says: no tools here"] {
        assert!(said.contains(part), "{said}");
    }
    let said = train("plain", "good.jsonl", &[]);
    assert!(
        said.contains("good.jsonl:1: is a conversation, and the model has no chat template"),
        "{said}"
    );
    let said = train("chatty", "mixed.jsonl", &[]);
    assert!(
        said.contains("mixed.jsonl:2: is text, but") && said.contains("mixed.jsonl:1"),
        "{said}"
    );
    let said = train("chatty", "good.jsonl", &["--set", "data.prompt_template=Q: {prompt}"]);
    assert!(said.contains("remove data.prompt_template"), "{said}");
    let said = train(
        "chatty",
        "good.jsonl",
        &["--set", "data.compat=trl-0.7.4", "--set", "data.max_prompt_length=64"],
    );
    assert!(said.contains("remove data.compat"), "{said}");
    fs::write(desk.path("chatty/chat_template.jinja"), "{% for m in messages %}").unwrap();
    let said = train("chatty", "good.jsonl", &[]);
    assert!(
        said.contains("chat_template.jinja: is not a chat template that can be used"),
        "{said}"
    );
}

/// A template that renders the prompt otherwise alone is named with both texts.
#[test]
fn a_template_that_breaks_the_prefix_is_reported() {
    let desk = Desk::new();
    let thinking = format!("{TEMPLATE}{{% if add_generation_prompt %}}<think>{{% endif %}}");
    fs::write(desk.path("chatty/chat_template.jinja"), thinking).unwrap();
    let side = |answer| json!([says("user", "2 + 3 ="), says("assistant", answer)]);
    desk.write("rows.jsonl", &[json!({"chosen": side(" 5"), "rejected": side(" 6")})]);
    let (_, said) = desk.train("run", "chatty", "dpo", "rows.jsonl");
    for part in [
        "warning: the chat template renders the prompt otherwise alone",
        "\"<think>\"",
        "\" 5</s>\"",
    ] {
        assert!(said.contains(part), "{said}");
    }
}

/// Returns the lines of JSON that `generate` prints.
fn completions(folder: &Path, arguments: &[&str]) -> Vec<Value> {
    let arguments =
        [&["generate", "--prompts", "prompts.jsonl", "--max-new-tokens", "12"], arguments].concat();
    let text = printed(folder, &arguments);
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[test]
fn commands_ask_with_the_chat_template() {
    let desk = Desk::new();
    let folder = desk.0.path();
    desk.write("prompts.jsonl", &ROWS.map(|[prompt, ..]| json!({"prompt": prompt})));
    let plain = completions(folder, &["--model", "plain"]);
    // The template adds nothing but BOS, which is not doubled.
    assert_eq!(completions(folder, &["--model", "chatty"]), plain);
    assert_eq!(completions(folder, &["--model", "chatty", "--no-chat-template"]), plain);
    let with_system = completions(folder, &["--model", "chatty", "--system", "Question: "]);
    let template = ["--model", "chatty", "--prompt-template", "Question: {prompt}"];
    assert_eq!(with_system, completions(folder, &template));
    let said = desk.refused(&["generate", "--model", "plain", "--prompt", "x", "--system", "s"]);
    assert!(said.contains("--system: the model has no chat template"), "{said}");

    write_problems(&desk.path("problems.jsonl"), Split::HeldOut, 3);
    let evaluate = |output: &str, more: &[&str]| {
        let arguments = ["evaluate", "gsm8k", "--data", "problems.jsonl", "--max-new-tokens", "60"];
        printed(folder, &[&arguments[..], &["--output", output], more].concat());
        let text = fs::read_to_string(desk.path(output).join("predictions.json")).unwrap();
        serde_json::from_str::<Value>(&text).unwrap()
    };
    let asked = evaluate("a", &["--model", "chatty", "--system", "Question: "]);
    let expected = evaluate("b", &["--model", "plain", "--prompt-template", "Question: {prompt}"]);
    for (asked, expected) in asked.as_array().unwrap().iter().zip(expected.as_array().unwrap()) {
        assert_eq!(asked["completion"], expected["completion"]);
        let prompt = expected["prompt"].as_str().unwrap();
        assert_eq!(asked["prompt"], format!("<s>{prompt}"));
    }
    let settings = fs::read_to_string(desk.path("a/results.json")).unwrap();
    assert!(settings.contains("\"prompt_template\": \"chat template "), "{settings}");
}

/// Pairs that a model makes with its chat template are conversations, from which is trained with the same prompts.
#[test]
fn sampled_pairs_are_conversations() {
    let desk = Desk::new();
    write_problems(&desk.path("problems.jsonl"), Split::Train, 12);
    let arguments = [
        "sample-pairs",
        "--model",
        "chatty",
        "--data",
        "problems.jsonl",
        "--samples",
        "4",
        "--max-new-tokens",
        "64",
        "--system",
        "Question: ",
        "--temperature",
        "1.5",
    ];
    printed(desk.0.path(), &arguments);
    let pairs = lines(&desk.path("pairs.jsonl"));
    assert!(!pairs.is_empty());
    for pair in &pairs {
        assert_eq!(pair["prompt"][0], says("system", "Question: "));
        assert_eq!(pair["prompt"][1]["role"], "user");
        assert_eq!(pair["chosen"][0]["role"], "assistant");
    }
    let (_, said) = desk.train("run", "chatty", "dpo", "pairs.jsonl");
    assert!(said.contains("<s>Question: "), "{said}");
}

/// Rounds ask, pair, train and measure with the chat template, and with the same words as a template of text.
#[test]
fn rounds_use_the_chat_template() {
    let desk = Desk::new();
    write_problems(&desk.path("problems.jsonl"), Split::Train, 8);
    write_problems(&desk.path("held-out.jsonl"), Split::HeldOut, 2);
    let rounds = |output: &str, model: &str, template: &str, sample: &str| {
        desk.config("unused", model, "dpo", "unused.jsonl");
        let run = fs::read_to_string(desk.path("run.toml")).unwrap();
        fs::write(desk.path("run.toml"), run.replace("[data]\n", &format!("[data]\n{template}")))
            .unwrap();
        let config = format!(
            "output_dir = \"{output}\"\nrounds = 1\nrun = \"run.toml\"\n[sample]\ndata = \"problems.jsonl\"\nsamples = 4\n\
             temperature = 1.5\nmax_new_tokens = 64\n{sample}[evaluate]\ndata = \"held-out.jsonl\"\n"
        );
        fs::write(desk.path("iterate.toml"), config).unwrap();
        printed(desk.0.path(), &["iterate", "--config", "iterate.toml"])
    };
    let chat = rounds("chat", "chatty", "", "system = \"Question: \"\n");
    let text = rounds("text", "plain", "prompt_template = \"Question: {prompt}\"\n", "");
    let [pairs, expected] =
        ["chat", "text"].map(|run| lines(&desk.path(run).join("round-1/pairs.jsonl")));
    assert!(!pairs.is_empty());
    for (pair, expected) in pairs.iter().zip(&expected) {
        assert_eq!(pair["prompt"][1]["content"], expected["prompt"]);
        assert_eq!(pair["chosen"][0]["content"], expected["chosen"]);
        assert_eq!(pair["rejected"][0]["content"], expected["rejected"]);
    }
    // The same samples, the same training, the same answers.
    assert_eq!(chat, text);
    desk.config("unused", "plain", "dpo", "unused.jsonl");
    let config = fs::read_to_string(desk.path("iterate.toml")).unwrap();
    let config = config
        .replace("samples = 4", "samples = 4\nsystem = \"s\"")
        .replace("\"text\"", "\"none\"");
    fs::write(desk.path("iterate.toml"), config).unwrap();
    let said = desk.refused(&["iterate", "--config", "iterate.toml"]);
    assert!(said.contains("sample.system: needs the model's chat template"), "{said}");
}
