//! Finds the chat template in a model's folder, where transformers looks for it.

use std::io::ErrorKind;
use std::path::Path;

use serde_json::Value;

use super::functions::Clock;
use super::template::ChatTemplate;
use crate::error::{Error, Result};
use crate::input_file;

/// File of the template, which wins over one in `tokenizer_config.json`.
const FILE: &str = "chat_template.jinja";
/// Key of the template, or of a list of named ones, in `tokenizer_config.json`.
const KEY: &str = "chat_template";
/// Name of the template that is used without tools.
const DEFAULT: &str = "default";

/// Returns the chat template of the model in `folder`, or `None` if it has none. `config` is its `tokenizer_config.json`,
/// `special_tokens` the variables such as `bos_token` with their texts.
///
/// # Errors
/// A file cannot be read, or `chat_template` is neither a text nor a list of named texts.
pub(crate) fn find(
    folder: &Path,
    config: &Value,
    special_tokens: Vec<(String, String)>,
) -> Result<Option<ChatTemplate>> {
    let file = folder.join(FILE);
    match input_file::read_to_string(&file) {
        Ok(source) => {
            let place = file.display().to_string();
            return Ok(Some(ChatTemplate::new(&place, &source, special_tokens, Clock::Start)));
        }
        Err(error) if error.kind() == ErrorKind::NotFound => {}
        Err(error) => return Err(Error::io(&file, "read", error)),
    }
    let place = format!("{}: {KEY}", folder.join("tokenizer_config.json").display());
    let wrong = |problem: &str| {
        Error::invalid(&place, problem, "write the template, or a list of {\"name\", \"template\"}")
    };
    let templates = match config.get(KEY) {
        None | Some(Value::Null) => return Ok(None),
        Some(Value::String(source)) => {
            return Ok(Some(ChatTemplate::new(&place, source, special_tokens, Clock::Start)));
        }
        Some(Value::Array(templates)) => templates,
        Some(_) => return Err(wrong("is neither text nor a list")),
    };
    let mut named = Vec::new();
    for template in templates {
        match (
            template.get("name").and_then(Value::as_str),
            template.get("template").and_then(Value::as_str),
        ) {
            (Some(name), Some(source)) => named.push((name, source)),
            _ => return Err(wrong("has an entry without the texts name and template")),
        }
    }
    let source_of =
        |wanted: &str| named.iter().find(|(name, _)| *name == wanted).map(|(_, source)| *source);
    let place = format!("{place}[{DEFAULT}]");
    let Some(source) = source_of(DEFAULT) else {
        let names: Vec<&str> = named.iter().map(|(name, _)| *name).collect();
        let problem = format!("has no template named {DEFAULT:?}, only {}", names.join(", "));
        return Ok(Some(ChatTemplate::unusable(&place, &problem)));
    };
    let template = ChatTemplate::new(&place, source, special_tokens, Clock::Start);
    Ok(Some(match source_of("tool_use") {
        Some(source) => template.with_tool_use(source),
        None => template,
    }))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::{Message, RenderOptions};
    use super::*;

    /// Renders a message with the template of a folder; `tools` says whether the conversation has any.
    fn rendered(folder: &Path, config: &Value, tools: bool) -> Result<Option<String>> {
        let special = vec![("bos_token".to_string(), "<s>".to_string())];
        let Some(template) = find(folder, config, special)? else { return Ok(None) };
        template.check()?;
        let schemas = json!([{"name": "t"}]);
        let options =
            RenderOptions { tools: tools.then_some(&schemas), ..RenderOptions::default() };
        Ok(template.render(&[Message::new("user", "hi")], &options).ok().map(|text| text.text))
    }

    #[test]
    fn the_template_is_found_where_transformers_looks() {
        let folder = tempfile::tempdir().unwrap();
        let folder = folder.path();
        let found = |config: &Value, tools| rendered(folder, config, tools).unwrap();
        assert_eq!(found(&Value::Null, false), None);
        assert_eq!(found(&json!({"chat_template": null}), false), None);
        let text = json!({"chat_template": "{{ bos_token }}{{ messages[0].content }}"});
        assert_eq!(found(&text, false).as_deref(), Some("<s>hi"));
        let list = json!({"chat_template": [
            {"name": "tool_use", "template": "with {{ tools[0].name }}"},
            {"name": "default", "template": "without"},
        ]});
        assert_eq!(found(&list, false).as_deref(), Some("without"));
        assert_eq!(found(&list, true).as_deref(), Some("with t"));
        std::fs::write(folder.join(FILE), "file").unwrap();
        assert_eq!(found(&list, true).as_deref(), Some("file"));
    }

    #[test]
    fn templates_that_cannot_be_chosen_are_named() {
        let folder = tempfile::tempdir().unwrap();
        for (template, problem) in [
            (json!(7), "is neither text nor a list"),
            (json!([{"name": "default"}]), "an entry without the texts name and template"),
            (json!([{"name": "rag", "template": "x"}]), "no template named \"default\", only rag"),
            (json!("{{ x"), "is not a chat template that can be used"),
        ] {
            let config = json!({"chat_template": template});
            let error = rendered(folder.path(), &config, false).unwrap_err().to_string();
            assert!(error.contains("tokenizer_config.json: chat_template"), "{error}");
            assert!(error.contains(problem), "{error}");
        }
    }
}
