//! Evaluates expressions with a rational value exactly.

use std::cell::Cell;

use num_bigint::{BigInt, Sign};
use num_rational::BigRational;
use num_traits::{One, Pow, Signed, ToPrimitive, Zero};

use super::tree::{Function, Node};

/// Maximum number of bits of a numerator or denominator. Larger fractions are left to floating-point numbers.
const MAX_BITS: u64 = 8_192;

/// The work that is left for a comparison. One unit is about one multiplication of two 64-bit words.
#[derive(Debug)]
pub(super) struct Budget(Cell<u64>);

impl Budget {
    pub(super) const fn new(units: u64) -> Self {
        Self(Cell::new(units))
    }

    /// Spends `units`, or returns `None` if fewer are left.
    pub(super) fn spend(&self, units: u64) -> Option<()> {
        match self.0.get().checked_sub(units) {
            Some(left) => self.0.set(left),
            None => {
                self.0.set(0);
                return None;
            }
        }
        Some(())
    }
}

/// Returns the exact value of `node`, or `None` if it is not a number, not known to be rational, or too large.
pub(super) fn exact(node: &Node, budget: &Budget) -> Option<BigRational> {
    budget.spend(16)?;
    let value = |node: &Node| exact(node, budget);
    let result = match node {
        Node::Number(value) => value.clone(),
        Node::Sum(terms) => {
            let mut sum = BigRational::zero();
            for term in terms {
                sum += value(term)?;
                check_size(&sum, budget)?;
            }
            sum
        }
        Node::Product(factors) => {
            let mut product = BigRational::one();
            for factor in factors {
                product *= value(factor)?;
                check_size(&product, budget)?;
            }
            product
        }
        Node::Negative(one) => -value(one)?,
        Node::Inverse(one) => value(one).filter(|value| !value.is_zero())?.recip(),
        Node::Power(base, exponent) => power(&value(base)?, &value(exponent)?, budget)?,
        Node::Quantity(size, unit) if unit.is_degree() => value(size)?,
        Node::Percent(one) => value(one)? / BigRational::from_integer(100.into()),
        Node::Call(function, arguments) => {
            let arguments: Option<Vec<_>> = arguments.iter().map(value).collect();
            call(*function, &arguments?, budget)?
        }
        _ => return None,
    };
    check_size(&result, budget)?;
    Some(result)
}

/// Returns `None` if `value` is too large to compute with. Spends the cost of reducing the fraction.
fn check_size(value: &BigRational, budget: &Budget) -> Option<()> {
    let bits = value.numer().bits().max(value.denom().bits());
    let words = bits / 64 + 1;
    budget.spend(words * words)?;
    (bits <= MAX_BITS).then_some(())
}

fn call(function: Function, arguments: &[BigRational], budget: &Budget) -> Option<BigRational> {
    match (function, arguments) {
        (Function::Root, [index, radicand]) => {
            let index = index.is_integer().then(|| index.to_integer().to_u32())??;
            root(radicand, index, budget)
        }
        (Function::Abs, [value]) => Some(value.abs()),
        (Function::Floor, [value]) => Some(value.floor()),
        (Function::Ceiling, [value]) => Some(value.ceil()),
        (Function::Factorial, [value]) => {
            let top = natural(value)?;
            product(1, top, budget)
        }
        (Function::Binomial, [top, chosen]) => {
            let (top, chosen) = (natural(top)?, natural(chosen)?);
            let Some(left) = top.checked_sub(chosen) else {
                return Some(BigRational::zero());
            };
            let small = chosen.min(left);
            Some(product(top - small + 1, top, budget)? / product(1, small, budget)?)
        }
        _ => None,
    }
}

/// Returns `value` if it is a natural number of at most one million.
fn natural(value: &BigRational) -> Option<u32> {
    const MAX: u32 = 1_000_000;
    let value = value.is_integer().then(|| value.to_integer().to_u32())??;
    (value <= MAX).then_some(value)
}

/// Computes the product of all integers from `first` to `last`.
fn product(first: u32, last: u32, budget: &Budget) -> Option<BigRational> {
    let mut product = BigInt::one();
    for factor in first..=last {
        product *= factor;
        budget.spend(product.bits() / 64 + 1)?;
        if product.bits() > MAX_BITS {
            return None;
        }
    }
    Some(BigRational::from_integer(product))
}

/// Computes `base` to the power of `exponent`, if that is rational.
fn power(base: &BigRational, exponent: &BigRational, budget: &Budget) -> Option<BigRational> {
    let index = exponent.denom().to_u32()?;
    let base = if index == 1 { base.clone() } else { root(base, index, budget)? };
    if base.is_zero() {
        return exponent.is_positive().then_some(base);
    }
    let is_unit = base.numer().magnitude().is_one() && base.denom().is_one();
    if is_unit {
        let is_odd = exponent.numer().bit(0);
        return Some(if is_odd { base } else { BigRational::one() });
    }
    let exponent = exponent.numer().to_i32()?;
    let bits = base.numer().bits().max(base.denom().bits());
    // A number of n bits is at least 2 to the power of n - 1.
    let least = (bits - 1).max(1).checked_mul(u64::from(exponent.unsigned_abs()))?;
    if least > MAX_BITS {
        return None;
    }
    budget.spend((least / 64 + 1).pow(2) * 4)?;
    Some(Pow::pow(&base, exponent))
}

/// Computes the root of `value`, if it is rational. The root of a negative number exists only for an odd `index`.
fn root(value: &BigRational, index: u32, budget: &Budget) -> Option<BigRational> {
    if index == 0 || index > 64 || (value.is_negative() && index.is_multiple_of(2)) {
        return None;
    }
    let bits = value.numer().bits().max(value.denom().bits());
    budget.spend((bits / 64 + 1).pow(2) * 16)?;
    let whole = |number: &BigInt| {
        let root = number.nth_root(index);
        (Pow::pow(&root, index) == *number).then_some(root)
    };
    let (numerator, denominator) = (whole(value.numer())?, whole(value.denom())?);
    debug_assert!(denominator.sign() == Sign::Plus);
    Some(BigRational::new(numerator, denominator))
}
