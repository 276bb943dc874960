//! Questions that repeat one met before, exactly or nearly.
//!
//! Near duplicates are found by MinHash (Broder 1997, "On the resemblance and containment of documents"): 64 minima
//! of a question's five-token shingles, of which equal ones estimate the share of shingles two questions have in
//! common; 16 bands of 4 minima find the candidates (two questions that share 80 % of their shingles meet in some
//! band with probability 0.9998).
//!
//! Memory: hashes of whole questions, 10 to 21 bytes for each question kept; minima of some 230,000 questions (70 MB), older
//! ones on disk (`remembered`). Nothing for questions refused.

use std::collections::{HashMap, HashSet};
use std::path::Path;

use super::remembered::{MINIMA, Minima, Remembered};
use super::words::{self, mix};
use crate::error::Result;

/// Tokens per shingle.
const SHINGLE: usize = 5;
/// Shingles hashed at a time: the hashes of one follow from each other, so the processor would wait for each.
const ABREAST: usize = 8;
/// Questions with fewer shingles are compared exactly only.
const FEWEST_SHINGLES: usize = 8;

/// What is remembered of a question.
#[derive(Clone, Debug)]
pub struct Fingerprint {
    /// Hash of its tokens: equal for questions that differ in case and spaces only.
    pub exact: u64,
    minima: Option<Box<Minima>>,
}

impl Fingerprint {
    /// The fingerprint of a question's text; its minima only if `near` duplicates are looked for.
    pub fn new(question: &str, near: bool) -> Self {
        let tokens = words::token_hashes(question);
        let exact = tokens.iter().fold(0, |hash, &token| mix(hash ^ token));
        let enough = tokens.len() >= SHINGLE + FEWEST_SHINGLES - 1;
        let minima = (near && enough).then(|| minima(&tokens));
        Self { exact, minima }
    }

    /// Estimated share of shingles in common.
    fn similarity(&self, other: &Minima) -> f64 {
        let Some(own) = &self.minima else { return 0.0 };
        let equal = own.iter().zip(other).filter(|(a, b)| a == b).count();
        equal as f64 / MINIMA as f64
    }
}

fn minima(tokens: &[u64]) -> Box<Minima> {
    let shingle = |tokens: &[u64]| tokens.iter().fold(0, |hash, &token| mix(hash ^ token));
    let shingles: Vec<u64> = tokens.windows(SHINGLE).map(shingle).collect();
    let mut least = [u64::MAX; MINIMA];
    for group in shingles.chunks(ABREAST) {
        // A group that is not full repeats its first, which changes no minimum.
        let mut hashes = [group.first().copied().unwrap_or_default(); ABREAST];
        hashes.iter_mut().zip(group).for_each(|(to, &hash)| *to = hash);
        for minimum in &mut least {
            hashes = hashes.map(mix);
            *minimum = hashes.iter().fold(*minimum, |least, &hash| least.min(hash));
        }
    }
    Box::new(least.map(|minimum| minimum as u16))
}

/// How a question repeats another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Repeats {
    /// Up to case and spaces.
    Exactly,
    /// In most of its shingles.
    Nearly,
}

/// The questions met so far.
#[derive(Debug)]
pub struct Seen {
    /// Hashes of the questions.
    exact: HashSet<u64>,
    /// The split keys of those that nearly repeat another: anyone else's is its hash.
    moved: HashMap<u64, u64>,
    near: Remembered,
    threshold: f64,
}

impl Seen {
    /// Nothing met yet; near duplicates share `threshold` of their shingles. Temporary files go to `folder`.
    pub fn new(threshold: f64, folder: &Path) -> Self {
        Self {
            exact: HashSet::new(),
            moved: HashMap::new(),
            near: Remembered::new(folder),
            threshold,
        }
    }

    /// Whether a question like this was met, and that one's split key.
    ///
    /// # Errors
    /// A temporary file cannot be read.
    pub fn find(&self, question: &Fingerprint) -> Result<Option<(Repeats, u64)>> {
        let exact = question.exact;
        if self.exact.contains(&exact) {
            let key = self.moved.get(&exact).copied().unwrap_or(exact);
            return Ok(Some((Repeats::Exactly, key)));
        }
        let Some(minima) = &question.minima else {
            return Ok(None);
        };
        let similar = |other: &Minima| question.similarity(other) >= self.threshold;
        let found = self.near.find(minima, similar)?;
        Ok(found.map(|key| (Repeats::Nearly, key)))
    }

    /// Remembers a question with its split key, unless an equal one is remembered.
    ///
    /// # Errors
    /// A temporary file cannot be written.
    pub fn insert(&mut self, question: &Fingerprint, key: u64) -> Result<()> {
        if !self.exact.insert(question.exact) {
            return Ok(());
        }
        if key != question.exact {
            self.moved.insert(question.exact, key);
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
        let of = |text| Fingerprint::new(text, false).exact;
        assert_eq!(of("Calculate  3+4."), of("calculate\n3 + 4 ."));
        assert_ne!(of("calculate 3+4"), of("calculate 3-4"));
        assert_ne!(of("calculate 34"), of("calculate 3 4"));
    }

    /// Questions of 200 words that share 90 %, 80 % ± and 50 % of their words from the start on.
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
