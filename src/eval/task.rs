//! The evaluation tasks, each with its prompt template and scorers.

use super::answers::{GSM8K_SCORERS, MATH_SCORERS, Scorer};
use super::judged::Rule;
use super::pot::POT_SCORERS;
use super::preference::PREFERENCE_RULES;
use crate::data::prompt::{PLAIN, PromptTemplate, QUESTION};
use crate::error::Result;

/// An evaluation task.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Task {
    /// Word problems answered in text.
    Gsm8k,
    /// Word problems answered by Python programs.
    Gsm8kPot,
    /// Competition problems whose answers are formulas.
    Math,
    /// The choice of the better of two answers.
    Preference,
}

impl Task {
    /// All tasks.
    pub const ALL: [Self; 4] = [Self::Gsm8k, Self::Gsm8kPot, Self::Math, Self::Preference];

    /// Returns the task's name on the command line and in `results.json`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Gsm8k => "gsm8k",
            Self::Gsm8kPot => "gsm8k-pot",
            Self::Math => "math",
            Self::Preference => "preference",
        }
    }

    /// Returns the task with this name.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|task| task.name() == name)
    }

    /// Returns the prompt template for zero-shot questions, with the original project's words.
    ///
    /// # Errors
    /// Never for these templates: all of them are valid.
    pub fn template(self) -> Result<PromptTemplate> {
        PromptTemplate::new(match self {
            Self::Gsm8k | Self::Math => QUESTION,
            Self::Gsm8kPot => {
                "Question: {prompt}. Write a Python program to solve this.\n\nAnswer:"
            }
            Self::Preference => PLAIN,
        })
    }

    /// Returns the words around the question in the user's message of a chat.
    pub fn request(self) -> &'static str {
        match self {
            Self::Gsm8k | Self::Math | Self::Preference => PLAIN,
            Self::Gsm8kPot => "{prompt}. Write a Python program to solve this.",
        }
    }

    /// Returns the scorers of the completions, or of the programs' output in [`Self::Gsm8kPot`].
    pub fn scorers(self) -> &'static [Scorer] {
        match self {
            Self::Gsm8k => &GSM8K_SCORERS,
            Self::Gsm8kPot => &POT_SCORERS,
            Self::Math => &MATH_SCORERS,
            Self::Preference => &[],
        }
    }

    /// Returns the name and description of each rule by which answers are counted as correct.
    pub fn rules(self) -> Vec<Rule> {
        match self {
            Self::Preference => PREFERENCE_RULES.to_vec(),
            _ => self.scorers().iter().map(|scorer| (scorer.name, scorer.about)).collect(),
        }
    }

    /// Returns the name of the fairest rule, by which comparisons show changed problems.
    pub fn main_rule(self) -> &'static str {
        match self {
            Self::Gsm8k | Self::Gsm8kPot => "numeric",
            Self::Math => "equivalent",
            Self::Preference => "reward",
        }
    }
}
