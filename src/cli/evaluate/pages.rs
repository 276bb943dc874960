//! Builds the pages of evaluations and comparisons.

use crate::eval::compare::{ScorerComparison, SettingDifference, p_text};
use crate::eval::judged::{Group, Judged, Results};
use crate::eval::preference::Bucket;
use crate::eval::settings::Settings;
use crate::eval::statistics::Rate;
use crate::eval::task::Task;
use crate::generate::FinishReason;
use crate::report::evaluation::{
    AnswerList, Change, EvaluationPage, JudgedAnswer, NumberTable, RuleVerdict, Side,
};

/// Maximum number of wrong answers on a page; all are in verdicts.jsonl.
const MAX_WRONG: usize = 200;
/// Maximum number of right answers on a page.
const MAX_RIGHT: usize = 50;

// The spaces between numbers and units do not break: a narrow cell breaks at "to".
pub(in crate::cli) fn percent(fraction: f64) -> String {
    format!("{:.2}\u{a0}%", 100.0 * fraction)
}

/// Formats a confidence interval in percent.
pub(in crate::cli) fn interval([low, high]: [f64; 2]) -> String {
    format!("{:.2} to {:.2}\u{a0}%", 100.0 * low, 100.0 * high)
}

fn texts(words: &[&str]) -> Vec<String> {
    words.iter().map(ToString::to_string).collect()
}

/// Returns a row of a table: name, correct answers, total, accuracy and its interval.
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

/// Builds the page of one evaluation; `buckets` are tables of a preference evaluation.
pub(in crate::cli) fn results_page(
    results: &Results,
    judged: &[Judged],
    task: Task,
    buckets: &[(&str, &[Bucket])],
) -> EvaluationPage {
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
    let rules = results.scorers.iter();
    let mut notes: Vec<String> =
        rules.map(|((name, about), _)| format!("{name}: {about}.")).collect();
    if let Some(cut_off @ 1..) = results.cut_off {
        notes.push(format!(
            "{cut_off} answers were cut off at the token limit before the model ended them."
        ));
    }
    EvaluationPage {
        title: format!("Evaluation: {}", results.task),
        subtitle: format!("{} in total; those without an answer count as wrong", results.total),
        cards: cards.collect(),
        notes,
        tables,
        settings: setting_rows(&results.settings, ""),
        changes: Vec::new(),
        answers: Some(answer_list(results, judged, task)),
    }
}

/// Returns the settings as rows, without hashes; `prefix` precedes each name.
fn setting_rows(settings: &Settings, prefix: &str) -> Vec<[String; 2]> {
    let plain =
        |value: &serde_json::Value| value.as_str().map_or(value.to_string(), str::to_string);
    let settings = settings.0.iter();
    let settings = settings.filter(|(name, value)| !name.ends_with("sha256") && !value.is_object());
    settings.map(|(name, value)| [format!("{prefix}{name}"), plain(value)]).collect()
}

/// Selects the answers that the page shows: the first wrong and the first right ones by the task's main rule.
fn answer_list(results: &Results, judged: &[Judged], task: Task) -> AnswerList {
    let names = || results.scorers.iter().map(|((name, _), _)| *name);
    let main = names().find(|name| *name == task.main_rule());
    let main = main.or(names().next()).unwrap_or_default();
    let is_right = |one: &Judged| {
        let verdict = one.verdicts.get(main);
        verdict.is_some_and(|verdict| verdict.correct)
    };
    let mut list = AnswerList { rule: main.to_string(), ..AnswerList::default() };
    for (one, number) in judged.iter().zip(1..) {
        let right = is_right(one);
        let (count, max) =
            if right { (&mut list.right, MAX_RIGHT) } else { (&mut list.wrong, MAX_WRONG) };
        *count += 1;
        if *count <= max {
            list.shown.push(judged_answer(one, number, right, results));
        }
    }
    list
}

/// Describes one answer with its verdicts for the page.
fn judged_answer(one: &Judged, number: usize, right: bool, results: &Results) -> JudgedAnswer {
    let verdict = |name: &str| {
        let verdict = one.verdicts.get(name)?;
        Some(RuleVerdict {
            rule: name.to_string(),
            answer: verdict.answer.clone(),
            correct: verdict.correct,
        })
    };
    let names = results.scorers.iter().map(|((name, _), _)| *name);
    JudgedAnswer {
        number,
        right,
        question: one.question.clone(),
        known: one.ground_truth.clone(),
        text: one.completion.clone(),
        cut_off: one.finish_reason == Some(FinishReason::Length),
        verdicts: names.filter_map(verdict).collect(),
    }
}

/// Builds the table of a preference evaluation's buckets.
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

/// Two evaluations of the same problems.
pub(super) struct Sides<'a> {
    /// Their folders or files.
    pub names: [&'a str; 2],
    /// Their answers.
    pub judged: [&'a [Judged]; 2],
    /// How the answers were made; empty if unknown.
    pub settings: [&'a Settings; 2],
    /// Differences between the settings.
    pub differences: &'a [SettingDifference],
}

/// Builds the page that compares two evaluations; the listed changes are those of `shown`.
pub(super) fn comparison_page(
    compared: &[ScorerComparison],
    shown: &ScorerComparison,
    sides: &Sides<'_>,
    task: Task,
) -> EvaluationPage {
    let changed = |numbers: &[usize], won: bool| -> Vec<Change> {
        numbers
            .iter()
            .filter_map(|number| change(*number, won, sides.judged, &shown.scorer))
            .collect()
    };
    let mut changes = changed(&shown.won, true);
    changes.extend(changed(&shown.lost, false));
    let test = shown.test;
    let [a, b] = sides.settings;
    let mut settings = setting_rows(a, "A: ");
    settings.extend(setting_rows(b, "B: "));
    EvaluationPage {
        title: format!("{}: A and B", task.name()),
        subtitle: format!(
            "A: {}. B: {}. {} problems.",
            sides.names[0],
            sides.names[1],
            sides.judged[0].len()
        ),
        cards: vec![
            ("A", percent(shown.rates[0].accuracy)),
            ("B", percent(shown.rates[1].accuracy)),
            ("Won", test.wins.to_string()),
            ("Lost", test.losses.to_string()),
            ("p", p_text(test.p_value)),
        ],
        notes: vec![verdict(shown), difference_note(sides)],
        tables: vec![compared_table(compared)],
        settings,
        changes,
        answers: None,
    }
}

/// Describes how the settings of the two evaluations differ.
fn difference_note(sides: &Sides<'_>) -> String {
    let known = sides.settings.map(|settings| !settings.0.is_empty());
    let differences = sides.differences.iter().map(|one| {
        let [a, b] = one.texts().map(|text| text.escape_debug().to_string());
        format!("{} (A: {a}; B: {b})", one.name)
    });
    let differences: Vec<String> = differences.collect();
    match (known, differences.is_empty()) {
        ([true, true], true) => "A and B were made with the same settings.".to_string(),
        ([true, true], false) => format!("A and B differ in {}.", differences.join("; ")),
        _ => "It is not known of both how the answers were made.".to_string(),
    }
}

/// Describes the result of McNemar's test in words.
fn verdict(shown: &ScorerComparison) -> String {
    let test = shown.test;
    let verdict = if test.p_value < 0.05 {
        "chance alone seldom does that"
    } else {
        "chance alone often does that, so the data do not say which model is better"
    };
    format!(
        "By {}, B solves {} problems that A does not, and fails {} that A solves. Two equally good models differ at least as \
         unevenly with probability {} (exact McNemar test): {verdict}.",
        shown.scorer,
        test.wins,
        test.losses,
        p_text(test.p_value)
    )
}

/// Builds the table that compares the two evaluations, with one row per scorer.
fn compared_table(compared: &[ScorerComparison]) -> NumberTable {
    let row = |one: &ScorerComparison| {
        let [a, b] = one.rates.map(|rate| percent(rate.accuracy));
        let (difference, [low, high]) = one.difference;
        let spread = format!("{:+.2} to {:+.2}", 100.0 * low, 100.0 * high);
        let difference = format!("{:+.2}", 100.0 * difference);
        let (won, lost) = (one.test.wins.to_string(), one.test.losses.to_string());
        vec![one.scorer.clone(), a, b, difference, spread, won, lost, p_text(one.test.p_value)]
    };
    let head =
        ["", "A", "B", "B\u{a0}\u{2212}\u{a0}A", "95 % interval", "won", "lost", "McNemar p"];
    NumberTable {
        title: "Scorers".into(),
        head: texts(&head),
        rows: compared.iter().map(row).collect(),
    }
}

/// Describes a problem that only one of the two evaluations solves.
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
