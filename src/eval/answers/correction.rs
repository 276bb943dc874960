//! Finds corrections after a stated answer: "The answer is 18. Wait, I forgot the tax: 20."

use std::sync::LazyLock;

use regex::Regex;

use crate::eval::pattern;

/// The start of a sentence that withdraws an earlier statement. It may follow a comma, a dash or a bracket.
static CORRECTION: LazyLock<Regex> = LazyLock::new(|| {
    let start = r"[.!?;:,(){}>$*—–\-\n][\s*_>]*";
    let hesitation = r"(?:(?:oh|ah|but|no|hmm+|uh|well|so)[,.! ]+\s*)*";
    let word = r"(?:wait\b|actually\b|hmm+\b|oops\b|sorry\b|correction\b|nope\b|no[,!.]|apologies\b|on (?:second thought|reflection|closer inspection)|upon (?:reflection|closer inspection)|looking (?:again|back)\b|scratch that|strike that|never ?mind\b|hold on\b|my bad\b|not quite\b|or rather\b|i mean\b|edit\b|update\b|nein,|espera\b)";
    let again = r"let me (?:correct|redo|fix|recalculate|recompute|recount|reconsider|rethink|re-?read|re-?examine|look again|try again|start over|re-?evaluate)\b";
    let mistake = r"i(?:['’]ve| have)? (?:also )?(?:made|forgot|forgotten|misread|miscalculated|misunderstood|missed|meant|apologi[sz]e)\b|[^.!?\n]{0,40}?\b(?:my (?:error|mistake)|i made an? (?:error|mistake)|there(?:['’]s| is| was) an? (?:error|mistake))\b";
    let wrong = r"(?:th(?:at|is)|it)(?:(?:['’]s| is| was| seems| looks| cannot be| can['’]t be) (?:wrong|incorrect|not (?:right|correct)|a mistake)| (?:doesn['’]t|does not|didn['’]t) (?:look|seem|sound) (?:right|correct)| (?:cannot|can['’]t) be[.,;:!])";
    let check = r"let(?: me|['’]s| us) (?:re-?|double[- ]?)?(?:check|verify)\b|(?:re|double[- ]?)checking\b";
    pattern(&format!(
        "(?i){start}{hesitation}(?:{word}|{again}|{mistake}|(?P<wrong>{wrong})|(?P<check>{check}))"
    ))
});

/// A contrast in the sentence of the answer or at the start of the next one. If a condition follows ("However, if she had
/// ..."), it is about another case.
static CONTRAST: LazyLock<Regex> = LazyLock::new(|| {
    let sentence = r"\A(?:[^.!?\n]|\.[0-9])*?[.!?,;:)}$*\]—–\-\n][\s*_>)}$\\\]]*";
    let word = r"(?i:however|but|yet|in fact|in reality|unfortunately|nevertheless|instead)\b";
    let other_case =
        r"(?P<other>[, ]+(?:if|had|were|assuming|supposing|suppose|in case|when|for)\b)?";
    pattern(&format!("{sentence}{word}{other_case}"))
});

/// A denial directly after the answer: "18 is wrong".
static DENIED: LazyLock<Regex> = LazyLock::new(|| {
    pattern(
        r"\A[^a-zA-Z.!?\n]{0,40}\b(?:is|was)\s+(?:wrong|incorrect|false|not\s+(?:right|correct|the\s+answer))\b",
    )
});

/// A correction found after a stated answer.
pub(super) struct Correction<'a> {
    /// Text after the correction.
    pub(super) text: &'a str,
    /// Whether the correction says that the answer is wrong.
    pub(super) is_denial: bool,
    /// Whether the correction only announces a check of the answer.
    pub(super) is_check: bool,
}

/// Returns the first correction in `after`, which is the text after a stated answer, or from the answer on.
pub(super) fn correction(after: &str) -> Option<Correction<'_>> {
    if let Some(found) = DENIED.find(after) {
        return Some(Correction { text: &after[found.end()..], is_denial: true, is_check: false });
    }
    let contrast = CONTRAST.captures(after).filter(|found| found.name("other").is_none());
    let found = match contrast {
        Some(found) => found,
        None => CORRECTION.captures(after)?,
    };
    let named = |name| found.name(name).is_some();
    Some(Correction {
        text: without_open_box(&after[found.get(0)?.end()..]),
        is_denial: named("wrong"),
        is_check: named("check"),
    })
}

/// Returns the text up to its last box if that is never closed, else the whole text.
fn without_open_box(text: &str) -> &str {
    let last = text.rfind("\\boxed{").filter(|last| !text[*last..].contains('}'));
    &text[..last.unwrap_or(text.len())]
}

/// Returns the part of `text` after its subslice `part`.
pub(super) fn text_after<'a>(text: &'a str, part: &str) -> &'a str {
    let start = (part.as_ptr() as usize).checked_sub(text.as_ptr() as usize);
    start.and_then(|start| text.get(start + part.len()..)).unwrap_or_default()
}
