//! Computes elementary functions of real numbers by series of fixed-point numbers.

use std::sync::LazyLock;

use num_bigint::BigInt;
use num_traits::{One, Signed, ToPrimitive, Zero};

use super::real::{MAX_EXPONENT, PRECISION, Real};

/// Number of binary places of fixed-point numbers. It is larger than the precision of results by the errors of summation.
const PLACES: i64 = PRECISION + 64;
/// Number of binary places of the constants, with which arguments up to 2^128 can be reduced.
const CONSTANT_PLACES: i64 = PLACES + 128;

/// The number pi in fixed point, by Machin's formula.
static PI: LazyLock<BigInt> = LazyLock::new(|| {
    let guarded = CONSTANT_PLACES + 16;
    ((16 * inverse_arc(5, true, guarded)) - (4 * inverse_arc(239, true, guarded))) >> 16
});
/// The natural logarithm of 2 in fixed point.
static LN_2: LazyLock<BigInt> = LazyLock::new(|| {
    let guarded = CONSTANT_PLACES + 16;
    let term = |factor: i32, n: u32| factor * inverse_arc(n, false, guarded);
    (term(18, 26) - term(2, 4801) + term(8, 8749)) >> 16
});

/// Computes `atan(1 / n)` if `alternating`, else `atanh(1 / n)`, in fixed point.
fn inverse_arc(n: u32, alternating: bool, places: i64) -> BigInt {
    let mut power = (BigInt::one() << places) / n;
    let (mut sum, mut odd) = (BigInt::zero(), 1u32);
    while !power.is_zero() {
        let term = &power / odd;
        sum += if alternating && odd % 4 == 3 { -term } else { term };
        power /= n * n;
        odd += 2;
    }
    sum
}

pub(super) fn pi() -> Real {
    Real::new(PI.clone(), -CONSTANT_PLACES)
}

fn one() -> BigInt {
    BigInt::one() << PLACES
}

/// Computes e to the power of `x`, or returns `None` if the result is too large or too small.
pub(super) fn exp(x: &Real) -> Option<Real> {
    /// Number of times the argument is halved before the series.
    const HALVINGS: i64 = 12;
    let ln_2 = Real::new(LN_2.clone(), -CONSTANT_PLACES);
    if x.magnitude() > 40 {
        return None;
    }
    let twos = x.over(&ln_2)?.nearest()?;
    let exponent = twos.to_i64().filter(|twos| twos.abs() < MAX_EXPONENT)?;
    let reduced = x.fixed(CONSTANT_PLACES) - &*LN_2 * twos;
    let argument = reduced >> (CONSTANT_PLACES - PLACES + HALVINGS);
    let (mut sum, mut term, mut n) = (one(), one(), 1);
    while !term.abs().is_one() && !term.is_zero() {
        term = ((term * &argument) >> PLACES) / n;
        sum += &term;
        n += 1;
    }
    for _ in 0..HALVINGS {
        sum = (&sum * &sum) >> PLACES;
    }
    Some(Real::new(sum, exponent - PLACES))
}

/// Computes the natural logarithm of a positive number.
pub(super) fn ln(x: &Real) -> Option<Real> {
    if x.is_negative() || x.is_zero() {
        return None;
    }
    // x = part * 2^twos, where the part is near 1.
    let twos = x.magnitude();
    let part = x.scaled(-twos);
    let start = part.approximate().ln();
    let mut result = Real::new(BigInt::from((start * 2f64.powi(60)) as i64), -60);
    // Each step of Halley's method triples the number of correct digits.
    for _ in 0..3 {
        let power = exp(&result)?;
        let step = part.minus(&power).over(&part.plus(&power))?;
        result = result.plus(&step.scaled(1));
    }
    let ln_2 = Real::new(LN_2.clone(), -CONSTANT_PLACES);
    Some(result.plus(&ln_2.times(&Real::integer(twos))))
}

/// Computes the sine and cosine of an argument below 2^100.
pub(super) fn sin_cos(x: &Real) -> Option<(Real, Real)> {
    if x.magnitude() > 100 {
        return None;
    }
    let quarter = &*PI >> 1;
    let argument = x.fixed(CONSTANT_PLACES);
    let shifted: BigInt = &argument + (&quarter >> 1);
    let turns: BigInt = &shifted / &quarter - i32::from(shifted.is_negative());
    let reduced: BigInt = (argument - &turns * &quarter) >> (CONSTANT_PLACES - PLACES);
    let square: BigInt = (&reduced * &reduced) >> PLACES;
    let series = |first: BigInt, mut n: u32| {
        let (mut sum, mut term): (BigInt, BigInt) = (first.clone(), first);
        while !term.is_zero() && term != BigInt::from(-1) {
            let next: BigInt = (term * &square) >> PLACES;
            term = -next / (n * (n + 1));
            sum += &term;
            n += 2;
        }
        Real::new(sum, -PLACES)
    };
    let (sin, cos) = (series(reduced.clone(), 2), series(one(), 1));
    // The last two binary digits are the quadrant, also for a negative number.
    let quadrant = turns & BigInt::from(3);
    Some(match quadrant.to_u8()? {
        0 => (sin, cos),
        1 => (cos, sin.negated()),
        2 => (sin.negated(), cos.negated()),
        _ => (cos.negated(), sin),
    })
}

/// Computes the arctangent of `x`.
pub(super) fn atan(x: &Real) -> Option<Real> {
    /// Number of times the angle is halved before the series.
    const HALVINGS: i64 = 4;
    let one = Real::integer(1);
    if x.magnitude() > 1 {
        let right = pi().scaled(-1);
        let right = if x.is_negative() { right.negated() } else { right };
        return Some(right.minus(&atan(&one.over(x)?)?));
    }
    let mut x = x.clone();
    for _ in 0..HALVINGS {
        let root = one.plus(&x.times(&x)).sqrt()?;
        x = x.over(&one.plus(&root))?;
    }
    let argument = x.fixed(PLACES);
    let square = (&argument * &argument) >> PLACES;
    let (mut sum, mut power, mut odd) = (BigInt::zero(), argument, 1u32);
    while !power.is_zero() && power != BigInt::from(-1) {
        sum += if odd % 4 == 3 { -(&power / odd) } else { &power / odd };
        power = (power * &square) >> PLACES;
        odd += 2;
    }
    Some(Real::new(sum, HALVINGS - PLACES))
}
