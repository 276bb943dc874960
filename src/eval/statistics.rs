//! Confidence intervals of accuracies, and paired tests between two models.

use serde::Serialize;

/// The standard normal's 97.5 % point.
const Z: f64 = 1.959_963_984_540_054;

/// The number of correct answers with the accuracy and its 95 % interval.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Rate {
    /// Number of correct answers.
    pub correct: usize,
    /// Number of all answers, missing ones included.
    pub total: usize,
    /// `correct / total`, or 0 if `total` is 0.
    pub accuracy: f64,
    /// 95 % interval of the accuracy, after Wilson (1927): never outside 0 to 1, and valid near both.
    pub interval_95: [f64; 2],
}

impl Rate {
    /// Creates the rate of `correct` answers among `total`.
    pub fn new(correct: usize, total: usize) -> Self {
        Self {
            correct,
            total,
            accuracy: correct as f64 / total.max(1) as f64,
            interval_95: wilson(correct, total),
        }
    }

    /// Counts the true verdicts.
    pub fn from_verdicts(verdicts: impl IntoIterator<Item = bool>) -> Self {
        let (mut correct, mut total) = (0, 0);
        for verdict in verdicts {
            correct += usize::from(verdict);
            total += 1;
        }
        Self::new(correct, total)
    }
}

/// Returns Wilson's 95 % score interval of the proportion `correct / total`, or `[0, 1]` if `total` is 0.
///
/// ```
/// use arithmo::eval::statistics::wilson;
/// let [low, high] = wilson(985, 1319);
/// assert!((low - 0.7226).abs() < 5e-4 && (high - 0.7695).abs() < 5e-4);
/// ```
pub fn wilson(correct: usize, total: usize) -> [f64; 2] {
    if total == 0 {
        return [0.0, 1.0];
    }
    let (n, p) = (total as f64, correct as f64 / total as f64);
    let z2 = Z * Z;
    let center = p + z2 / (2.0 * n);
    let spread = Z * (p * (1.0 - p) / n + z2 / (4.0 * n * n)).sqrt();
    let bound = |value: f64| (value / (1.0 + z2 / n)).clamp(0.0, 1.0);
    [bound(center - spread), bound(center + spread)]
}

/// Returns the mean and its 95 % interval (normal approximation), or `None` for fewer than two values.
pub fn mean_interval(values: &[f64]) -> Option<(f64, [f64; 2])> {
    let n = values.len() as f64;
    if values.len() < 2 {
        return None;
    }
    let mean = values.iter().sum::<f64>() / n;
    let variance = values.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / (n - 1.0);
    let half = Z * (variance / n).sqrt();
    Some((mean, [mean - half, mean + half]))
}

/// Returns the difference of two accuracies on the same `total` problems (second minus first) and its 95 % interval.
///
/// It is Tango's score interval (Statistics in Medicine 17, 1998, pages 891 to 908), whose width is not 0 if no problem
/// differs.
///
/// ```
/// use arithmo::eval::statistics::paired_difference;
/// // No problem differs: each side is as wide as Wilson's interval of 0 of 40.
/// let (difference, [low, high]) = paired_difference(0, 0, 40);
/// assert!(difference == 0.0 && (high - 0.0876).abs() < 5e-5 && low == -high);
/// ```
pub fn paired_difference(wins: usize, losses: usize, total: usize) -> (f64, [f64; 2]) {
    if total == 0 {
        return (0.0, [-1.0, 1.0]);
    }
    let difference = (wins as f64 - losses as f64) / total as f64;
    // The upper end is the negated lower end for swapped models, so the interval is exactly antisymmetric.
    let low = lowest_difference(wins, losses, total);
    let high = -lowest_difference(losses, wins, total);
    (difference, [low, high])
}

/// Returns the lower end of the interval: the difference where the score statistic falls to [`Z`].
fn lowest_difference(wins: usize, losses: usize, total: usize) -> f64 {
    let (mut low, mut high) = (-1.0, (wins as f64 - losses as f64) / total as f64);
    // The statistic decreases with the difference. After 60 bisections the error is below the resolution of f64.
    for _ in 0..60 {
        let middle = 0.5 * (low + high);
        if score_statistic(wins, losses, total, middle) > Z { low = middle } else { high = middle }
    }
    0.5 * (low + high)
}

/// Computes Tango's score statistic (equations 9 to 13) for the hypothesis that the true difference is `delta`. It has a
/// standard normal distribution under the hypothesis.
fn score_statistic(wins: usize, losses: usize, total: usize, delta: f64) -> f64 {
    let (wins, losses, n) = (wins as f64, losses as f64, total as f64);
    // The maximum likelihood estimate of the proportion of losses is the larger root of a quadratic.
    let a = 2.0 * n;
    let b = (2.0 * n - wins + losses) * delta - wins - losses;
    let c = -losses * delta * (1.0 - delta);
    let loss_rate = ((b * b - 4.0 * a * c).max(0.0).sqrt() - b) / (2.0 * a);
    let variance = n * (2.0 * loss_rate + delta * (1.0 - delta));
    (wins - losses - n * delta) / variance.max(f64::MIN_POSITIVE).sqrt()
}

/// The result of McNemar's test on the problems where two models differ (1947, <https://doi.org/10.1007/BF02295996>).
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct McNemar {
    /// Number of problems that only the second model solves.
    pub wins: usize,
    /// Number of problems that only the first model solves.
    pub losses: usize,
    /// Exact two-sided p-value: the probability of a split at least this uneven if neither model is better.
    pub p_value: f64,
    /// Mid-p-value, which counts half the probability of the observed split. The exact p-value is conservative if few
    /// problems differ.
    pub mid_p_value: f64,
}

impl McNemar {
    /// Computes the test. Both p-values are 1 if no problem differs.
    pub fn new(wins: usize, losses: usize) -> Self {
        let (n, fewer) = (wins + losses, wins.min(losses));
        let tail: f64 = (0..=fewer).map(|k| binomial_half(n, k)).sum();
        let observed = binomial_half(n, fewer);
        Self {
            wins,
            losses,
            p_value: (2.0 * tail).min(1.0),
            mid_p_value: match n {
                0 => 1.0,
                _ => (2.0 * tail - observed).min(1.0),
            },
        }
    }
}

/// Returns the probability of `k` heads in `n` fair coin tosses. It sums logarithms, so that large `n` do not overflow.
fn binomial_half(n: usize, k: usize) -> f64 {
    let k = k.min(n - k);
    let choose: f64 = (1..=k).map(|i| ((n - k + i) as f64 / i as f64).ln()).sum();
    (choose - n as f64 * std::f64::consts::LN_2).exp()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn close(value: f64, expected: f64) {
        assert!((value - expected).abs() < 5e-5, "{value} is not {expected}");
    }

    /// Newcombe 1998, table I, method 3 (81 of 263, 15 of 148, 0 of 20, 1 of 29).
    #[test]
    fn wilson_intervals_match_the_published_ones() {
        for (correct, total, low, high) in [
            (81, 263, 0.2553, 0.3662),
            (15, 148, 0.0624, 0.1605),
            (0, 20, 0.0, 0.1611),
            (1, 29, 0.0061, 0.1718),
        ] {
            let interval = wilson(correct, total);
            close(interval[0], low);
            close(interval[1], high);
        }
        assert_eq!(wilson(0, 0), [0.0, 1.0]);
        close(wilson(20, 20)[1], 1.0);
    }

    /// The expected values are sums of binomial coefficients over a power of two, computed by hand.
    #[test]
    fn mcnemar_is_the_exact_binomial_test() {
        for (wins, losses, p, mid) in [
            (0, 0, 1.0, 1.0),
            (5, 5, 1.0, 1.0),
            (10, 0, 2.0 / 1024.0, 1.0 / 1024.0),
            (1, 9, 22.0 / 1024.0, 12.0 / 1024.0),
            (8, 2, 112.0 / 1024.0, 67.0 / 1024.0),
            (3, 4, 1.0, 1.0 - 35.0 / 128.0),
        ] {
            let test = McNemar::new(wins, losses);
            close(test.p_value, p);
            close(test.mid_p_value, mid);
            assert!(test.mid_p_value <= test.p_value);
            let swapped = McNemar::new(losses, wins);
            close(swapped.p_value, test.p_value);
        }
        // 2 * P(X <= 1900) of B(4000, 1/2), by the normal approximation with continuity correction: z = 99.5 / 31.6228.
        let large = McNemar::new(2100, 1900).p_value;
        assert!((large - 0.001_65).abs() < 2e-5, "{large}");
    }

    /// Agresti, table 11.1: of 1,600 voters, 944 approve first and 880 later; 86 change to approval and 150 from it.
    #[test]
    fn paired_differences_match_the_published_interval() {
        let (difference, [low, high]) = paired_difference(86, 150, 1600);
        close(difference, -0.04);
        assert!((low + 0.059).abs() < 5e-4 && (high + 0.021).abs() < 5e-4, "{low} {high}");
    }

    /// Newcombe 1998 (Statistics in Medicine 17, pages 2635 to 2650), 12 and 2 of 50; Fagerland, Lydersen and Laake 2014
    /// (Statistics in Medicine 33, pages 2850 to 2875), 1 and 7 of 21. The others come from the closed form of Yang, Sun and
    /// Hardin 2013 (Statistics in Medicine 32, pages 1336 to 1342), whose quartic has the same ends.
    #[test]
    fn paired_intervals_match_tangos() {
        for (wins, losses, total, low, high) in [
            (12, 2, 50, 0.0611, 0.3447),
            (1, 7, 21, -0.5172, -0.0260),
            (0, 1, 40, -0.1288, 0.0648),
            (5, 0, 10, 0.0837, 0.7634),
            (10, 0, 10, 0.4449, 1.0),
        ] {
            let (difference, interval) = paired_difference(wins, losses, total);
            close(difference, (wins as f64 - losses as f64) / total as f64);
            close(interval[0], low);
            close(interval[1], high);
            let (_, swapped) = paired_difference(losses, wins, total);
            assert_eq!(swapped, [-interval[1], -interval[0]]);
        }
        // If no problem differs, each side is z^2 / (n + z^2) wide for any n.
        for n in [1, 2, 10, 40, 1319] {
            let width = Z * Z / (n as f64 + Z * Z);
            let (_, [low, high]) = paired_difference(0, 0, n);
            close(high, width);
            close(low, -width);
        }
        assert_eq!(paired_difference(0, 0, 0), (0.0, [-1.0, 1.0]));
    }

    #[test]
    fn mean_interval_is_the_normal_approximation() {
        let (mean, [low, high]) = mean_interval(&[1.0, 2.0, 3.0, 4.0]).unwrap();
        close(mean, 2.5);
        // Standard deviation sqrt(5/3), divided by 2.
        close(high - mean, Z * (5.0f64 / 3.0).sqrt() / 2.0);
        close(mean - low, high - mean);
        assert!(mean_interval(&[1.0]).is_none());
    }
}
