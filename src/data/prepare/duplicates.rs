//! Questions that repeat one met before, exactly or nearly.
//!
//! Near duplicates are found by MinHash (Broder 1997, "On the resemblance and containment of documents"): 64 minima
//! of a question's five-token shingles, of which equal ones estimate the share of shingles two questions have in
//! common; 16 bands of 4 minima find the candidates (two questions that share 80 % of their shingles meet in some
//! band with probability 0.9998). Memory: about 400 bytes for each question kept, none for those refused.

use std::collections::HashMap;

use super::words::{self, mix};

/// Minima per question.
const MINIMA: usize = 64;
/// Minima per band.
const BAND: usize = 4;
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
    minima: Option<Box<[u16; MINIMA]>>,
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
    fn similarity(&self, other: &[u16; MINIMA]) -> f64 {
        let Some(own) = &self.minima else { return 0.0 };
        let equal = own.iter().zip(other).filter(|(a, b)| a == b).count();
        equal as f64 / MINIMA as f64
    }
}

fn minima(tokens: &[u64]) -> Box<[u16; MINIMA]> {
    let shingle = |tokens: &[u64]| tokens.iter().fold(0, |hash, &token| mix(hash ^ token));
    let shingles: Vec<u64> = tokens.windows(SHINGLE).map(shingle).collect();
    let mut least = [u64::MAX; MINIMA];
    for group in shingles.chunks(ABREAST) {
        // A group that is not full repeats its first, which changes no minimum.
        let mut hashes = [group.first().copied().unwrap_or_default(); ABREAST];
        hashes
            .iter_mut()
            .zip(group)
            .for_each(|(to, &hash)| *to = hash);
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
#[derive(Debug, Default)]
pub struct Seen {
    /// Fingerprint to the split key of the question first met with it.
    exact: HashMap<u64, u64>,
    minima: Vec<([u16; MINIMA], u64)>,
    /// Band to the question that was first in it.
    bands: Vec<HashMap<u32, u32>>,
    threshold: f64,
}

impl Seen {
    /// Nothing met yet; near duplicates share `threshold` of their shingles.
    pub fn new(threshold: f64) -> Self {
        let bands = vec![HashMap::new(); MINIMA / BAND];
        Self {
            threshold,
            bands,
            ..Self::default()
        }
    }

    /// Whether a question like this was met, and that one's split key.
    pub fn find(&self, question: &Fingerprint) -> Option<(Repeats, u64)> {
        if let Some(&key) = self.exact.get(&question.exact) {
            return Some((Repeats::Exactly, key));
        }
        let minima = question.minima.as_ref()?;
        let candidates = bands(minima)
            .zip(&self.bands)
            .filter_map(|(band, seen)| seen.get(&band));
        let similar = |&index: &u32| {
            let (other, key) = self.minima.get(index as usize)?;
            (question.similarity(other) >= self.threshold).then_some((Repeats::Nearly, *key))
        };
        candidates.into_iter().find_map(similar)
    }

    /// Remembers a question with its split key, unless an equal one is remembered.
    pub fn insert(&mut self, question: &Fingerprint, key: u64) {
        if self.exact.insert(question.exact, key).is_some() {
            return;
        }
        if let Some(minima) = &question.minima {
            let index = self.minima.len() as u32;
            self.minima.push((**minima, key));
            for (band, seen) in bands(minima).zip(&mut self.bands) {
                seen.entry(band).or_insert(index);
            }
        }
    }
}

fn bands(minima: &[u16; MINIMA]) -> impl Iterator<Item = u32> {
    minima.chunks_exact(BAND).map(|band| {
        (band
            .iter()
            .fold(0, |hash, &minimum| mix(hash ^ u64::from(minimum)))
            >> 32) as u32
    })
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
        let mut seen = Seen::new(0.8);
        let (mut found, mut wrong) = (0, 0);
        for n in 0..200 {
            let base = n * 1000;
            seen.insert(
                &Fingerprint::new(&question(base..base + 200), true),
                n as u64,
            );
            // 190 of 200 words: 186 shingles of 206 in union, 0.90.
            let near = question((base..base + 190).chain(base + 500..base + 510));
            let hit = seen.find(&Fingerprint::new(&near, true));
            found += usize::from(hit == Some((Repeats::Nearly, n as u64)));
            // 140 of 200 words: 136 shingles of 256, 0.53.
            let far = question((base..base + 140).chain(base + 500..base + 560));
            wrong += usize::from(seen.find(&Fingerprint::new(&far, true)).is_some());
        }
        assert!(found >= 195 && wrong == 0, "found {found}, wrong {wrong}");
    }
}
