//! Whether a row becomes a pair: the rules that look at one row alone, which run in parallel.

use regex::RegexSet;

use super::duplicates::Fingerprint;
use super::exclude::Excluded;
use super::output::Form;
use super::rules::{Rules, TextForm};
use super::stats::Reason;
use crate::data::html;
use crate::data::pair::PreferencePair;
use crate::data::preference::best_and_worst;
use crate::data::stack_exchange::{Answer, Row};
use crate::error::{Error, Result};

/// A pair that only a duplicate can still keep out.
#[derive(Debug)]
pub(super) struct Candidate {
    /// The pair as it stands in the output file.
    pub(super) encoded: Vec<u8>,
    /// Characters of prompt, chosen and rejected.
    pub(super) lengths: [usize; 3],
    /// Whether a side has no text, or both have the same.
    pub(super) blank: bool,
    pub(super) identical: bool,
    /// Needed for the split and for duplicates only.
    pub(super) fingerprint: Option<Fingerprint>,
}

/// The rules, compiled.
pub(super) struct Judge {
    rules: Rules,
    filters: RegexSet,
    excluded: Excluded,
    form: Form,
}

impl Judge {
    pub(super) fn new(rules: &Rules, excluded: Excluded, form: Form) -> Result<Self> {
        let filters = RegexSet::new(&rules.question_filters)
            .map_err(|e| Error::invalid("question_filters", e, "mend the regular expression"))?;
        Ok(Self { rules: rules.clone(), filters, excluded, form })
    }

    /// The pair of a row, or why it has none.
    pub(super) fn judge(&self, row: &Row) -> std::result::Result<Candidate, Reason> {
        let (best, worst) = self.pick(&row.answers)?;
        self.pair(row, best, worst)
    }

    /// Indices of the better and the worse answer by their scores alone, or why there are none.
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

    /// The pair of a row and two of its answers, or why they are none.
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
        let prompt = self.text(&row.question)?;
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
        };
        let lengths = self.check_texts(&pair)?;
        let all =
            rules.drop_duplicates || rules.drop_near_duplicates || rules.held_out_fraction > 0.0;
        // Where there is a held-out part, near duplicates are looked for even if they may stay: they must not
        // stand on both sides.
        let near = rules.drop_near_duplicates || rules.held_out_fraction > 0.0;
        let fingerprint = all.then(|| Fingerprint::new(&pair.prompt, near));
        let blank =
            [&pair.prompt, &pair.chosen, &pair.rejected].iter().any(|t| t.trim().is_empty());
        let identical = pair.chosen == pair.rejected;
        Ok(Candidate { encoded: self.form.encode(&pair), lengths, blank, identical, fingerprint })
    }

    fn text(&self, html: &str) -> std::result::Result<String, Reason> {
        match self.rules.text {
            TextForm::BeautifulSoup => html::original_text(html).map_err(|_| Reason::RejectedHtml),
            TextForm::Readable => Ok(html::readable_text(html)),
        }
    }

    /// The lengths of a pair's texts in characters, if they and the question are acceptable.
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

fn exceeds(length: usize, most: usize) -> bool {
    most != 0 && length > most
}
