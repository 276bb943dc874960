//! Generates a model's answers to a set of problems and stores each as soon as it is complete.

use arithmo_backends::TrainBackend;

use serde::{Deserialize, Serialize};

use super::answers::Scorer;
use super::problems::Problem;
use super::store::Store;
use crate::data::prompt_format::PromptFormat;
use crate::data::tokenizer::Tokenizer;
use crate::error::Result;
use crate::generate::{CompletionEvent, FinishReason, GenerateConfig, complete_ids};
use crate::model::decoder::Decoder;
use crate::progress::{Progress, ProgressMode, TokenWork};

/// Builds the prompts of `problems`: each in `format`, or, if there are `shots`, after these solved examples in lm-eval's
/// format (`Question: ...\nAnswer: ...`, separated by blank lines).
///
/// # Errors
/// The chat template refuses the messages.
pub fn prompts(
    problems: &[Problem],
    format: &PromptFormat,
    shots: &[Problem],
) -> Result<Vec<String>> {
    let solved: String = shots
        .iter()
        .map(|shot| format!("Question: {}\nAnswer: {}\n\n", shot.question, shot.ground_truth))
        .collect();
    let prompt = |problem: &Problem| {
        if shots.is_empty() {
            format.apply(&problem.question)
        } else {
            Ok(format!("{solved}Question: {}\nAnswer:", problem.question))
        }
    };
    problems.iter().map(prompt).collect()
}

/// Returns the numbers (from 1) of the prompts that leave no room for an answer in a model with `positions` positions.
/// `special_tokens` says whether the tokenizer adds its special tokens ([`PromptFormat::adds_special_tokens`]).
///
/// # Errors
/// The tokenizer cannot encode a prompt.
pub fn too_long(
    prompts: &[String],
    tokenizer: &Tokenizer,
    special_tokens: bool,
    positions: usize,
) -> Result<Vec<usize>> {
    let mut numbers = Vec::new();
    for (prompt, number) in prompts.iter().zip(1..) {
        if tokenizer.encode(prompt, special_tokens)?.len() >= positions {
            numbers.push(number);
        }
    }
    Ok(numbers)
}

/// The text that a model wrote after a prompt, exactly as it was generated.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Answer {
    /// Text without the prompt and without special tokens.
    pub completion: String,
    /// Why the completion ended.
    pub finish_reason: FinishReason,
}

/// The model that answers, and how its answers are generated.
#[derive(Debug)]
pub struct Answering<'a, B: TrainBackend> {
    /// Model that answers.
    pub model: &'a Decoder<B>,
    /// Tokenizer of the model.
    pub tokenizer: &'a Tokenizer,
    /// Whether the tokenizer adds its special tokens to the prompts.
    pub special_tokens: bool,
    /// Generation settings: maximum length, stop conditions, batch size.
    pub config: &'a GenerateConfig,
    /// Scorers whose running accuracy is shown with the progress.
    pub scorers: &'a [Scorer],
    /// How progress is shown.
    pub progress: ProgressMode,
}

impl<B: TrainBackend> Answering<'_, B> {
    /// Completes the prompts, one per problem, whose answers `store` does not hold yet, and adds the answers to it.
    /// Prompts whose number (from 1) is in `too_long` get an empty answer.
    ///
    /// # Errors
    /// Generation fails as in [`complete_ids`], or the store cannot be written. Answers that are in the store stay there.
    pub fn answer(
        &self,
        problems: &[Problem],
        prompts: &[String],
        too_long: &[usize],
        store: &mut Store<Answer>,
    ) -> Result<()> {
        let total = Some(problems.len() as u64);
        let progress = Progress::new("evaluate", total, "answers", self.progress);
        let mut accuracy = RunningAccuracy {
            scorers: self.scorers,
            correct: vec![0; self.scorers.len()],
            total: 0,
        };
        for number in too_long {
            if !store.done().contains_key(&(number - 1)) {
                let empty =
                    Answer { completion: String::new(), finish_reason: FinishReason::Length };
                store.put(number - 1, empty)?;
            }
        }
        for (index, answer) in store.done() {
            accuracy.count(&problems[*index], answer);
        }
        let open = (0..problems.len()).filter(|index| !store.done().contains_key(index));
        let open: Vec<usize> = open.collect();
        progress.set_position((problems.len() - open.len()) as u64);
        let asked: Vec<String> = open.iter().map(|index| prompts[*index].clone()).collect();
        let mut work = TokenWork::new(open.len(), self.config.max_new_tokens);
        let on_event = |event: CompletionEvent<'_>| {
            if let CompletionEvent::Step(step) = event {
                work.generated(step.new_tokens);
                progress.set_share(work.share());
            }
            if let CompletionEvent::Finished { index, completion } = event {
                work.finished(completion.token_ids.len());
                let index = open[index];
                let answer = Answer {
                    completion: completion.completion.clone(),
                    finish_reason: completion.finish_reason,
                };
                accuracy.count(&problems[index], &answer);
                progress.set_message(accuracy.message());
                store.put(index, answer)?;
                progress.inc(1);
            }
            Ok(())
        };
        let encode = |prompt: &String| self.tokenizer.encode(prompt, self.special_tokens);
        let ids = asked.iter().map(encode).collect::<Result<Vec<_>>>()?;
        let result = complete_ids(self.model, self.tokenizer, &asked, &ids, self.config, on_event);
        progress.finish();
        store.with_kept_note(result)
    }
}

/// The accuracy of the answers so far, by scorer.
struct RunningAccuracy<'a> {
    scorers: &'a [Scorer],
    correct: Vec<usize>,
    total: usize,
}

impl RunningAccuracy<'_> {
    fn count(&mut self, problem: &Problem, answer: &Answer) {
        for (scorer, correct) in self.scorers.iter().zip(&mut self.correct) {
            let verdict = scorer.judge(&problem.ground_truth, &answer.completion);
            *correct += usize::from(verdict.correct);
        }
        self.total += 1;
    }

    fn message(&self) -> String {
        let percent = |correct: usize| 100.0 * correct as f64 / self.total.max(1) as f64;
        let all = self.scorers.iter().zip(&self.correct);
        let all =
            all.map(|(scorer, correct)| format!("{} {:.1} %", scorer.name, percent(*correct)));
        all.collect::<Vec<_>>().join(", ")
    }
}
