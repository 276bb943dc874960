//! Finds questions that repeat an earlier one, exactly or nearly.
//!
//! Near duplicates are found by MinHash (Broder 1997, "On the resemblance and containment of documents"). A question has 64
//! minima over its five-token shingles, and the fraction of equal minima of two questions estimates the fraction of
//! shingles that they share. Candidates are questions with an equal band of 4 minima, of which there are 16: two questions
//! that share 80 % of their shingles have an equal band with probability 0.9998.
//!
//! Memory use is 10 to 21 bytes for the hash of each question kept, and 70 MB for the minima of the latest 230,000
//! questions; older minima are on disk (`remembered`). Questions that are not kept take no memory.

use std::collections::{HashMap, HashSet};
use std::path::Path;

use super::remembered::{MINIMA, Minima, Remembered};
use super::words::{self, mix};
use crate::error::Result;

/// Number of tokens per shingle.
const SHINGLE: usize = 5;
/// Number of shingles hashed at a time. The hashes of one shingle depend on each other, so that interleaving several
/// shingles hides their latency.
const HASH_LANES: usize = 8;
/// Minimum number of shingles of a question that is compared for near duplicates.
const MIN_SHINGLES: usize = 8;

/// Hashes of a question, for finding duplicates.
#[derive(Clone, Debug)]
pub struct Fingerprint {
    /// Hash of all tokens. It is equal for questions that differ only in case and spaces.
    pub exact: u64,
    minima: Option<Box<Minima>>,
}

impl Fingerprint {
    /// Computes the fingerprint of a question's text, with minima only if `near` is set.
    pub fn new(question: &str, near: bool) -> Self {
        let tokens = words::token_hashes(question);
        let exact = tokens.iter().fold(0, |hash, &token| mix(hash ^ token));
        let enough = tokens.len() >= SHINGLE + MIN_SHINGLES - 1;
        let minima = (near && enough).then(|| minima(&tokens));
        Self { exact, minima }
    }

    /// Estimates the fraction of shingles that two questions share.
    fn similarity(&self, other: &Minima) -> f64 {
        let Some(own) = &self.minima else { return 0.0 };
        let equal = own.iter().zip(other).filter(|(a, b)| a == b).count();
        equal as f64 / MINIMA as f64
    }
}

/// Computes the minima over the shingles of a question. Minimum `i` is over the `i`-fold hashed shingles.
fn minima(tokens: &[u64]) -> Box<Minima> {
    let shingle = |tokens: &[u64]| tokens.iter().fold(0, |hash, &token| mix(hash ^ token));
    let shingles: Vec<u64> = tokens.windows(SHINGLE).map(shingle).collect();
    let mut minima = [u64::MAX; MINIMA];
    for group in shingles.chunks(HASH_LANES) {
        // The last group is filled up with its first shingle, which changes no minimum.
        let mut hashes = [group.first().copied().unwrap_or_default(); HASH_LANES];
        hashes.iter_mut().zip(group).for_each(|(to, &hash)| *to = hash);
        for minimum in &mut minima {
            hashes = hashes.map(mix);
            *minimum = hashes.iter().fold(*minimum, |minimum, &hash| minimum.min(hash));
        }
    }
    Box::new(minima.map(|minimum| minimum as u16))
}

/// How a question repeats another one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Repeats {
    /// Both are equal, ignoring case and spaces.
    Exactly,
    /// Both share most of their shingles.
    Nearly,
}

/// The questions seen so far. Each has a split key, by which it is assigned to the training or the held-out split.
#[derive(Debug)]
pub struct Seen {
    /// Hashes of the questions.
    exact: HashSet<u64>,
    /// Split keys of questions that nearly repeat another one. The split key of all others is their hash.
    inherited_keys: HashMap<u64, u64>,
    near: Remembered,
    threshold: f64,
}

impl Seen {
    /// Creates an empty set. Near duplicates share at least the fraction `threshold` of their shingles. Temporary files are
    /// created in `folder`.
    pub fn new(threshold: f64, folder: &Path) -> Self {
        Self {
            exact: HashSet::new(),
            inherited_keys: HashMap::new(),
            near: Remembered::new(folder),
            threshold,
        }
    }

    /// Finds an earlier question that this one repeats. Returns how it repeats it, and the split key of the earlier one.
    ///
    /// # Errors
    /// A temporary file cannot be read.
    pub fn find(&self, question: &Fingerprint) -> Result<Option<(Repeats, u64)>> {
        let exact = question.exact;
        if self.exact.contains(&exact) {
            let key = self.inherited_keys.get(&exact).copied().unwrap_or(exact);
            return Ok(Some((Repeats::Exactly, key)));
        }
        let Some(minima) = &question.minima else {
            return Ok(None);
        };
        let similar = |other: &Minima| question.similarity(other) >= self.threshold;
        let found = self.near.find(minima, similar)?;
        Ok(found.map(|key| (Repeats::Nearly, key)))
    }

    /// Adds a question with its split key, unless an equal one was added before.
    ///
    /// # Errors
    /// A temporary file cannot be written.
    pub fn insert(&mut self, question: &Fingerprint, key: u64) -> Result<()> {
        if !self.exact.insert(question.exact) {
            return Ok(());
        }
        if key != question.exact {
            self.inherited_keys.insert(question.exact, key);
        }
        match &question.minima {
            Some(minima) => self.near.insert(minima, key),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn question(numbers: impl Iterator<Item = usize>) -> String {
        numbers.map(|n| format!("word{n} ")).collect()
    }

    #[test]
    fn case_and_spaces_make_no_difference_but_signs_do() {
        let hash = |text| Fingerprint::new(text, false).exact;
        assert_eq!(hash("Calculate  3+4."), hash("calculate\n3 + 4 ."));
        assert_ne!(hash("calculate 3+4"), hash("calculate 3-4"));
        assert_ne!(hash("calculate 34"), hash("calculate 3 4"));
    }

    /// Questions of 200 words that share about 90 % or about 50 % of their shingles.
    #[test]
    fn near_duplicates_are_found_and_others_are_not() {
        let folder = tempfile::tempdir().unwrap();
        let mut seen = Seen::new(0.8, folder.path());
        let (mut found, mut wrong) = (0, 0);
        for n in 0..200 {
            let base = n * 1000;
            seen.insert(&Fingerprint::new(&question(base..base + 200), true), n as u64).unwrap();
            // 190 of 200 words: 186 shingles of 206 in union, 0.90.
            let near = question((base..base + 190).chain(base + 500..base + 510));
            let hit = seen.find(&Fingerprint::new(&near, true)).unwrap();
            found += usize::from(hit == Some((Repeats::Nearly, n as u64)));
            // 140 of 200 words: 136 shingles of 256, 0.53.
            let far = question((base..base + 140).chain(base + 500..base + 560));
            wrong += usize::from(seen.find(&Fingerprint::new(&far, true)).unwrap().is_some());
        }
        assert!(found >= 195 && wrong == 0, "found {found}, wrong {wrong}");
    }
}
