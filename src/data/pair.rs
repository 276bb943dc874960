//! A preference pair: a prompt and two completions, one of which people preferred.

use serde::{Deserialize, Serialize};

/// One line of `pairs.jsonl`.
///
/// When read, `question` is accepted for `prompt`; `id` may be missing and is then the line number.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PreferencePair {
    /// Names the pair in every report: the question's id, or the line number.
    pub id: String,
    /// The question, as text.
    pub prompt: String,
    /// The preferred completion.
    pub chosen: String,
    /// The other completion.
    pub rejected: String,
    /// Vote score of the chosen answer, where the source has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub chosen_score: Option<i64>,
    /// Vote score of the rejected answer, where the source has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rejected_score: Option<i64>,
}

/// Stub until the real one arrives.
pub fn read_pairs(path: &std::path::Path) -> crate::Result<Vec<PreferencePair>> {
    let text = std::fs::read_to_string(path).map_err(|e| crate::Error::io(path, "read", e))?;
    Ok(text
        .lines()
        .enumerate()
        .filter_map(|(i, l)| {
            let mut v: serde_json::Value = serde_json::from_str(l).ok()?;
            v.as_object_mut()?
                .entry("id")
                .or_insert(serde_json::Value::String((i + 1).to_string()));
            serde_json::from_value(v).ok()
        })
        .collect())
}
