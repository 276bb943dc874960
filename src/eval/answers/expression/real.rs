//! Floating-point numbers with a 256-bit mantissa and a 64-bit exponent, based on big integers.
//!
//! `f64` is not sufficient: 1/2004! is 0 in it, and numbers that differ in the 17th digit are equal.

use num_bigint::{BigInt, Sign};
use num_rational::BigRational;
use num_traits::{Signed, ToPrimitive, Zero};

/// Maximum number of bits of the mantissa.
pub(super) const PRECISION: i64 = 256;
/// Bound on the binary exponent of numbers that are computed with.
pub(super) const MAX_EXPONENT: i64 = 1 << 40;

/// The number `mantissa * 2^exponent`, whose mantissa has at most [`PRECISION`] bits.
#[derive(Clone, Debug)]
pub(super) struct Real {
    mantissa: BigInt,
    exponent: i64,
}

impl Real {
    /// Creates `mantissa * 2^exponent`, rounded.
    pub(super) fn new(mantissa: BigInt, exponent: i64) -> Self {
        let excess = bits(&mantissa) - PRECISION;
        if mantissa.is_zero() {
            Self { mantissa, exponent: 0 }
        } else if excess > 0 {
            Self { mantissa: mantissa >> excess, exponent: exponent + excess }
        } else {
            Self { mantissa, exponent }
        }
    }

    pub(super) fn zero() -> Self {
        Self::integer(0)
    }

    pub(super) fn integer(value: i64) -> Self {
        Self::new(value.into(), 0)
    }

    pub(super) fn rational(value: &BigRational) -> Self {
        // The shift gives the quotient more bits than the precision.
        let shift = (PRECISION + 2 + bits(value.denom()) - bits(value.numer())).max(0);
        Self::new((value.numer() << shift) / value.denom(), -shift)
    }

    pub(super) fn is_zero(&self) -> bool {
        self.mantissa.is_zero()
    }

    pub(super) fn is_negative(&self) -> bool {
        self.mantissa.is_negative()
    }

    /// Returns the smallest `n` with `|self| < 2^n`, or a very low number for zero.
    pub(super) fn magnitude(&self) -> i64 {
        if self.is_zero() { -2 * MAX_EXPONENT } else { self.exponent + bits(&self.mantissa) }
    }

    /// Returns the binary logarithm of the absolute value, or negative infinity for zero.
    pub(super) fn log2(&self) -> f64 {
        let top = (bits(&self.mantissa) - 60).max(0);
        let mantissa = (&self.mantissa >> top).to_f64().unwrap_or(0.0);
        mantissa.abs().log2() + (self.exponent + top) as f64
    }

    pub(super) fn negated(&self) -> Self {
        Self { mantissa: -&self.mantissa, exponent: self.exponent }
    }

    pub(super) fn abs(&self) -> Self {
        if self.is_negative() { self.negated() } else { self.clone() }
    }

    pub(super) fn plus(&self, other: &Self) -> Self {
        let (large, small) =
            if self.magnitude() >= other.magnitude() { (self, other) } else { (other, self) };
        if small.is_zero() || large.magnitude() - small.magnitude() > PRECISION + 8 {
            return large.clone();
        }
        let exponent = large.exponent.min(small.exponent);
        let aligned = |one: &Self| &one.mantissa << (one.exponent - exponent);
        Self::new(aligned(large) + aligned(small), exponent)
    }

    pub(super) fn minus(&self, other: &Self) -> Self {
        self.plus(&other.negated())
    }

    pub(super) fn times(&self, other: &Self) -> Self {
        Self::new(&self.mantissa * &other.mantissa, self.exponent + other.exponent)
    }

    /// Computes `self / other`, or returns `None` for a division by zero.
    pub(super) fn over(&self, other: &Self) -> Option<Self> {
        if other.is_zero() {
            return None;
        }
        let shift = (PRECISION + 2 + bits(&other.mantissa) - bits(&self.mantissa)).max(0);
        let quotient = (&self.mantissa << shift) / &other.mantissa;
        Some(Self::new(quotient, self.exponent - other.exponent - shift))
    }

    /// Computes `self * 2^power`.
    pub(super) fn scaled(&self, power: i64) -> Self {
        Self {
            mantissa: self.mantissa.clone(),
            exponent: if self.is_zero() { 0 } else { self.exponent + power },
        }
    }

    /// Computes the square root of a non-negative number.
    pub(super) fn sqrt(&self) -> Option<Self> {
        if self.is_negative() {
            return None;
        }
        let mut shift = (2 * PRECISION + 4 - bits(&self.mantissa)).max(0);
        shift += (self.exponent - shift).rem_euclid(2);
        Some(Self::new((&self.mantissa << shift).sqrt(), (self.exponent - shift) / 2))
    }

    /// Returns the nearest integer, if it has fewer than 1,000 bits.
    pub(super) fn nearest(&self) -> Option<BigInt> {
        (self.magnitude() < 1_000).then(|| {
            let half = Self::new(1.into(), -1);
            self.plus(&half).floor()
        })
    }

    /// Rounds down to an integer. The number must be of moderate size.
    fn floor(&self) -> BigInt {
        if self.exponent >= 0 {
            &self.mantissa << self.exponent
        } else if -self.exponent > 4 * PRECISION {
            match self.mantissa.sign() {
                Sign::Minus => (-1).into(),
                _ => 0.into(),
            }
        } else {
            &self.mantissa >> -self.exponent
        }
    }

    /// Returns the integer `self * 2^places`, rounded down. The number must be of moderate size.
    pub(super) fn fixed(&self, places: i64) -> BigInt {
        self.scaled(places).floor()
    }

    pub(super) fn whole(value: &BigInt) -> Self {
        Self::new(value.clone(), 0)
    }

    /// Returns an approximation of a number whose magnitude is near 0.
    pub(super) fn approximate(&self) -> f64 {
        self.fixed(60).to_f64().unwrap_or(0.0) / 2f64.powi(60)
    }
}

fn bits(value: &BigInt) -> i64 {
    i64::try_from(value.bits()).unwrap_or(i64::MAX)
}
