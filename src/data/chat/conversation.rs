//! The texts of a conversational row: its messages rendered by the model's chat template, as TRL renders them.

use std::ops::Range;

use serde_json::{Map, Value};

use super::message::Message;
use super::template::{ChatTemplate, RenderOptions, Rendered};

/// Text appended to a message that the model continues, to find the message's end in the rendered text.
const CONTINUE_TAG: &str = "CONTINUE_FINAL_MESSAGE_TAG ";

/// The messages of a row: a prompt and one or two completions of it.
#[derive(Clone, Debug, Default)]
pub(crate) struct Conversation {
    /// The prompt. Empty if the whole conversation is learned.
    pub prompt: Vec<Message>,
    /// The completions.
    pub completions: Vec<Vec<Message>>,
    /// The tools that the assistant may call, as JSON schemas.
    pub tools: Option<Value>,
    /// Further variables of the template.
    pub variables: Map<String, Value>,
}

/// The texts of a row's prompt and of the prompt with each completion.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RenderedRow {
    /// The prompt, with the start of the assistant's answer. Empty if the whole conversation is learned.
    pub prompt: String,
    /// Prompt and completion as one text, for each completion.
    pub wholes: Vec<String>,
    /// Ranges of bytes in each of `wholes` that the assistant wrote, as the template's `generation` blocks mark them.
    pub generated: Vec<Vec<Range<usize>>>,
    /// The prompt as TRL's ORPO and CPO trainers render it, which continue a last message of the assistant; or why there is
    /// none.
    pub(crate) answered_prompt: Result<String, String>,
}

impl Conversation {
    /// Renders the prompt and the prompt with each completion.
    ///
    /// # Errors
    /// The template refuses the messages, or they do not fit it. The error is the reason, without the place.
    pub(crate) fn render(&self, template: &ChatTemplate) -> Result<RenderedRow, String> {
        let whole = |completion: &Vec<Message>| {
            self.rendered(template, &[self.prompt.as_slice(), completion].concat(), false)
        };
        if self.prompt.is_empty() {
            let wholes = self.completions.iter().map(whole).collect::<Result<Vec<_>, _>>()?;
            let answered_prompt = Ok(String::new());
            return Ok(RenderedRow::new(String::new(), wholes, answered_prompt));
        }
        let prompt = self.text(template, &self.prompt, true)?;
        let answered_prompt = match self.prompt.last().map(Message::role) {
            Some("user" | "tool") => Ok(prompt.clone()),
            Some("assistant") => self.continued(template),
            role => Err(format!(
                "the prompt ends with a message of the role {:?}",
                role.unwrap_or_default()
            )),
        };
        let wholes = self.completions.iter().map(whole).collect::<Result<Vec<_>, _>>()?;
        Ok(RenderedRow::new(prompt, wholes, answered_prompt))
    }

    fn text(
        &self,
        template: &ChatTemplate,
        messages: &[Message],
        add_generation_prompt: bool,
    ) -> Result<String, String> {
        self.rendered(template, messages, add_generation_prompt).map(|rendered| rendered.text)
    }

    fn rendered(
        &self,
        template: &ChatTemplate,
        messages: &[Message],
        add_generation_prompt: bool,
    ) -> Result<Rendered, String> {
        let (tools, variables) = (self.tools.as_ref(), Some(&self.variables));
        let options = RenderOptions { add_generation_prompt, tools, variables };
        template.render(messages, &options)
    }

    /// Renders the prompt up to the end of its last message, as transformers' `continue_final_message` does.
    fn continued(&self, template: &ChatTemplate) -> Result<String, String> {
        let unfit = "the last message of the prompt cannot be continued: its text is not in the rendered prompt";
        let (last, before) = self.prompt.split_last().ok_or(unfit)?;
        let tagged = last.with_suffix(CONTINUE_TAG).ok_or(unfit)?;
        let mut messages = before.to_vec();
        messages.push(tagged);
        let text = self.text(template, &messages, false)?;
        let tag = text.rfind(CONTINUE_TAG.trim_end()).ok_or(unfit)?;
        if last.content().is_some_and(|content| !text.contains(content.trim())) {
            return Err(unfit.to_string());
        }
        let kept = &text[..tag];
        // A template that trims the message has trimmed the tag's space too.
        let kept = if text[tag..].starts_with(CONTINUE_TAG) { kept } else { kept.trim_end() };
        Ok(kept.to_string())
    }
}

impl RenderedRow {
    fn new(
        prompt: String,
        rendered: Vec<Rendered>,
        answered_prompt: Result<String, String>,
    ) -> Self {
        let (wholes, generated) =
            rendered.into_iter().map(|whole| (whole.text, whole.generated)).unzip();
        Self { prompt, wholes, generated, answered_prompt }
    }

    /// Returns the text that `prompt` and all wholes begin with, and the rest of each whole.
    fn split_after<'a>(&'a self, prompt: &'a str) -> (&'a str, Vec<&'a str>) {
        let shared = self.wholes.iter().fold(prompt, |shared, whole| common_start(shared, whole));
        (shared, self.wholes.iter().map(|whole| &whole[shared.len()..]).collect())
    }

    /// Returns the prompt and the completions as texts that follow each other.
    pub(crate) fn split(&self) -> (&str, Vec<&str>) {
        self.split_after(&self.prompt)
    }

    /// Returns the prompt and the completions as TRL's ORPO and CPO trainers split them.
    ///
    /// # Errors
    /// Why the prompt cannot be rendered for them.
    pub fn split_for_answers(&self) -> Result<(&str, Vec<&str>), &str> {
        self.answered_prompt.as_ref().map(|prompt| self.split_after(prompt)).map_err(String::as_str)
    }

    /// Returns how the prompt and the first whole that does not begin with it go on where they part, or `None` if all
    /// wholes begin with the prompt.
    pub(crate) fn divergence(&self) -> Option<[&str; 2]> {
        let whole = self.wholes.iter().find(|whole| !whole.starts_with(&self.prompt))?;
        let shared = common_start(&self.prompt, whole).len();
        Some([&self.prompt[shared..], &whole[shared..]])
    }
}

/// Returns the characters that both texts begin with.
fn common_start<'a>(a: &'a str, b: &str) -> &'a str {
    let equal = a.bytes().zip(b.bytes()).take_while(|(a, b)| a == b).count();
    &a[..a.floor_char_boundary(equal)]
}

/// Takes the prompt that two conversations begin with, as TRL's `extract_prompt` does: their common first messages, and
/// never all of the shorter one.
pub(crate) fn extract_prompt(sides: &mut [Vec<Message>; 2]) -> Vec<Message> {
    let [chosen, rejected] = &*sides;
    let shorter = chosen.len().min(rejected.len());
    let equal = chosen.iter().zip(rejected).take_while(|(a, b)| a == b).count();
    let shared = equal.min(shorter.saturating_sub(1));
    let prompt = sides[0].drain(..shared).collect();
    sides[1].drain(..shared);
    prompt
}

#[cfg(test)]
mod tests {
    use super::super::functions::Clock;
    use super::*;

    /// A template that drops what is thought before the last answer, and trims.
    const THINKING: &str = "{% for m in messages %}<{{ m.role }}>{{ m.content.split('</think>')[-1]|trim if not loop.last \
                            else m.content }}|{% endfor %}{% if add_generation_prompt %}<assistant><think>{% endif %}";

    fn message(role: &str, content: &str) -> Message {
        Message::new(role, content)
    }

    fn template(source: &str) -> ChatTemplate {
        ChatTemplate::new("t.jinja", source, Vec::new(), Clock::Start)
    }

    #[test]
    fn the_prompt_is_what_all_texts_begin_with() {
        let row = Conversation {
            prompt: vec![message("user", "é?")],
            completions: ["a", "b"].map(|answer| vec![message("assistant", answer)]).to_vec(),
            ..Conversation::default()
        };
        let rendered = row.render(&template(THINKING)).unwrap();
        assert_eq!(rendered.prompt, "<user>é?|<assistant><think>");
        assert_eq!(rendered.split(), ("<user>é?|<assistant>", vec!["a|", "b|"]));
        assert_eq!(rendered.divergence(), Some(["<think>", "a|"]));
    }

    #[test]
    fn a_last_message_of_the_assistant_is_continued() {
        let row = |content: &str| Conversation {
            prompt: vec![message("user", "u"), message("assistant", content)],
            completions: vec![vec![message("assistant", "x")]],
            ..Conversation::default()
        };
        let rendered = row("Roses are").render(&template(THINKING)).unwrap();
        assert_eq!(rendered.answered_prompt.as_deref(), Ok("<user>u|<assistant>Roses are"));
        let trimming = template("{% for m in messages %}{{ m.content|trim }};{% endfor %}");
        let rendered = row("a ").render(&trimming).unwrap();
        assert_eq!(rendered.answered_prompt.as_deref(), Ok("u;a"));
        let system = Conversation { prompt: vec![message("system", "s")], ..row("") };
        let refused = system.render(&trimming).unwrap().answered_prompt;
        assert!(refused.unwrap_err().contains("\"system\""));
    }

    #[test]
    fn the_implicit_prompt_never_takes_a_whole_side() {
        let list =
            |texts: &[&str]| texts.iter().map(|text| message("user", text)).collect::<Vec<_>>();
        for (chosen, rejected, shared) in [
            (&["a", "b"][..], &["a", "c"][..], 1),
            (&["a", "b"], &["a", "b"], 1),
            (&["a", "b", "c"], &["a"], 0),
            (&["x"], &["y"], 0),
        ] {
            let mut sides = [list(chosen), list(rejected)];
            assert_eq!(extract_prompt(&mut sides), list(&chosen[..shared]));
            assert_eq!(sides, [list(&chosen[shared..]), list(&rejected[shared..])]);
        }
    }
}
