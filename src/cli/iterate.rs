//! Implements `arithmo iterate`: rounds of sampling, training and measuring.

use std::path::PathBuf;

use arithmo_backends::TrainBackend;
use clap::Args;

use super::evaluate::{interval, percent, results_page};
use super::print_line;
use crate::error::Result;
use crate::eval::task::Task;
use crate::iterate::rounds::{IterateConfig, RoundSummary, iterate};
use crate::progress::ProgressMode;
use crate::report::evaluation::write_evaluation_page;
use crate::report::rounds::{RoundRow, RoundsPage, write_rounds_page};
use crate::report::write_report;

/// Learn from the model's own answers in rounds.
#[derive(Args, Clone, Debug)]
pub struct IterateArgs {
    /// Read the rounds' configuration from this file (see configs/iterate.toml).
    #[arg(long, value_name = "iterate.toml")]
    pub config: PathBuf,
}

/// Runs or continues the rounds; prints a line after each, and writes the pages of each round and of all rounds.
///
/// # Errors
/// Same as [`iterate`].
pub fn run<B: TrainBackend>(
    args: &IterateArgs,
    mode: ProgressMode,
    device: &B::Device,
) -> Result<()> {
    let config = IterateConfig::load(&args.config)?;
    config.check_inputs(&args.config)?;
    let mut page = RoundsPage {
        title: format!("Rounds: {}", config.output_dir.display()),
        settings: configuration(&config),
        ..RoundsPage::default()
    };
    iterate::<B>(&config, mode, device, |round| {
        // The header is printed only now, so that nothing is printed for a run that cannot start.
        if round.round == 0 {
            print_line(&format!("{:>5}{:>8}{:>10}   95 % interval", "round", "pairs", "accuracy"))?;
        }
        print_line(&line(round))?;
        write_pages(&config, round, &mut page)
    })
}

/// Formats a round as a line of the table.
fn line(round: &RoundSummary) -> String {
    let pairs = round.pairs().map_or("-".to_string(), |pairs| pairs.to_string());
    let accuracy = match &round.accuracy {
        Some(rate) => {
            let [low, high] = rate.interval_95.map(|bound| 100.0 * bound);
            format!("{:>8.1} %   {low:.1} to {high:.1} %", 100.0 * rate.accuracy)
        }
        None => format!("{:>10}", "-"),
    };
    let skipped = match round.pairs() {
        Some(0) => "   no pairs: skipped, the adapter stays",
        _ => "",
    };
    format!("{:>5}{pairs:>8}{accuracy}{skipped}", round.round)
}

/// Writes the round's own pages and the page of all rounds so far.
fn write_pages(config: &IterateConfig, round: &RoundSummary, page: &mut RoundsPage) -> Result<()> {
    let folder = format!("round-{}", round.round);
    let mut row = RoundRow {
        round: round.round,
        pairs: round.pairs().map_or("\u{2013}".into(), |pairs| pairs.to_string()),
        right_samples: "\u{2013}".into(),
        accuracy: "\u{2013}".into(),
        interval: "\u{2013}".into(),
        links: Vec::new(),
    };
    if let Some(samples) = &round.samples {
        if samples.samples > 0 {
            row.right_samples = format!("{} of {}", samples.samples_right, samples.samples);
            row.links.push(("samples", format!("{folder}/pairs.samples.jsonl")));
            page.samplings.push((round.round, samples.setting_rows()));
        }
        if samples.pairs > 0 {
            row.links.push(("pairs", format!("{folder}/pairs.jsonl")));
            write_report(&round.folder.join("run"))?;
            row.links.push(("training", format!("{folder}/run/report/index.html")));
        }
    }
    if let Some(rate) = &round.accuracy {
        row.accuracy = percent(rate.accuracy);
        row.interval = interval(rate.interval_95);
    }
    if let Some(measured) = &round.measurement {
        let answers = results_page(&measured.results, &measured.judged, Task::Gsm8k, &[]);
        let file = round.folder.join("evaluation/index.html");
        write_evaluation_page(&file, &answers)?;
        row.links.push(("answers", format!("{folder}/evaluation/index.html")));
    }
    page.rounds.push(row);
    page.subtitle = format!("{} of {} rounds", round.round, config.rounds);
    page.cards = cards(&page.rounds);
    let index = config.output_dir.join("index.html");
    let next = config.output_dir.join(format!("round-{}", round.round.saturating_add(1)));
    // A command that skips finished rounds keeps the page of all rounds: it may be stopped at any of them.
    if next.exists() && index.exists() {
        return Ok(());
    }
    write_rounds_page(&index, page)
}

/// Returns the accuracies before the first round and after the last one.
fn cards(rounds: &[RoundRow]) -> Vec<(&'static str, String)> {
    let ends = [("Before", rounds.first()), ("Now", rounds.last())];
    let card = |(name, row): (&'static str, Option<&RoundRow>)| Some((name, row?.accuracy.clone()));
    ends.into_iter().filter_map(card).collect()
}

/// Returns the configuration as rows of name and value, without `[sample]`, which may differ from round to round.
fn configuration(config: &IterateConfig) -> Vec<[String; 2]> {
    let mut rows = Vec::new();
    let mut table = toml::Table::try_from(config).unwrap_or_default();
    table.remove("sample");
    for (key, value) in table {
        match value {
            toml::Value::Table(section) => rows.extend(
                section.into_iter().map(|(name, value)| [format!("{key}.{name}"), plain(&value)]),
            ),
            value => rows.push([key, plain(&value)]),
        }
    }
    rows
}

/// Formats a TOML value, strings without quotes.
fn plain(value: &toml::Value) -> String {
    value.as_str().map_or(value.to_string(), str::to_string)
}
