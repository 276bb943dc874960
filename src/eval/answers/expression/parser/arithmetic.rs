//! Parses sums, products and powers.

use num_rational::BigRational;
use num_traits::{One, Signed};

use super::super::lexer::{BAR_OPEN, Kind};
use super::super::tree::{Function, Node};
use super::super::units::Unit;
use super::Parser;

/// Maximum number of successive signs, and of postfix operators of an operand.
const MAX_OPERATORS: usize = 8;

impl Parser {
    /// Parses a sum, or two sums with `\choose` or `\over` between them.
    pub(super) fn sum(&mut self) -> Option<Node> {
        let sum = self.terms()?;
        if self.accept_command("choose") {
            return Some(Node::Call(Function::Binomial, vec![sum, self.terms()?]));
        }
        if self.accept_command("over") {
            return Some(Node::Product(vec![sum, Node::Inverse(self.terms()?.into())]));
        }
        Some(sum)
    }

    fn terms(&mut self) -> Option<Node> {
        let mut terms = Vec::new();
        loop {
            let signs = self.signs()?;
            let term = self.term()?;
            terms.push(signed(term, &signs));
            if !matches!(self.symbol(), Some('+' | '-' | '±' | '∓')) {
                break;
            }
        }
        match terms.len() {
            1 => terms.pop(),
            _ => Some(Node::Sum(terms)),
        }
    }

    /// Parses the signs before a term. Returns `None` if there are too many.
    fn signs(&mut self) -> Option<Vec<char>> {
        let mut signs = Vec::new();
        while let Some(sign @ ('+' | '-' | '±' | '∓')) = self.symbol() {
            signs.push(sign);
            self.at += 1;
        }
        (signs.len() <= MAX_OPERATORS).then_some(signs)
    }

    fn term(&mut self) -> Option<Node> {
        let mut factors = vec![self.power()?];
        loop {
            if self.accept('*') || self.accept_letter_as_times() {
                let signs = self.signs()?;
                let factor = self.power()?;
                factors.push(signed(factor, &signs));
            } else if self.accept('/') {
                let signs = self.signs()?;
                let factor = self.power()?;
                factors.push(Node::Inverse(signed(factor, &signs).into()));
            } else if self.starts_factor() {
                if !self.number_may_follow() {
                    return None;
                }
                factors.push(self.power()?);
            } else {
                break;
            }
        }
        match factors.len() {
            1 => factors.pop(),
            _ => Some(Node::Product(factors)),
        }
    }

    /// Returns whether the next token is not a number, or is a number that may be a factor without an operator: after a
    /// closing bracket, or the base of a power.
    pub(super) fn number_may_follow(&self) -> bool {
        let Some(Kind::Number(_)) = self.kind() else {
            return true;
        };
        let before = |back: usize| self.at.checked_sub(back).and_then(|at| self.tokens.get(at));
        let is = |back: usize, symbol: char| before(back).is_some_and(|token| token.is(symbol));
        let is_after_bracket = [')', '}', '!'].into_iter().any(|symbol| is(1, symbol));
        let spaced = self.peek().is_some_and(|token| token.spaced);
        let is_power = self.kind_at(1) == Some(&Kind::Symbol('^'));
        // 2^3 5^2, x 2^n
        is_after_bracket || (is_power && (!self.last_is_number() || (is(2, '^') && spaced)))
    }

    /// Adds a following fraction to an integer: `2\frac{1}{2}`, `2 1/2`.
    fn with_fraction(&mut self, node: Node) -> Node {
        let Node::Number(whole) = &node else {
            return node;
        };
        if !whole.is_integer() || !self.last_is_number() {
            return node;
        }
        let fraction = if self.next_is_command("frac") {
            self.digits_of_fraction()
        } else {
            match (self.kind_at(0), self.kind_at(1), self.kind_at(2)) {
                (
                    Some(Kind::Number(numerator)),
                    Some(Kind::Symbol('/')),
                    Some(Kind::Number(denominator)),
                ) => Some((numerator.clone(), denominator.clone(), 3)),
                _ => None,
            }
        };
        let part = fraction.and_then(|(numerator, denominator, tokens)| {
            let (numerator, denominator) = (decimal(&numerator)?, decimal(&denominator)?);
            let is_proper = numerator.is_integer()
                && denominator.is_integer()
                && numerator.is_positive()
                && numerator < denominator;
            is_proper.then(|| (numerator / denominator, tokens))
        });
        match part {
            Some((part, tokens)) => {
                self.at += tokens;
                Node::Number(whole + part)
            }
            None => node,
        }
    }

    /// Returns the numerator and denominator of the next `\frac`, if they are digits, and the number of its tokens.
    fn digits_of_fraction(&self) -> Option<(String, String, usize)> {
        let argument =
            |at: usize| match (self.kind_at(at)?, self.kind_at(at + 1), self.kind_at(at + 2)) {
                (Kind::Number(digits), ..) => Some((digits.clone(), at + 1)),
                (Kind::Symbol('{'), Some(Kind::Number(digits)), Some(Kind::Symbol('}'))) => {
                    Some((digits.clone(), at + 3))
                }
                _ => None,
            };
        let (numerator, end) = argument(1)?;
        // \frac12
        if matches!(self.kind_at(1), Some(Kind::Number(_))) && numerator.len() > 1 {
            let digits = numerator.split_at_checked(1);
            let (numerator, denominator) = digits.filter(|(_, rest)| rest.len() == 1)?;
            return Some((numerator.to_string(), denominator.to_string(), end));
        }
        let (denominator, end) = argument(end)?;
        let is_complete =
            matches!(self.kind_at(end - 1), Some(Kind::Symbol('}'))) || denominator.len() == 1;
        is_complete.then_some((numerator, denominator, end))
    }

    fn kind_at(&self, ahead: usize) -> Option<&Kind> {
        self.tokens.get(self.at + ahead).map(|token| &token.kind)
    }

    /// Returns whether the last consumed token is a number, unlike in `3!` and `(3)`.
    fn last_is_number(&self) -> bool {
        let last = self.at.checked_sub(1).and_then(|last| self.tokens.get(last));
        last.is_some_and(|token| matches!(token.kind, Kind::Number(_)))
    }

    /// Returns whether the next token begins a factor without an operator before it.
    pub(super) fn starts_factor(&self) -> bool {
        match self.kind() {
            Some(Kind::Number(_)) => true,
            Some(Kind::Letters(_) | Kind::Word(_)) => self.starts_name(),
            Some(Kind::Command(name)) => {
                !name.starts_with("end")
                    && !matches!(
                        name.as_str(),
                        "pmod" | "bmod" | "mod" | "choose" | "over" | "rfloor" | "rceil"
                    )
            }
            Some(Kind::Symbol('|')) => self.bars == 0 && !self.in_set,
            Some(Kind::Symbol('(')) => !self.is_modulo(),
            Some(Kind::Symbol('[')) => !self.closes_interval(),
            Some(Kind::Symbol(symbol)) => {
                matches!(*symbol, '{' | '[' | BAR_OPEN | '$' | '€' | '£' | '¥' | '₹')
            }
            None => false,
        }
    }

    /// Returns whether the next token, a `[`, closes a half-open interval, as in `[0, 1[`.
    fn closes_interval(&self) -> bool {
        let after = self.tokens.get(self.at + 1).map(|token| &token.kind);
        matches!(after, None | Some(Kind::Symbol('∪' | '∩' | ',' | ';' | ')' | '}')))
    }

    /// Returns whether the next tokens are `(mod`.
    fn is_modulo(&self) -> bool {
        match self.tokens.get(self.at + 1).map(|token| &token.kind) {
            Some(Kind::Letters(text) | Kind::Word(text) | Kind::Command(text)) => text == "mod",
            _ => false,
        }
    }

    fn starts_name(&self) -> bool {
        let Some(letters) = self.letters() else {
            return false;
        };
        !matches!(
            letters,
            "and"
                | "or"
                | "mod"
                | "in"
                | "percent"
                | "percentage"
                | "pct"
                | "U"
                | "union"
                | "squared"
                | "cubed"
                | "factorial"
        ) && !self.starts_unit()
    }

    /// Parses an atom with its postfix operators and exponents.
    pub(super) fn power(&mut self) -> Option<Node> {
        let atom = self.atom()?;
        let mut node = self.with_fraction(atom);
        for _ in 0..MAX_OPERATORS {
            node = if self.accept('!') || self.accept_word(&["factorial"]) {
                Node::Call(Function::Factorial, vec![node])
            } else if self.accept('%') || self.accept_word(&["percent", "percentage", "pct"]) {
                Node::Percent(node.into())
            } else if self.accept('°') || self.degree_above() {
                let scale = self.temperature_scale();
                Node::Quantity(node.into(), Unit::multiple(scale, BigRational::one()))
            } else if self.accept_word(&["squared"]) {
                Node::Power(node.into(), Node::integer(2).into())
            } else if self.accept_word(&["cubed"]) {
                Node::Power(node.into(), Node::integer(3).into())
            } else if let Some(name) = node.name().filter(|_| self.prime_above()) {
                let name = format!("{name}'");
                self.at += if self.kind_at(1) == Some(&Kind::Symbol('{')) { 4 } else { 2 };
                Node::Name(name)
            } else if self.accept('^') {
                let exponent = self.nested(Self::exponent)?;
                Node::Power(node.into(), exponent.into())
            } else {
                return Some(node);
            };
        }
        None
    }

    /// Returns whether `^\prime` or `^{\prime}` comes next.
    fn prime_above(&self) -> bool {
        let is = |ahead: usize, symbol: char| {
            self.tokens.get(self.at + ahead).is_some_and(|token| token.is(symbol))
        };
        is(0, '^') && (is(1, '\'') || (is(1, '{') && is(2, '\'') && is(3, '}')))
    }

    /// Parses the letter after a degree sign, and returns the unit: `celsius`, `fahrenheit` or `degree`.
    fn temperature_scale(&mut self) -> &'static str {
        for (letter, scale) in [("C", "celsius"), ("F", "fahrenheit")] {
            if self.accept_word(&[letter]) {
                return scale;
            }
        }
        "degree"
    }

    /// Consumes the x of `1.5 x 10^3`, and returns whether there was one.
    fn accept_letter_as_times(&mut self) -> bool {
        let is_power_of_ten = matches!(self.kind_at(1), Some(Kind::Number(ten)) if ten == "10")
            && self.kind_at(2) == Some(&Kind::Symbol('^'));
        is_power_of_ten && self.last_is_number() && self.accept_word(&["x"])
    }

    /// Consumes `^\circ` or `^{\circ}`, and returns whether there was one.
    fn degree_above(&mut self) -> bool {
        if !self.next_is('^') {
            return false;
        }
        let at = |ahead: usize| self.tokens.get(self.at + ahead);
        let is_circle =
            |ahead: usize| at(ahead).is_some_and(|token| token.is_command("circ") || token.is('°'));
        let is_braced =
            at(1).is_some_and(|token| token.is('{')) && at(3).is_some_and(|token| token.is('}'));
        let length = if is_circle(1) {
            2
        } else if is_braced && is_circle(2) {
            4
        } else {
            0
        };
        self.at += length;
        length > 0
    }

    /// Parses an exponent, which may have an exponent of its own: `2^3^2`.
    fn exponent(&mut self) -> Option<Node> {
        let signs = self.signs()?;
        let base = match self.kind()? {
            Kind::Letters(_) | Kind::Word(_) => self.first_letter()?,
            _ => self.atom()?,
        };
        let node = if self.accept('^') {
            let exponent = self.nested(Self::exponent)?;
            Node::Power(base.into(), exponent.into())
        } else {
            base
        };
        Some(signed(node, &signs))
    }
}

/// Applies the signs before a term to `node`.
fn signed(node: Node, signs: &[char]) -> Node {
    let is_negative = signs.iter().filter(|sign| **sign == '-').count() % 2 == 1;
    let node = match node {
        Node::Number(value) if is_negative => Node::Number(-value),
        node if is_negative => Node::Negative(node.into()),
        node => node,
    };
    if signs.contains(&'∓') {
        Node::PlusMinus(Node::Negative(node.into()).into())
    } else if signs.contains(&'±') {
        Node::PlusMinus(node.into())
    } else {
        node
    }
}

/// Returns the value of digits with an optional decimal point and an optional exponent.
pub(super) fn decimal(text: &str) -> Option<BigRational> {
    /// Maximum number of digits, and maximum exponent.
    const MAX_DIGITS: usize = 1_000;
    let (digits, power) = text.split_once('e').unwrap_or((text, "0"));
    let power: i32 =
        power.parse().ok().filter(|power: &i32| power.unsigned_abs() as usize <= MAX_DIGITS)?;
    let (whole, part) = digits.split_once('.').unwrap_or((digits, ""));
    if digits.len() > MAX_DIGITS {
        return None;
    }
    let number: num_bigint::BigInt = format!("{whole}{part}").parse().ok()?;
    let ten = BigRational::from_integer(10.into());
    let scale = power - i32::try_from(part.len()).ok()?;
    Some(BigRational::from_integer(number) * num_traits::pow::Pow::pow(&ten, scale))
}
