//! Counts every row and writes the pairs.

use super::judge::Candidate;
use super::output::{PairsFile, Paths};
use super::rules::{Rules, TitleRule};
use super::stats::{InputStats, Reason, Stats};
use super::{PrepareOptions, Repeats, Seen, Verdict, words};
use crate::error::Result;

/// Writes pairs to the output files, removes duplicates and counts all rows.
pub(super) struct Writer {
    pub(super) kept: PairsFile,
    pub(super) held_out: Option<PairsFile>,
    seen: Seen,
    rules: Rules,
    skip_bad_rows: bool,
    pub(super) stats: Stats,
}

impl Writer {
    /// Creates the output files.
    pub(super) fn create(paths: &Paths, options: &PrepareOptions) -> Result<Self> {
        let held_out = paths.held_out.as_ref();
        let held_out = held_out.map(|path| PairsFile::create(path, options.form)).transpose()?;
        let inputs =
            options.sources.iter().map(|source| InputStats { path: source.name(), rows: 0 });
        Ok(Self {
            kept: PairsFile::create(&paths.output, options.form)?,
            held_out,
            seen: Seen::new(options.rules.near_duplicate_threshold, paths.folder()),
            rules: options.rules.clone(),
            skip_bad_rows: options.skip_bad_rows,
            stats: Stats { inputs: inputs.collect(), ..Stats::default() },
        })
    }

    /// Counts a row of the source with this index and writes its pair, if it has one.
    pub(super) fn write(&mut self, source: usize, verdict: Verdict) -> Result<()> {
        self.stats.rows_read += 1;
        if let Some(input) = self.stats.inputs.get_mut(source) {
            input.rows += 1;
        }
        match verdict {
            Ok(row) => {
                self.stats.rows_with_title += u64::from(row.has_title);
                match row.outcome {
                    Ok(candidate) => return self.write_pair(row.id, &candidate, row.has_title),
                    Err(reason) => self.stats.count_rejected(reason, row.id),
                }
            }
            Err(bad) if !self.skip_bad_rows => return Err(bad.into()),
            Err(bad) => {
                let reason =
                    if bad.rest_of_file { Reason::UnreadableRest } else { Reason::UnreadableRow };
                self.stats.count_rejected(reason, format!("{}: {}", bad.place, bad.problem));
            }
        }
        Ok(())
    }

    /// Writes a pair to the output or the held-out file, unless it is a duplicate.
    fn write_pair(&mut self, id: String, candidate: &Candidate, has_title: bool) -> Result<()> {
        let mut held_out = false;
        if let Some(question) = &candidate.fingerprint {
            let found = self.seen.find(question)?;
            match found {
                Some((Repeats::Exactly, _)) if self.rules.drop_duplicates => {
                    self.stats.count_rejected(Reason::Duplicate, id);
                    return Ok(());
                }
                Some((Repeats::Nearly, _)) if self.rules.drop_near_duplicates => {
                    self.stats.count_rejected(Reason::NearDuplicate, id);
                    return Ok(());
                }
                _ => {}
            }
            // A question that repeats another one gets its key, and thereby goes to the same split.
            let key = found.map_or(question.exact, |(_, key)| key);
            self.seen.insert(question, key)?;
            held_out = words::mix(key) as f64 / 2f64.powi(64) < self.rules.held_out_fraction;
        }
        let stats = &mut self.stats;
        stats.lengths_in_characters.add(candidate.lengths);
        let prepended = has_title && self.rules.title == TitleRule::Prepend;
        stats.pairs_with_title += u64::from(prepended);
        stats.kept_with_an_empty_side += u64::from(candidate.blank);
        stats.kept_with_identical_answers += u64::from(candidate.identical);
        match &mut self.held_out {
            Some(file) if held_out => {
                stats.held_out += 1;
                file.push(&candidate.encoded)
            }
            _ => {
                stats.kept += 1;
                self.kept.push(&candidate.encoded)
            }
        }
    }
}
