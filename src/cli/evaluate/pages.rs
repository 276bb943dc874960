//! What the pages show.

use crate::eval::compare::{Compared, p_text};
use crate::eval::judged::{Group, Judged, Results};
use crate::eval::preference::Bucket;
use crate::eval::statistics::Rate;
use crate::eval::task::Task;
use crate::report::evaluation::{Change, EvaluationPage, NumberTable, Side};

fn percent(share: f64) -> String {
    format!("{:.2} %", 100.0 * share)
}

fn interval([low, high]: [f64; 2]) -> String {
    format!("{:.2} to {:.2} %", 100.0 * low, 100.0 * high)
}

fn texts(words: &[&str]) -> Vec<String> {
    words.iter().map(ToString::to_string).collect()
}

fn rate_row(name: &str, rate: &Rate) -> Vec<String> {
    let Rate { correct, total, accuracy, interval_95 } = *rate;
    vec![
        name.to_string(),
        correct.to_string(),
        total.to_string(),
        percent(accuracy),
        interval(interval_95),
    ]
}

/// The page of one evaluation; `buckets` are tables of a preference evaluation.
pub(super) fn results_page(results: &Results, buckets: &[(&str, &[Bucket])]) -> EvaluationPage {
    let cards =
        results.scorers.iter().map(|((name, _), counted)| (*name, percent(counted.rate.accuracy)));
    let head = ["", "right", "of", "accuracy", "95 % interval"];
    let mut all = NumberTable { title: "Scorers".into(), head: texts(&head), rows: Vec::new() };
    all.head.push("no answer".into());
    for ((name, _), counted) in &results.scorers {
        let mut row = rate_row(name, &counted.rate);
        row.push(counted.unanswered.to_string());
        all.rows.push(row);
    }
    let mut tables = vec![all];
    for Group { name: group, parts } in &results.groups {
        for (place, ((scorer, _), _)) in results.scorers.iter().enumerate() {
            let rows = parts.iter().map(|(label, counts)| rate_row(label, &counts[place].rate));
            let title = format!("By {group}: {scorer}");
            tables.push(NumberTable { title, head: texts(&head), rows: rows.collect() });
        }
    }
    let filled = buckets.iter().filter(|(_, buckets)| !buckets.is_empty());
    tables.extend(filled.map(|(title, buckets)| bucket_table(title, buckets)));
    let plain =
        |value: &serde_json::Value| value.as_str().map_or(value.to_string(), str::to_string);
    let settings = results.settings.0.iter();
    let settings = settings.filter(|(name, _)| !name.ends_with("sha256"));
    let rules = results.scorers.iter().map(|((name, about), _)| format!("{name}: {about}."));
    EvaluationPage {
        title: format!("Evaluation: {}", results.task),
        subtitle: format!("{} in all; what has no answer counts as wrong", results.total),
        cards: cards.collect(),
        notes: rules.collect(),
        tables,
        settings: settings.map(|(name, value)| [name.clone(), plain(value)]).collect(),
        changes: Vec::new(),
    }
}

fn bucket_table(title: &str, buckets: &[Bucket]) -> NumberTable {
    let row = |bucket: &Bucket| {
        let mut row = rate_row(&bucket.name, &bucket.rate);
        row.extend([format!("{:.3}", bucket.mean_margin), percent(bucket.mean_probability)]);
        row
    };
    NumberTable {
        title: title.to_string(),
        head: texts(&["", "right", "of", "accuracy", "95 % interval", "margin", "probability"]),
        rows: buckets.iter().map(row).collect(),
    }
}

/// The page of two evaluations; the changes are those of `shown`.
pub(super) fn comparison_page(
    compared: &[Compared],
    shown: &Compared,
    sides: [&[Judged]; 2],
    names: [&str; 2],
    task: Task,
) -> EvaluationPage {
    let changed = |numbers: &[usize], won: bool| -> Vec<Change> {
        numbers.iter().filter_map(|number| change(*number, won, sides, &shown.scorer)).collect()
    };
    let mut changes = changed(&shown.won, true);
    changes.extend(changed(&shown.lost, false));
    let test = shown.test;
    EvaluationPage {
        title: format!("{}: A and B", task.name()),
        subtitle: format!("A: {}. B: {}. {} problems.", names[0], names[1], sides[0].len()),
        cards: vec![
            ("A", percent(shown.rates[0].accuracy)),
            ("B", percent(shown.rates[1].accuracy)),
            ("Won", test.wins.to_string()),
            ("Lost", test.losses.to_string()),
            ("p", p_text(test.p_value)),
        ],
        notes: vec![verdict(shown)],
        tables: vec![compared_table(compared)],
        settings: Vec::new(),
        changes,
    }
}

/// What the test says, in words.
fn verdict(shown: &Compared) -> String {
    let test = shown.test;
    let verdict = match test.p_value < 0.05 {
        true => "chance alone seldom does that",
        false => "chance alone often does that: the data do not say which model is better",
    };
    format!(
        "By {}, B solves {} problems that A does not, and fails {} that A solves. Two equally good models part at least as \
         unevenly with probability {} (exact McNemar test): {verdict}.",
        shown.scorer,
        test.wins,
        test.losses,
        p_text(test.p_value)
    )
}

fn compared_table(compared: &[Compared]) -> NumberTable {
    let row = |one: &Compared| {
        let [a, b] = one.rates.map(|rate| percent(rate.accuracy));
        let (difference, [low, high]) = one.difference;
        let spread = format!("{:+.2} to {:+.2}", 100.0 * low, 100.0 * high);
        let difference = format!("{:+.2}", 100.0 * difference);
        let (won, lost) = (one.test.wins.to_string(), one.test.losses.to_string());
        vec![one.scorer.clone(), a, b, difference, spread, won, lost, p_text(one.test.p_value)]
    };
    let head = ["", "A", "B", "B \u{2212} A", "95 % interval", "won", "lost", "McNemar p"];
    NumberTable {
        title: "Scorers".into(),
        head: texts(&head),
        rows: compared.iter().map(row).collect(),
    }
}

fn change(number: usize, won: bool, sides: [&[Judged]; 2], scorer: &str) -> Option<Change> {
    let [a, b] = sides.map(|side| side.get(number - 1));
    let (a, b) = (a?, b?);
    let side = |name: &str, one: &Judged| {
        let verdict = one.verdicts.get(scorer);
        Side {
            name: name.to_string(),
            text: one.completion.clone(),
            answer: verdict.and_then(|verdict| verdict.answer.clone()),
            correct: verdict.is_some_and(|verdict| verdict.correct),
        }
    };
    Some(Change {
        number,
        won,
        question: a.question.clone(),
        known: a.ground_truth.clone(),
        sides: [side("A", a), side("B", b)],
    })
}
