//! What happened to every row: `pairs.stats.json` and the summary on the screen.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Serialize;

use super::rules::Rules;

/// Most ids listed for one reason; the count is exact whatever it is.
pub const MOST_LISTED: usize = 10_000;

/// Why a row became no pair.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Reason {
    /// Unreadable, under `--skip-bad-rows`. Listed by its place and problem.
    UnreadableRow,
    /// Unreadable from some point on, under `--skip-bad-rows`: a file or a row group counts once.
    UnreadableRest,
    /// Fewer answers than `min_answers`.
    TooFewAnswers,
    /// The best and the worst answer have the same score.
    EqualScores,
    /// Their scores differ by less than `min_score_gap`.
    SmallScoreGap,
    /// HTML on which BeautifulSoup gives up.
    RejectedHtml,
    /// No filter matches the question.
    NotMatched,
    /// The question has no text.
    EmptyQuestion,
    /// One of the two answers has no text.
    EmptyAnswer,
    /// The two answers have the same text.
    IdenticalAnswers,
    /// Below `min_prompt_chars`.
    QuestionTooShort,
    /// Above `max_prompt_chars`.
    QuestionTooLong,
    /// Below `min_answer_chars`.
    AnswerTooShort,
    /// Above `max_answer_chars`.
    AnswerTooLong,
    /// Repeats a question of the `--exclude-questions` files.
    ExcludedQuestion,
    /// Repeats a question met before.
    Duplicate,
    /// Nearly repeats a question met before.
    NearDuplicate,
}

impl Reason {
    /// In words, for people.
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

/// Rows lost for one reason.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Lost {
    /// How many.
    pub count: u64,
    /// Which: the first [`MOST_LISTED`] ids, in input order.
    pub ids: Vec<String>,
}

/// A histogram of text lengths: bin `i` counts lengths in `[2^i, 2^(i+1))`, bin 0 also length 0.
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

/// Lengths, in characters, of the pairs kept.
#[derive(Clone, Debug, Default, Serialize)]
pub struct PairLengths {
    /// Of the questions.
    pub prompt: Lengths,
    /// Of the chosen answers.
    pub chosen: Lengths,
    /// Of the rejected answers.
    pub rejected: Lengths,
}

impl PairLengths {
    pub(super) fn add(&mut self, [prompt, chosen, rejected]: [usize; 3]) {
        self.prompt.add(prompt);
        self.chosen.add(chosen);
        self.rejected.add(rejected);
    }
}

/// Posts seen in `Posts.xml` files.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct PostCounts {
    /// Questions: the rows read.
    pub questions: u64,
    /// Answers.
    pub answers: u64,
    /// Of these, answers whose question is not in the file.
    pub orphan_answers: u64,
    /// Posts of other types (tag wikis and the like), which are not used.
    pub other: u64,
}

/// An input file.
#[derive(Clone, Debug, Serialize)]
pub struct InputStats {
    /// Its path as found.
    pub path: String,
    /// Rows read from it, unreadable ones included.
    pub rows: u64,
}

/// Everything counted; `rows_read = kept + held_out + Σ not_kept.count`.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Stats {
    /// Rows read.
    pub rows_read: u64,
    /// Pairs in the output file.
    pub kept: u64,
    /// Pairs in the held-out file.
    pub held_out: u64,
    /// Every other row, by reason.
    pub not_kept: BTreeMap<Reason, Lost>,
    /// Pairs among those kept on which nothing can be learnt (only rules that allow them keep such).
    pub kept_with_an_empty_side: u64,
    /// As `kept_with_an_empty_side`: both answers are the same text.
    pub kept_with_identical_answers: u64,
    /// Lengths of the pairs kept, held-out ones included.
    pub lengths_in_characters: PairLengths,
    /// Posts seen, for `Posts.xml` input.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub posts: Option<PostCounts>,
    /// The input files.
    pub inputs: Vec<InputStats>,
}

impl Stats {
    pub(super) fn lose(&mut self, reason: Reason, id: String) {
        let lost = self.not_kept.entry(reason).or_default();
        lost.count += 1;
        if lost.ids.len() < MOST_LISTED {
            lost.ids.push(id);
        }
    }

    /// Rows lost for `reason`.
    pub fn lost(&self, reason: Reason) -> u64 {
        self.not_kept.get(&reason).map_or(0, |lost| lost.count)
    }
}

/// The stats file.
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

/// What `prepare` did, for the screen.
#[derive(Clone, Debug)]
pub struct PrepareSummary {
    /// The pairs.
    pub output: PathBuf,
    /// The held-out pairs, if there are such.
    pub held_out: Option<PathBuf>,
    /// The stats file.
    pub stats_file: PathBuf,
    /// The counts.
    pub stats: Stats,
    /// Time taken.
    pub elapsed: Duration,
}

impl fmt::Display for PrepareSummary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let stats = &self.stats;
        let seconds = self.elapsed.as_secs_f64().max(1e-3);
        let rate = stats.rows_read as f64 / seconds;
        writeln!(f, "{:>10} rows read in {seconds:.1} s ({rate:.0} rows/s)", stats.rows_read)?;
        writeln!(f, "{:>10} pairs        -> {}", stats.kept, self.output.display())?;
        if let Some(path) = &self.held_out {
            writeln!(f, "{:>10} held out     -> {}", stats.held_out, path.display())?;
        }
        for (reason, lost) in &stats.not_kept {
            writeln!(f, "{:>10} not kept: {}", lost.count, reason.describe())?;
        }
        for (count, what) in [
            (stats.kept_with_an_empty_side, "an empty side"),
            (stats.kept_with_identical_answers, "identical answers"),
        ] {
            if count > 0 {
                writeln!(f, "{count:>10} pairs kept although they have {what}: nothing to learn")?;
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
