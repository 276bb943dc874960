//! Evaluates expressions in high precision, with a number for each name.

use std::collections::BTreeMap;

use num_rational::BigRational;
use num_traits::ToPrimitive;

use super::complex::Complex;
use super::exact::{Budget, exact};
use super::real::MAX_EXPONENT;
use super::tree::{Constant, Function, Node};

/// A number for each name of an expression.
pub(super) type Point = BTreeMap<String, BigRational>;

/// An evaluator of expressions at one point.
pub(super) struct Evaluator<'a> {
    pub(super) point: &'a Point,
    pub(super) budget: &'a Budget,
}

/// The work of one operation, in units of [`Budget`].
const OPERATION: u64 = 100;
/// The work of one function that is computed by a series, in units of [`Budget`].
const SERIES: u64 = 10_000;

impl Evaluator<'_> {
    /// Returns the value of `node`, or `None` if it is undefined at this point, too large, or not a number.
    ///
    /// If the expression has names, roots and logarithms of negative numbers are undefined, so that `\sqrt{x}^2` equals `x`
    /// wherever it is defined.
    pub(super) fn value(&self, node: &Node) -> Option<Complex> {
        self.budget.spend(OPERATION)?;
        match node {
            Node::Number(value) => Some(Complex::rational(value)),
            Node::Name(name) => Some(Complex::rational(self.point.get(name)?)),
            Node::Constant(constant) => match constant {
                Constant::Pi => Some(Complex::pi()),
                Constant::E => Complex::integer(1).exp(),
                Constant::I => Some(Complex::i()),
                Constant::Infinity => None,
            },
            Node::Sum(terms) => self.fold(terms, Complex::integer(0), Complex::plus),
            Node::Product(factors) => self.fold(factors, Complex::integer(1), Complex::times),
            Node::Negative(one) => Some(self.value(one)?.negated()),
            Node::Inverse(one) => self.value(one)?.inverse(),
            Node::Percent(one) => self.value(one)?.over(&Complex::integer(100)),
            Node::Quantity(size, unit) if unit.is_degree() => self.value(size),
            Node::Power(base, exponent) => self.power(base, exponent),
            Node::Call(function, arguments) => self.call(*function, arguments),
            _ => None,
        }
    }

    fn fold(
        &self,
        nodes: &[Node],
        start: Complex,
        join: impl Fn(&Complex, &Complex) -> Option<Complex>,
    ) -> Option<Complex> {
        let mut nodes = nodes.iter();
        nodes.try_fold(start, |result, node| join(&result, &self.value(node)?))
    }

    /// Returns whether only real numbers are allowed as values.
    fn only_real(&self) -> bool {
        !self.point.is_empty()
    }

    /// Returns the value of an exponent or index, if it is known to be rational.
    fn fraction(&self, node: &Node) -> Option<BigRational> {
        if node.is_closed() {
            return exact(node, self.budget);
        }
        node.name().and_then(|name| self.point.get(name)).cloned()
    }

    fn power(&self, base: &Node, exponent: &Node) -> Option<Complex> {
        let (value, fraction) = (self.value(base)?, self.fraction(exponent));
        if let Some(fraction) = &fraction {
            if fraction.is_integer() {
                return self.integer_power(&value, fraction);
            }
            if let Some(index) = fraction.denom().to_u32().filter(|index| *index < 1_000) {
                let root = self.root(&value, index)?;
                return self
                    .integer_power(&root, &BigRational::from_integer(fraction.numer().clone()));
            }
        }
        if value.is_negative() && self.only_real() {
            return None;
        }
        self.budget.spend(2 * SERIES)?;
        value.ln()?.times(&self.value(exponent)?)?.exp()
    }

    fn integer_power(&self, base: &Complex, exponent: &BigRational) -> Option<Complex> {
        let exponent = exponent.to_integer().to_i64()?;
        let size = exponent.unsigned_abs();
        let bits = base.magnitude().unsigned_abs().max(1).checked_mul(size)?;
        if bits >= MAX_EXPONENT.unsigned_abs() && !(base.re.is_zero() && base.im.is_zero()) {
            return None;
        }
        self.budget.spend(OPERATION * 64)?;
        let power = if base.re.is_zero() && base.im.is_zero() {
            // Zero to the power of zero is undefined.
            (exponent > 0).then(|| base.clone())?
        } else {
            base.integer_power(size)?
        };
        if exponent < 0 { power.inverse() } else { Some(power) }
    }

    /// Computes the real root of a real number if there is one, else the principal root.
    fn root(&self, value: &Complex, index: u32) -> Option<Complex> {
        if index == 1 {
            return Some(value.clone());
        }
        if value.is_negative() && !index.is_multiple_of(2) {
            return Some(self.root(&value.negated(), index)?.negated());
        }
        if value.is_negative() && self.only_real() {
            return None;
        }
        self.budget.spend(2 * SERIES)?;
        if index == 2 {
            return value.sqrt();
        }
        if value.re.is_zero() && value.im.is_zero() {
            return Some(value.clone());
        }
        value.ln()?.over(&Complex::integer(index.into()))?.exp()
    }

    fn call(&self, function: Function, arguments: &[Node]) -> Option<Complex> {
        self.budget.spend(SERIES)?;
        match (function, arguments) {
            (Function::Root, [index, radicand]) => {
                let index = self.fraction(index)?;
                let index = index.is_integer().then(|| index.to_integer().to_u32())??;
                let value = self.value(radicand)?;
                (1..1_000).contains(&index).then(|| self.root(&value, index))?
            }
            (Function::Log, [base, argument]) => {
                let (base, argument) = (self.value(base)?, self.value(argument)?);
                if self.only_real() && (base.is_negative() || argument.is_negative()) {
                    return None;
                }
                argument.ln()?.over(&base.ln()?)
            }
            (Function::Binomial, [top, chosen]) => self.binomial(top, chosen),
            (Function::Factorial, [node]) => self.factorial(node),
            (function, [argument]) => elementary(function, &self.angle(function, argument)?),
            _ => None,
        }
    }

    /// Returns the argument of a function. Degrees are converted to radians if the argument is an angle.
    fn angle(&self, function: Function, argument: &Node) -> Option<Complex> {
        match argument {
            Node::Quantity(size, unit) if function.takes_angle() && unit.is_degree() => {
                self.value(size)?.times(&Complex::pi())?.over(&Complex::integer(180))
            }
            _ => self.value(argument),
        }
    }

    /// Returns the value of `node`, if it is an integer of at most 20,000.
    fn natural(&self, node: &Node) -> Option<i64> {
        let value = self.value(node)?.real()?;
        let nearest = value.re.nearest()?;
        let whole = Complex::new_whole(&nearest);
        (value.same(&whole)? && nearest <= 20_000.into()).then(|| nearest.to_i64())?
    }

    fn factorial(&self, node: &Node) -> Option<Complex> {
        let top = self.natural(node).filter(|top| *top >= 0)?;
        self.budget.spend(OPERATION * top.unsigned_abs())?;
        (2..=top).try_fold(Complex::integer(1), |product, factor| {
            product.times(&Complex::integer(factor))
        })
    }

    /// Computes `n (n - 1) ... (n - k + 1) / k!`.
    fn binomial(&self, top: &Node, chosen: &Node) -> Option<Complex> {
        let (top, mut chosen) =
            (self.value(top)?, self.natural(chosen).filter(|chosen| *chosen >= 0)?);
        if let Some(whole) =
            top.real().and_then(|top| top.re.nearest()).and_then(|top| top.to_i64())
            && top.same(&Complex::integer(whole)) == Some(true)
            && whole >= 0
        {
            if chosen > whole {
                return Some(Complex::integer(0));
            }
            chosen = chosen.min(whole - chosen);
        }
        self.budget.spend(3 * OPERATION * chosen.unsigned_abs())?;
        (0..chosen).try_fold(Complex::integer(1), |product, step| {
            let factor = top.minus(&Complex::integer(step))?;
            product.times(&factor)?.over(&Complex::integer(step + 1))
        })
    }
}

impl Complex {
    fn new_whole(value: &num_bigint::BigInt) -> Self {
        Self::rational(&BigRational::from_integer(value.clone()))
    }
}

fn elementary(function: Function, x: &Complex) -> Option<Complex> {
    let hyperbolic = || {
        let (plus, minus) = (x.exp()?, x.negated().exp()?);
        let two = Complex::integer(2);
        Some((plus.minus(&minus)?.over(&two)?, plus.plus(&minus)?.over(&two)?))
    };
    match function {
        Function::Exp => x.exp(),
        Function::Sin => Some(x.sin_cos()?.0),
        Function::Cos => Some(x.sin_cos()?.1),
        Function::Tan => {
            let (sin, cos) = x.sin_cos()?;
            sin.over(&cos)
        }
        Function::Cot => {
            let (sin, cos) = x.sin_cos()?;
            cos.over(&sin)
        }
        Function::Sec => x.sin_cos()?.1.inverse(),
        Function::Csc => x.sin_cos()?.0.inverse(),
        Function::Arcsin => x.asin(),
        Function::Arccos => x.acos(),
        Function::Arctan => x.atan(),
        Function::Sinh => Some(hyperbolic()?.0),
        Function::Cosh => Some(hyperbolic()?.1),
        Function::Tanh => {
            let (sinh, cosh) = hyperbolic()?;
            sinh.over(&cosh)
        }
        Function::Abs => x.abs(),
        Function::Floor => x.floor(),
        Function::Ceiling => Some(x.negated().floor()?.negated()),
        Function::Root | Function::Log | Function::Factorial | Function::Binomial => None,
    }
}
