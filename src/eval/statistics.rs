//! What a count of right answers says about a model: intervals, and paired tests between two models.

use serde::Serialize;

/// The standard normal's 97.5 % point.
const Z: f64 = 1.959_963_984_540_054;

/// Right answers among all, with the 95 % interval of the accuracy.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Rate {
    /// Right ones.
    pub correct: usize,
    /// All of them, unanswered ones included.
    pub total: usize,
    /// `correct / total`, 0 of nothing.
    pub accuracy: f64,
    /// 95 % interval of the accuracy, after Wilson (1927): never outside 0 to 1, sound near both.
    pub interval_95: [f64; 2],
}

impl Rate {
    /// `correct` of `total`.
    pub fn new(correct: usize, total: usize) -> Self {
        Self {
            correct,
            total,
            accuracy: correct as f64 / total.max(1) as f64,
            interval_95: wilson(correct, total),
        }
    }

    /// Of verdicts.
    pub fn of(verdicts: impl IntoIterator<Item = bool>) -> Self {
        let (mut correct, mut total) = (0, 0);
        for verdict in verdicts {
            correct += usize::from(verdict);
            total += 1;
        }
        Self::new(correct, total)
    }
}

/// The 95 % score interval of a share, `[0, 1]` of nothing.
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
    let (n, share) = (total as f64, correct as f64 / total as f64);
    let z2 = Z * Z;
    let centre = share + z2 / (2.0 * n);
    let spread = Z * (share * (1.0 - share) / n + z2 / (4.0 * n * n)).sqrt();
    let bound = |value: f64| (value / (1.0 + z2 / n)).clamp(0.0, 1.0);
    [bound(centre - spread), bound(centre + spread)]
}

/// Mean with its 95 % interval (normal approximation); `None` of fewer than two values.
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

/// Difference of two accuracies on the same `total` problems (second less first) with its 95 % interval: Wald's, from the
/// problems that differ (Agresti, Categorical Data Analysis, section 11.1).
pub fn paired_difference(wins: usize, losses: usize, total: usize) -> (f64, [f64; 2]) {
    let (wins, losses, n) = (wins as f64, losses as f64, total.max(1) as f64);
    let difference = (wins - losses) / n;
    let half = Z * (wins + losses - (wins - losses).powi(2) / n).max(0.0).sqrt() / n;
    (difference, [(difference - half).max(-1.0), (difference + half).min(1.0)])
}

/// McNemar's test on the problems where two models differ (1947, <https://doi.org/10.1007/BF02295996>).
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct McNemar {
    /// Problems only the second model solves.
    pub wins: usize,
    /// Problems only the first model solves.
    pub losses: usize,
    /// Probability of a split at least this uneven if neither model is better: exact, two-sided.
    pub p_value: f64,
    /// The same with half the probability of the observed split: the exact one is cautious with few differences.
    pub mid_p_value: f64,
}

impl McNemar {
    /// The test for these counts; both p-values are 1 without differences.
    pub fn new(wins: usize, losses: usize) -> Self {
        let (differ, fewer) = (wins + losses, wins.min(losses));
        let tail: f64 = (0..=fewer).map(|k| binomial_half(differ, k)).sum();
        let observed = binomial_half(differ, fewer);
        Self {
            wins,
            losses,
            p_value: (2.0 * tail).min(1.0),
            mid_p_value: match differ {
                0 => 1.0,
                _ => (2.0 * tail - observed).min(1.0),
            },
        }
    }
}

/// Probability of `k` heads in `n` fair tosses, by logarithms: no overflow for any test set.
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
    fn wilson_intervals_are_the_published_ones() {
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

    /// Sums of binomial coefficients over a power of two, by hand.
    #[test]
    fn mcnemar_is_the_binomial_test() {
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
        // Thousands of differences: 2 * P(X <= 1900) of B(4000, 1/2), by the normal with continuity: z = 99.5 / 31.6228.
        let large = McNemar::new(2100, 1900).p_value;
        assert!((large - 0.001_65).abs() < 2e-5, "{large}");
    }

    /// Agresti, table 11.1: 1,600 voters approve 944 and then 880 times, 86 change to approval and 150 away from it.
    #[test]
    fn paired_differences_have_the_published_interval() {
        let (difference, [low, high]) = paired_difference(86, 150, 1600);
        close(difference, -0.04);
        assert!((low + 0.059).abs() < 5e-4 && (high + 0.021).abs() < 5e-4, "{low} {high}");
    }

    #[test]
    fn means_have_intervals() {
        let (mean, [low, high]) = mean_interval(&[1.0, 2.0, 3.0, 4.0]).unwrap();
        close(mean, 2.5);
        // Standard deviation sqrt(5/3), divided by 2.
        close(high - mean, Z * (5.0f64 / 3.0).sqrt() / 2.0);
        close(mean - low, high - mean);
        assert!(mean_interval(&[1.0]).is_none());
    }
}
