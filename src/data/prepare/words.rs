//! Splits text into words and hashes them, with the same result on every machine and in every release.

/// Hashes 64 bits (the finalizer of SplitMix64; Steele et al. 2014).
pub(super) fn mix(mut bits: u64) -> u64 {
    bits = bits.wrapping_add(0x9e37_79b9_7f4a_7c15);
    bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    bits ^ (bits >> 31)
}

/// An FNV-1a hash over lower-cased characters.
#[derive(Clone, Copy)]
struct Word(u64);

impl Word {
    const EMPTY: Self = Self(0xcbf2_9ce4_8422_2325);

    fn push(&mut self, c: char) {
        for lower in c.to_lowercase() {
            self.0 = (self.0 ^ u64::from(lower)).wrapping_mul(0x100_0000_01b3);
        }
    }
}

/// Returns the hashes of the lower-cased words (runs of letters and digits) of `text`.
pub(super) fn word_hashes(text: &str) -> Vec<u64> {
    hashes(text, false)
}

/// Returns the hashes of the words of `text` and of every other character except white space.
pub(super) fn token_hashes(text: &str) -> Vec<u64> {
    hashes(text, true)
}

/// Returns the hashes of the words of `text`, and of its signs if `signs` is set.
fn hashes(text: &str, signs: bool) -> Vec<u64> {
    let mut all = Vec::with_capacity(text.len() / 5);
    let mut word: Option<Word> = None;
    for c in text.chars() {
        if c.is_alphanumeric() {
            word.get_or_insert(Word::EMPTY).push(c);
            continue;
        }
        all.extend(word.take().map(|word| word.0));
        if signs && !c.is_whitespace() {
            let mut sign = Word::EMPTY;
            sign.push(c);
            all.push(sign.0);
        }
    }
    all.extend(word.map(|word| word.0));
    all
}
