//! Questions of test sets (GSM8K, MATH) that no training pair may repeat.

use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::Path;

use super::words::{mix, word_hashes};
use crate::error::{Error, Result};

/// Words per compared sequence.
const NGRAM: usize = 8;
/// Questions of fewer words are compared as a whole only.
const FEWEST_WORDS: usize = 5;

/// A set of questions to keep out.
#[derive(Debug, Default)]
pub struct Excluded {
    whole: HashSet<u64>,
    /// Word sequence to the questions that contain it.
    ngrams: HashMap<u64, Vec<u32>>,
    /// Different word sequences of each question.
    sizes: Vec<u32>,
    /// Sequence lengths that occur.
    lengths: Vec<usize>,
    overlap: f64,
}

impl Excluded {
    /// Reads JSON Lines files whose objects have a `question` (as GSM8K) or a `problem` (as MATH). A question is
    /// repeated by a text that has the same words, or contains the share `overlap` of its eight-word sequences
    /// (of its one whole sequence, for five to eight words).
    ///
    /// # Errors
    /// A file cannot be read, or a line lacks both keys: with its number.
    pub fn load(paths: &[impl AsRef<Path>], overlap: f64) -> Result<Self> {
        let mut excluded = Self { overlap, ..Self::default() };
        for path in paths {
            let path = path.as_ref();
            let file = File::open(path).map_err(|e| Error::io(path, "open", e))?;
            for (i, line) in BufReader::new(file).split(b'\n').enumerate() {
                let line = line.map_err(|e| Error::io(path, "read", e))?;
                let line = line.trim_ascii();
                if line.is_empty() {
                    continue;
                }
                let place = || format!("{}:{}", path.display(), i + 1);
                let remedy = "give JSON Lines with the key \"question\" or \"problem\"";
                let value: serde_json::Value =
                    serde_json::from_slice(line).map_err(|e| Error::invalid(place(), e, remedy))?;
                let question = value.get("question").or_else(|| value.get("problem"));
                let Some(question) = question.and_then(|q| q.as_str()) else {
                    let problem = "neither \"question\" nor \"problem\" is a text here";
                    return Err(Error::invalid(place(), problem, remedy));
                };
                excluded.insert(question);
            }
        }
        excluded.lengths.sort_unstable();
        excluded.lengths.dedup();
        Ok(excluded)
    }

    /// Number of questions with at least five words.
    pub fn len(&self) -> usize {
        self.whole.len()
    }

    /// Whether nothing is excluded.
    pub fn is_empty(&self) -> bool {
        self.whole.is_empty()
    }

    fn insert(&mut self, question: &str) {
        let words = word_hashes(question);
        if words.is_empty() {
            return;
        }
        self.whole.insert(whole(&words));
        if words.len() < FEWEST_WORDS {
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

    /// Whether `text` repeats an excluded question.
    pub fn is_repeated_by(&self, text: &str) -> bool {
        let words = word_hashes(text);
        if self.whole.contains(&whole(&words)) {
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

fn whole(words: &[u64]) -> u64 {
    words.iter().fold(0, |hash, &word| mix(hash ^ word))
}

/// Hashes of the different runs of `length` words.
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
    fn repeated_questions_are_recognised() {
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
