//! The tasks: what is asked in which words, and who judges.

use super::answers::{GSM8K_SCORERS, MATH_SCORERS, Scorer};
use super::judged::Rule;
use super::pot::POT_SCORERS;
use super::preference::PREFERENCE_RULES;
use crate::data::prompt::{PLAIN, PromptTemplate, QUESTION};
use crate::error::Result;

/// What is evaluated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Task {
    /// Word problems answered in words.
    Gsm8k,
    /// Word problems answered by Python programs.
    Gsm8kPot,
    /// Competition problems, answers in formulas.
    Math,
    /// Which of two answers is better.
    Preference,
}

impl Task {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Gsm8k, Self::Gsm8kPot, Self::Math, Self::Preference];

    /// Its name on the command line and in `results.json`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Gsm8k => "gsm8k",
            Self::Gsm8kPot => "gsm8k-pot",
            Self::Math => "math",
            Self::Preference => "preference",
        }
    }

    /// The task of this name.
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|task| task.name() == name)
    }

    /// What a question is put into, without examples: the original project's words.
    ///
    /// # Errors
    /// None of these has a wrong template.
    pub fn template(self) -> Result<PromptTemplate> {
        PromptTemplate::new(match self {
            Self::Gsm8k | Self::Math => QUESTION,
            Self::Gsm8kPot => {
                "Question: {prompt}. Write a Python program to solve this.\n\nAnswer:"
            }
            Self::Preference => PLAIN,
        })
    }

    /// Who judges the completions; of programs, what they print.
    pub fn scorers(self) -> &'static [Scorer] {
        match self {
            Self::Gsm8k => &GSM8K_SCORERS,
            Self::Gsm8kPot => &POT_SCORERS,
            Self::Math => &MATH_SCORERS,
            Self::Preference => &[],
        }
    }

    /// Names and meanings of what is counted.
    pub fn rules(self) -> Vec<Rule> {
        match self {
            Self::Preference => PREFERENCE_RULES.to_vec(),
            _ => self.scorers().iter().map(|scorer| (scorer.name, scorer.about)).collect(),
        }
    }

    /// The rule changes are shown by: the fairest one.
    pub fn main_rule(self) -> &'static str {
        match self {
            Self::Gsm8k | Self::Gsm8kPot => "numeric",
            Self::Math => "equivalent",
            Self::Preference => "reward",
        }
    }
}
