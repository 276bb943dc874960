//! Finds the number that a completion states as its answer: in a box, after `####`, or after "answer is".

use std::sync::LazyLock;

use num_rational::BigRational;
use num_traits::One;
use regex::Regex;

use super::contradiction::is_contradicted;
use super::heading::is_heading;
use super::last::last_number;
use super::sentence::{Reading, first_sentence, read, states_pair};
use super::token::{Kind, Token, tokens};
use crate::eval::answers::boxed::last_closed_box;
use crate::eval::answers::correction::{correction, text_after};
use crate::eval::answers::hedge::{after_sentence, is_hedged};
use crate::eval::pattern;

/// Number of bytes of a statement that are read.
const MAX_STATEMENT_BYTES: usize = 4096;

/// Returns the answer that the text states: the content of its last box that is closed and not empty, else the number after
/// its last `####` that is not a heading, else the number after its last "answer is". Returns `None` if it states nothing,
/// and `Some(None)` if it states something other than a single number.
pub(super) fn stated_answer(text: &str) -> Option<Option<BigRational>> {
    if let Some(content) = last_closed_box(text) {
        return Some(boxed(content).filter(|value| is_kept(value, text_after(text, content))));
    }
    marked(text).or_else(|| after_answer(text))
}

/// Returns whether a stated number is still valid after the text `after` that follows it: there is no correction, or one
/// that ends in the same number or has no number. A check must only contain the number: "Let me verify: 18 / 2 = 9."
fn is_kept(value: &BigRational, after: &str) -> bool {
    // An explanation may contain other numbers, but ends in the same one.
    if is_contradicted(value, after) && last_number(after).as_ref() != Some(value) {
        return false;
    }
    let Some(correction) = correction(after) else {
        return true;
    };
    if !correction.text.contains(|c: char| c.is_ascii_digit()) {
        return !correction.is_denial;
    }
    let is_repeated = || !value.is_integer() || has_number(correction.text, &value.to_string());
    last_number(correction.text).as_ref() == Some(value) || correction.is_check && is_repeated()
}

/// Returns whether `text` contains the number written as `digits`, with or without commas between its thousands.
fn has_number(text: &str, digits: &str) -> bool {
    let text = text.replace(',', "");
    let mut numbers = text.split(|c: char| !c.is_ascii_digit() && c != '-');
    numbers.any(|number| number.trim_start_matches('-') == digits.trim_start_matches('-'))
}

/// Returns the number in a box. Line breaks in the box do not end a sentence.
fn boxed(content: &str) -> Option<BigRational> {
    if content.len() > MAX_STATEMENT_BYTES {
        return None;
    }
    let mut tokens = tokens(content);
    tokens.retain(|token| token.kind != Kind::Break);
    read(&tokens)?.value
}

/// Returns the number after the last `####` that is GSM8K's answer mark and not a heading. A mark after an empty line and
/// other text belongs to a next problem, unless that text continues this one.
fn marked(text: &str) -> Option<Option<BigRational>> {
    static HASHES: LazyLock<Regex> = LazyLock::new(|| pattern("#{4,}"));
    let mut last: Option<(usize, Reading)> = None;
    let mut found = HASHES.find_iter(text).peekable();
    while let Some(hashes) = found.next() {
        let end = found.peek().map_or(text.len(), |next| next.start());
        let Some((reading, length)) = mark(&text[hashes.end()..end]) else {
            continue;
        };
        if is_heading(&text[hashes.end()..end], length, reading.value.as_ref()) {
            continue;
        }
        if last.as_ref().is_some_and(|(end, _)| begins_problem(&text[*end..hashes.start()])) {
            break;
        }
        last = Some((hashes.end() + length, reading));
    }
    let (end, reading) = last?;
    Some(reading.value.filter(|value| is_kept(value, &text[end..])))
}

/// Returns whether the text between two marks begins a next problem.
fn begins_problem(between: &str) -> bool {
    const SAME_PROBLEM: [&str; 28] = [
        "wait",
        "no",
        "actually",
        "hmm",
        "oops",
        "sorry",
        "correction",
        "let",
        "but",
        "however",
        "so",
        "therefore",
        "thus",
        "hence",
        "the",
        "final",
        "answer",
        "check",
        "verify",
        "verification",
        "i",
        "oh",
        "alternatively",
        "note",
        "in",
        "to",
        "since",
        "we",
    ];
    let is_apart = between.starts_with("\n\n")
        || between.starts_with("\n\r\n")
        || between.starts_with("\n \n");
    let mut words = between.split(|c: char| !c.is_alphabetic()).filter(|word| !word.is_empty());
    let Some(first) = words.next().filter(|_| is_apart) else {
        return false;
    };
    // "The" can begin a next problem or continue this one.
    let first = first.to_lowercase();
    let second = words.next().unwrap_or_default().to_lowercase();
    let is_answer = ["answer", "final", "correct", "total", "result"].contains(&second.as_str());
    !(SAME_PROBLEM.contains(&first.as_str()) && (first != "the" || is_answer))
}

/// Reads the number after a `####`: `18`, `$1,000`, `18 eggs`. Returns it and the length of its line, or `None` for a
/// heading such as `Step 2`, `2. Check` or `3) Sum`.
fn mark(text: &str) -> Option<(Reading, usize)> {
    static HEADING: LazyLock<Regex> = LazyLock::new(|| {
        let number = r"[0-9]{1,3}";
        pattern(&format!(
            r"^[\s*_]*(?:{number}[*_]*\s*(?:[.):]\s+\S|[-–—]\s+[^\W0-9]|[.)][^\W0-9])|{number}(?:st|nd|rd|th)\b|{number}\s+[A-Z][a-z]+\s+\w)"
        ))
    });
    let content = text.trim_start();
    let start = text.len() - content.len();
    let end = content.find('\n').unwrap_or(content.len());
    let line = &content[..end.min(content.floor_char_boundary(MAX_STATEMENT_BYTES))];
    if HEADING.is_match(line) {
        return None;
    }
    let tokens = tokens(line);
    let first = tokens.iter().find(|token| {
        !matches!(
            token.kind,
            Kind::Currency(_) | Kind::Equals | Kind::Colon | Kind::Open | Kind::Quote
        ) && !matches!(token.kind, Kind::Operator('-' | '+' | '\u{2212}' | '–' | '—'))
    })?;
    let is_code = |word: &str| super::words::is_currency_code(word);
    let is_number = match first.kind {
        Kind::Number(_) | Kind::Vulgar(_) | Kind::Formula(..) => true,
        Kind::Word(word) => is_code(word) || is_code(&word.to_uppercase()),
        _ => false,
    };
    let reading = super::sentence::read_digits(first_sentence(&tokens)).filter(|_| is_number)?;
    Some((reading, start + end))
}

/// A kind of announcement of an answer.
#[derive(Clone, Copy, PartialEq)]
enum Announcement {
    /// A field for a program: `"answer": 18`, `<answer>18</answer>`.
    Field,
    /// "answer is".
    Phrase,
    /// `Answer: 18`, or `Final Answer` on a line of its own, which may also be the heading of the whole solution.
    Label,
    /// "the answer cannot be", "a wrong answer is".
    Denial,
    /// "one might think that the answer is".
    Hedge,
}

static ANSWER: LazyLock<Regex> = LazyLock::new(|| {
    let word = r"(?:\b|_)(?:answer|ans|antwort|réponse|respuesta|risposta|resposta)\b|答案";
    let about = r"(?:\s+(?:to|for|of|in)\b[^.:=\n]{0,80}?|\s*\([^()\n]{0,60}\))?";
    let is = r"\s+(?:is|are|equals?|(?:would|will|should|must|can)\s+be|ist|lautet|est|es|é|è)\b|[是为為]";
    let denial = r"\s*(?:isn['’]t|wasn['’]t|aren['’]t)\b|\s+(?:can['’]t|cannot|can\s+not|could(?:n['’]t|\s+not)|won['’]t|wouldn['’]t|shouldn['’]t)\s+be\b";
    let wrong = r"(?P<wrong>\b(?:wrong|incorrect|mistaken)[ \t]+)?";
    let label = r"\s*(?:[:：]|->|→|⇒)";
    pattern(&format!(
        r#"(?im)(?P<field>[a-z_]*answer["']\s*[:=]|<answer>)|{wrong}(?:{word})["'*_`\])]*(?:(?P<equals>\s*=)|{about}["'*_`]*(?:(?P<denial>{denial})|(?P<phrase>{is})|{label})(?:\s*[:：])?|:?[*_ \t]*\r?$)"#
    ))
});

/// Returns the number after the last "answer is" that states one.
fn after_answer(text: &str) -> Option<Option<BigRational>> {
    let found: Vec<_> = ANSWER
        .captures_iter(text)
        .filter_map(|found| {
            let named = |name| found.name(name).is_some();
            let kind = match () {
                () if named("denial") || named("wrong") => Announcement::Denial,
                () if named("field") => Announcement::Field,
                () if named("phrase") => Announcement::Phrase,
                () => Announcement::Label,
            };
            let mark = found.get(0)?;
            let is_phrase = kind == Announcement::Phrase;
            let is_hedged = is_phrase && is_hedged(&text[..mark.start()]);
            let kind = if is_hedged { Announcement::Hedge } else { kind };
            // "2 points per answer = 48" counts answers and does not announce one.
            let near = text.ceil_char_boundary(mark.start().saturating_sub(200));
            let line = text[near..mark.start()].rsplit('\n').next().unwrap_or_default();
            let is_count =
                found.name("equals").is_some() && line.contains(|c: char| c.is_ascii_digit());
            (!is_count).then_some((kind, mark))
        })
        .collect();
    let ends = |at: usize| found.get(at + 1).map_or(text.len(), |(_, next)| next.start());
    let statements = |fields: bool| {
        let all = found.iter().enumerate().rev();
        all.filter(move |(_, (kind, _))| (*kind == Announcement::Field) == fields)
            .map(|(at, (kind, found))| (*kind, &text[found.end()..ends(at)], &text[found.end()..]))
    };
    // The text after the last guess, which is used if there is no other statement.
    let mut after_guess = None;
    for (kind, statement, rest) in statements(true).chain(statements(false)) {
        match announced(kind, statement, rest) {
            Announced::Answer(value) => return Some(value.filter(|value| is_kept(value, rest))),
            Announced::Doubt => return Some(last_number(rest)),
            Announced::Guess => {
                after_guess.get_or_insert(after_sentence(rest));
            }
            Announced::Nothing => {}
        }
    }
    if let Some(following) = after_guess {
        return Some(last_number(following));
    }
    let is_denied = found.iter().any(|(kind, _)| *kind == Announcement::Denial);
    is_denied.then_some(None)
}

/// The meaning of the statement after an announcement.
enum Announced {
    /// An answer, with its value if it has one.
    Answer(Option<BigRational>),
    /// A remark that an answer is wrong, so that earlier statements do not count.
    Doubt,
    /// A number that is only guessed or asked for.
    Guess,
    /// No number.
    Nothing,
}

/// Reads the statement after an announcement. `rest` is all of the text after it.
fn announced(kind: Announcement, statement: &str, rest: &str) -> Announced {
    match kind {
        Announcement::Denial => return Announced::Nothing,
        Announcement::Hedge => return Announced::Guess,
        _ => {}
    }
    const DOUBTS: [&str; 7] =
        ["wrong", "incorrect", "not", "isn't", "unclear", "mistaken", "false"];
    let near = &statement[..statement.floor_char_boundary(MAX_STATEMENT_BYTES)];
    let all = tokens(near);
    let text = from_first_line(&all);
    let sentence = first_sentence(text);
    let Some(reading) = read(sentence) else {
        if kind == Announcement::Phrase && says_none(sentence) {
            return Announced::Answer(None);
        }
        let is_doubt = sentence
            .iter()
            .any(|token| matches!(token.kind, Kind::Word(word) if DOUBTS.contains(&word)));
        return if is_doubt { Announced::Doubt } else { Announced::Nothing };
    };
    if matches!(text.get(sentence.len()), Some(Token { kind: Kind::Question, .. })) {
        return Announced::Guess;
    }
    // "Answer:" before a whole solution, or before numbered steps, does not announce the first number.
    let steps = ["\n2.", "\n2)", "\n**2."];
    let is_step = reading.value.as_ref().is_some_and(One::is_one)
        && steps.iter().any(|step| near.contains(step));
    if kind == Announcement::Label && is_step {
        return Announced::Nothing;
    }
    if kind == Announcement::Label && !reading.is_plain {
        let has_numbers =
            |tokens: &[Token<'_>]| tokens.iter().any(|token| matches!(token.kind, Kind::Number(_)));
        let later = &rest[near.len()..];
        if has_numbers(&text[sentence.len()..]) || later.contains(|c: char| c.is_ascii_digit()) {
            return Announced::Nothing;
        }
    }
    let is_pair = kind == Announcement::Label && !reading.is_plain && states_pair(sentence);
    Announced::Answer(reading.value.filter(|_| !is_pair))
}

/// Returns whether a sentence says that there is no answer.
fn says_none(sentence: &[Token<'_>]) -> bool {
    const NONE: [&str; 8] = [
        "none",
        "unknown",
        "undefined",
        "impossible",
        "nothing",
        "infinite",
        "infinity",
        "indeterminate",
    ];
    let first = sentence.iter().find_map(|token| match token.kind {
        Kind::Word(word) => Some(word.to_lowercase()),
        _ => None,
    });
    first.is_some_and(|word| NONE.contains(&word.as_str()))
}

/// Returns the tokens from the first line with a number or a word on, without the bullet of a list.
fn from_first_line<'t, 'a>(all: &'t [Token<'a>]) -> &'t [Token<'a>] {
    let mut start = 0;
    for (at, token) in all.iter().enumerate() {
        match token.kind {
            Kind::Break => start = at + 1,
            Kind::Word(_) | Kind::Number(_) | Kind::Vulgar(_) | Kind::Formula(..) => break,
            _ => {}
        }
    }
    match &all[start..] {
        [bullet, next, ..] if start > 0 && next.spaced && bullet.kind == Kind::Operator('-') => {
            &all[start + 1..]
        }
        line => line,
    }
}
