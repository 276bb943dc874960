//! Curves as lists of points: smoothing, summaries, and thinning for drawing.

pub(super) use crate::alarms::Point;

/// Returns how many points a smoothed curve averages: a twentieth of the run, at most 50 points.
pub(super) fn smoothing_window(points: &[Point]) -> usize {
    (points.len() / 20).clamp(1, 50)
}

/// Returns the mean of the finite values among the last `window` up to each point; NaN where the
/// point itself is not finite.
pub(super) fn smooth(points: &[Point], window: usize) -> Vec<Point> {
    let mean_until = |(end, point): (usize, &Point)| {
        let start = (end + 1).saturating_sub(window);
        let recent = points.get(start..=end).filter(|_| point.1.is_finite());
        (point.0, mean(recent.unwrap_or_default()))
    };
    points.iter().enumerate().map(mean_until).collect()
}

/// Returns the finite values.
pub(super) fn finite(points: &[Point]) -> impl Iterator<Item = f64> {
    points.iter().map(|p| p.1).filter(|v| v.is_finite())
}

/// Returns the mean of the finite values, NaN without any.
pub(super) fn mean(points: &[Point]) -> f64 {
    let (count, sum) = finite(points).fold((0.0, 0.0), |(n, sum), v| (n + 1.0, sum + v));
    sum / count
}

/// Returns the standard error of [`mean`], NaN with fewer than two finite values.
pub(super) fn standard_error(points: &[Point]) -> f64 {
    let mean = mean(points);
    let (count, squares) =
        finite(points).fold((0.0_f64, 0.0), |(n, sum), v| (n + 1.0, sum + (v - mean) * (v - mean)));
    if count < 2.0 {
        return f64::NAN;
    }
    (squares / (count - 1.0) / count).sqrt()
}

/// Returns the smallest and largest finite value.
pub(super) fn range(points: &[Point]) -> Option<(f64, f64)> {
    finite(points).fold(None, |range, v| {
        let (lo, hi) = range.unwrap_or((v, v));
        Some((v.min(lo), v.max(hi)))
    })
}

/// Returns the last `count` points.
pub(super) fn tail(points: &[Point], count: usize) -> &[Point] {
    points.get(points.len().saturating_sub(count)..).unwrap_or_default()
}

/// Returns at most `2 * buckets` points that look the same when drawn: the smallest and the largest
/// value of each bucket of steps, in their original order, so that a spike of a single step stays
/// visible. A bucket without a finite value becomes one NaN, a gap in the curve.
pub(super) fn thin(points: &[Point], buckets: usize) -> Vec<Point> {
    if points.len() <= 2 * buckets {
        return points.to_vec();
    }
    let size = points.len().div_ceil(buckets.max(1));
    points.chunks(size).flat_map(extremes).collect()
}

/// Returns the smallest and the largest value of a bucket, in order.
fn extremes(bucket: &[Point]) -> Vec<Point> {
    let finite = || bucket.iter().enumerate().filter(|(_, p)| p.1.is_finite());
    let by_value = |a: &(usize, &Point), b: &(usize, &Point)| a.1.1.total_cmp(&b.1.1);
    match (finite().min_by(by_value), finite().max_by(by_value)) {
        (Some((i, low)), Some((j, high))) if i < j => vec![*low, *high],
        (Some((i, low)), Some((j, high))) if i > j => vec![*high, *low],
        (Some((_, point)), _) => vec![*point],
        _ => bucket.first().map(|p| (p.0, f64::NAN)).into_iter().collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn points(values: &[f64]) -> Vec<Point> {
        let step = |(i, v): (usize, &f64)| ((i + 1) as f64, *v);
        values.iter().enumerate().map(step).collect()
    }

    #[test]
    fn smoothing_is_a_trailing_mean_of_finite_values() {
        let smoothed = smooth(&points(&[1.0, 3.0, f64::NAN, 8.0, f64::INFINITY, f64::NAN]), 2);
        let values: Vec<f64> = smoothed.iter().map(|p| p.1).collect();
        assert_eq!(values[..2], [1.0, 2.0]);
        assert_eq!(values[3], 8.0);
        assert!(values[2].is_nan() && values[4].is_nan() && values[5].is_nan());
        assert_eq!(smoothed[3].0, 4.0);
    }

    #[test]
    fn thinning_keeps_every_spike_and_the_order() {
        let mut values: Vec<f64> = (0..9973).map(|i| (f64::from(i) * 0.37).sin()).collect();
        values[5000] = 40.0;
        values[5001] = -30.0;
        for gap in &mut values[7000..7200] {
            *gap = f64::NAN;
        }
        let thinned = thin(&points(&values), 200);
        assert!(thinned.len() <= 400, "{}", thinned.len());
        assert!(thinned.is_sorted_by(|a, b| a.0 < b.0));
        assert_eq!(range(&thinned), Some((-30.0, 40.0)));
        assert!(thinned.iter().any(|p| p.1.is_nan()));
        assert_eq!(thin(&points(&values[..400]), 200).len(), 400);
    }

    #[test]
    fn summaries_of_nothing_and_of_known_numbers() {
        assert!(mean(&[]).is_nan() && standard_error(&points(&[1.0])).is_nan());
        assert_eq!(range(&points(&[f64::NAN])), None);
        // Variance of 1, 2, 3, 4 is 5/3; the standard error of their mean is sqrt(5/12).
        let error = standard_error(&points(&[1.0, 2.0, f64::NAN, 3.0, 4.0]));
        assert!((error - (5.0_f64 / 12.0).sqrt()).abs() < 1e-15);
        assert_eq!(tail(&points(&[1.0, 2.0, 3.0]), 2)[0].1, 2.0);
    }
}
