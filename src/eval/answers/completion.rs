//! Finds the completion in a prediction of another program, which has prompt and completion in one text.
//!
//! Predictions of this program have the completion as a separate entry, so nothing is searched in them.

use std::sync::LazyLock;

use regex::Regex;

use crate::data::prompt::PromptTemplate;
use crate::data::prompt_format::PromptFormat;
use crate::eval::pattern;

/// Marks of common chat templates: the first opens the user's turn, the second the model's.
const TURNS: [(&str, &str); 11] = [
    ("[INST]", "[/INST]"),
    ("<|im_start|>user", "<|im_start|>assistant\n"),
    ("### Instruction:", "### Response:"),
    ("<|user|>", "<|assistant|>"),
    ("<|start_header_id|>user<|end_header_id|>", "<|start_header_id|>assistant<|end_header_id|>"),
    ("<start_of_turn>user", "<start_of_turn>model\n"),
    ("USER:", "ASSISTANT:"),
    ("Human:", "Assistant:"),
    ("### Question:", "### Answer:"),
    ("<｜User｜>", "<｜Assistant｜>"),
    ("<|USER_TOKEN|>", "<|CHATBOT_TOKEN|>"),
];

/// The end of a template without turns: `Answer:`, after at most three lines that cannot contain an answer.
static ANSWER_MARK: LazyLock<Regex> =
    LazyLock::new(|| pattern(r"\A(?:[^0-9\\$\n]{0,160}\n){0,3}[ \t]*Answer:"));

/// Maximum number of occurrences of the question that are examined, from the last one. A short question can occur often.
const MAX_OCCURRENCES: usize = 64;

/// The prompt template of predictions that another program made.
#[derive(Clone, Debug)]
pub enum ForeignPrompt {
    /// A template given by the user. Each prediction must contain it.
    Given(PromptTemplate),
    /// The task's default template. In a prediction that does not begin with it, the question is searched.
    Usual(PromptTemplate),
}

impl ForeignPrompt {
    /// Returns the prompt of predictions that were made with `format`. That of a chat is searched: the templates of
    /// predictions are templates of text.
    pub fn usual(format: &PromptFormat) -> Self {
        Self::Usual(match format {
            PromptFormat::Text(template) => template.clone(),
            PromptFormat::Chat(chat) => chat.request.clone(),
        })
    }

    /// Returns the completion at the end of `prediction`, or `None` if the given template is not in it.
    pub fn completion<'a>(&self, question: &str, prediction: &'a str) -> Option<&'a str> {
        let (Self::Given(template) | Self::Usual(template)) = self;
        let prompts = [template.apply(question), template.apply(question.trim())];
        let beginning = prompts.iter().find_map(|prompt| prediction.strip_prefix(prompt.as_str()));
        match self {
            _ if beginning.is_some() => beginning,
            // Earlier occurrences are solved examples.
            Self::Given(_) => prompts.iter().find_map(|prompt| {
                let start = prediction.rfind(prompt.as_str())?;
                prediction.get(start + prompt.len()..)
            }),
            Self::Usual(_) => Some(find_completion(question, prediction)),
        }
    }
}

/// Returns the completion in `prediction`, the text of prompt and completion in an unknown template.
///
/// The completion begins after the last occurrence of the question that is followed by the end of a common template
/// (`Answer:`, `[/INST]`, the start of the assistant's turn), and after that end. If there is none, it begins after the last
/// occurrence of the question. If the question does not occur, all of `prediction` is the completion.
///
/// ```
/// use arithmo::eval::answers::find_completion;
/// assert_eq!(find_completion("2 + 2?", "Question: 2 + 2?\n\nAnswer: 4"), " 4");
/// assert_eq!(find_completion("2 + 2?", "[INST] 2 + 2? [/INST] 4.\nAnswer: four"), " 4.\nAnswer: four");
/// ```
pub fn find_completion<'a>(question: &str, prediction: &'a str) -> &'a str {
    let question = question.trim();
    if question.is_empty() {
        return prediction;
    }
    let turns = TURNS.map(|turn| Turns::find(prediction, turn));
    let question_ends = || prediction.rmatch_indices(question).map(|(at, _)| at + question.len());
    let prompt_end = question_ends().take(MAX_OCCURRENCES).find_map(|end| {
        let turn = turns.iter().find_map(|turns| turns.user_turn_end(end));
        turn.or_else(|| Some(end + ANSWER_MARK.find(&prediction[end..])?.end()))
    });
    let end = prompt_end.or_else(|| question_ends().next());
    end.map_or(prediction, |end| &prediction[end..])
}

/// The positions of one template's turns in a text.
struct Turns {
    /// Starts of the marks that open the user's turn.
    opened: Vec<usize>,
    /// Ends of the marks that open the model's turn.
    closed: Vec<usize>,
}

impl Turns {
    fn find(text: &str, (opening, closing): (&str, &str)) -> Self {
        let opened = text.match_indices(opening).map(|(at, _)| at);
        let closed = text.match_indices(closing).map(|(at, _)| at + closing.len());
        Self { opened: opened.collect(), closed: closed.collect() }
    }

    /// Returns the end of the user's turn that contains the position `at`, or `None` if no user's turn does.
    fn user_turn_end(&self, at: usize) -> Option<usize> {
        let opened = self.opened.partition_point(|opened| *opened < at);
        let closed = self.closed.partition_point(|closed| *closed <= at);
        let last_opened = *self.opened.get(opened.checked_sub(1)?)?;
        let last_closed = closed.checked_sub(1).and_then(|at| self.closed.get(at));
        if last_closed.is_some_and(|closed| *closed > last_opened) {
            return None;
        }
        self.closed.get(closed).copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_mark_in_the_completion_is_not_the_prompts_end() {
        let question = "How many eggs are 9 + 9?";
        let run_on = "The answer is: 18\n\nQuestion: x?\n\nAnswer: The answer is: 4";
        let own_mark = "9 + 9 = 18.\n#### 18\nAnswer: eighteen, so she can bake 3 cakes";
        let boxed = "so \\boxed{18}.\n\nAnswer: see above";
        for template in [
            "[INST] {prompt} [/INST]",
            "<s>[INST] Solve it.\n{prompt}\nEnd with #### 56 [/INST]",
            "### Instruction:\n{prompt}\n\n### Response:\n",
            "### Question:\n{prompt}\nEnd with #### 56.\n\n### Answer:\n",
            "Human: {prompt} End with #### 56.\n\nAssistant:",
            "<｜User｜>{prompt} End with \\boxed{56}.<｜Assistant｜>",
            "<|USER_TOKEN|>{prompt} End with #### 56.<|END_OF_TURN_TOKEN|><|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>",
            "<|im_start|>system\nBe short.<|im_end|>\n<|im_start|>user\n{prompt}<|im_end|>\n<|im_start|>assistant\n",
            "Question: {prompt}\n\nAnswer:",
            "Question: {prompt}\nAnswer:",
            "Question: 1?\nAnswer: #### 1\n\nQuestion: {prompt}\nAnswer:",
            "Question: {prompt}. Write a Python program to solve this.\n\nAnswer:",
            "Question: {prompt}\nThink step by step.\nAnswer:",
            "{prompt}",
            "Example: {question} #### 38\n{prompt}",
        ] {
            let template = template.replace("{question}", question);
            let template = PromptTemplate::new(&template).unwrap();
            for completion in [run_on, own_mark, boxed, "", " 18", "<|im_end|> 18"] {
                let prediction = template.apply(question) + completion;
                // It cannot be known whether a line feed belongs to an unknown template.
                let found = find_completion(question, &prediction);
                assert_eq!(found.trim_start(), completion.trim_start(), "{prediction:?}");
            }
        }
    }

    #[test]
    fn a_known_template_is_removed_exactly() {
        let template = PromptTemplate::new("Q: {prompt}\nEnd with #### 56\nSolution:").unwrap();
        let usual = ForeignPrompt::Usual(template.clone());
        let given = ForeignPrompt::Given(template.clone());
        for question in
            ["9 + 9?", "", "Solution:", "Q: 1\nEnd with #### 56\nSolution:", " 9 ", "{prompt}"]
        {
            for completion in ["", " 18", " 9 + 9?\nAnswer: 3", &template.apply(question)] {
                let whole = template.apply(question) + completion;
                assert_eq!(usual.completion(question, &whole), Some(completion), "{whole:?}");
                assert_eq!(given.completion(question, &whole), Some(completion));
            }
        }
        let shots = "Q: 9 + 9?\nEnd with #### 56\nSolution: #### 38\n\nQ: 9 + 9?\nEnd with #### 56\nSolution: 18";
        let with_shots = format!("Shots.\n{shots}");
        assert_eq!(given.completion("9 + 9?", &with_shots), Some(" 18"));
        assert_eq!(given.completion("9 + 9?", "9 + 9? 18"), None);
        assert_eq!(usual.completion("9 + 9?", "9 + 9? 18"), Some(" 18"));
    }

    /// This would take minutes if the text after each occurrence were searched to the end.
    #[test]
    fn a_short_question_that_occurs_often_is_found_fast() {
        let text = format!("[INST] {} ", "a ".repeat(400_000));
        assert_eq!(find_completion("a", &text), "  ");
    }
}
