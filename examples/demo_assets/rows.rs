//! Questions with voted answers in the schema of HuggingFaceH4/stack-exchange-preferences,
//! generated from templates.

use std::collections::HashSet;

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};
use serde_json::{Value, json};

use super::problems::{Problem, TOPICS};

/// A generator of random choices that are the same on every machine.
pub(crate) struct Dice(ChaCha8Rng);

impl Dice {
    /// Returns an integer from `min` to `max`, inclusive.
    pub(crate) fn from(&mut self, min: i64, max: i64) -> i64 {
        let count = (max - min + 1) as u64;
        min + (self.0.next_u64() % count) as i64
    }

    /// Returns one of `all`.
    pub(crate) fn pick<T: Copy>(&mut self, all: &[T]) -> T {
        all[self.from(0, all.len() as i64 - 1) as usize]
    }

    fn chance(&mut self, percent: i64) -> bool {
        self.from(1, 100) <= percent
    }

    fn shuffle<T>(&mut self, items: &mut [T]) {
        for last in (1..items.len()).rev() {
            items.swap(last, self.from(0, last as i64) as usize);
        }
    }
}

/// The kind of a row under the demo's rules. All but `Pair` are filtered out, each by a different
/// rule.
#[derive(Clone, Copy, PartialEq)]
enum Kind {
    Pair,
    NotAboutCalculating,
    EqualScores,
    SmallGap,
    OneAnswer,
    SameAnswers,
    EmptyAnswer,
    Duplicate,
    NearDuplicate,
}

/// The number of rows of each kind.
const KINDS: [(Kind, usize); 9] = [
    (Kind::Pair, 164),
    (Kind::NotAboutCalculating, 12),
    (Kind::EqualScores, 7),
    (Kind::SmallGap, 5),
    (Kind::OneAnswer, 3),
    (Kind::SameAnswers, 1),
    (Kind::EmptyAnswer, 1),
    (Kind::Duplicate, 4),
    (Kind::NearDuplicate, 3),
];

const OPENINGS: [&str; 8] = [
    "How do I calculate {}?",
    "How can one calculate {} by hand?",
    "I have to calculate {}. Where do I start?",
    "What is the quickest way to calculate {}?",
    "Could somebody explain how to calculate {}?",
    "I tried to calculate {} and failed.",
    "Is there a simple rule to calculate {}?",
    "For tomorrow I should calculate {}.",
];
const CLOSINGS: [&str; 8] = [
    "Please show the steps.",
    "My book gives only the result.",
    "I got stuck after the first step.",
    "A calculator isn&#39;t allowed.",
    "Thanks in advance!",
    "I don&#39;t see which rule applies.",
    "What am I missing?",
    "I&#39;d like to understand <em>why</em>, not only the number.",
];
const BEGINNINGS: [&str; 6] = [
    "Go step by step.",
    "Here is the calculation in full.",
    "Split it into small steps.",
    "There is a rule for this.",
    "Let us do it slowly.",
    "You were close.",
];
const ENDINGS: [&str; 4] = [
    "So the answer is ${}$.",
    "Hence the result is ${}$.",
    r"Therefore you get $\boxed{{}}$.",
    "<strong>Answer:</strong> ${}$.",
];
const SHORT: [&str; 3] =
    ["It is ${}$.", "I get ${}$, the others have shown how.", "${}$, by the usual formula."];
/// The sentences of answers that nobody votes for.
const CHATTER: [&str; 24] = [
    "Just type it into a calculator.",
    "This has been asked before, search the site.",
    "No idea, maybe ${}$?",
    "Isn&#39;t it simply ${}$? I did it in my head.",
    "I guess it is about ${}$, but I did not check.",
    "Why would anybody need this?",
    "I would say ${}$, no need for all those steps.",
    "My phone shows ${}$, so that must be it.",
    "Someone told me ${}$ once.",
    "It&#39;s obvious: ${}$.",
    "Homework? Do it yourself.",
    "I don&#39;t know, but ${}$ looks nice.",
    "I had the same question at school and never got it.",
    "My teacher explained it, but I was not listening that day.",
    "There are many websites where you can look up such things.",
    "Sorry, I have no time to write it down.",
    "I think there was a formula, but I forgot it.",
    "Numbers like these never come up in real life anyway.",
    "You could try to guess until it fits.",
    "Did you read your book? It must be in there somewhere.",
    "Maybe ask a friend, or wait for a better answer than mine.",
    "It depends on how you look at it, I suppose.",
    "A spreadsheet does all of this for you, so why bother?",
    "Not sure, it could also be something else.",
];

/// Generates the rows.
pub(crate) fn rows() -> Vec<Value> {
    let mut dice = Dice(ChaCha8Rng::seed_from_u64(2024));
    let mut kinds: Vec<Kind> = Vec::new();
    for (kind, count) in KINDS {
        kinds.extend(std::iter::repeat_n(kind, count));
    }
    dice.shuffle(&mut kinds);
    // Duplicates come last, so that there are rows to repeat.
    kinds.sort_by_key(|kind| matches!(kind, Kind::Duplicate | Kind::NearDuplicate));
    let mut asked = HashSet::new();
    let mut rows: Vec<Value> = Vec::new();
    let mut pairs: Vec<(String, Problem)> = Vec::new();
    for (index, kind) in kinds.into_iter().enumerate() {
        let question = match kind {
            Kind::Duplicate => earlier_question(&mut dice, &pairs).replace(' ', "  "),
            Kind::NearDuplicate => earlier_question(&mut dice, &pairs) + "\n<p>Thank you!</p>\n",
            _ => String::new(),
        };
        let problem = loop {
            let topic = TOPICS[index % TOPICS.len()];
            let problem = topic(&mut dice);
            if asked.insert(problem.ask.clone()) {
                break problem;
            }
        };
        let question =
            if question.is_empty() { self::question(&mut dice, &problem, kind) } else { question };
        let answers = answers(&mut dice, &problem, kind);
        rows.push(row(&mut dice, index, &question, answers));
        if kind == Kind::Pair {
            pairs.push((question, problem));
        }
    }
    rows
}

/// Returns a random earlier question.
fn earlier_question(dice: &mut Dice, pairs: &[(String, Problem)]) -> String {
    let index = dice.from(0, pairs.len() as i64 - 1) as usize;
    pairs[index].0.clone()
}

fn question(dice: &mut Dice, problem: &Problem, kind: Kind) -> String {
    let mut opening = dice.pick(&OPENINGS).replace("{}", &problem.ask);
    if kind == Kind::NotAboutCalculating {
        opening = opening.replace("calculate", "find");
    }
    let (detail, closing) = (&problem.detail, dice.pick(&CLOSINGS));
    if detail.starts_with('<') && !detail.starts_with("<em>") {
        format!("<p>{opening}</p>\n{detail}\n<p>{closing}</p>\n")
    } else {
        format!("<p>{opening}</p>\n<p>{detail} {closing}</p>\n")
    }
}

/// The HTML and the votes of an answer.
type Voted = (String, i64);

fn answers(dice: &mut Dice, problem: &Problem, kind: Kind) -> Vec<Voted> {
    let best = (right(dice, problem), dice.from(12, 120));
    let worst = (poor(dice, problem), dice.from(-3, 1));
    let mut answers = match kind {
        Kind::OneAnswer => return vec![best],
        Kind::EqualScores => vec![(best.0, 5), (worst.0, 5)],
        Kind::SmallGap => vec![(best.0, 3), (worst.0, 1)],
        Kind::SameAnswers => vec![best.clone(), (best.0, worst.1)],
        Kind::EmptyAnswer => vec![best, ("<p>&nbsp;</p>\n".to_string(), worst.1)],
        // Votes are sometimes wrong.
        _ if dice.chance(8) => vec![(worst.0, best.1), (best.0, worst.1)],
        _ => vec![best, worst],
    };
    if !matches!(kind, Kind::EqualScores | Kind::SmallGap) {
        for _ in 0..dice.from(0, 2) {
            let short = dice.pick(&SHORT).replace("{}", &problem.result);
            answers.push((format!("<p>{short}</p>\n"), dice.from(2, 7)));
        }
    }
    dice.shuffle(&mut answers);
    answers
}

/// Returns an answer with the right result: worked out, or in a sixth of the cases short.
fn right(dice: &mut Dice, problem: &Problem) -> String {
    let ending = dice.pick(&ENDINGS).replace("{}", &problem.result);
    if dice.chance(16) {
        let last = problem.steps.last().map_or("", String::as_str);
        return format!("<p>{last} {ending}</p>\n");
    }
    let check = match &problem.check {
        Some(code) if dice.chance(60) => {
            format!("<p>To check it:</p>\n<pre><code>{code}\n</code></pre>\n")
        }
        _ => String::new(),
    };
    worked(dice, &problem.steps, &ending) + &check
}

fn worked(dice: &mut Dice, steps: &[String], ending: &str) -> String {
    let beginning = dice.pick(&BEGINNINGS);
    let steps = if dice.chance(35) {
        let items = steps.iter().map(|step| format!("<li>{step}</li>\n"));
        format!("<ol>\n{}</ol>\n", items.collect::<String>())
    } else {
        format!("<p>{}</p>\n", steps.join(" "))
    };
    format!("<p>{beginning}</p>\n{steps}<p>{ending}</p>\n")
}

/// Returns one to seven sentences of chatter, or in a third of the cases an answer that differs
/// from a right one only in its numbers.
fn poor(dice: &mut Dice, problem: &Problem) -> String {
    if dice.chance(33) {
        let (result, wrong) = (format!("{}$", problem.result), format!("{}$", problem.wrong));
        let steps = problem.steps.iter().map(|step| step.replace(&result, &wrong));
        let ending = dice.pick(&ENDINGS).replace("{}", &problem.wrong);
        return worked(dice, &steps.collect::<Vec<_>>(), &ending);
    }
    let mut sentences = CHATTER;
    dice.shuffle(&mut sentences);
    let count = dice.from(1, 7) as usize;
    let text = sentences[..count].join(" ").replace("{}", &problem.wrong);
    format!("<p>{text}</p>\n")
}

fn row(dice: &mut Dice, index: usize, question: &str, answers: Vec<Voted>) -> Value {
    let qid = 100 + 7 * index;
    let max_votes = answers.iter().map(|(_, votes)| *votes).max();
    let accepted = dice.chance(60);
    let answers: Vec<Value> = answers
        .into_iter()
        .zip(1..)
        .map(|((text, votes), number)| {
            let selected = accepted && votes >= 12 && Some(votes) == max_votes;
            json!({
                "answer_id": qid + number,
                "author": format!("user{}", dice.from(1, 99)),
                "author_id": dice.from(1, 99),
                "author_profile": "https://example.com/users/",
                "pm_score": score(votes, selected),
                "selected": selected,
                "text": text,
            })
        })
        .collect();
    let date = format!("2023/{:02}/{:02}", dice.from(1, 12), dice.from(1, 28));
    let metadata = [format!("https://example.com/questions/{qid}"), "https://example.com".into()];
    json!({"qid": qid, "question": question, "answers": answers, "date": date, "metadata": metadata})
}

/// The data set's score: round(log2(1 + votes)), one more if accepted, -1 below zero votes.
fn score(votes: i64, selected: bool) -> i64 {
    match votes {
        ..0 => -1,
        _ => ((1 + votes) as f64).log2().round() as i64 + i64::from(selected),
    }
}
