//! Decides whether a row becomes a pair, by the rules that depend on this row alone. Rows can be processed in parallel.

use regex::RegexSet;

use super::duplicates::Fingerprint;
use super::exclude::Excluded;
use super::output::Form;
use super::rules::{Rules, TextForm, TitleRule};
use super::stats::Reason;
use crate::data::html;
use crate::data::pair::PreferencePair;
use crate::data::preference::best_and_worst;
use crate::data::stack_exchange::{Answer, Row};
use crate::error::{Error, Result};

/// A pair that passed all rules except those about duplicates.
#[derive(Debug)]
pub(super) struct Candidate {
    /// The pair in the format of the output file.
    pub(super) encoded: Vec<u8>,
    /// Numbers of characters of prompt, chosen and rejected.
    pub(super) lengths: [usize; 3],
    /// Whether prompt, chosen or rejected has no text.
    pub(super) blank: bool,
    /// Whether both answers have the same text.
    pub(super) identical: bool,
    /// Fingerprint of the question, if the rules remove duplicates or hold out pairs.
    pub(super) fingerprint: Option<Fingerprint>,
}

/// Applies the rules to single rows.
pub(super) struct Judge {
    rules: Rules,
    filters: RegexSet,
    excluded: Excluded,
    form: Form,
}

impl Judge {
    pub(super) fn new(rules: &Rules, excluded: Excluded, form: Form) -> Result<Self> {
        let filters = RegexSet::new(&rules.question_filters)
            .map_err(|e| Error::invalid("question_filters", e, "correct the regular expression"))?;
        Ok(Self { rules: rules.clone(), filters, excluded, form })
    }

    /// Returns the pair of a row, or why it has none.
    pub(super) fn judge(&self, row: &Row) -> std::result::Result<Candidate, Reason> {
        let (best, worst) = self.pick(&row.answers)?;
        self.pair(row, best, worst)
    }

    /// Returns the indices of the better and the worse answer by their scores alone, or why there is no such pair.
    pub(super) fn pick(&self, answers: &[Answer]) -> std::result::Result<(usize, usize), Reason> {
        if answers.len() < self.rules.min_answers {
            return Err(Reason::TooFewAnswers);
        }
        let (best, worst) =
            best_and_worst(answers, self.rules.ties).ok_or(Reason::TooFewAnswers)?;
        let score = |index: usize| answers.get(index).map_or(0, |answer| answer.pm_score);
        match score(best) - score(worst) {
            0 => Err(Reason::EqualScores),
            gap if gap < self.rules.min_score_gap => Err(Reason::SmallScoreGap),
            _ => Ok((best, worst)),
        }
    }

    /// Returns the pair of a row's question and two of its answers, or why the texts make no pair.
    pub(super) fn pair(
        &self,
        row: &Row,
        best: usize,
        worst: usize,
    ) -> std::result::Result<Candidate, Reason> {
        let rules = &self.rules;
        let (Some(best), Some(worst)) = (row.answers.get(best), row.answers.get(worst)) else {
            return Err(Reason::TooFewAnswers);
        };
        let prompt = self.prompt(row)?;
        if !self.filters.is_empty() && !self.filters.is_match(&prompt.to_lowercase()) {
            return Err(Reason::NotMatched);
        }
        let pair = PreferencePair {
            id: row.qid.clone(),
            prompt,
            chosen: self.text(&best.text)?,
            rejected: self.text(&worst.text)?,
            chosen_score: Some(best.pm_score),
            rejected_score: Some(worst.pm_score),
            rendered: None,
        };
        let lengths = self.check_texts(&pair)?;
        let needed =
            rules.drop_duplicates || rules.drop_near_duplicates || rules.held_out_fraction > 0.0;
        // If pairs are held out, near duplicates are searched for even if they are kept, because they must be in the
        // same split.
        let near = rules.drop_near_duplicates || rules.held_out_fraction > 0.0;
        let fingerprint = needed.then(|| Fingerprint::new(&pair.prompt, near));
        let blank =
            [&pair.prompt, &pair.chosen, &pair.rejected].iter().any(|t| t.trim().is_empty());
        let identical = pair.chosen == pair.rejected;
        Ok(Candidate { encoded: self.form.encode(&pair), lengths, blank, identical, fingerprint })
    }

    /// Returns the question as text: the title, unless the rules drop it, and the body.
    fn prompt(&self, row: &Row) -> std::result::Result<String, Reason> {
        let body = self.text(&row.question)?;
        let title = match self.rules.title {
            TitleRule::Prepend => row.title.split_whitespace().collect::<Vec<_>>().join(" "),
            TitleRule::Drop => String::new(),
        };
        Ok(with_title(&title, body))
    }

    /// Converts HTML to text in the way that the rules ask for.
    fn text(&self, html: &str) -> std::result::Result<String, Reason> {
        match self.rules.text {
            TextForm::BeautifulSoup => html::original_text(html).map_err(|_| Reason::RejectedHtml),
            TextForm::Readable => Ok(html::readable_text(html)),
        }
    }

    /// Checks the texts of a pair against the rules. Returns their lengths in characters.
    fn check_texts(&self, pair: &PreferencePair) -> std::result::Result<[usize; 3], Reason> {
        let rules = &self.rules;
        let blank = |text: &str| text.trim().is_empty();
        if rules.refuse_empty && blank(&pair.prompt) {
            return Err(Reason::EmptyQuestion);
        }
        if rules.refuse_empty && (blank(&pair.chosen) || blank(&pair.rejected)) {
            return Err(Reason::EmptyAnswer);
        }
        if rules.refuse_identical && pair.chosen.trim() == pair.rejected.trim() {
            return Err(Reason::IdenticalAnswers);
        }
        let texts = [&pair.prompt, &pair.chosen, &pair.rejected];
        let lengths = texts.map(|text| text.chars().count());
        let [prompt, chosen, rejected] = lengths;
        let (shorter, longer) = (chosen.min(rejected), chosen.max(rejected));
        for (broken, reason) in [
            (prompt < rules.min_prompt_chars, Reason::QuestionTooShort),
            (exceeds(prompt, rules.max_prompt_chars), Reason::QuestionTooLong),
            (shorter < rules.min_answer_chars, Reason::AnswerTooShort),
            (exceeds(longer, rules.max_answer_chars), Reason::AnswerTooLong),
        ] {
            if broken {
                return Err(reason);
            }
        }
        if !self.excluded.is_empty() && self.excluded.is_repeated_by(&pair.prompt) {
            return Err(Reason::ExcludedQuestion);
        }
        Ok(lengths)
    }
}

/// Joins title and body with a blank line between them. A body that already begins with the title is returned unchanged.
fn with_title(title: &str, body: String) -> String {
    let start = body.trim_start();
    if title.is_empty() || start.lines().next().is_some_and(|line| line.trim() == title) {
        body
    } else if start.is_empty() {
        title.to_string()
    } else {
        format!("{title}\n\n{start}")
    }
}

/// Returns whether `length` is greater than `max`, where 0 means no limit.
fn exceeds(length: usize, max: usize) -> bool {
    max != 0 && length > max
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_title_is_written_before_the_body_once() {
        for (title, body, expected) in [
            ("Title", "Body", "Title\n\nBody"),
            ("Title", " \nBody", "Title\n\nBody"),
            ("", "Body", "Body"),
            ("Title", "", "Title"),
            ("Title", "Title\n\nBody", "Title\n\nBody"),
            ("Title", "Titles differ", "Title\n\nTitles differ"),
        ] {
            assert_eq!(with_title(title, body.to_string()), expected);
        }
    }

    /// Filters, length limits and excluded questions apply to title and body together.
    #[test]
    fn every_rule_applies_to_the_title_too() {
        let row = Row {
            qid: "1".into(),
            title: "Calculate  $x<y$ &amp; z".into(),
            question: "<p>No hints?</p>".into(),
            answers: [("best", 5), ("worst", 1)]
                .map(|(text, pm_score)| Answer { text: text.into(), pm_score, selected: false })
                .into(),
        };
        let judge = |change: fn(&mut Rules)| {
            let mut rules = Rules::default();
            change(&mut rules);
            let judge = Judge::new(&rules, Excluded::default(), Form::Lines).unwrap();
            judge.judge(&row).map(|pair| pair.lengths[0])
        };
        // "Calculate $x<y$ &amp; z", two line ends, "No hints?".
        assert_eq!(judge(|_| {}).unwrap(), 23 + 2 + 9);
        assert_eq!(
            judge(|rules| rules.max_prompt_chars = 33).unwrap_err(),
            Reason::QuestionTooLong
        );
        assert_eq!(judge(|rules| rules.title = TitleRule::Drop).unwrap_err(), Reason::NotMatched);
    }
}
