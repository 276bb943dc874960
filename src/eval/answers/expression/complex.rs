//! High-precision complex numbers, each with an error bound, so that a comparison knows which numbers it can distinguish.
//!
//! Errors and sizes are binary logarithms: an error of -200 means 2^-200. The relative error of a product is the sum of the
//! relative errors of its factors, so that a thousand factors cost ten bits.

use num_rational::BigRational;

use super::real::{MAX_EXPONENT, PRECISION, Real};
use super::real_functions::{atan, exp, ln, pi, sin_cos};

/// The error of an exact value.
const EXACT: f64 = f64::NEG_INFINITY;
/// The error of a result of size 1 after a few roundings.
const ROUNDING: f64 = 4.0 - PRECISION as f64;

/// The number `re + im i` with an error of less than `2^error`.
#[derive(Clone, Debug)]
pub(super) struct Complex {
    pub(super) re: Real,
    pub(super) im: Real,
    error: f64,
}

/// Adds errors, which are binary logarithms.
fn sum_errors(errors: &[f64]) -> f64 {
    let largest = errors.iter().copied().fold(EXACT, f64::max);
    if largest == EXACT {
        return EXACT;
    }
    largest + errors.iter().map(|error| (error - largest).exp2()).sum::<f64>().log2()
}

impl Complex {
    fn new(re: Real, im: Real, error: f64) -> Option<Self> {
        let value = Self { re, im, error };
        let is_bounded = value.is_zero() || value.magnitude().abs() < MAX_EXPONENT;
        is_bounded.then_some(value)
    }

    /// Creates a value that was rounded a few times.
    fn rounded(re: Real, im: Real) -> Self {
        let value = Self { re, im, error: EXACT };
        Self { error: value.size() + ROUNDING, ..value }
    }

    pub(super) fn rational(value: &BigRational) -> Self {
        Self::rounded(Real::rational(value), Real::zero())
    }

    pub(super) fn integer(value: i64) -> Self {
        Self { re: Real::integer(value), im: Real::zero(), error: EXACT }
    }

    /// Returns the imaginary unit.
    pub(super) fn i() -> Self {
        Self { re: Real::zero(), im: Real::integer(1), error: EXACT }
    }

    pub(super) fn pi() -> Self {
        Self::rounded(pi(), Real::zero())
    }

    fn is_zero(&self) -> bool {
        self.re.is_zero() && self.im.is_zero()
    }

    /// Returns the smallest `n` for which the absolute values of both parts are below `2^n`.
    pub(super) fn magnitude(&self) -> i64 {
        self.re.magnitude().max(self.im.magnitude())
    }

    /// Returns an upper bound of the binary logarithm of the absolute value, which is at most half a bit too large.
    pub(super) fn size(&self) -> f64 {
        let largest = self.re.log2().max(self.im.log2());
        if self.im.is_zero() { largest } else { largest + 0.5 }
    }

    /// Returns whether the number is real within its error.
    pub(super) fn is_real(&self) -> bool {
        self.im.log2() <= self.error
    }

    /// Returns the real part, if the number is real within its error.
    pub(super) fn real(&self) -> Option<Self> {
        self.is_real().then(|| Self { re: self.re.clone(), im: Real::zero(), error: self.error })
    }

    /// Returns whether the number is certainly not zero.
    fn is_nonzero(&self) -> bool {
        !self.is_zero() && self.size() > self.error + 2.0
    }

    pub(super) fn is_negative(&self) -> bool {
        self.re.is_negative() && self.is_real() && self.is_nonzero()
    }

    /// Returns whether both numbers are equal, or `None` if the errors are too large to decide.
    pub(super) fn same(&self, other: &Self) -> Option<bool> {
        /// Number of bits in which equal numbers must agree.
        const AGREEING_BITS: f64 = 128.0;
        let error = sum_errors(&[self.error, other.error]);
        let difference = self.minus(other)?;
        if difference.size() > error + 8.0 {
            return Some(false);
        }
        // Two zeros are equal if the error is small relative to 1.
        let size = self.size().max(other.size());
        (error <= size - AGREEING_BITS || error <= -AGREEING_BITS).then_some(true)
    }

    pub(super) fn negated(&self) -> Self {
        Self { re: self.re.negated(), im: self.im.negated(), error: self.error }
    }

    pub(super) fn plus(&self, other: &Self) -> Option<Self> {
        let rounding = self.size().max(other.size()) + ROUNDING;
        let error = sum_errors(&[self.error, other.error, rounding]);
        Self::new(self.re.plus(&other.re), self.im.plus(&other.im), error)
    }

    pub(super) fn minus(&self, other: &Self) -> Option<Self> {
        self.plus(&other.negated())
    }

    pub(super) fn times(&self, other: &Self) -> Option<Self> {
        let (a, b) = (self.size(), other.size());
        let error = sum_errors(&[
            self.error + b,
            other.error + a,
            self.error + other.error,
            a + b + ROUNDING,
        ]);
        let re = self.re.times(&other.re).minus(&self.im.times(&other.im));
        let im = self.re.times(&other.im).plus(&self.im.times(&other.re));
        Self::new(re, im, error)
    }

    fn scaled(&self, power: i64) -> Option<Self> {
        Self::new(self.re.scaled(power), self.im.scaled(power), self.error + power as f64)
    }

    /// Computes `1 / self`, or returns `None` if that may be a division by zero.
    pub(super) fn inverse(&self) -> Option<Self> {
        if !self.is_nonzero() {
            return None;
        }
        let inverse = if self.im.is_zero() {
            Self::rounded(Real::integer(1).over(&self.re)?, Real::zero())
        } else {
            let norm = self.re.times(&self.re).plus(&self.im.times(&self.im));
            Self::rounded(self.re.over(&norm)?, self.im.negated().over(&norm)?)
        };
        // d(1/z) = dz / z^2, and slightly more if the error is not small relative to z.
        let relative = self.error - self.size();
        let excess = if self.im.is_zero() { 0.0 } else { 2.0 } + (relative + 1.0).exp2();
        let error = sum_errors(&[inverse.error, relative + inverse.size() + excess]);
        Self::new(inverse.re, inverse.im, error)
    }

    pub(super) fn over(&self, other: &Self) -> Option<Self> {
        self.times(&other.inverse()?)
    }

    /// Computes the absolute value.
    pub(super) fn abs(&self) -> Option<Self> {
        if self.im.is_zero() {
            return Self::new(self.re.abs(), Real::zero(), self.error);
        }
        let norm = self.re.times(&self.re).plus(&self.im.times(&self.im));
        let value = Self::rounded(norm.sqrt()?, Real::zero());
        Self::new(value.re, Real::zero(), sum_errors(&[value.error, self.error]))
    }

    /// Computes the principal square root.
    pub(super) fn sqrt(&self) -> Option<Self> {
        if !self.is_nonzero() {
            // The number is zero within its error.
            return Self::new(Real::zero(), Real::zero(), self.error / 2.0 + 2.0);
        }
        if !self.im.is_zero() {
            return self.ln()?.scaled(-1)?.exp();
        }
        let root = Self::rounded(self.re.abs().sqrt()?, Real::zero());
        // d(sqrt z) = dz / (2 sqrt z)
        let error = sum_errors(&[root.error, self.error - root.size()]);
        if self.re.is_negative() {
            Self::new(Real::zero(), root.re, error)
        } else {
            Self::new(root.re, Real::zero(), error)
        }
    }

    pub(super) fn exp(&self) -> Option<Self> {
        let size = exp(&self.re)?;
        // The estimate of the error below holds for small errors only.
        if self.error > -8.0 {
            return None;
        }
        let value = if self.im.is_zero() {
            Self::rounded(size, Real::zero())
        } else {
            let (sin, cos) = sin_cos(&self.im)?;
            Self::rounded(size.times(&cos), size.times(&sin))
        };
        // The argument is reduced by multiples of a rounded constant, which adds to the error.
        let rounding = ROUNDING + self.size().max(0.0) + 4.0;
        let error = sum_errors(&[self.error + 1.0, rounding]) + exp_size(&self.re);
        Self::new(value.re, value.im, error)
    }

    /// Computes the principal logarithm.
    pub(super) fn ln(&self) -> Option<Self> {
        if !self.is_nonzero() {
            return None;
        }
        let logarithm = ln(&self.abs()?.re)?;
        let rounding = logarithm.log2().max(2.0) + ROUNDING;
        Self::new(logarithm, self.angle()?, sum_errors(&[self.error - self.size() + 2.0, rounding]))
    }

    /// Computes the angle with the positive real axis, in (-pi, pi]. A part that may be zero within the error counts as
    /// zero, so that no division by zero occurs, the only reason for `None`.
    fn angle(&self) -> Option<Real> {
        if self.is_real() {
            return Some(if self.re.is_negative() { pi() } else { Real::zero() });
        }
        let right = pi().scaled(-1);
        if self.re.log2() <= self.error {
            return Some(if self.im.is_negative() { right.negated() } else { right });
        }
        let angle = atan(&self.im.over(&self.re)?)?;
        Some(match (self.re.is_negative(), self.im.is_negative()) {
            (false, _) => angle,
            (true, false) => angle.plus(&pi()),
            (true, true) => angle.minus(&pi()),
        })
    }

    /// Computes `self^exponent` for a natural exponent.
    pub(super) fn integer_power(&self, exponent: u64) -> Option<Self> {
        let (mut result, mut square, mut bits) = (Self::integer(1), self.clone(), exponent);
        while bits > 0 {
            if bits & 1 == 1 {
                result = result.times(&square)?;
            }
            bits >>= 1;
            if bits > 0 {
                square = square.times(&square)?;
            }
        }
        Some(result)
    }

    /// Computes the sine and cosine.
    pub(super) fn sin_cos(&self) -> Option<(Self, Self)> {
        if self.im.is_zero() {
            let (sin, cos) = sin_cos(&self.re)?;
            let error = sum_errors(&[self.error, ROUNDING]);
            return Some((
                Self::new(sin, Real::zero(), error)?,
                Self::new(cos, Real::zero(), error)?,
            ));
        }
        // e^(iz) and e^(-iz)
        let iz = self.times(&Self::i())?;
        let (plus, minus) = (iz.exp()?, iz.negated().exp()?);
        let sin = plus.minus(&minus)?.times(&Self::i())?.negated().scaled(-1)?;
        Some((sin, plus.plus(&minus)?.scaled(-1)?))
    }

    /// Computes the arctangent of a real number.
    pub(super) fn atan(&self) -> Option<Self> {
        let value = self.real()?;
        Self::new(atan(&value.re)?, Real::zero(), sum_errors(&[value.error, ROUNDING + 2.0]))
    }

    /// Computes the arcsine of a real number.
    pub(super) fn asin(&self) -> Option<Self> {
        let value = self.real()?;
        let rest = Self::integer(1).minus(&value.times(&value)?)?;
        if !rest.is_nonzero() {
            let right = pi().scaled(-1);
            let right = if value.re.is_negative() { right.negated() } else { right };
            return Self::new(right, Real::zero(), rest.error / 2.0 + 2.0);
        }
        if rest.is_negative() {
            return None;
        }
        value.over(&rest.sqrt()?)?.atan()
    }

    /// Computes the arccosine of a real number.
    pub(super) fn acos(&self) -> Option<Self> {
        Self::pi().scaled(-1)?.minus(&self.asin()?)
    }

    /// Rounds a real number down to an integer.
    pub(super) fn floor(&self) -> Option<Self> {
        let value = self.real()?;
        let nearest = Real::whole(&value.re.nearest()?);
        let difference = nearest.minus(&value.re);
        // A value that differs from an integer by at most its error is taken to be that integer.
        let is_integer = difference.log2() <= value.error;
        let floor = if is_integer || difference.is_negative() {
            nearest
        } else {
            nearest.minus(&Real::integer(1))
        };
        Self::new(floor, Real::zero(), EXACT)
    }
}

/// Returns an upper bound of the binary logarithm of e to the power of `x`.
fn exp_size(x: &Real) -> f64 {
    x.approximate() * std::f64::consts::LOG2_E + 1.0
}
