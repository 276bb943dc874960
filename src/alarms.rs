//! Alarms: signs in the metrics of a run that its training does not do what one wants. Each is a pure function of the logged
//! curves. They are shown while a run trains and in its report, and never end a run.

/// A point of a curve: step and value. A value that is not finite is NaN.
pub type Point = (f64, f64);

/// Returns the curve of a metric by its key in `metrics.jsonl`, in ascending order of steps; empty if it was never logged.
pub type Curves<'a> = &'a dyn Fn(&str) -> &'a [Point];

/// Number of logged values that are averaged. Single values vary with the pairs of a step.
const WINDOW: usize = 10;

/// Smallest fall of the mean chosen reward, in units of reward. With `beta = 0.1`, 0.5 means that the chosen completions lost
/// 5 nats, so that they are 150 times less likely than before.
const LARGE_FALL: f64 = 0.5;

/// Number of standard errors by which a fall must exceed chance: a one-sided probability of 0.1 %.
const STANDARD_ERRORS: f64 = 3.0;

/// Smallest fall of the chosen reward as a fraction of the fall of the rejected one.
const TOGETHER: f64 = 0.5;

/// Mean margin at which the sigmoid loss has a gradient of `1 / (1 + exp(5))`, 0.7 %, where it starts with 50 %.
const SATURATED_MARGIN: f64 = 5.0;

/// Accuracy at which practically all pairs are right.
const SATURATED_ACCURACY: f64 = 0.99;

/// Correlation above which the lengths explain half of the variance of the margins (0.7 squared is 0.49).
const LENGTH_CORRELATION: f64 = 0.7;

/// Largest reward of an adapter that did not move. Sums of log-probabilities in f32 are rounded by about as much.
const NO_REWARD: f64 = 1e-5;

/// Key of the correlation between difference of lengths and margin over the held-out pairs.
pub const LENGTH_CORRELATION_KEY: &str = "eval_rewards/length_correlation";

/// A sign that the training does not do what one wants.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Alarm {
    /// Short name, such as `chosen-falls`.
    pub name: &'static str,
    /// What was seen, and what can be done, in whole sentences.
    pub text: String,
}

/// Returns the alarms of a run with these curves.
pub fn alarms(curves: Curves<'_>) -> Vec<Alarm> {
    let all = [chosen_falls, rewards_saturate, length_explains_margin, adapter_did_not_move];
    all.into_iter().filter_map(|alarm| alarm(curves)).collect()
}

/// Returns an alarm if the chosen completions became much less likely together with the rejected ones: the mean chosen reward
/// fell from the first to the last ten logged values by [`LARGE_FALL`], by more than chance, and by at least half as much as
/// the rejected one. The margin can grow all the same.
fn chosen_falls(curves: Curves<'_>) -> Option<Alarm> {
    let chosen = Change::of(curves("rewards/chosen"))?;
    let rejected = Change::of(curves("rewards/rejected"))?;
    let (fall, other) = (-chosen.change, -rejected.change);
    let is_large = fall >= LARGE_FALL && fall > STANDARD_ERRORS * chosen.standard_error;
    (is_large && other > 0.0 && fall >= TOGETHER * other).then(|| Alarm {
        name: "chosen-falls",
        text: format!(
            "The chosen completions become less likely together with the rejected ones: the mean of rewards/chosen fell by \
             {fall:.2} since the start and that of rewards/rejected by {other:.2}. The model may prefer answers that are in \
             neither. Lower train.learning_rate, raise dpo.beta, or add the loss \"sft\" or dpo.rpo_alpha."
        ),
    })
}

/// Returns an alarm if the last ten logged values have a mean margin of [`SATURATED_MARGIN`] or more and practically no pair
/// is wrong: the loss has almost no gradient left.
fn rewards_saturate(curves: Curves<'_>) -> Option<Alarm> {
    let margin = mean(last(curves("rewards/margins"))?);
    let accuracy = mean(last(curves("rewards/accuracies"))?);
    (margin >= SATURATED_MARGIN && accuracy >= SATURATED_ACCURACY).then(|| Alarm {
        name: "rewards-saturate",
        text: format!(
            "The rewards saturate: the mean margin of the training pairs is {margin:.1} and {:.0} % of them are right, so that \
             the loss has almost no gradient left. Further steps mostly memorize the pairs. Train fewer steps, compare the \
             evaluations (train.load_best_model_at_end), or use more pairs.",
            100.0 * accuracy
        ),
    })
}

/// Returns an alarm if the difference of lengths explains half of the variance of the margins of the held-out pairs.
fn length_explains_margin(curves: Curves<'_>) -> Option<Alarm> {
    let (_, correlation) = *curves(LENGTH_CORRELATION_KEY).last()?;
    (correlation.abs() >= LENGTH_CORRELATION).then(|| Alarm {
        name: "length-explains-margin",
        text: format!(
            "The length explains the margin: over the held-out pairs, the correlation between the margin and how much longer \
             the chosen completion is is {correlation:.2}. The model may have learned to prefer {} answers. Balance the \
             lengths of the pairs (`arithmo inspect` counts them), or set dpo.ld_alpha.",
            if correlation > 0.0 { "long" } else { "short" }
        ),
    })
}

/// Returns an alarm if training has no effect: in the last ten of at least twenty logged values the gradient is exactly 0, or
/// the learning rate is, or all rewards are no larger than rounding.
fn adapter_did_not_move(curves: Curves<'_>) -> Option<Alarm> {
    let zero = |key: &str, limit: f64| {
        let points = Some(curves(key)).filter(|points| points.len() >= 2 * WINDOW);
        points
            .and_then(last)
            .is_some_and(|points| points.iter().all(|point| point.1.abs() <= limit))
    };
    let reason = if zero("grad_norm", 0.0) {
        "the gradient is 0. Check the loss and that the pairs differ"
    } else if zero("learning_rate", 0.0) {
        "the learning rate is 0. Check train.learning_rate and the schedule"
    } else if zero("rewards/chosen", NO_REWARD) && zero("rewards/rejected", NO_REWARD) {
        "all rewards are 0. Raise train.learning_rate, or check lora.target_modules"
    } else {
        return None;
    };
    let text = format!("The adapter did not move in the last {WINDOW} logged steps: {reason}.");
    Some(Alarm { name: "adapter-did-not-move", text })
}

/// The change of a curve from its first to its last [`WINDOW`] values.
struct Change {
    change: f64,
    standard_error: f64,
}

impl Change {
    /// Returns the change, or `None` if the two windows would overlap.
    fn of(points: &[Point]) -> Option<Self> {
        if points.len() < 2 * WINDOW {
            return None;
        }
        let (first, last) = (points.get(..WINDOW)?, last(points)?);
        let variance = |points: &[Point]| {
            let mean = mean(points);
            let squares = points.iter().map(|point| (point.1 - mean) * (point.1 - mean));
            squares.sum::<f64>() / (WINDOW - 1) as f64
        };
        Some(Self {
            change: mean(last) - mean(first),
            standard_error: ((variance(first) + variance(last)) / WINDOW as f64).sqrt(),
        })
    }
}

/// Returns the last [`WINDOW`] points, or `None` if there are fewer.
fn last(points: &[Point]) -> Option<&[Point]> {
    points.get(points.len().checked_sub(WINDOW)?..)
}

/// Returns the mean value; NaN if a value is NaN, with which every comparison fails.
fn mean(points: &[Point]) -> f64 {
    points.iter().map(|point| point.1).sum::<f64>() / points.len().max(1) as f64
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    /// Returns the names of the alarms of a run with these curves, given as key and values.
    fn names(curves: &[(&str, Vec<f64>)]) -> Vec<&'static str> {
        let points = |values: &Vec<f64>| -> Vec<Point> {
            values.iter().enumerate().map(|(index, value)| (index as f64 + 1.0, *value)).collect()
        };
        let curves: BTreeMap<&str, Vec<Point>> =
            curves.iter().map(|(key, values)| (*key, points(values))).collect();
        alarms(&|key| curves.get(key).map_or(&[], Vec::as_slice)).iter().map(|a| a.name).collect()
    }

    /// Returns `count` values that change evenly by `total` and alternate by `noise`.
    fn line(count: usize, total: f64, noise: f64) -> Vec<f64> {
        let sign = |index: usize| if index.is_multiple_of(2) { noise } else { -noise };
        (0..count).map(|index| total * index as f64 / (count - 1) as f64 + sign(index)).collect()
    }

    fn rewards(chosen: Vec<f64>, rejected: Vec<f64>) -> Vec<&'static str> {
        names(&[("rewards/chosen", chosen), ("rewards/rejected", rejected)])
    }

    #[test]
    fn a_fall_of_both_rewards_is_an_alarm() {
        let alarm = ["chosen-falls"];
        // Over 40 values, the means of the first and last ten differ by 30/39 of the total change.
        assert_eq!(rewards(line(40, -1.0, 0.1), line(40, -1.6, 0.1)), alarm);
        // The chosen reward falls by 0.46 only, or rises.
        assert_eq!(rewards(line(40, -0.6, 0.1), line(40, -1.6, 0.1)), [""; 0]);
        assert_eq!(rewards(line(40, 1.0, 0.1), line(40, -1.6, 0.1)), [""; 0]);
        // The rejected reward falls four times as much, or rises.
        assert_eq!(rewards(line(40, -1.0, 0.1), line(40, -4.0, 0.1)), [""; 0]);
        assert_eq!(rewards(line(40, -1.0, 0.1), line(40, 0.5, 0.1)), [""; 0]);
        // Noise of 1 makes a fall of 0.77 likely by chance: its standard error is 0.47.
        assert_eq!(rewards(line(40, -1.0, 1.0), line(40, -1.6, 1.0)), [""; 0]);
        // Too few values, and a value that is not finite.
        assert_eq!(rewards(line(19, -3.0, 0.1), line(19, -3.6, 0.1)), [""; 0]);
        let mut broken = line(40, -1.0, 0.1);
        broken[39] = f64::NAN;
        assert_eq!(rewards(broken, line(40, -1.6, 0.1)), [""; 0]);
    }

    #[test]
    fn large_margins_of_right_pairs_are_an_alarm() {
        let run = |margin: f64, accuracy: f64, count: usize| {
            names(&[
                ("rewards/margins", vec![margin; count]),
                ("rewards/accuracies", vec![accuracy; count]),
            ])
        };
        assert_eq!(run(5.5, 1.0, 10), ["rewards-saturate"]);
        assert_eq!(run(4.9, 1.0, 10), [""; 0]);
        assert_eq!(run(5.5, 0.95, 10), [""; 0]);
        assert_eq!(run(5.5, 1.0, 9), [""; 0]);
    }

    #[test]
    fn the_last_correlation_with_the_length_decides() {
        let run = |values: &[f64]| names(&[(LENGTH_CORRELATION_KEY, values.to_vec())]);
        assert_eq!(run(&[0.1, 0.8]), ["length-explains-margin"]);
        assert_eq!(run(&[-0.75]), ["length-explains-margin"]);
        assert_eq!(run(&[0.9, 0.6]), [""; 0]);
        assert_eq!(run(&[f64::NAN]), [""; 0]);
    }

    #[test]
    fn an_adapter_without_effect_is_an_alarm() {
        let run = |gradient: f64, rate: f64, reward: f64, count: usize| {
            names(&[
                ("grad_norm", vec![gradient; count]),
                ("learning_rate", vec![rate; count]),
                ("rewards/chosen", vec![reward; count]),
                ("rewards/rejected", vec![-reward; count]),
            ])
        };
        let alarm = ["adapter-did-not-move"];
        assert_eq!(run(0.0, 1e-4, 0.3, 20), alarm);
        assert_eq!(run(1.0, 0.0, 0.3, 20), alarm);
        assert_eq!(run(1.0, 1e-4, 0.0, 20), alarm);
        assert_eq!(run(1.0, 1e-4, 1e-3, 20), [""; 0]);
        assert_eq!(run(0.0, 0.0, 0.0, 19), [""; 0]);
        // Supervised fine-tuning has no rewards.
        assert_eq!(names(&[("grad_norm", vec![1.0; 30])]), [""; 0]);
    }
}
