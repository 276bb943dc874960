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
/// Folder of further templates, `NAME.jinja`, which win too.
const FOLDER: &str = "additional_chat_templates";
/// Key of the template, or of a list of named ones, in `tokenizer_config.json`.
const KEY: &str = "chat_template";
/// Name of the template that is used without tools.
const DEFAULT: &str = "default";
/// Name of the template for conversations with tools.
pub const TOOL_USE: &str = "tool_use";

/// Path of the further template that is used: the one for conversations with tools.
pub const TOOL_USE_FILE: &str = "additional_chat_templates/tool_use.jinja";

/// A template with its name and place.
struct Named {
    name: String,
    place: String,
    source: String,
}

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
    let mut named = in_files(folder)?;
    if named.is_empty() {
        let place = format!("{}: {KEY}", folder.join("tokenizer_config.json").display());
        named = in_config(config, &place)?;
    }
    // As in transformers, of several templates of one name the last one counts.
    let of_name = |wanted: &str| named.iter().rev().find(|named| named.name == wanted);
    let Some(first) = named.first() else { return Ok(None) };
    let Some(Named { place, source, .. }) = of_name(DEFAULT) else {
        let names: Vec<&str> = named.iter().map(|named| named.name.as_str()).collect();
        let problem = format!("there is no template named {DEFAULT:?}, only {}", names.join(", "));
        return Ok(Some(ChatTemplate::unusable(&first.place, &problem)));
    };
    let tool_use = of_name(TOOL_USE);
    for Named { place, source, .. } in of_name(DEFAULT).into_iter().chain(tool_use) {
        if let Some(problem) = problem_of(source) {
            return Ok(Some(ChatTemplate::unusable(place, problem)));
        }
    }
    let template = ChatTemplate::new(place, source, special_tokens, Clock::Start);
    Ok(Some(match tool_use {
        Some(Named { place, source, .. }) => template.with_tool_use(place, source),
        None => template,
    }))
}

/// What stands in for the text of a file that is not UTF-8, which no text can be.
const NOT_TEXT: &str = "\0not UTF-8";

/// Returns why a template cannot be used, whatever it means.
fn problem_of(source: &str) -> Option<&'static str> {
    match source {
        NOT_TEXT => Some("is not UTF-8 text"),
        _ if source.trim().is_empty() => {
            Some("is empty: it would make every conversation an empty text")
        }
        _ => None,
    }
}

/// Reads the templates that are files of their own.
fn in_files(folder: &Path) -> Result<Vec<Named>> {
    let mut files = vec![(DEFAULT.to_string(), folder.join(FILE))];
    let further = folder.join(FOLDER);
    let entries = std::fs::read_dir(&further).into_iter().flatten().flatten();
    let mut further: Vec<_> = entries
        .map(|entry| entry.path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "jinja"))
        .filter_map(|path| Some((path.file_stem()?.to_str()?.to_string(), path)))
        .collect();
    further.sort();
    files.extend(further);
    let mut named = Vec::new();
    for (name, file) in files {
        let source = match input_file::read_to_string(&file) {
            Ok(source) => source,
            Err(error) if error.kind() == ErrorKind::NotFound => continue,
            Err(error) if error.kind() == ErrorKind::InvalidData => NOT_TEXT.to_string(),
            Err(error) => return Err(Error::io(&file, "read", error)),
        };
        named.push(Named { name, place: file.display().to_string(), source });
    }
    Ok(named)
}

/// Reads the templates in `tokenizer_config.json`, at `place`.
fn in_config(config: &Value, place: &str) -> Result<Vec<Named>> {
    let wrong = |problem: &str| {
        Error::invalid(place, problem, "write the template, or a list of {\"name\", \"template\"}")
    };
    let list = match config.get(KEY) {
        None | Some(Value::Null) => return Ok(Vec::new()),
        Some(Value::String(source)) => {
            let (name, place, source) = (DEFAULT.to_string(), place.to_string(), source.clone());
            return Ok(vec![Named { name, place, source }]);
        }
        Some(Value::Array(list)) => list,
        Some(_) => return Err(wrong("is neither text nor a list")),
    };
    let text =
        |template: &Value, key: &str| template.get(key).and_then(Value::as_str).map(str::to_string);
    let named = list.iter().map(|template| {
        let (name, source) = text(template, "name").zip(text(template, "template"))?;
        let place = format!("{place}[{name}]");
        Some(Named { name, place, source })
    });
    let named: Option<Vec<Named>> = named.collect();
    named.ok_or_else(|| wrong("has an entry without the texts name and template"))
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
        // Files of their own win over tokenizer_config.json all together, and one for tools is used with tools.
        std::fs::create_dir(folder.join(FOLDER)).unwrap();
        std::fs::write(folder.join(FOLDER).join("rag.jinja"), "{{ x").unwrap();
        std::fs::write(folder.join(FOLDER).join("notes.txt"), "{{ x").unwrap();
        assert_eq!(found(&list, true).as_deref(), Some("file"));
        std::fs::write(folder.join(FOLDER).join("tool_use.jinja"), "own {{ tools[0].name }}")
            .unwrap();
        assert_eq!(found(&list, true).as_deref(), Some("own t"));
        assert_eq!(found(&list, false).as_deref(), Some("file"));
        std::fs::write(folder.join(FOLDER).join("default.jinja"), "last").unwrap();
        assert_eq!(found(&list, false).as_deref(), Some("last"));
    }

    #[test]
    fn empty_files_and_files_that_are_not_text_are_named() {
        let folder = tempfile::tempdir().unwrap();
        let folder = folder.path();
        let error = |file: &str, bytes: &[u8]| {
            std::fs::create_dir_all(folder.join(FOLDER)).unwrap();
            std::fs::write(folder.join(file), bytes).unwrap();
            let error = rendered(folder, &Value::Null, false).unwrap_err().to_string();
            std::fs::remove_file(folder.join(file)).unwrap();
            error
        };
        for (file, bytes, problem) in [
            (FILE, &b""[..], "is empty"),
            (FILE, b" \n", "is empty"),
            (FILE, b"a\xff", "is not UTF-8"),
            (
                "additional_chat_templates/rag.jinja",
                b"x",
                "no template named \"default\", only rag",
            ),
        ] {
            let error = error(file, bytes);
            assert!(error.contains(file) && error.contains(problem), "{error}");
            assert!(error.contains("fetch the model's files again"), "{error}");
        }
        std::fs::write(folder.join(FILE), "file").unwrap();
        let tool_use = format!("{FOLDER}/tool_use.jinja");
        assert!(error(&tool_use, b"\xff").contains(&tool_use));
        let broken = error(&tool_use, b"{{ x");
        assert!(broken.contains(&tool_use) && broken.contains("for tools"), "{broken}");
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
