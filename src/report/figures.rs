//! Selects the plots of a run and writes the note below each.

use std::f64::consts::LN_2;

use serde_json::Value;

use super::axis::number;
use super::run::{Lengths, Metrics, Run};
use super::series::{Point, finite, mean, smooth, smoothing_window, standard_error, tail};
use super::svg::{Color, Curve, Plot, Style};

/// A plot of the report.
#[derive(Clone, Debug)]
pub(super) struct Figure {
    /// File name without extension.
    pub(super) name: &'static str,
    /// The plot itself.
    pub(super) plot: Plot,
    /// A sentence below the plot.
    pub(super) note: Option<String>,
}

/// File names (without extension) of all figures a report can have.
pub(super) const NAMES: [&str; 12] = [
    "loss",
    "rewards",
    "margins",
    "accuracies",
    "logps",
    "kl",
    "nll",
    "learning-rate",
    "grad-norm",
    "tokens-per-second",
    "token-accuracy",
    "lengths",
];

/// Returns the figures for which `run` has data.
pub(super) fn figures(run: &Run) -> Vec<Figure> {
    let all = NAMES.iter().filter_map(|name| figure(run, name));
    all.filter(|figure| figure.plot.has_data()).collect()
}

/// Returns the figure of this name, if there is one.
fn figure(run: &Run, name: &'static str) -> Option<Figure> {
    let metrics = &run.metrics;
    let plain = |title, key| (curves(metrics, &single(key)), title);
    let pair = |title, chosen, rejected| (curves(metrics, &sides(chosen, rejected)), title);
    let (mut level, mut y_range, mut note) = (None, None, None);
    let (curves, title) = match name {
        "loss" => {
            level = starts_at_ln_2(run).then_some((LN_2, "ln 2"));
            note = level.map(|_| LN_2_NOTE.to_string());
            plain("Loss", "loss")
        }
        "rewards" => {
            level = run.has_reference().then_some((0.0, "reference"));
            pair("Rewards", "rewards/chosen", "rewards/rejected")
        }
        "margins" => {
            level = Some((0.0, "no preference"));
            plain("Reward margin", "rewards/margins")
        }
        "accuracies" => {
            (level, y_range) = (Some((0.5, "chance")), Some((0.0, 1.0)));
            plain("Preference accuracy", "rewards/accuracies")
        }
        "logps" => {
            note = likelihood_note(metrics).filter(|_| run.method() == "dpo");
            pair("Log-probability of the completion", "logps/chosen", "logps/rejected")
        }
        "kl" => plain("Estimated divergence from the reference", "kl"),
        "nll" => plain("Cross-entropy of chosen", "nll_loss"),
        "learning-rate" => plain("Learning rate", "learning_rate"),
        "grad-norm" => {
            note = clipping_note(run);
            plain("Gradient norm before clipping", "grad_norm")
        }
        "tokens-per-second" => plain("Tokens per second", "tokens_per_second"),
        "token-accuracy" if run.has_single_completions() => {
            plain("Token accuracy", "mean_token_accuracy")
        }
        "token-accuracy" => plain("Token accuracy on chosen", "mean_token_accuracy"),
        "lengths" => {
            return run.lengths.as_ref().map(|l| histogram(l, run.has_single_completions()));
        }
        _ => return None,
    };
    let plot = Plot { title, x_label: "step", y_range, level, curves };
    Some(Figure { name, plot, note })
}

const LN_2_NOTE: &str = "ln 2 = 0.6931 is the loss of a policy that equals its reference: where a run without a starting adapter begins.";

/// Returns whether a policy that equals its reference has the loss ln 2: for the sigmoid loss, or
/// if the manifest does not name a loss.
fn starts_at_ln_2(run: &Run) -> bool {
    let sigmoid = |value: &Value| value.as_str() == Some("sigmoid");
    let is_dpo = run.method() == "dpo" && !run.metrics.get("rewards/margins").is_empty();
    let loss = run.config(&["dpo", "loss_type"]);
    is_dpo
        && loss.is_none_or(|l| {
            sigmoid(l)
                || l.as_array().is_some_and(|a| matches!(a.as_slice(), [only] if sigmoid(only)))
        })
}

/// A metric and the style of its curves in training and on held-out pairs.
struct Metric {
    key: &'static str,
    training: (&'static str, Color),
    held_out: (&'static str, Color),
}

/// Returns a metric that is alone in its plot.
fn single(key: &'static str) -> [Metric; 1] {
    let (training, held_out) = (("training", Color::Blue), ("held out", Color::Green));
    [Metric { key, training, held_out }]
}

/// Returns the metrics of both sides of the pairs.
fn sides(chosen: &'static str, rejected: &'static str) -> [Metric; 2] {
    let chosen = Metric {
        key: chosen,
        training: ("chosen", Color::Blue),
        held_out: ("chosen, held out", Color::Sky),
    };
    let rejected = Metric {
        key: rejected,
        training: ("rejected", Color::Orange),
        held_out: ("rejected, held out", Color::Amber),
    };
    [chosen, rejected]
}

/// Returns the curves, back to front: faint ones of single steps, their means, and dotted ones of
/// evaluations.
fn curves(metrics: &Metrics, shown: &[Metric]) -> Vec<Curve> {
    let mut curves = Vec::new();
    let mut add = |(label, color), style, points: Vec<Point>| {
        if !points.is_empty() {
            curves.push(Curve { label, color, style, points });
        }
    };
    for metric in shown.iter().filter(|m| window(metrics, m) > 1) {
        add(metric.training, Style::Faint, metrics.get(metric.key).to_vec());
    }
    for metric in shown {
        let points = metrics.get(metric.key);
        add(metric.training, Style::Strong, smooth(points, window(metrics, metric)));
    }
    for metric in shown {
        let points = metrics.get(&format!("eval_{}", metric.key));
        add(metric.held_out, Style::Dots, points.to_vec());
    }
    curves
}

/// Returns the number of points over which a metric is averaged.
fn window(metrics: &Metrics, metric: &Metric) -> usize {
    match metric.key {
        "learning_rate" => 1, // a schedule is exact, and a mean would only blur it
        key => smoothing_window(metrics.get(key)),
    }
}

/// Returns the last tenth of a curve, at least one point.
fn last_tenth(points: &[Point]) -> &[Point] {
    tail(points, points.len().div_ceil(10))
}

/// Returns a warning if the chosen completions became less likely. DPO raises the *difference* of
/// two log-probabilities, which can happen while both fall (Pal et al. 2024,
/// <https://arxiv.org/abs/2402.13228>; Razin et al. 2024, <https://arxiv.org/abs/2410.08847>).
fn likelihood_note(metrics: &Metrics) -> Option<String> {
    let chosen = last_tenth(metrics.get("rewards/chosen"));
    let reward = mean(chosen);
    // Two standard errors below zero, so that chance in the last batches does not cause the
    // warning.
    let significant = reward < -2.0 * standard_error(chosen);
    let margin = mean(last_tenth(metrics.get("rewards/margins")));
    (significant && margin > 0.0).then(|| {
        format!(
            "The chosen completions became less likely than under the reference (reward {} over the last {} logged steps), \
             while the margin is {}: the rejected ones fell further. DPO rewards only the difference. If samples get worse, \
             try a larger beta, a smaller learning rate or fewer steps.",
            number(reward, 3),
            finite(chosen).count(),
            number(margin, 3),
        )
    })
}

/// Returns a sentence that says at how many logged steps gradients were clipped; `None` if that is not known.
fn clipping_note(run: &Run) -> Option<String> {
    let limit = run.config(&["train", "max_grad_norm"])?.as_f64()?;
    let points = run.metrics.get("grad_norm");
    let clipped = finite(points).filter(|norm| *norm > limit).count();
    let total = finite(points).count();
    (limit > 0.0 && total > 0).then(|| {
        format!(
            "Above max_grad_norm = {limit}, and so clipped, at {clipped} of {total} logged steps."
        )
    })
}

/// The largest number of bars in a histogram; more buckets are merged.
const MAX_BARS: usize = 60;

/// Returns the histogram of sequence lengths.
pub(super) fn histogram(lengths: &Lengths, has_single_completions: bool) -> Figure {
    let sides = [
        ("prompt", Color::Green, &lengths.prompt),
        ("completion", Color::Blue, &lengths.completion),
        ("chosen", Color::Blue, &lengths.chosen),
        ("rejected", Color::Orange, &lengths.rejected),
    ];
    let used = |counts: &[u64]| counts.iter().rposition(|c| *c > 0).map_or(0, |i| i + 1);
    let buckets = sides.iter().map(|(_, _, counts)| used(counts)).max();
    let joined = buckets.unwrap_or(0).div_ceil(MAX_BARS).max(1);
    let width = joined as f64 * f64::from(lengths.bucket_size);
    let curve = |(label, color, counts): (&'static str, Color, &Vec<u64>)| {
        let counts = counts.get(..used(counts)).unwrap_or_default();
        Curve { label, color, style: Style::Area, points: outline(counts, joined, width) }
    };
    let curves: Vec<Curve> = sides.into_iter().map(curve).collect();
    let heights = curves.iter().flat_map(|c| finite(&c.points));
    let plot = Plot {
        title: if has_single_completions {
            "Lengths of the training examples"
        } else {
            "Lengths of the training pairs"
        },
        x_label: "tokens",
        y_range: Some((0.0, 1.04 * heights.fold(0.0, f64::max))),
        level: None,
        curves: curves.into_iter().filter(|c| !c.points.is_empty()).collect(),
    };
    let note = format!("Number of prompts and completions per {width} tokens.");
    Figure { name: "lengths", plot, note: Some(note) }
}

/// Returns the outline of a histogram, from the axis up and back to it.
fn outline(counts: &[u64], joined: usize, width: f64) -> Vec<Point> {
    if counts.is_empty() {
        return Vec::new();
    }
    let mut points = vec![(0.0, 0.0)];
    for (i, bucket) in counts.chunks(joined).enumerate() {
        let height = bucket.iter().map(|c| *c as f64).sum();
        let left = i as f64 * width;
        points.extend([(left, height), (left + width, height)]);
    }
    points.extend(points.last().map(|p| (p.0, 0.0)));
    points
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lengths(bucket_size: u32, prompt: Vec<u64>) -> Lengths {
        let (chosen, rejected) = (vec![0, 3, 0, 0], Vec::new());
        Lengths { bucket_size, prompt, chosen, rejected, completion: Vec::new() }
    }

    #[test]
    fn prompts_and_completions_are_both_drawn() {
        let lengths = Lengths {
            chosen: Vec::new(),
            completion: vec![19, 87, 66],
            ..lengths(64, vec![88, 111, 1])
        };
        let figure = histogram(&lengths, true);
        assert_eq!(figure.plot.title, "Lengths of the training examples");
        let labels: Vec<_> = figure.plot.curves.iter().map(|c| c.label).collect();
        assert_eq!(labels, ["prompt", "completion"]);
        let svg = figure.plot.draw();
        assert!(svg.contains(">prompt<") && svg.contains(">completion<"), "{svg}");
        // The highest bar of each curve, and the axis above both.
        assert_eq!(figure.plot.curves[1].points[3], (64.0, 87.0));
        assert_eq!(figure.plot.y_range, Some((0.0, 1.04 * 111.0)));
    }

    #[test]
    fn a_histogram_has_one_bar_per_bucket() {
        let figure = histogram(&lengths(64, vec![2, 5]), false);
        let [prompt, chosen] = &figure.plot.curves[..] else {
            panic!("two sides have counts: {figure:?}");
        };
        let bars = [(0.0, 0.0), (0.0, 2.0), (64.0, 2.0), (64.0, 5.0), (128.0, 5.0), (128.0, 0.0)];
        assert_eq!(prompt.points, bars);
        assert_eq!(chosen.points[3..], [(64.0, 3.0), (128.0, 3.0), (128.0, 0.0)]);
    }

    #[test]
    fn many_buckets_are_joined_and_no_pair_is_lost() {
        let counts: Vec<u64> = (0..1001).map(|i| i % 7).collect();
        let figure = histogram(&lengths(16, counts.clone()), false);
        let points = &figure.plot.curves[0].points;
        // 1001 buckets in at most 60 bars: 17 buckets per bar, 272 tokens wide.
        assert!(points.len() <= 2 * MAX_BARS + 2);
        assert_eq!(points[2].0, 272.0);
        let drawn: f64 = points[1..].iter().step_by(2).map(|p| p.1).sum();
        assert_eq!(drawn, counts.iter().sum::<u64>() as f64);
        assert!(figure.note.unwrap().contains("272 tokens"));
    }
}
