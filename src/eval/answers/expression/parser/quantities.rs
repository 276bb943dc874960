//! Parses units after a value, and currencies before or after it.

use super::super::lexer::Kind;
use super::super::tree::Node;
use super::super::units::{ADJECTIVES, Unit};
use super::Parser;

impl Parser {
    pub(super) fn quantity(&mut self) -> Option<Node> {
        let before = self.currency.take();
        let value = self.sum()?;
        let currency = std::mem::replace(&mut self.currency, before);
        let start = self.at;
        let unit = match self.unit() {
            Some(unit) => Some(unit),
            None => {
                self.at = start;
                self.accept_currency()
            }
        };
        Some(match (unit, currency) {
            (Some(unit), _) | (None, Some(unit)) => Node::Quantity(value.into(), unit),
            (None, None) => value,
        })
    }

    /// Consumes a currency sign, and returns the currency.
    pub(super) fn accept_currency(&mut self) -> Option<Unit> {
        let name = match self.symbol()? {
            '$' => "dollar",
            '€' => "euro",
            '£' => "sterling",
            '¥' => "yen",
            '₹' => "rupee",
            _ => return None,
        };
        self.at += 1;
        Some(Unit::multiple(name, num_traits::One::one()))
    }

    /// Returns whether a unit comes next.
    pub(super) fn starts_unit(&self) -> bool {
        let word = match self.kind() {
            Some(Kind::Letters(letters)) => self.unit_from_letters(letters),
            Some(Kind::Word(word)) => Unit::from_name(word, true),
            _ => None,
        };
        word.is_some() || self.prefix().is_some() || self.adjective()
    }

    /// Returns the unit that plain letters name. "in" is a unit only at the end of the answer.
    fn unit_from_letters(&self, letters: &str) -> Option<Unit> {
        let is_last = self.at + 1 == self.tokens.len();
        Unit::from_name(letters, false).filter(|_| letters != "in" || is_last)
    }

    /// Returns whether an adjective and a unit come next.
    fn adjective(&self) -> bool {
        let next = self.tokens.get(self.at + 1).map(|token| &token.kind);
        let unit = match next {
            Some(Kind::Letters(letters)) => Unit::from_name(letters, false),
            Some(Kind::Word(word)) => Unit::from_name(word, true),
            _ => None,
        };
        unit.is_some() && self.letters().is_some_and(|word| ADJECTIVES.contains(&word))
    }

    /// Returns the exponent that the next word, "square" or "cubic", means.
    fn prefix(&self) -> Option<i32> {
        match self.letters()?.to_lowercase().as_str() {
            "square" | "sq" => Some(2),
            "cubic" | "cu" => Some(3),
            _ => None,
        }
    }

    /// Parses a unit: `cm^2`, `square feet`, `miles per hour`, `m/s^2`.
    fn unit(&mut self) -> Option<Unit> {
        let mut unit = self.simple_unit()?;
        for _ in 0..4 {
            let start = self.at;
            let power = if self.accept('/') || self.accept_word(&["per", "a", "an", "each"]) {
                -1
            } else if self.accept('*') || self.accept('-') || self.starts_unit() {
                1
            } else {
                break;
            };
            match self.simple_unit() {
                Some(next) => unit = unit.times(&next, power),
                None => {
                    self.at = start;
                    break;
                }
            }
        }
        Some(unit)
    }

    fn simple_unit(&mut self) -> Option<Unit> {
        let prefix = self.prefix();
        self.at += usize::from(prefix.is_some());
        self.accept('.');
        self.at += usize::from(self.adjective());
        let unit = match self.kind()? {
            Kind::Letters(letters) => self.unit_from_letters(letters)?,
            Kind::Word(word) => Unit::from_name(word, true)?,
            _ => return None,
        };
        self.at += 1;
        let power = self.unit_power();
        Some(unit.raised(prefix.or(power).unwrap_or(1)))
    }

    /// Parses the exponent of a unit: `^2`, `^{3}`, "squared".
    fn unit_power(&mut self) -> Option<i32> {
        for (word, power) in [("squared", 2), ("cubed", 3)] {
            if self.accept_word(&[word]) {
                return Some(power);
            }
        }
        let braced = usize::from(self.tokens.get(self.at + 1)?.is('{'));
        let digits = match &self.tokens.get(self.at + 1 + braced)?.kind {
            Kind::Number(digits) => digits,
            _ => return None,
        };
        let power = digits.parse().ok().filter(|power| (1..=4).contains(power))?;
        let is_closed =
            braced == 0 || self.tokens.get(self.at + 3).is_some_and(|token| token.is('}'));
        if !(self.next_is('^') && is_closed) {
            return None;
        }
        self.at += 2 + 2 * braced;
        Some(power)
    }
}
