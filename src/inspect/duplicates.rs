//! Pairs that repeat or contradict other pairs of the same file.

use std::collections::{HashMap, HashSet};

use serde::Serialize;

use crate::data::pair::PreferencePair;
use crate::data::prepare::{Fingerprint, Repeats, Seen};
use crate::error::Result;

/// Share of five-token shingles that near duplicates have in common: `prepare`'s default.
const NEAR: f64 = 0.8;

/// Ids of repeating and contradicting pairs, in input order.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Duplicates {
    /// Prompt, chosen and rejected all equal those of an earlier pair.
    pub same_pair: Vec<String>,
    /// The prompt equals that of an earlier pair, up to case and spaces, and the completions do not.
    pub same_prompt: Vec<String>,
    /// The prompt nearly repeats that of an earlier pair.
    pub near_prompt: Vec<String>,
    /// A completion is chosen in this pair and rejected in another pair of the same prompt, or the other way round.
    pub contradicting: Vec<String>,
}

impl Duplicates {
    /// Finds the pairs that repeat an earlier pair, or only its prompt, exactly or nearly, and those that contradict
    /// another pair. A repeating pair is in one of the first three lists.
    ///
    /// # Errors
    /// A temporary file cannot be written or read: prompts of large files are remembered on disk.
    pub fn find(pairs: &[PreferencePair]) -> Result<Self> {
        let mut found = Self { contradicting: contradicting(pairs), ..Self::default() };
        let mut seen_pairs = HashSet::new();
        let mut seen_prompts = Seen::new(NEAR, &std::env::temp_dir());
        for pair in pairs {
            let prompt = Fingerprint::new(&pair.prompt, true);
            let repeats = seen_prompts.find(&prompt)?;
            let is_new = seen_pairs.insert((&pair.prompt, &pair.chosen, &pair.rejected));
            let list = match repeats {
                _ if !is_new => Some(&mut found.same_pair),
                Some((Repeats::Exactly, _)) => Some(&mut found.same_prompt),
                Some((Repeats::Nearly, _)) => Some(&mut found.near_prompt),
                None => None,
            };
            if let Some(list) = list {
                list.push(pair.id.clone());
            }
            seen_prompts.insert(&prompt, prompt.exact)?;
        }
        Ok(found)
    }
}

/// The chosen and the rejected completions of one prompt.
#[derive(Default)]
struct Completions<'a> {
    chosen: HashSet<&'a str>,
    rejected: HashSet<&'a str>,
}

/// Returns the ids of the pairs of which a completion is chosen here and rejected in another pair of the same prompt, or
/// the other way round.
fn contradicting(pairs: &[PreferencePair]) -> Vec<String> {
    let mut prompts: HashMap<&str, Completions> = HashMap::new();
    for pair in pairs.iter().filter(|pair| pair.chosen != pair.rejected) {
        let completions = prompts.entry(&pair.prompt).or_default();
        completions.chosen.insert(&pair.chosen);
        completions.rejected.insert(&pair.rejected);
    }
    let contradicts = |pair: &&PreferencePair| {
        prompts.get(pair.prompt.as_str()).is_some_and(|completions| {
            completions.rejected.contains(pair.chosen.as_str())
                || completions.chosen.contains(pair.rejected.as_str())
        })
    };
    let different = pairs.iter().filter(|pair| pair.chosen != pair.rejected);
    different.filter(contradicts).map(|pair| pair.id.clone()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pair(id: &str, prompt: &str, chosen: &str, rejected: &str) -> PreferencePair {
        PreferencePair {
            id: id.into(),
            prompt: prompt.into(),
            chosen: chosen.into(),
            rejected: rejected.into(),
            chosen_score: None,
            rejected_score: None,
            rendered: None,
        }
    }

    #[test]
    fn repeated_and_contradicting_pairs_are_listed_once() {
        let long = "a bag holds twelve red and seven blue marbles how many marbles are there in five such bags";
        let pairs = [
            pair("first", "What is 2 + 2?", "4", "5"),
            pair("again", "What is 2 + 2?", "4", "5"),
            pair("case", "what is  2+2 ?", "four", "5"),
            pair("reversed", "What is 2 + 2?", "5", "4"),
            pair("equal", "What is 3 + 3?", "6", "6"),
            pair("long", long, "95", "12"),
            pair("near", &format!("{long} now"), "95", "19"),
            pair("other", "What is 9 + 9?", "18", "99"),
        ];
        let names = |names: &[&str]| names.iter().map(ToString::to_string).collect::<Vec<_>>();
        let found = Duplicates::find(&pairs).unwrap();
        assert_eq!(found.same_pair, names(&["again"]));
        assert_eq!(found.same_prompt, names(&["case", "reversed"]));
        assert_eq!(found.near_prompt, names(&["near"]));
        assert_eq!(found.contradicting, names(&["first", "again", "reversed"]));
    }
}
