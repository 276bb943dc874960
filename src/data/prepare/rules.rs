//! The rules of `prepare`: two presets, and the file `prepare.toml`, which can change each rule by its name.

use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::data::preference::TieRule;
use crate::error::{Error, Result};
use crate::input_file;

/// A complete set of rules, which a `prepare.toml` can change.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Preset {
    /// The rules of the original project, with byte-identical results.
    Original,
    /// Readable text, cleaner pairs and a held-out part.
    #[default]
    Default,
}

/// How HTML is converted to text.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum TextForm {
    /// [`crate::data::html::original_text`].
    BeautifulSoup,
    /// [`crate::data::html::readable_text`].
    Readable,
}

/// How the title of a question is used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum TitleRule {
    /// The question is the title, a blank line, and the body.
    Prepend,
    /// The question is the body alone.
    Drop,
}

/// All rules, under their names in `prepare.toml`. Lengths are in characters (Unicode scalar values) of the text.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Rules {
    /// Preset that these rules are based on.
    pub preset: Preset,
    /// How HTML is converted to text.
    pub text: TextForm,
    /// Whether the title, if the source has one, is part of the question: of the prompt, and of the text to which
    /// filters, length limits, duplicates and excluded questions apply.
    pub title: TitleRule,
    /// Regular expressions. A question is kept if its lower-cased text matches any of them, or if there are none.
    pub question_filters: Vec<String>,
    /// Which of several answers of equal score is chosen.
    pub ties: TieRule,
    /// Minimum number of answers that a question must have (at least 2).
    pub min_answers: usize,
    /// Minimum difference of the vote scores (at least 1). Scores are logarithmic: 2 means about four times the votes.
    pub min_score_gap: i64,
    /// Whether pairs with an empty question or answer are removed.
    pub refuse_empty: bool,
    /// Whether pairs of two equal answers are removed.
    pub refuse_identical: bool,
    /// Minimum length of a question.
    pub min_prompt_chars: usize,
    /// Maximum length of a question; 0 means no limit.
    pub max_prompt_chars: usize,
    /// Minimum length of an answer.
    pub min_answer_chars: usize,
    /// Maximum length of an answer; 0 means no limit.
    pub max_answer_chars: usize,
    /// Whether questions equal to an earlier one, ignoring case and spaces, are removed.
    pub drop_duplicates: bool,
    /// Whether questions that nearly repeat an earlier one are removed.
    pub drop_near_duplicates: bool,
    /// Fraction of five-token shingles that two questions must share to be near duplicates, in (0, 1].
    pub near_duplicate_threshold: f64,
    /// Fraction of an excluded question's eight-word sequences that a question must contain to be removed, in (0, 1].
    pub exclude_overlap: f64,
    /// Fraction of the questions that is written to the held-out file, in [0, 1).
    pub held_out_fraction: f64,
}

impl Default for Rules {
    fn default() -> Self {
        Self::preset(Preset::Default)
    }
}

impl Rules {
    /// Returns the rules of a preset.
    pub fn preset(preset: Preset) -> Self {
        let default = Self {
            preset,
            text: TextForm::Readable,
            title: TitleRule::Prepend,
            question_filters: vec![r"\bcalculate\b".to_string()],
            ties: TieRule::AcceptedThenFirst,
            min_answers: 2,
            min_score_gap: 2,
            refuse_empty: true,
            refuse_identical: true,
            min_prompt_chars: 10,
            max_prompt_chars: 8000,
            min_answer_chars: 2,
            max_answer_chars: 16000,
            drop_duplicates: true,
            drop_near_duplicates: true,
            near_duplicate_threshold: 0.8,
            exclude_overlap: 0.5,
            held_out_fraction: 0.05,
        };
        match preset {
            Preset::Default => default,
            Preset::Original => Self {
                text: TextForm::BeautifulSoup,
                title: TitleRule::Drop,
                ties: TieRule::Last,
                min_score_gap: 1,
                refuse_empty: false,
                refuse_identical: false,
                min_prompt_chars: 0,
                max_prompt_chars: 0,
                min_answer_chars: 0,
                max_answer_chars: 0,
                drop_duplicates: false,
                drop_near_duplicates: false,
                held_out_fraction: 0.0,
                ..default
            },
        }
    }

    /// Reads rules from a `prepare.toml`. A given `preset` overrides the one in the file.
    ///
    /// # Errors
    /// The file cannot be read, is not TOML, has an unknown key (the error names the nearest known one), or a value is out
    /// of range.
    pub fn load(path: &Path, preset: Option<Preset>) -> Result<Self> {
        let text = input_file::read_once(path).map_err(|e| Error::io(path, "read", e))?;
        Self::parse(&text, &path.display().to_string(), preset)
    }

    /// Parses the text of a `prepare.toml`. Errors call it `name`.
    ///
    /// # Errors
    /// Same as [`Rules::load`].
    pub fn parse(text: &str, name: &str, preset: Option<Preset>) -> Result<Self> {
        // The file is parsed twice: alone, for errors with line numbers, and then on top of its preset.
        let own: Self = toml::from_str(text).map_err(|e| explain(&e, text, name))?;
        let preset = preset.unwrap_or(own.preset);
        let inner =
            |e: &dyn std::fmt::Display| Error::invalid(name, e, "see configs/prepare-default.toml");
        let mut rules = toml::Table::try_from(Self::preset(preset)).map_err(|e| inner(&e))?;
        let mut changes: toml::Table = toml::from_str(text).map_err(|e| explain(&e, text, name))?;
        changes.remove("preset");
        rules.extend(changes);
        let rules: Self = rules.try_into().map_err(|e| inner(&e))?;
        rules.validate(|key| {
            let defines = |line: &str| {
                line.trim_start()
                    .strip_prefix(key)
                    .is_some_and(|rest| rest.trim_start().starts_with('='))
            };
            match text.lines().position(defines) {
                Some(line) => format!("{name}:{}: {key}", line + 1),
                None => format!("{name}: {key}"),
            }
        })?;
        Ok(rules)
    }

    /// Checks that every value is in range. `place` returns the place of a key for the error.
    ///
    /// # Errors
    /// A value is out of range. The error is about the first one.
    pub fn validate(&self, place: impl Fn(&str) -> String) -> Result<()> {
        let refuse = |key: &str, problem: String, remedy: &str| {
            Err(Error::invalid(place(key), problem, remedy))
        };
        if self.min_answers < 2 {
            let problem = format!("must be at least 2, is {}", self.min_answers);
            return refuse("min_answers", problem, "a pair needs two answers");
        }
        if self.min_score_gap < 1 {
            let problem = format!("must be at least 1, is {}", self.min_score_gap);
            return refuse(
                "min_score_gap",
                problem,
                "answers of equal score express no preference",
            );
        }
        for (key, min, max) in [
            ("max_prompt_chars", self.min_prompt_chars, self.max_prompt_chars),
            ("max_answer_chars", self.min_answer_chars, self.max_answer_chars),
        ] {
            if max != 0 && max < min {
                let problem = format!("is {max}, less than the minimum length {min}");
                return refuse(key, problem, "raise it, or set 0 for no limit");
            }
        }
        for (key, value) in [
            ("near_duplicate_threshold", self.near_duplicate_threshold),
            ("exclude_overlap", self.exclude_overlap),
        ] {
            if !(value > 0.0 && value <= 1.0) {
                return refuse(
                    key,
                    format!("must be above 0 and at most 1, is {value}"),
                    "set 0.5",
                );
            }
        }
        if !(0.0..1.0).contains(&self.held_out_fraction) {
            let problem = format!("must be at least 0 and below 1, is {}", self.held_out_fraction);
            return refuse("held_out_fraction", problem, "set 0.05 for one question in twenty");
        }
        if let Err(e) = regex::RegexSet::new(&self.question_filters) {
            let remedy = "use the syntax of https://docs.rs/regex, in 'single quotes'";
            return refuse("question_filters", e.to_string(), remedy);
        }
        Ok(())
    }
}

/// Converts an error of the TOML parser. The result names the line, and for an unknown key the nearest known one.
fn explain(error: &toml::de::Error, text: &str, name: &str) -> Error {
    let line = error
        .span()
        .and_then(|span| text.get(..span.start))
        .map(|before| before.matches('\n').count() + 1);
    let place = line.map_or(name.to_string(), |line| format!("{name}:{line}"));
    let message = error.message();
    let mut quoted = message.split('`').skip(1).step_by(2);
    if message.starts_with("unknown field")
        && let Some(unknown) = quoted.next()
    {
        let similarity = |key: &&str| (strsim::jaro_winkler(unknown, key) * 1e6) as u64;
        let nearest = quoted.max_by_key(similarity).unwrap_or_default();
        return Error::invalid(
            format!("{place}: {unknown}"),
            "there is no such rule",
            format!("did you mean {nearest}?"),
        );
    }
    Error::invalid(place, message, "see configs/prepare-default.toml for every rule")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Rules> {
        Rules::parse(text, "prepare.toml", None)
    }

    #[test]
    fn a_file_changes_its_preset() {
        let rules = parse("preset = \"original\"\nmin_answers = 3\nties = \"accepted-then-first\"")
            .unwrap();
        let ties = TieRule::AcceptedThenFirst;
        assert_eq!(rules, Rules { min_answers: 3, ties, ..Rules::preset(Preset::Original) });
        assert_eq!(parse("").unwrap(), Rules::default());
        let forced = Rules::parse("preset = \"original\"", "x", Some(Preset::Default));
        assert_eq!(forced.unwrap(), Rules::default());
    }

    #[test]
    fn errors_name_line_and_nearest_key() {
        let message = |text: &str| parse(text).unwrap_err().to_string();
        let unknown = message("preset = \"original\"\n\nmin_score_gab = 2\n");
        assert_eq!(
            unknown,
            "prepare.toml:3: min_score_gab: there is no such rule\n  help: did you mean min_score_gap?"
        );
        assert!(message("min_answers = \"two\"").starts_with("prepare.toml:1: invalid type"));
        assert!(message("a = \n").starts_with("prepare.toml:1: "));
        assert!(message("preset = \"other\"").contains("unknown variant `other`"));
        assert!(
            message("\nheld_out_fraction = 1.0")
                .starts_with("prepare.toml:2: held_out_fraction: must")
        );
        assert!(
            message("question_filters = ['(']").contains("question_filters: regex parse error")
        );
        assert!(message("max_prompt_chars = 5").contains("less than the minimum length 10"));
    }
}
