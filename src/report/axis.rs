//! An axis with its range, round tick positions and labels; and numbers formatted for people.

/// The visible range of one axis and its ticks.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Axis {
    low: f64,
    high: f64,
    /// Tick positions, ascending, inside the range.
    pub(super) ticks: Vec<f64>,
    /// One label per tick.
    pub(super) labels: Vec<String>,
}

/// Largest magnitude drawn; beyond it, differences of f64 values overflow.
const LIMIT: f64 = 1e300;

impl Axis {
    /// Returns an axis over `low..=high` with at most `max_ticks` ticks at 1, 2 or 5 times a power
    /// of ten, only at integers if `whole`. A range without extent is widened around its value.
    pub(super) fn new(low: f64, high: f64, max_ticks: usize, whole: bool) -> Self {
        let (mut low, mut high) = (low.clamp(-LIMIT, LIMIT), high.clamp(-LIMIT, LIMIT));
        // Below this, neighboring ticks would have the same digits, or none that f64 can represent.
        let min_extent = (low.abs().max(high.abs()) * 1e-9).max(1e-300);
        if high - low <= min_extent {
            let half = match (whole, low == 0.0) {
                (true, _) => 0.5,
                (false, true) => 1.0,
                (false, false) => (low.abs() * 0.1).max(min_extent),
            };
            (low, high) = (low - half, high + half);
        }
        let step = tick_step(high - low, max_ticks, whole);
        let first = (low / step - 1e-9).ceil();
        let count = ((high / step + 1e-9).floor() - first).max(0.0) as usize + 1;
        let ticks: Vec<f64> = (0..count.min(50)).map(|i| (first + i as f64) * step).collect();
        let labels = labels(&ticks, step);
        Self { low, high, ticks, labels }
    }

    /// Returns an axis as [`Axis::new`] does, with a small margin on both sides of the data.
    pub(super) fn with_margin(low: f64, high: f64, max_ticks: usize) -> Self {
        let margin = 0.04 * (high.clamp(-LIMIT, LIMIT) - low.clamp(-LIMIT, LIMIT));
        Self::new(low - margin, high + margin, max_ticks, false)
    }

    /// Returns the position of `value`: 0 at the low end, 1 at the high end, never outside.
    pub(super) fn position(&self, value: f64) -> f64 {
        let value = value.clamp(self.low, self.high);
        (value - self.low) / (self.high - self.low)
    }
}

/// Returns the smallest of 1, 2, 5 times a power of ten that gives at most `max_ticks` ticks.
fn tick_step(span: f64, max_ticks: usize, whole: bool) -> f64 {
    let rough = span / max_ticks.max(1) as f64;
    let power = 10f64.powf(rough.log10().floor());
    let nice = [1.0, 2.0, 5.0].into_iter().find(|m| m * power >= rough);
    let step = nice.unwrap_or(10.0) * power;
    if whole { step.max(1.0) } else { step }
}

/// Returns the labels of an axis, all in the same notation: `0.25`, `12k`, `5e−5`.
fn labels(ticks: &[f64], step: f64) -> Vec<String> {
    let largest = ticks.iter().fold(0.0_f64, |m, t| m.max(t.abs()));
    let largest = if largest > 0.0 { largest } else { step };
    let unit = match largest {
        m if !(1e-3..1e15).contains(&m) => {
            return ticks.iter().map(|t| scientific(*t, largest, step)).collect();
        }
        m if m >= 1e12 => (1e12, "T"),
        m if m >= 1e9 => (1e9, "G"),
        m if m >= 1e6 => (1e6, "M"),
        m if m >= 1e4 => (1e3, "k"),
        _ => (1.0, ""),
    };
    let digits = decimals(step / unit.0);
    let label = |tick: &f64| {
        let text = format!("{:.digits$}", tick / unit.0);
        if tick.abs() < step * 1e-6 { "0".to_string() } else { minus(&text) + unit.1 }
    };
    ticks.iter().map(label).collect()
}

/// Formats a tick in scientific notation, with the exponent of the largest tick.
fn scientific(tick: f64, largest: f64, step: f64) -> String {
    if tick.abs() < step * 1e-6 {
        return "0".to_string();
    }
    let exponent = largest.log10().floor();
    let power = 10f64.powf(exponent);
    let digits = decimals(step / power);
    minus(&format!("{:.digits$}e{exponent}", tick / power))
}

/// Returns how many digits after the decimal point distinguish multiples of `step`.
fn decimals(step: f64) -> usize {
    (-(step * 1.000_001).log10().floor()).clamp(0.0, 9.0) as usize
}

/// Replaces hyphens by the typographic minus sign.
fn minus(text: &str) -> String {
    text.replace('-', "\u{2212}")
}

/// Formats a number for a table: integers with thousands separated, others with `digits`
/// significant digits.
pub(super) fn number(value: f64, digits: usize) -> String {
    if !value.is_finite() {
        return "\u{2013}".to_string();
    }
    if value == value.trunc() && value.abs() < 1e15 {
        return grouped(value);
    }
    let magnitude = value.abs().log10().floor();
    if !(-4.0..15.0).contains(&magnitude) {
        let text = format!("{value:.*e}", digits.saturating_sub(1));
        return minus(&text);
    }
    let behind = (digits as f64 - 1.0 - magnitude).max(0.0) as usize;
    if behind == 0 {
        return grouped(value.round());
    }
    minus(&format!("{value:.behind$}"))
}

/// Formats an integer with thousands separated.
fn grouped(whole: f64) -> String {
    let digits = format!("{:.0}", whole.abs());
    let mut text = String::new();
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i) % 3 == 0 {
            text.push(',');
        }
        text.push(digit);
    }
    let sign = if whole < 0.0 { "\u{2212}" } else { "" };
    format!("{sign}{text}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn axis_labels(low: f64, high: f64) -> String {
        Axis::new(low, high, 5, false).labels.join(" ")
    }

    #[test]
    fn ticks_are_round_and_labels_short() {
        assert_eq!(axis_labels(0.0, 1.0), "0 0.2 0.4 0.6 0.8 1.0");
        assert_eq!(axis_labels(-0.13, 0.11), "\u{2212}0.10 \u{2212}0.05 0 0.05 0.10");
        assert_eq!(
            axis_labels(0.0, 5e-5),
            "0 1e\u{2212}5 2e\u{2212}5 3e\u{2212}5 4e\u{2212}5 5e\u{2212}5"
        );
        assert_eq!(
            axis_labels(9.1e-7, 1.13e-6),
            "0.95e\u{2212}6 1.00e\u{2212}6 1.05e\u{2212}6 1.10e\u{2212}6"
        );
        assert_eq!(axis_labels(11_800.0, 13_100.0), "12.0k 12.5k 13.0k");
        assert_eq!(axis_labels(-390.0, -210.0), "\u{2212}350 \u{2212}300 \u{2212}250");
        assert_eq!(axis_labels(2e30, 4e30), "2.0e30 2.5e30 3.0e30 3.5e30 4.0e30");
        let steps = Axis::new(1.0, 3.0, 6, true);
        assert_eq!(steps.labels, ["1", "2", "3"]);
    }

    #[test]
    fn degenerate_ranges_still_make_an_axis() {
        let huge = f64::MAX;
        for (low, high) in
            [(0.0, 0.0), (7.0, 7.0), (-huge, huge), (1e16, 1e16 + 2.0), (5e-324, 5e-324)]
        {
            let axis = Axis::with_margin(low, high, 5);
            assert!(!axis.ticks.is_empty() && axis.ticks.len() <= 12, "{axis:?}");
            assert!((0.0..=1.0).contains(&axis.position(low)), "{axis:?}");
            assert!(axis.ticks.iter().all(|t| t.is_finite()), "{axis:?}");
        }
        let one = Axis::new(1.0, 1.0, 6, true);
        assert_eq!((one.labels, one.ticks), (vec!["1".to_string()], vec![1.0]));
    }

    #[test]
    fn numbers_in_tables() {
        assert_eq!(number(8_190_000.0, 4), "8,190,000");
        assert_eq!(number(-1234.0, 4), "\u{2212}1,234");
        assert_eq!(number(0.123_456, 4), "0.1235");
        assert_eq!(number(-390.681_6, 4), "\u{2212}390.7");
        assert_eq!(number(12_345.6, 4), "12,346");
        assert_eq!(number(5e-5, 4), "5.000e\u{2212}5");
        assert_eq!(number(f64::NAN, 4), "\u{2013}");
    }
}
