//! Answers of a model to a set of problems, kept as they come.

use arithmo_backends::TrainBackend;

use super::answers::{Scorer, completion_of};
use super::problems::Problem;
use super::store::Store;
use crate::data::prompt::PromptTemplate;
use crate::data::tokenizer::Tokenizer;
use crate::error::{Error, Result};
use crate::generate::{CompletionEvent, GenerateConfig, complete_each};
use crate::model::mistral::Mistral;
use crate::progress::{Progress, ProgressMode};

/// The prompts of `problems`: `template` around each, or with `shots` the solved ones first, in lm-eval's form
/// (`Question: ...\nAnswer: ...`, a blank line between them).
pub fn prompts(problems: &[Problem], template: &PromptTemplate, shots: &[Problem]) -> Vec<String> {
    let solved: String = shots
        .iter()
        .map(|shot| {
            format!(
                "Question: {}\nAnswer: {}\n\n",
                shot.question, shot.ground_truth
            )
        })
        .collect();
    let prompt = |problem: &Problem| match shots.is_empty() {
        true => template.apply(&problem.question),
        false => format!("{solved}Question: {}\nAnswer:", problem.question),
    };
    problems.iter().map(prompt).collect()
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
    /// Completes each of `prompts`, one a problem, that `store` does not hold yet; the whole text goes into `store`.
    /// Returns the numbers (from 1) of the problems that leave no room for an answer: theirs is empty.
    ///
    /// # Errors
    /// As [`complete_each`]; or the store cannot be written. What is in the store stays.
    pub fn answer(
        &self,
        problems: &[Problem],
        prompts: &[String],
        store: &mut Store<String>,
    ) -> Result<Vec<usize>> {
        let progress = Progress::new(
            "evaluate",
            Some(problems.len() as u64),
            "answers",
            self.progress,
        );
        let mut running = Running {
            scorers: self.scorers,
            correct: vec![0; self.scorers.len()],
            total: 0,
        };
        let mut too_long = Vec::new();
        let mut open = Vec::new();
        for (index, (problem, prompt)) in problems.iter().zip(prompts).enumerate() {
            let length = self.tokenizer.encode(prompt, true)?.len();
            if length >= self.model.config.max_position_embeddings {
                too_long.push(index + 1);
                if !store.done().contains_key(&index) {
                    store.put(index, prompt.clone())?;
                }
            }
            match store.done().get(&index) {
                Some(text) => running.count(problem, text),
                None => open.push(index),
            }
        }
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
        let ended = complete_each(
            self.model,
            self.tokenizer,
            &asked,
            &as_it_is,
            self.config,
            on_event,
        );
        progress.finish();
        match ended {
            Err(Error::Interrupted { .. }) => Err(Error::Interrupted {
                note: format!(
                    "{} of {} answers are kept; the same command goes on",
                    store.done().len(),
                    problems.len()
                ),
            }),
            ended => ended.map(|()| too_long),
        }
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
