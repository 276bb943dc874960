//! Excludes questions of test sets (GSM8K, MATH) from the training pairs.

use std::collections::{HashMap, HashSet};
use std::path::Path;

use super::words::{mix, word_hashes};
use crate::data::json_lines;
use crate::error::{Error, Result};

/// Number of words per compared sequence.
const NGRAM: usize = 8;
/// Minimum number of words of a question whose sequences are compared. Shorter ones must match as a whole.
const MIN_WORDS: usize = 5;

/// A set of questions that no training pair may repeat.
#[derive(Debug, Default)]
pub struct Excluded {
    /// Hashes of all words of each question.
    whole: HashSet<u64>,
    /// Maps the hash of a word sequence to the questions that contain it.
    ngrams: HashMap<u64, Vec<u32>>,
    /// Number of distinct word sequences of each question.
    sizes: Vec<u32>,
    /// Lengths of the word sequences in `ngrams`.
    lengths: Vec<usize>,
    /// Fraction of a question's sequences that a text must contain to repeat it.
    overlap: f64,
}

impl Excluded {
    /// Reads questions from files of JSON Lines or of a JSON array, whose objects have a `question` (as in GSM8K) or a
    /// `problem` (as in MATH).
    ///
    /// A text repeats a question if it has the same words, or contains at least the fraction `overlap` of the question's
    /// eight-word sequences. For a question of five to eight words this is the sequence of all its words.
    ///
    /// # Errors
    /// A file cannot be read, or a line lacks both keys. The error names the line.
    pub fn load(paths: &[impl AsRef<Path>], overlap: f64) -> Result<Self> {
        let mut excluded = Self { overlap, ..Self::default() };
        for path in paths {
            let path = path.as_ref();
            let remedy = "give JSON Lines with the key \"question\" or \"problem\"";
            json_lines::read_values(path, remedy, |place, _, value| {
                let question = value.get("question").or_else(|| value.get("problem"));
                let Some(question) = question.and_then(|q| q.as_str()) else {
                    let problem = "neither \"question\" nor \"problem\" is a text";
                    return Err(Error::invalid(place, problem, remedy));
                };
                excluded.insert(question);
                Ok(())
            })?;
        }
        excluded.lengths.sort_unstable();
        excluded.lengths.dedup();
        Ok(excluded)
    }

    /// Returns the number of distinct questions.
    pub fn len(&self) -> usize {
        self.whole.len()
    }

    /// Returns whether no question is excluded.
    pub fn is_empty(&self) -> bool {
        self.whole.is_empty()
    }

    fn insert(&mut self, question: &str) {
        let words = word_hashes(question);
        if words.is_empty() {
            return;
        }
        self.whole.insert(hash_all(&words));
        if words.len() < MIN_WORDS {
            return;
        }
        let length = words.len().min(NGRAM);
        let index = self.sizes.len() as u32;
        let sequences = sequences(&words, length);
        self.sizes.push(sequences.len() as u32);
        for sequence in sequences {
            self.ngrams.entry(sequence).or_default().push(index);
        }
        self.lengths.push(length);
    }

    /// Returns whether `text` repeats an excluded question.
    pub fn is_repeated_by(&self, text: &str) -> bool {
        let words = word_hashes(text);
        if self.whole.contains(&hash_all(&words)) {
            return true;
        }
        let mut shared: HashMap<u32, u32> = HashMap::new();
        for &length in &self.lengths {
            for sequence in sequences(&words, length) {
                for &question in self.ngrams.get(&sequence).into_iter().flatten() {
                    *shared.entry(question).or_default() += 1;
                }
            }
        }
        shared.into_iter().any(|(question, shared)| {
            let size = self.sizes.get(question as usize).copied().unwrap_or(u32::MAX);
            f64::from(shared) >= self.overlap * f64::from(size)
        })
    }
}

/// Hashes a sequence of words.
fn hash_all(words: &[u64]) -> u64 {
    words.iter().fold(0, |hash, &word| mix(hash ^ word))
}

/// Returns the hashes of the distinct sequences of `length` consecutive words.
fn sequences(words: &[u64], length: usize) -> HashSet<u64> {
    let seed = length as u64;
    words.windows(length).map(|run| run.iter().fold(seed, |hash, &word| mix(hash ^ word))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const NATALIA: &str = "Natalia sold clips to 48 of her friends in April, and then she sold half as many clips \
         in May. How many clips did Natalia sell altogether in April and May?";

    fn excluded() -> Excluded {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("test.jsonl");
        let lines = [
            serde_json::json!({"question": NATALIA, "answer": "72"}),
            serde_json::json!({"problem": "What is $2+2$?"}),
            serde_json::json!({"problem": "Compute the sum of the roots."}),
        ];
        std::fs::write(&path, lines.map(|line| line.to_string()).join("\n")).unwrap();
        Excluded::load(&[path], 0.5).unwrap()
    }

    #[test]
    fn repeated_questions_are_recognized() {
        let excluded = excluded();
        assert_eq!(excluded.len(), 3);
        for text in [
            "what IS 2 + 2",
            "Homework: compute the sum of the roots! Thanks",
            &format!("I cannot solve this: {}", &NATALIA[..100]),
            &NATALIA.to_uppercase(),
        ] {
            assert!(excluded.is_repeated_by(text), "{text}");
        }
        for text in ["What is 2+2 in base 3?", "The sum of the roots", &NATALIA[..60], ""] {
            assert!(!excluded.is_repeated_by(text), "{text}");
        }
    }

    #[test]
    fn a_line_without_a_question_is_an_error() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("test.jsonl");
        std::fs::write(&path, "{\"question\":\"a\"}\n\n{\"prompt\":\"b\"}\n").unwrap();
        let error = Excluded::load(&[path], 0.5).unwrap_err().to_string();
        assert!(error.contains("test.jsonl:3: neither"), "{error}");
    }
}
