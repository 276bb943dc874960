//! Splits text into tokens: numbers, words and signs. Markup of LaTeX and Markdown is removed.

use num_bigint::BigInt;
use num_rational::BigRational;

use super::numeral::{self, Numeral};
use super::words::is_currency_code;
use crate::eval::answers::fraction::vulgar_fraction;
use crate::eval::answers::rational_value;

/// A token of a text.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Token<'a> {
    pub(super) kind: Kind<'a>,
    /// Whether there is white space before the token.
    pub(super) spaced: bool,
}

/// The kind and value of a token.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Kind<'a> {
    /// A number in digits.
    Number(Numeral),
    /// A fraction in one character: `½`.
    Vulgar(BigRational),
    /// A fraction or root: `\frac{1}{2}`, `\sqrt{16}`. Its value, if it has one, and whether it is a fraction of integers.
    Formula(Option<BigRational>, bool),
    /// An exponent in superscript digits: `²`.
    Raised(i32),
    Word(&'a str),
    /// A currency sign. `$` may also open or close a formula.
    Currency(char),
    Percent,
    Degree,
    /// An operator or an inequality. A power is `^`; the different dashes are kept.
    Operator(char),
    /// An equals sign or a similar relation: `=`, `≈`, `→`.
    Equals,
    Open,
    Close,
    Comma,
    Semicolon,
    Colon,
    /// A full stop.
    Stop,
    /// A question mark.
    Question,
    Quote,
    /// The end of a line.
    Break,
    /// Another LaTeX command or symbol, without a meaning here: `\pi`.
    Symbol,
}

/// Splits `text` into tokens, in one pass.
pub(super) fn tokens(text: &str) -> Vec<Token<'_>> {
    let mut lexer = Lexer { text, at: 0, spaced: false, tokens: Vec::new() };
    while let Some(next) = text[lexer.at..].chars().next() {
        lexer.step(next);
    }
    lexer.tokens
}

/// The state of [`tokens`].
pub(super) struct Lexer<'a> {
    text: &'a str,
    /// Position of the next character.
    at: usize,
    /// Whether there is white space before it.
    spaced: bool,
    tokens: Vec<Token<'a>>,
}

impl<'a> Lexer<'a> {
    pub(super) fn rest(&self) -> &'a str {
        &self.text[self.at..]
    }

    fn last(&self) -> Option<&Kind<'a>> {
        self.tokens.last().map(|token| &token.kind)
    }

    /// Returns the character before the current position.
    fn previous(&self) -> Option<char> {
        self.text[..self.at].chars().next_back()
    }

    /// Adds a token that is `length` bytes long.
    pub(super) fn push(&mut self, kind: Kind<'a>, length: usize) {
        let spaced = self.spaced;
        self.tokens.push(Token { kind, spaced });
        self.at += length;
        self.spaced = false;
    }

    /// Skips markup that does not separate tokens.
    pub(super) fn skip(&mut self, length: usize) {
        self.at += length;
    }

    /// Skips white space, or markup that separates tokens like white space.
    pub(super) fn space(&mut self, length: usize) {
        self.at += length;
        self.spaced = true;
    }

    /// Reads the token or markup that begins with the character `next`.
    fn step(&mut self, next: char) {
        let length = next.len_utf8();
        let digit = |c: Option<char>| c.is_some_and(|c| c.is_ascii_digit());
        let letter_or_digit = |c: Option<char>| c.is_some_and(char::is_alphanumeric);
        match next {
            '\n' => self.push(Kind::Break, length),
            '.' if digit(self.rest().chars().nth(1)) && !letter_or_digit(self.previous()) => {
                self.number();
            }
            _ if next.is_ascii_digit() => self.number(),
            _ if next.is_alphabetic() && next != 'º' => self.word(),
            _ if next.is_whitespace() || next == '~' => self.space(length),
            '\\' => self.command(),
            '*' => self.asterisks(),
            '_' => self.underscore(),
            '<' => self.angle(),
            '√' => self.root(length),
            // The bar of an absolute value of a negative number. Other bars belong to a table.
            '|' if self.rest()[1..].trim_start_matches('{').starts_with(['-', '\u{2212}']) => {
                self.push(Kind::Symbol, length);
            }
            // The end of an amount in rupees: Rs. 500/-
            '/' if matches!(self.last(), Some(Kind::Number(_)))
                && self.rest().starts_with("/-")
                && !digit(self.rest().chars().nth(2)) =>
            {
                self.space(2);
            }
            // The mark of a quoted line in Markdown.
            '>' if matches!(self.last(), None | Some(Kind::Break))
                && !digit(self.rest().chars().nth(1))
                && !(self.last().is_none()
                    && self.rest()[1..].trim_start().starts_with(|c: char| c.is_ascii_digit())) =>
            {
                self.skip(length);
            }
            _ => match sign(self.rest()) {
                Some((kind, length)) => self.push(kind, length),
                // Braces, backticks and similar marks do not separate tokens.
                None if "{}`#&\u{200b}\u{2061}".contains(next) => self.skip(length),
                None => self.space(length),
            },
        }
    }

    fn number(&mut self) {
        let (number, length) = numeral::read(self.rest());
        self.push(Kind::Number(number), length);
    }

    /// Reads a word with the digits that belong to it: `eggs`, `B12`, `o'clock`, `x_{2}`.
    fn word(&mut self) {
        let rest = self.rest();
        let first = rest.chars().next().unwrap_or_default();
        let after_number = !self.spaced && matches!(self.last(), Some(Kind::Number(_)));
        let second = rest[first.len_utf8()..].chars().next();
        if after_number && "xX".contains(first) && second.is_some_and(|c| c.is_ascii_digit()) {
            return self.push(Kind::Operator('×'), 1);
        }
        // Apostrophes and ampersands belong to words such as o'clock and M&M's.
        let letters = |c: char| c.is_alphabetic() || "'\u{2019}&".contains(c);
        let mut end = rest.find(|c| !letters(c)).unwrap_or(rest.len());
        end = rest[..end].trim_end_matches(['\'', '\u{2019}', '&']).len();
        let takes_digits = is_western(rest[..end].chars().next_back());
        if takes_digits && !is_currency_code(&rest[..end]) {
            let name = |c: char| c.is_ascii_digit() || c.is_alphabetic() && is_western(Some(c));
            end = rest[end..].find(|c| !name(c)).map_or(rest.len(), |more| end + more);
            end += subscript(&rest[end..]);
        }
        self.push(Kind::Word(&rest[..end]), end);
    }

    /// Reads asterisks: `*` between operands is a multiplication, `**` a power, and others are Markdown.
    fn asterisks(&mut self) {
        let rest = self.rest();
        let count = rest.bytes().take_while(|byte| *byte == b'*').count();
        let next = rest[count..].chars().next();
        let after_operand = self.previous().is_some_and(|c| c.is_ascii_digit() || ")}".contains(c));
        let spaced_after = next.is_none_or(char::is_whitespace);
        let inside_line = !matches!(self.last(), None | Some(Kind::Break));
        if count == 2 && after_operand && next.is_some_and(|c| c.is_ascii_digit()) {
            return self.push(Kind::Operator('^'), count);
        }
        let before = self.spaced || self.previous().is_none_or(char::is_whitespace);
        let begins_operand = next.is_some_and(|c| !".,;:!?)]".contains(c));
        if count == 1 && inside_line && before == spaced_after && begins_operand {
            return self.push(Kind::Operator('×'), count);
        }
        self.skip(count);
    }

    /// Reads an underscore: a subscript as in `12_8` and `x_{2}`, or Markdown.
    fn underscore(&mut self) {
        let length = subscript(self.rest());
        if length > 0 && !self.spaced {
            if let Some(Token { kind: Kind::Number(number), .. }) = self.tokens.last_mut() {
                (number.value, number.in_euros) = (None, None);
                return self.skip(length);
            }
            if matches!(self.last(), Some(Kind::Word(_) | Kind::Symbol | Kind::Close)) {
                return self.skip(length);
            }
        }
        self.skip(1);
    }

    /// Skips an annotation of GSM8K, `<<9*2=18>>`, or a tag, or reads a less-than sign.
    fn angle(&mut self) {
        let rest = self.rest();
        let near = &rest[..rest.floor_char_boundary(80)];
        let annotation = near.find(">>").filter(|_| rest.starts_with("<<"));
        if let Some(end) = annotation {
            return self.skip(end + 2);
        }
        let is_tag = rest[1..].starts_with(|c: char| c.is_ascii_alphabetic() || "/|".contains(c));
        match near.find('>') {
            Some(end) if is_tag => self.space(end + 1),
            _ => self.push(Kind::Operator('<'), 1),
        }
    }

    /// Reads `√16` or `√(16)`.
    fn root(&mut self, length: usize) {
        let rest = &self.rest()[length..];
        let digits = rest.bytes().take_while(u8::is_ascii_digit).count();
        let closing = rest
            .strip_prefix('(')
            .and_then(|inner| inner[..inner.floor_char_boundary(40)].find(')'));
        let (inner, whole) = match closing {
            Some(end) => (&rest[1..=end], end + 2),
            None => (&rest[..digits], digits),
        };
        let value = rational_value(&format!("\\sqrt{{{inner}}}"));
        self.push(Kind::Formula(value, false), length + whole);
    }
}

/// Returns whether a letter can be part of a name with digits: `B12`, but not `是18`.
fn is_western(letter: Option<char>) -> bool {
    letter.is_some_and(|letter| letter < '\u{400}')
}

/// Returns the length of the subscript at the start of `text`, or 0 if there is none.
fn subscript(text: &str) -> usize {
    let Some(rest) = text.strip_prefix('_') else {
        return 0;
    };
    if let Some(inner) = rest.strip_prefix('{') {
        let near = &inner[..inner.floor_char_boundary(40)];
        return near.find('}').map_or(0, |end| end + 3);
    }
    let end = rest.find(|c: char| !c.is_ascii_alphanumeric()).unwrap_or(rest.len());
    if end == 0 { 0 } else { 1 + end }
}

/// Reads the sign at the start of `text`. Returns its kind and its length.
fn sign<'a>(text: &str) -> Option<(Kind<'a>, usize)> {
    const LONG: [(&str, char); 6] =
        [("=>", '='), ("==", '='), ("->", '='), ("<=", '≤'), (">=", '≥'), ("!=", '≠')];
    if let Some((form, sign)) = LONG.iter().find(|(form, _)| text.starts_with(form)) {
        let kind = if *sign == '=' { Kind::Equals } else { Kind::Operator(*sign) };
        return Some((kind, form.len()));
    }
    let next = text.chars().next()?;
    let kind = match next {
        '=' | '≈' | '≃' | '≅' | '→' | '⇒' | '⟹' => Kind::Equals,
        '-' | '\u{2212}' | '–' | '—' | '\u{2010}' | '\u{2011}' => Kind::Operator(next),
        '+' | '/' | '^' | '!' | '<' | '>' | '≤' | '≥' | '≠' | '±' => Kind::Operator(next),
        '×' | '·' | '⋅' | '∙' | '✕' => Kind::Operator('×'),
        '÷' => Kind::Operator('÷'),
        '\u{2044}' => Kind::Operator('/'),
        '$' | '€' | '£' | '¥' | '₹' | '₩' | '₽' | '₱' => Kind::Currency(next),
        '%' => Kind::Percent,
        '°' | 'º' => Kind::Degree,
        '¢' => Kind::Word("cents"),
        '(' | '[' | '【' | '「' => Kind::Open,
        ')' | ']' | '】' | '」' => Kind::Close,
        ',' | '、' => Kind::Comma,
        ';' => Kind::Semicolon,
        ':' => Kind::Colon,
        '.' | '。' => Kind::Stop,
        '?' => Kind::Question,
        '"' | '\'' | '“' | '”' | '‘' | '’' | '|' => Kind::Quote,
        '∞' | '‰' => Kind::Symbol,
        _ => {
            return raised(text)
                .or_else(|| vulgar(next).map(|value| (Kind::Vulgar(value), next.len_utf8())));
        }
    };
    Some((kind, next.len_utf8()))
}

/// Maximum number of digits of an exponent that are read.
const MAX_EXPONENT_DIGITS: usize = 4;

/// Reads an exponent in superscript digits. Returns its kind and its length.
fn raised<'a>(text: &str) -> Option<(Kind<'a>, usize)> {
    const DIGITS: &str = "⁰¹²³⁴⁵⁶⁷⁸⁹";
    let (sign, digits) = text.strip_prefix('⁻').map_or(("", text), |rest| ("-", rest));
    let value = |c: char| DIGITS.chars().position(|digit| digit == c);
    let written: String = digits
        .chars()
        .map_while(value)
        .take(MAX_EXPONENT_DIGITS)
        .map(|digit| digit.to_string())
        .collect();
    let end: usize = digits.chars().take(written.len()).map(char::len_utf8).sum();
    let power = format!("{sign}{written}").parse().ok()?;
    Some((Kind::Raised(power), text.len() - digits.len() + end))
}

fn vulgar(sign: char) -> Option<BigRational> {
    let (numerator, denominator) = vulgar_fraction(sign)?;
    Some(BigRational::new(BigInt::from(numerator), BigInt::from(denominator)))
}
