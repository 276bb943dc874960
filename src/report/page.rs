//! The HTML page: one file, styles and plots inside, no scripts.

use std::fmt::Write;

use serde_json::Value;

use super::axis::number;
use super::figures::Figure;
use super::run::{Metrics, Run};
use super::scores::Comparison;
use super::series::{finite, mean, range, tail};
use crate::alarms::Alarm;

const STYLE: &str = include_str!("page.css");

/// Returns the page of `run`; `figures` are passed with their SVG text.
pub(super) fn page(run: &Run, figures: &[(Figure, String)]) -> String {
    let mut html = String::new();
    html.push_str(&cards(run));
    html.push_str(&warnings(&run.warnings));
    html.push_str(&alarms(&run.alarms));
    html.push_str(&plots(figures));
    if let Some(comparison) = &run.comparison {
        html.push_str(&before_and_after(comparison));
    }
    html.push_str(&data_table(run));
    html.push_str(&metrics_table(&run.metrics));
    html.push_str(&manifest_tables(run));
    document(&run.name, &subtitle(run), &html, "metrics.jsonl")
}

/// The text by which every page of this program is recognized.
pub(super) const MARK: &str = "Made by arithmo ";

/// Returns a complete page without external resources, in light and dark colors, for wide and
/// narrow screens. `body` is HTML; the other arguments are text.
pub(super) fn document(title: &str, subtitle: &str, body: &str, made_from: &str) -> String {
    let [title, subtitle, made_from] = [title, subtitle, made_from].map(escape);
    let version = env!("CARGO_PKG_VERSION");
    format!(
        "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
         <meta name=\"color-scheme\" content=\"light dark\">\n\
         <title>{title} \u{b7} arithmo</title>\n<style>\n{STYLE}</style>\n</head>\n<body>\n\
         <header>\n<h1>{title}</h1>\n<p class=\"dim\">{subtitle}</p>\n</header>\n{body}\
         <footer>{MARK}{version} from {made_from}.</footer>\n</body>\n</html>\n"
    )
}

/// Returns the method and the model.
fn subtitle(run: &Run) -> String {
    let text = |keys: &[&str]| run.config(keys).and_then(Value::as_str);
    let method = text(&["method"]).unwrap_or("training").to_uppercase();
    let method = if method == "TRAINING" { "Training run".to_string() } else { method };
    match text(&["model", "model_name_or_path"]) {
        Some(model) => format!("{method} of {model}"),
        None => method,
    }
}

/// Returns the most important numbers as cards: steps, loss, accuracy, margin, held-out results, tokens, speed and memory.
/// Numbers that were not logged are left out.
fn cards(run: &Run) -> String {
    let metrics = &run.metrics;
    let recent = |key: &str| {
        let points = metrics.get(key);
        mean(tail(points, points.len().div_ceil(10)))
    };
    let last = |key: &str| finite(metrics.get(key)).last().unwrap_or(f64::NAN);
    let memory = range(metrics.get("peak_memory_bytes")).map_or(f64::NAN, |r| r.1);
    // An evaluation need not be of the last step.
    let evaluated = metrics.get("eval_loss").last().map_or(f64::NAN, |p| p.0);
    let held_out = |what: &str| format!("Held-out {what}, step {}", number(evaluated, 7));
    let (accuracy, shown) = if run.method() == "sft" {
        ("mean_token_accuracy", "token accuracy")
    } else {
        ("rewards/accuracies", "accuracy")
    };
    let best = run.best_evaluation();
    let (best_name, best_value) = match best {
        Some((name, point)) => {
            (format!("Best held-out {name}, step {}", number(point.0, 7)), point.1)
        }
        None => (String::new(), f64::NAN),
    };
    let held_out_accuracy = last(&format!("eval_{accuracy}"));
    let cards = [
        ("Steps".to_string(), number(metrics.last_step(), 4)),
        ("Final loss".to_string(), number(recent("loss"), 4)),
        (format!("Final {shown}"), number(recent(accuracy), 3)),
        ("Final margin".to_string(), number(recent("rewards/margins"), 3)),
        (held_out("loss"), number(last("eval_loss"), 4)),
        (held_out(shown), number(held_out_accuracy, 3)),
        (best_name, number(best_value, 4)),
        ("Tokens seen".to_string(), number(last("num_tokens"), 4)),
        ("Tokens per second".to_string(), number(median(metrics, "tokens_per_second"), 3)),
        ("Peak memory".to_string(), bytes(memory)),
    ];
    let known = cards.iter().filter(|(_, value)| !value.starts_with('\u{2013}'));
    card_list(known.map(|(name, value)| (name.as_str(), value.clone())))
}

/// Returns names and values as cards.
pub(super) fn card_list<'a>(cards: impl Iterator<Item = (&'a str, String)>) -> String {
    let card = |(name, value): (&str, String)| {
        format!("<div><dt>{}</dt><dd>{}</dd></div>\n", escape(name), escape(&value))
    };
    format!("<dl class=\"cards\">\n{}</dl>\n", cards.map(card).collect::<String>())
}

/// Formats bytes in the largest unit that gives at least 1.
fn bytes(count: f64) -> String {
    let units = [(30, "GiB"), (20, "MiB"), (10, "KiB")];
    let scaled = units.map(|(power, unit)| (count / f64::from(1 << power), unit));
    let fits = scaled.into_iter().find(|(value, _)| *value >= 1.0);
    let (value, unit) = fits.unwrap_or((count, "bytes"));
    format!("{} {unit}", number(value, 3))
}

/// Returns the median of a metric.
fn median(metrics: &Metrics, key: &str) -> f64 {
    let mut values: Vec<f64> = finite(metrics.get(key)).collect();
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

/// Returns the warnings as an HTML list.
fn warnings(warnings: &[String]) -> String {
    if warnings.is_empty() {
        return String::new();
    }
    let items = warnings.iter().map(|w| format!("<li>{}</li>\n", escape(w)));
    format!("<ul class=\"warnings\">\n{}</ul>\n", items.collect::<String>())
}

/// Returns the alarms as a section with a list.
fn alarms(alarms: &[Alarm]) -> String {
    if alarms.is_empty() {
        return String::new();
    }
    let texts: Vec<String> = alarms.iter().map(|alarm| alarm.text.clone()).collect();
    format!("<h2 id=\"alarms\">Alarms</h2>\n{}", warnings(&texts))
}

/// Returns the plots with their captions.
fn plots(figures: &[(Figure, String)]) -> String {
    let mut html = "<h2>Curves</h2>\n<p class=\"dim\">Thick lines are means over the last few logged steps (a twentieth of \
                    the run, 50 at most), thin ones single steps. The final values above are means over the last tenth.</p>\n<div class=\"figures\">\n"
        .to_string();
    for (figure, svg) in figures {
        let name = figure.name;
        let note = figure.note.as_deref().map(|n| escape(n) + " ");
        let note = note.unwrap_or_default();
        let _ = write!(
            html,
            "<figure id=\"{name}\">\n{svg}<figcaption>{note}<a href=\"{name}.svg\">SVG</a></figcaption>\n</figure>\n"
        );
    }
    html + "</div>\n"
}

/// Returns the comparison of scores before and after training.
fn before_and_after(comparison: &Comparison) -> String {
    let (grew, pairs) = (comparison.margin_grew, comparison.pairs);
    let share = number(100.0 * grew as f64 / pairs as f64, 3);
    let rows = comparison.rows();
    let head = ["", "before", "after", "change"].map(str::to_string);
    format!(
        "<h2>Before and after</h2>\n<p>{pairs} pairs scored by both models. The margin between chosen and rejected grew in \
         {grew} of them ({share} %).</p>\n{}",
        table("numbers", Some(&head), rows.iter().map(<[String; 4]>::as_slice))
    )
}

/// Returns the table of all metrics.
fn metrics_table(metrics: &Metrics) -> String {
    let row = |name: &String| {
        let points = metrics.get(name);
        let first = finite(points).next().unwrap_or(f64::NAN);
        let last = finite(points).last().unwrap_or(f64::NAN);
        let (low, high) = range(points).unwrap_or((f64::NAN, f64::NAN));
        let numbers = [first, last, low, high].map(|v| number(v, 5));
        let count = number(points.len() as f64, 5);
        let [first, last, low, high] = numbers;
        [name.clone(), count, first, last, low, high]
    };
    let rows: Vec<_> = metrics.names().iter().map(row).collect();
    let head = ["metric", "values", "first", "last", "smallest", "largest"].map(str::to_string);
    let rows = rows.iter().map(<[String; 6]>::as_slice);
    format!("<h2>All metrics</h2>\n{}", table("numbers", Some(&head), rows))
}

/// Returns the table of the data: every count and list of the manifest's `data`.
fn data_table(run: &Run) -> String {
    let mut rows = Vec::new();
    if let Some(data) = run.manifest.get("data").filter(|data| !data.is_null()) {
        flatten("", data, id_list, &mut rows);
    }
    if run.has_single_completions() {
        rows = rows.into_iter().filter_map(example_row).collect();
    }
    settings("Data", &rows)
}

/// Renames a row about pairs for examples, which have one completion; `None` if it is about the
/// second one.
fn example_row([key, value]: [String; 2]) -> Option<[String; 2]> {
    let name = key.rsplit('.').next().unwrap_or(&key);
    let renamed = match name {
        "rejected_truncated" | "identical_after_truncation" => return None,
        "chosen_truncated" => "completion_truncated",
        "pairs_read" => "examples_read",
        "pairs_kept" => "examples_kept",
        other => other,
    };
    let table = key.strip_suffix(name).unwrap_or_default();
    Some([format!("{table}{renamed}"), value])
}

/// Returns the tables of the manifest's `config` and of its other entries.
fn manifest_tables(run: &Run) -> String {
    let (mut config, mut rest) = (Vec::new(), Vec::new());
    for (key, value) in run.manifest.as_object().into_iter().flatten() {
        match key.as_str() {
            "data" => {}
            "config" => flatten("", value, comma_list, &mut config),
            "command" => flatten(key, value, |words| join(words, " "), &mut rest),
            _ => flatten(key, value, comma_list, &mut rest),
        }
    }
    // The manifest also holds the defaults of the tables of other methods.
    let of_other_method = |key: &str| {
        let table = key.split_once('.').map_or("", |(table, _)| table);
        ["dpo", "kto", "orpo", "cpo"].contains(&table) && table != run.method()
    };
    config.retain(|[key, _]| !of_other_method(key));
    settings("Configuration", &config) + &settings("Run", &rest)
}

/// Returns a table of names and values under a heading; nothing without rows.
pub(super) fn settings(title: &str, rows: &[[String; 2]]) -> String {
    if rows.is_empty() {
        return String::new();
    }
    let rows = rows.iter().map(<[String; 2]>::as_slice);
    format!("<h2>{title}</h2>\n{}", table("settings", None, rows))
}

/// Adds a row `dotted.key`, value for everything in `value`, with lists formatted by `list`.
/// Histograms are left out, because they are plotted.
fn flatten(key: &str, value: &Value, list: fn(&[Value]) -> String, rows: &mut Vec<[String; 2]>) {
    let text = match value {
        Value::Object(object) => {
            for (name, value) in object.iter().filter(|(name, _)| *name != "lengths") {
                let dotted = [key, name].join(if key.is_empty() { "" } else { "." });
                flatten(&dotted, value, list, rows);
            }
            return;
        }
        Value::Array(values) => list(values),
        value => scalar(value),
    };
    rows.push([key.to_string(), text]);
}

/// Formats a list of settings.
fn comma_list(values: &[Value]) -> String {
    join(values, ", ")
}

/// The largest number of ids that are shown; the manifest has all of them.
const MAX_IDS: usize = 10;

/// Formats a list of ids: their number and the first of them.
fn id_list(values: &[Value]) -> String {
    let first = join(values.get(..MAX_IDS).unwrap_or(values), ", ");
    match values.len() {
        0 => "0".to_string(),
        count if count > MAX_IDS => format!("{count}: {first}, \u{2026}"),
        count => format!("{count}: {first}"),
    }
}

fn join(values: &[Value], separator: &str) -> String {
    let texts: Vec<_> = values.iter().map(scalar).collect();
    texts.join(separator)
}

fn scalar(value: &Value) -> String {
    match value {
        Value::Null => "\u{2013}".to_string(),
        Value::String(text) => text.clone(),
        value => value.to_string(),
    }
}

/// Returns an HTML table.
pub(super) fn table<'a>(
    class: &str,
    head: Option<&[String]>,
    rows: impl Iterator<Item = &'a [String]>,
) -> String {
    let line = |tag: &str, cells: &[String]| {
        let cell = |c: &String| format!("<{tag}>{}</{tag}>", escape(c));
        format!("<tr>{}</tr>\n", cells.iter().map(cell).collect::<String>())
    };
    let head = head.map(|cells| line("th", cells)).unwrap_or_default();
    let rows: String = rows.map(|cells| line("td", cells)).collect();
    format!("<div class=\"scroll\"><table class=\"{class}\">\n{head}{rows}</table></div>\n")
}

/// Escapes text for HTML.
pub(super) fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            c => escaped.push(c),
        }
    }
    escaped
}
