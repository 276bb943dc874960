//! The line that shows the state of a run while it trains.

use crate::train::logger::Record;

/// Formats the status line of a record: the values of the `watched` keys and the speed.
pub(super) fn status(record: &Record, watched: &[(&str, &str)]) -> String {
    let mut parts = Vec::new();
    for (key, name) in watched {
        let value = record.values.iter().find(|(k, _)| k.trim_start_matches("eval_") == *key);
        if let Some((_, value)) = value {
            parts.push(format!("{name} {value:.4}"));
        }
    }
    if let Some((_, rate)) = record.values.iter().find(|(key, _)| key == "tokens_per_second") {
        parts.push(format!("{rate:.0} tok/s"));
    }
    parts.join("  ")
}
