//! Counts of what `prepare` did with every row, for `pairs.stats.json` and for the summary on the screen.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Serialize;

use super::rules::Rules;

/// Maximum number of ids listed for one reason. The count is exact even if it is larger.
pub const MAX_LISTED: usize = 10_000;

/// Why a row did not become a pair.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Reason {
    /// The row is unreadable and skipped under `--skip-bad-rows`. It is listed by its place and problem.
    UnreadableRow,
    /// A file or row group is unreadable from some point on and skipped under `--skip-bad-rows`. It counts once.
    UnreadableRest,
    /// The question has fewer answers than `min_answers`.
    TooFewAnswers,
    /// The best and the worst answer have the same score.
    EqualScores,
    /// The scores of the best and the worst answer differ by less than `min_score_gap`.
    SmallScoreGap,
    /// BeautifulSoup cannot parse the HTML.
    RejectedHtml,
    /// No filter matches the question.
    NotMatched,
    /// The question has no text.
    EmptyQuestion,
    /// One of the two answers has no text.
    EmptyAnswer,
    /// The two answers have the same text.
    IdenticalAnswers,
    /// The question is shorter than `min_prompt_chars`.
    QuestionTooShort,
    /// The question is longer than `max_prompt_chars`.
    QuestionTooLong,
    /// An answer is shorter than `min_answer_chars`.
    AnswerTooShort,
    /// An answer is longer than `max_answer_chars`.
    AnswerTooLong,
    /// The question repeats one of the `--exclude-questions` files.
    ExcludedQuestion,
    /// The question repeats an earlier one.
    Duplicate,
    /// The question nearly repeats an earlier one.
    NearDuplicate,
}

impl Reason {
    /// Returns the reason in words for the summary.
    pub fn describe(self) -> &'static str {
        match self {
            Self::UnreadableRow => "unreadable rows",
            Self::UnreadableRest => "files or row groups unreadable from some point on",
            Self::TooFewAnswers => "too few answers",
            Self::EqualScores => "best and worst answer score the same",
            Self::SmallScoreGap => "scores too close",
            Self::RejectedHtml => "HTML that BeautifulSoup rejects",
            Self::NotMatched => "question matches no filter",
            Self::EmptyQuestion => "empty question",
            Self::EmptyAnswer => "empty answer",
            Self::IdenticalAnswers => "identical answers",
            Self::QuestionTooShort => "question too short",
            Self::QuestionTooLong => "question too long",
            Self::AnswerTooShort => "answer too short",
            Self::AnswerTooLong => "answer too long",
            Self::ExcludedQuestion => "repeats an excluded question",
            Self::Duplicate => "duplicate",
            Self::NearDuplicate => "near duplicate",
        }
    }
}

/// Rows that did not become a pair for one reason.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Rejected {
    /// Number of rows.
    pub count: u64,
    /// The first [`MAX_LISTED`] ids, in input order.
    pub ids: Vec<String>,
}

/// A histogram of text lengths. Bin `i` counts lengths in `[2^i, 2^(i+1))`; bin 0 also counts length 0.
#[derive(Clone, Debug, Default)]
pub struct Lengths(Vec<u64>);

impl Lengths {
    fn add(&mut self, length: usize) {
        let bin = length.max(1).ilog2() as usize;
        if self.0.len() <= bin {
            self.0.resize(bin + 1, 0);
        }
        if let Some(count) = self.0.get_mut(bin) {
            *count += 1;
        }
    }
}

impl Serialize for Lengths {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        #[derive(Serialize)]
        struct Bin {
            from: u64,
            below: u64,
            count: u64,
        }
        serializer.collect_seq(self.0.iter().enumerate().map(|(i, &count)| Bin {
            from: if i == 0 { 0 } else { 1 << i },
            below: 1 << (i + 1),
            count,
        }))
    }
}

/// Histograms of the lengths, in characters, of the pairs kept.
#[derive(Clone, Debug, Default, Serialize)]
pub struct PairLengths {
    /// Lengths of the questions.
    pub prompt: Lengths,
    /// Lengths of the chosen answers.
    pub chosen: Lengths,
    /// Lengths of the rejected answers.
    pub rejected: Lengths,
}

impl PairLengths {
    pub(super) fn add(&mut self, [prompt, chosen, rejected]: [usize; 3]) {
        self.prompt.add(prompt);
        self.chosen.add(chosen);
        self.rejected.add(rejected);
    }
}

/// Numbers of posts in the `Posts.xml` files read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct PostCounts {
    /// Number of questions. Each is one row.
    pub questions: u64,
    /// Number of answers.
    pub answers: u64,
    /// Number of answers whose question is not in the file. They are included in `answers`.
    pub orphan_answers: u64,
    /// Number of posts of other types (such as tag wikis), which are not used.
    pub other: u64,
    /// Number of posts whose id occurred before in the same document, which are not used. They are included in the other
    /// counts.
    pub repeated: u64,
}

/// Counts for one input file.
#[derive(Clone, Debug, Serialize)]
pub struct InputStats {
    /// Path of the file.
    pub path: String,
    /// Number of rows read from the file, including unreadable ones.
    pub rows: u64,
}

/// All counts of a run of `prepare`. `rows_read = kept + held_out + Σ not_kept.count`.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Stats {
    /// Number of rows read.
    pub rows_read: u64,
    /// Number of pairs in the output file.
    pub kept: u64,
    /// Number of pairs in the held-out file.
    pub held_out: u64,
    /// All other rows, by reason.
    pub not_kept: BTreeMap<Reason, Rejected>,
    /// Number of readable rows whose question has a title.
    pub rows_with_title: u64,
    /// Number of pairs, including held-out ones, whose prompt includes a title.
    pub pairs_with_title: u64,
    /// Number of pairs kept with an empty prompt or answer. Nothing can be learned from them; `refuse_empty` removes them.
    pub kept_with_an_empty_side: u64,
    /// Number of pairs kept with two equal answers. Nothing can be learned from them; `refuse_identical` removes them.
    pub kept_with_identical_answers: u64,
    /// Lengths of the pairs kept, including held-out ones.
    pub lengths_in_characters: PairLengths,
    /// Numbers of posts, if the input has `Posts.xml` files.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub posts: Option<PostCounts>,
    /// Counts for each input file.
    pub inputs: Vec<InputStats>,
}

impl Stats {
    /// Counts the row `id`, which did not become a pair for `reason`.
    pub(super) fn count_rejected(&mut self, reason: Reason, id: String) {
        let rejected = self.not_kept.entry(reason).or_default();
        rejected.count += 1;
        if rejected.ids.len() < MAX_LISTED {
            rejected.ids.push(id);
        }
    }

    /// Returns the number of rows that did not become a pair for `reason`.
    pub fn rejected(&self, reason: Reason) -> u64 {
        self.not_kept.get(&reason).map_or(0, |rejected| rejected.count)
    }
}

/// The contents of the stats file.
#[derive(Serialize)]
pub(super) struct StatsFile<'a> {
    pub(super) output: &'a Path,
    pub(super) held_out_output: Option<&'a Path>,
    #[serde(flatten)]
    pub(super) stats: &'a Stats,
    pub(super) ids_listed_at_most: usize,
    pub(super) settings: &'a Rules,
    pub(super) exclude_questions: &'a [PathBuf],
    pub(super) excluded_questions: usize,
}

/// Summary of a run of `prepare`, which is displayed on the screen.
#[derive(Clone, Debug)]
pub struct PrepareSummary {
    /// File of the pairs.
    pub output: PathBuf,
    /// File of the held-out pairs, if the rules hold out any.
    pub held_out: Option<PathBuf>,
    /// File of the stats.
    pub stats_file: PathBuf,
    /// All counts.
    pub stats: Stats,
    /// Time that the run took.
    pub elapsed: Duration,
}

impl fmt::Display for PrepareSummary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let stats = &self.stats;
        let seconds = self.elapsed.as_secs_f64().max(1e-3);
        let rate = stats.rows_read as f64 / seconds;
        let rows = counted(stats.rows_read, "row", "rows");
        writeln!(f, "{rows} read in {seconds:.1} s ({rate:.0} rows/s)")?;
        self.fmt_pairs(f)?;
        let total: u64 = stats.not_kept.values().map(|rejected| rejected.count).sum();
        if total > 0 {
            writeln!(f, "{} without a pair:", counted(total, "row", "rows"))?;
        }
        for (reason, rejected) in &stats.not_kept {
            writeln!(f, "{:>10}   {}", rejected.count, reason.describe())?;
        }
        if stats.rejected(Reason::UnreadableRest) > 0 && stats.rejected(Reason::TooFewAnswers) > 0 {
            let note = "note: an input could not be read to its end. Questions may lack answers because those come \
                later in the file.";
            writeln!(f, "{note}")?;
        }
        if let Some(repeated) = stats.posts.map(|posts| posts.repeated).filter(|n| *n > 0) {
            let posts = counted(repeated, "post", "posts");
            writeln!(f, "{posts} left out: the id occurred before in the same document")?;
        }
        for (count, defect) in [
            (stats.kept_with_an_empty_side, "an empty side"),
            (stats.kept_with_identical_answers, "identical answers"),
        ] {
            if count > 0 {
                let pairs = counted(count, "pair", "pairs");
                writeln!(f, "{pairs} kept with {defect}: nothing to learn")?;
            }
        }
        if stats.kept + stats.held_out == 0 && stats.rows_read > 0 {
            writeln!(
                f,
                "warning: no row became a pair; see question_filters and the counts above"
            )?;
        }
        write!(f, "every count, with ids -> {}", self.stats_file.display())
    }
}

impl PrepareSummary {
    /// Writes the number of pairs, and how they are split if some are held out.
    fn fmt_pairs(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (stats, output) = (&self.stats, self.output.display());
        let pairs = counted(stats.kept + stats.held_out, "pair", "pairs");
        match &self.held_out {
            None => writeln!(f, "{pairs} -> {output}")?,
            Some(held_out) => {
                writeln!(f, "{pairs}, of these")?;
                writeln!(f, "{:>10}   for training -> {output}", stats.kept)?;
                let held_out = held_out.display();
                writeln!(f, "{:>10}   held out     -> {held_out}", stats.held_out)?;
            }
        }
        if stats.pairs_with_title > 0 {
            let pairs = counted(stats.pairs_with_title, "pair has", "pairs have");
            writeln!(f, "{pairs} a title in the question")?;
        }
        Ok(())
    }
}

/// Formats `count` in a column of fixed width, followed by the singular or plural noun.
fn counted(count: u64, one: &str, many: &str) -> String {
    let noun = if count == 1 { one } else { many };
    format!("{count:>10} {noun}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_counts_on_the_screen_add_up() {
        let mut summary = PrepareSummary {
            output: "pairs.jsonl".into(),
            held_out: Some("pairs.held-out.jsonl".into()),
            stats_file: "pairs.stats.json".into(),
            stats: Stats {
                rows_read: 6,
                kept: 2,
                held_out: 1,
                pairs_with_title: 3,
                ..Stats::default()
            },
            elapsed: Duration::from_secs(2),
        };
        summary.stats.count_rejected(Reason::TooFewAnswers, "1".into());
        summary.stats.count_rejected(Reason::TooFewAnswers, "2".into());
        summary.stats.count_rejected(Reason::UnreadableRest, "x".into());
        let lines = [
            "         6 rows read in 2.0 s (3 rows/s)",
            "         3 pairs, of these",
            "         2   for training -> pairs.jsonl",
            "         1   held out     -> pairs.held-out.jsonl",
            "         3 pairs have a title in the question",
            "         3 rows without a pair:",
            "         1   files or row groups unreadable from some point on",
            "         2   too few answers",
            "note: an input could not be read to its end. Questions may lack answers because those come later in the file.",
            "every count, with ids -> pairs.stats.json",
        ];
        assert_eq!(summary.to_string(), lines.join("\n"));
        summary.held_out = None;
        summary.stats = Stats { rows_read: 1, kept: 1, ..Stats::default() };
        let text = summary.to_string();
        assert!(
            text.contains("         1 row read")
                && text.contains("\n         1 pair -> pairs.jsonl\n"),
            "{text}"
        );
    }
}
