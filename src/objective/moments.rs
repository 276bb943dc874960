//! Sums from which the correlation of two quantities is computed.

/// Sums over pairs of numbers (x, y).
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Moments {
    /// Number of pairs of numbers.
    pub count: usize,
    x: f64,
    y: f64,
    xx: f64,
    yy: f64,
    xy: f64,
}

impl Moments {
    /// Returns the sums over `pairs` of (x, y).
    pub fn of(pairs: impl Iterator<Item = (f64, f64)>) -> Self {
        pairs.fold(Self::default(), |sums, (x, y)| {
            sums.plus(Self { count: 1, x, y, xx: x * x, yy: y * y, xy: x * y })
        })
    }

    /// Returns the sums over the pairs of both.
    #[must_use]
    pub fn plus(self, other: Self) -> Self {
        Self {
            count: self.count + other.count,
            x: self.x + other.x,
            y: self.y + other.y,
            xx: self.xx + other.xx,
            yy: self.yy + other.yy,
            xy: self.xy + other.xy,
        }
    }

    /// Returns Pearson's correlation, or `None` if x or y does not vary.
    pub fn correlation(self) -> Option<f64> {
        let n = self.count as f64;
        let (varies_x, varies_y) = (n * self.xx - self.x * self.x, n * self.yy - self.y * self.y);
        let scale = (varies_x * varies_y).sqrt();
        (varies_x > 0.0 && varies_y > 0.0 && scale.is_finite())
            .then(|| (n * self.xy - self.x * self.y) / scale)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// By hand: x = 1, 2, 3, 5 and y = 2, 1, 4, 6 have means 2.75 and 3.25, sums of squared deviations 8.75 and 14.75, and a sum
    /// of products 2 + 2 + 12 + 30 - 4 * 2.75 * 3.25 = 10.25.
    #[test]
    fn the_correlation_is_pearsons() {
        let pairs = [(1.0, 2.0), (2.0, 1.0), (3.0, 4.0), (5.0, 6.0)];
        let expected = 10.25 / (8.75_f64 * 14.75).sqrt();
        let whole = Moments::of(pairs.into_iter());
        assert!((whole.correlation().unwrap() - expected).abs() < 1e-12);
        let parts =
            Moments::of(pairs[..1].iter().copied()).plus(Moments::of(pairs[1..].iter().copied()));
        assert_eq!(parts, whole);
        let reversed = Moments::of(pairs.into_iter().map(|(x, y)| (x, -y)));
        assert!((reversed.correlation().unwrap() + expected).abs() < 1e-12);
        assert_eq!(Moments::of([(1.0, 2.0), (1.0, 3.0)].into_iter()).correlation(), None);
        assert_eq!(Moments::default().correlation(), None);
    }
}
