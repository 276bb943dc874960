//! Answers of a model to a set of problems, kept as they come.

use arithmo_backends::TrainBackend;

use super::answers::{Scorer, completion_of};
use super::problems::Problem;
use super::store::Store;
use crate::data::prompt::PromptTemplate;
use crate::data::tokenizer::Tokenizer;
use crate::error::Result;
use crate::generate::{CompletionEvent, GenerateConfig, complete_each};
use crate::model::mistral::Mistral;
use crate::progress::{Progress, ProgressMode};

/// The prompts of `problems`: `template` around each, or with `shots` the solved ones first, in lm-eval's form
/// (`Question: ...\nAnswer: ...`, a blank line between them).
pub fn prompts(problems: &[Problem], template: &PromptTemplate, shots: &[Problem]) -> Vec<String> {
    let solved: String = shots
        .iter()
        .map(|shot| format!("Question: {}\nAnswer: {}\n\n", shot.question, shot.ground_truth))
        .collect();
    let prompt = |problem: &Problem| match shots.is_empty() {
        true => template.apply(&problem.question),
        false => format!("{solved}Question: {}\nAnswer:", problem.question),
    };
    problems.iter().map(prompt).collect()
}

/// The numbers (from 1) of the prompts that leave no room for an answer among a model's `positions`.
///
/// # Errors
/// The tokenizer cannot express a prompt.
pub fn too_long(prompts: &[String], tokenizer: &Tokenizer, positions: usize) -> Result<Vec<usize>> {
    let mut numbers = Vec::new();
    for (prompt, number) in prompts.iter().zip(1..) {
        if tokenizer.encode(prompt, true)?.len() >= positions {
            numbers.push(number);
        }
    }
    Ok(numbers)
}

/// Who answers, and how.
#[derive(Debug)]
pub struct Answering<'a, B: TrainBackend> {
    /// The model.
    pub model: &'a Mistral<B>,
    /// Its tokenizer.
    pub tokenizer: &'a Tokenizer,
    /// Length, stops, batch.
    pub config: &'a GenerateConfig,
    /// What the running accuracy is of; none, none is shown.
    pub scorers: &'a [Scorer],
    /// Where progress goes.
    pub progress: ProgressMode,
}

impl<B: TrainBackend> Answering<'_, B> {
    /// Completes each of `prompts`, one a problem, that `store` does not hold yet; the whole text goes into `store`. Those
    /// whose number (from 1) is in `too_long` get an empty answer.
    ///
    /// # Errors
    /// As [`complete_each`]; or the store cannot be written. What is in the store stays.
    pub fn answer(
        &self,
        problems: &[Problem],
        prompts: &[String],
        too_long: &[usize],
        store: &mut Store<String>,
    ) -> Result<()> {
        let total = Some(problems.len() as u64);
        let progress = Progress::new("evaluate", total, "answers", self.progress);
        let mut running =
            Running { scorers: self.scorers, correct: vec![0; self.scorers.len()], total: 0 };
        for number in too_long {
            if !store.done().contains_key(&(number - 1)) {
                store.put(number - 1, prompts[number - 1].clone())?;
            }
        }
        for (index, text) in store.done() {
            running.count(&problems[*index], text);
        }
        let open = (0..problems.len()).filter(|index| !store.done().contains_key(index));
        let open: Vec<usize> = open.collect();
        progress.set_position((problems.len() - open.len()) as u64);
        let asked: Vec<String> = open.iter().map(|index| prompts[*index].clone()).collect();
        let on_event = |event: CompletionEvent<'_>| {
            if let CompletionEvent::Finished { index, completion } = event {
                let index = open[index];
                let text = [prompts[index].as_str(), &completion.completion].concat();
                running.count(&problems[index], &text);
                progress.set_message(running.message());
                store.put(index, text)?;
                progress.inc(1);
            }
            Ok(())
        };
        let as_it_is = PromptTemplate::default();
        let ended =
            complete_each(self.model, self.tokenizer, &asked, &as_it_is, self.config, on_event);
        progress.finish();
        store.kept(ended, problems.len())
    }
}

/// Accuracy so far.
struct Running<'a> {
    scorers: &'a [Scorer],
    correct: Vec<usize>,
    total: usize,
}

impl Running<'_> {
    fn count(&mut self, problem: &Problem, text: &str) {
        let completion = completion_of(&problem.question, text);
        for (scorer, correct) in self.scorers.iter().zip(&mut self.correct) {
            *correct += usize::from(scorer.judge(&problem.ground_truth, completion).correct);
        }
        self.total += 1;
    }

    fn message(&self) -> String {
        let share = |correct: usize| 100.0 * correct as f64 / self.total.max(1) as f64;
        let all = self.scorers.iter().zip(&self.correct);
        let all = all.map(|(scorer, correct)| format!("{} {:.1} %", scorer.name, share(*correct)));
        all.collect::<Vec<_>>().join(", ")
    }
}
