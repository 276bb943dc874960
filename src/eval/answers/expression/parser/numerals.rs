//! Parses numbers in another base, and repeating decimals.

use num_rational::BigRational;
use num_traits::{One, Pow};

use super::super::lexer::Kind;
use super::super::tree::Node;
use super::Parser;
use super::arithmetic::decimal;

/// Maximum number of tokens of the digits of a number in another base.
const MAX_TOKENS: usize = 20;

impl Parser {
    fn is_symbol(&self, at: usize, symbol: char) -> bool {
        self.tokens.get(at).is_some_and(|token| token.is(symbol))
    }

    fn is_word(&self, at: usize, word: &str) -> bool {
        let kind = self.tokens.get(at).map(|token| &token.kind);
        matches!(kind, Some(Kind::Letters(text) | Kind::Word(text)) if text == word)
    }

    /// Returns whether the next bracket contains only the digits of a number with its base as a subscript: `(12)_8`.
    pub(super) fn based_group(&self) -> bool {
        let Some((_, end)) = self.based_digits(self.at + 1) else {
            return false;
        };
        let close = if self.next_is('(') { ')' } else { '}' };
        self.is_symbol(end, close) && self.is_symbol(end + 1, '_')
    }

    /// Returns the digits from the index `start` on, with capital letters for digits from ten on, and the index after them.
    fn based_digits(&self, start: usize) -> Option<(String, usize)> {
        let mut digits = String::new();
        let mut at = start;
        while let Some(token) = self.tokens.get(at).filter(|_| at < start + MAX_TOKENS) {
            match &token.kind {
                Kind::Number(_) | Kind::Letters(_) | Kind::Word(_)
                    if token.spaced && at > start =>
                {
                    break;
                }
                Kind::Number(text) => digits.push_str(text),
                Kind::Letters(text) | Kind::Word(text)
                    if text.chars().all(|c| c.is_ascii_uppercase()) =>
                {
                    digits.push_str(text);
                }
                _ => break,
            }
            at += 1;
        }
        let is_number = digits.contains(|c: char| c.is_ascii_digit());
        is_number.then_some((digits, at))
    }

    /// Parses digits from the index `start` on, and their base as a subscript or in words: `12_8`, `(2A)_{16}`, `12 base 8`.
    pub(super) fn based(&mut self, start: usize) -> Option<Node> {
        let (digits, end) = self.based_digits(start)?;
        // If the digits are in brackets, the closing bracket is skipped.
        let after = end + usize::from(start > self.at);
        let before = std::mem::replace(&mut self.at, after);
        let base = if self.next_is('_') {
            self.at += 1;
            self.index().and_then(|index| parse_base(&index))
        } else {
            self.base_in_words()
        };
        let is_digit = |c: char, base: u32| c.is_ascii_digit() || c.is_digit(base);
        let base = base.filter(|base| digits.chars().all(|c| c == '.' || is_digit(c, *base)));
        let Some(base) = base else {
            self.at = before;
            return None;
        };
        if base == 10 {
            return decimal(&digits).map(Node::Number);
        }
        Some(Node::Based(digits.trim_start_matches('0').to_string(), base))
    }

    /// Parses `base 8`, `in base 8` or `(base 8)`.
    fn base_in_words(&mut self) -> Option<u32> {
        let bracket = usize::from(self.next_is('('));
        let word = self.at + bracket + usize::from(self.is_word(self.at + bracket, "in"));
        let number = match self.tokens.get(word + 1).map(|token| &token.kind) {
            Some(Kind::Number(text) | Kind::Letters(text) | Kind::Word(text)) => text,
            _ => return None,
        };
        let is_closed = bracket == 0 || self.is_symbol(word + 2, ')');
        let base = parse_base(number).filter(|_| is_closed && self.is_word(word, "base"))?;
        self.at = word + 2 + bracket;
        Some(base)
    }

    /// Parses repeating digits after the other `digits` of a number: `0.1\overline{6}`, `0.\bar3`, `0.\dot{3}`, `0.(3)`.
    pub(super) fn repeating(&mut self, digits: &str) -> Option<Node> {
        let point = usize::from(!digits.contains('.'));
        if point == 1 && !self.is_symbol(self.at, '.') {
            return None;
        }
        let at = self.at + point;
        let mark = self.tokens.get(at)?;
        let is_dot = mark.is_command("dot");
        let (start, brackets) = match () {
            () if point == 1 && mark.is('(') => (at + 1, 1),
            () if (mark.is_command("overline") || is_dot) && self.is_symbol(at + 1, '{') => {
                (at + 2, 1)
            }
            () if mark.is_command("overline") || is_dot => (at + 1, 0),
            () => return None,
        };
        let repeated = match &self.tokens.get(start)?.kind {
            // Without braces, the mark covers one digit.
            Kind::Number(repeated) if brackets == 1 || repeated.len() == 1 => repeated,
            _ => return None,
        };
        let close = if mark.is('(') { ')' } else { '}' };
        let max_digits = if is_dot { 1 } else { 100 };
        let is_valid = repeated.bytes().all(|c| c.is_ascii_digit()) && repeated.len() <= max_digits;
        if !is_valid || brackets == 1 && !self.is_symbol(start + 1, close) {
            return None;
        }
        let ten = BigRational::from_integer(10.into());
        let places = digits.split_once('.').map_or(0, |(_, part)| part.len());
        let nines = Pow::pow(&ten, repeated.len()) - BigRational::one();
        let part = decimal(repeated)? / nines / Pow::pow(&ten, places);
        let value = decimal(digits)? + part;
        self.at = start + 1 + brackets;
        Some(Node::Number(value))
    }
}

/// Parses a base in digits or in a word: `16`, `eight`.
fn parse_base(index: &str) -> Option<u32> {
    const WORDS: [&str; 9] =
        ["two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"];
    let index = index.trim_matches(['(', ')']).trim_start_matches("base");
    let word = WORDS.iter().position(|word| *word == index.to_lowercase());
    let base = match word {
        Some(at) => u32::try_from(at + 2).ok(),
        None => index.parse().ok(),
    };
    base.filter(|base| (2..=36).contains(base))
}
