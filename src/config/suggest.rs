//! Suggests corrections of misspelled names, and formats TOML errors with them.

use std::path::Path;

use crate::error::Error;

/// Minimum [`similarity`] of a name that is suggested.
pub(super) const MIN_SIMILARITY: f64 = 0.85;

/// Returns the similarity of two names, from 0 to 1: that of Jaro and Winkler, with corrections.
///
/// Their measure favors a common prefix too much for names of different lengths. Names that differ in more than half of
/// the letters therefore have similarity 0.
pub(super) fn similarity(name: &str, candidate: &str) -> f64 {
    let (name, candidate) = (name.to_lowercase(), candidate.to_lowercase());
    // Such as `beta1` for `adam_beta1`.
    let is_part =
        name.len() >= 4 && (candidate.split('_').count() > 1) && candidate.ends_with(&name);
    if is_part {
        return 0.9;
    }
    if strsim::normalized_damerau_levenshtein(&name, &candidate) < 0.5 {
        return 0.0;
    }
    let similarity = strsim::jaro_winkler(&name, &candidate);
    // One edit lowers the similarity of short names too much.
    if name.chars().count() >= 3 && strsim::damerau_levenshtein(&name, &candidate) == 1 {
        return similarity.max(MIN_SIMILARITY);
    }
    similarity
}

/// Returns the name among `known` that `name` is probably a misspelling of; `None` if none is similar.
pub fn nearest_name<'a>(name: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let scored = known.into_iter().map(|known| (similarity(name, known), known));
    let similar = scored.filter(|(similarity, _)| *similarity >= MIN_SIMILARITY);
    let best = similar.max_by(|a, b| a.0.total_cmp(&b.0));
    best.map(|(_, known)| known)
}

/// Returns the texts in backticks of a message such as ``unknown field `a`, expected one of `b`, `c` ``.
pub(super) fn in_backticks(message: &str) -> Vec<&str> {
    message.split('`').skip(1).step_by(2).collect()
}

/// Converts an error of the TOML parser on the `text` of `path`. The result names the line, and for an unknown key the
/// nearest known one.
pub fn toml_error(path: &Path, text: &str, error: &toml::de::Error, remedy: &str) -> Error {
    let line = error.span().map_or(1, |span| line_of(text, span.start));
    let place = format!("{}:{line}", path.display());
    let message = error.message();
    let names = in_backticks(message);
    let remedy = match (message.starts_with("unknown"), names.split_first()) {
        (true, Some((name, known))) => match nearest_name(name, known.iter().copied()) {
            Some(meant) => format!("did you mean `{meant}`?"),
            None => remedy.to_string(),
        },
        _ => remedy.to_string(),
    };
    let message = match (message.starts_with("unknown field"), names.first()) {
        (true, Some(name)) => format!("{name}: unknown key"),
        _ => readable(message),
    };
    Error::invalid(place, message, remedy)
}

/// Replaces the Rust types in a message of serde with words for users of TOML.
pub(super) fn readable(message: &str) -> String {
    message
        .replace("expected usize", "expected a whole number, 0 or more")
        .replace("expected u64", "expected a whole number, 0 or more")
        .replace("expected i64", "expected a whole number")
        .replace("expected f64", "expected a number")
        .replace("expected string only", "expected text in quotes")
        .replace("expected path string", "expected text in quotes")
}

/// Returns the 1-based line of a byte offset.
pub(super) fn line_of(text: &str, offset: usize) -> usize {
    let before = text.as_bytes().iter().take(offset);
    1 + before.filter(|byte| **byte == b'\n').count()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_similar_names_are_suggested() {
        let known = [
            "learning_rate",
            "adam_beta2",
            "warmup_ratio",
            "ld_alpha",
            "data",
            "num_train_epochs",
            "per_device_train_batch_size",
        ];
        for (name, meant) in [
            ("learning_rat", Some("learning_rate")),
            ("Learning_Rate", Some("learning_rate")),
            ("beta2", Some("adam_beta2")),
            ("num_train_epoch", Some("num_train_epochs")),
            ("per_device_batch_size", Some("per_device_train_batch_size")),
            ("load_best_model_at_end", None),
            ("report_to", None),
            ("rpo_alpha", None),
            ("dataloader_num_workers", None),
            ("zzz", None),
            ("", None),
        ] {
            assert_eq!(nearest_name(name, known), meant, "{name}");
        }
    }

    #[test]
    fn toml_errors_have_a_line_and_a_suggestion() {
        #[derive(Debug, serde::Deserialize)]
        #[serde(deny_unknown_fields)]
        #[allow(dead_code, reason = "only read")]
        struct Form {
            rounds: usize,
            samples: usize,
        }
        let error = |text: &str| {
            let error = toml::from_str::<Form>(text).unwrap_err();
            toml_error(Path::new("i.toml"), text, &error, "correct it").to_string()
        };
        assert_eq!(
            error("rounds = 1\nsampels = 2\n"),
            "i.toml:2: sampels: unknown key\n  help: did you mean `samples`?"
        );
        assert_eq!(
            error("rounds = 1\nzebra = 2\n"),
            "i.toml:2: zebra: unknown key\n  help: correct it"
        );
        let wrong = error("rounds = 'x'\n");
        assert!(wrong.contains("i.toml:1") && wrong.contains("whole number"), "{wrong}");
    }
}
