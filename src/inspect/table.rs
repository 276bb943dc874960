//! Formats an inspection as a table for the terminal, with a sentence per finding on what it means for training.

use std::fmt::Write;

use super::{Inspection, Lengths, Summary};

/// Length predicts the preference well if the longer completion is chosen in more than this fraction of the pairs, or in
/// less than one minus it.
const STRONG: f64 = 0.6;

/// Returns the table that `arithmo inspect` prints.
pub fn table(inspection: &Inspection) -> String {
    let mut text = String::new();
    let head = ["tokens", "min", "median", "mean", "90 %", "99 %", "max"].map(str::to_string);
    for row in std::iter::once(head).chain(length_rows(&inspection.lengths)) {
        let [name, numbers @ ..] = &row;
        let numbers: String = numbers.iter().map(|number| format!("{number:>9}")).collect();
        let _ = writeln!(text, "{name:<26}{numbers}");
    }
    text.push('\n');
    for [name, count] in counts(inspection) {
        let _ = writeln!(text, "{name:<58}{count:>9}");
    }
    for finding in findings(inspection) {
        let _ = write!(text, "\n- {finding}");
    }
    text
}

/// Returns one row per kind of length: name, min, median, mean, 90 %, 99 %, max.
pub(crate) fn length_rows(lengths: &Lengths) -> [[String; 7]; 4] {
    let row = |name: &str, summary: &Summary| {
        let Summary { min, median, mean, p90, p99, max } = summary;
        let mean = format!("{mean:.1}");
        let [min, median, p90, p99, max] = [min, median, p90, p99, max].map(ToString::to_string);
        [name.to_string(), min, median, mean, p90, p99, max]
    };
    [
        row("prompt", &lengths.prompt),
        row("chosen", &lengths.chosen),
        row("rejected", &lengths.rejected),
        row("prompt + longer completion", &lengths.sequence),
    ]
}

/// Returns every count with its name.
pub(crate) fn counts(inspection: &Inspection) -> Vec<[String; 2]> {
    let Inspection { pairs, encoding, duplicates, length_preference, overlap, .. } = inspection;
    let longer = &length_preference.longer_is_chosen;
    let mut rows = vec![
        ("pairs".to_string(), *pairs),
        ("prompt fills max_length: left out".into(), encoding.dropped_prompt_too_long.len()),
        ("prompt truncated".into(), encoding.prompt_truncated.len()),
        ("chosen truncated".into(), encoding.chosen_truncated.len()),
        ("rejected truncated".into(), encoding.rejected_truncated.len()),
        ("EOS lost by truncation".into(), encoding.eos_lost.len()),
        ("EOS token inside the text".into(), encoding.eos_inside_text.len()),
        ("identical after truncation".into(), encoding.identical_after_truncation.len()),
    ];
    let refused = encoding.refused.iter();
    rows.extend(refused.map(|(why, ids)| (format!("trains on nothing: {why}"), ids.len())));
    rows.extend([
        ("repeats an earlier pair".to_string(), duplicates.same_pair.len()),
        ("repeats an earlier prompt, with other completions".into(), duplicates.same_prompt.len()),
        ("nearly repeats an earlier prompt".into(), duplicates.near_prompt.len()),
        ("contradicts another pair of its prompt".into(), duplicates.contradicting.len()),
        ("chosen is longer".into(), longer.correct),
        ("rejected is longer".into(), longer.total - longer.correct),
        ("both have the same length".into(), length_preference.equal),
    ]);
    let overlap = overlap.iter();
    rows.extend(overlap.map(|set| {
        let name = format!("repeats a question of {}", set.file.display());
        (name, set.ids.len())
    }));
    rows.into_iter().map(|(name, count)| [name, count.to_string()]).collect()
}

/// Returns a sentence with its remedy for each finding that matters to training.
pub fn findings(inspection: &Inspection) -> Vec<String> {
    let Inspection { pairs, encoding, duplicates, length_preference, overlap, lengths } =
        inspection;
    let pair_share = |count: usize| format!("{count} of {pairs} pairs");
    let (refused, identical) =
        (encoding.refused_count(), encoding.identical_after_truncation.len());
    let truncated = encoding.eos_lost.len() + encoding.dropped_prompt_too_long.len();
    let contradicting = duplicates.contradicting.len();
    let mut findings = Vec::new();
    if refused > 0 {
        findings.push(format!(
            "{} train on nothing. Leave them out: data.skip_untrainable = true.",
            pair_share(refused)
        ));
    }
    if identical > 0 {
        findings.push(format!(
            "{} are the same on both sides after truncation and train on nothing. Raise data.max_length.",
            pair_share(identical)
        ));
    }
    if truncated > 0 {
        findings.push(format!(
            "{} do not fit: a completion loses its end, or the prompt leaves no room. A max_length of {} would hold all, {} \
             would hold 99 %.",
            pair_share(truncated),
            lengths.sequence.max,
            lengths.sequence.p99
        ));
    }
    if contradicting > 0 {
        findings.push(format!(
            "{} prefer a completion that another pair of the same prompt rejects. They cancel each other out.",
            pair_share(contradicting)
        ));
    }
    findings.extend(length_finding(length_preference.longer_is_chosen.interval_95));
    for set in overlap.iter().filter(|set| !set.ids.is_empty()) {
        findings.push(format!(
            "{} repeat questions of {}. Scores on that test set would be too high: leave them out with arithmo prepare \
             --exclude-questions.",
            pair_share(set.ids.len()),
            set.file.display()
        ));
    }
    findings
}

/// Returns a finding if the longer (or the shorter) completion is chosen in more than [`STRONG`] of the pairs, with 95 %
/// confidence. The argument is the interval of the fraction of pairs whose longer completion is chosen.
fn length_finding([low, high]: [f64; 2]) -> Option<String> {
    let which = if low > STRONG {
        "longer"
    } else if high < 1.0 - STRONG {
        "shorter"
    } else {
        return None;
    };
    Some(format!(
        "The {which} completion is the chosen one far more often than not: the policy can learn length in place of \
         quality. Balance the lengths, or watch the length of its answers."
    ))
}
