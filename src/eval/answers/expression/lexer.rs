//! Splits an answer, in LaTeX or in plain text, into tokens.

use super::symbols::{
    COMMAND_SYMBOLS, IGNORED_COMMANDS, INVISIBLE_COMMANDS, SPACES, UPRIGHT_COMMANDS,
    character_symbol, superscript,
};
use crate::eval::answers::fraction::vulgar_fraction;

/// The kind and text of a token.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// Digits, possibly with a decimal point and an exponent.
    Number(String),
    /// Adjacent letters of plain text or of a formula.
    Letters(String),
    /// Adjacent letters inside `\text{}`, `\mathrm{}` and the like.
    Word(String),
    /// A command without its backslash. Commands with the same meaning have the same name. `begin pmatrix` begins an
    /// environment.
    Command(String),
    /// Any other sign. Signs with the same meaning are the same character.
    Symbol(char),
}

/// A token, and whether there is a space before it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Token {
    pub(super) kind: Kind,
    pub(super) spaced: bool,
}

/// `\{` and `\}`, while `{` and `}` only group.
pub(super) const SET_OPEN: char = '⦃';
pub(super) const SET_CLOSE: char = '⦄';
/// Bars of an absolute value that are known to open or to close it, unlike `|`.
pub(super) const BAR_OPEN: char = '⟦';
pub(super) const BAR_CLOSE: char = '⟧';
/// A comma between thousands: `{,}` or `,\!`.
pub(super) const THOUSANDS: char = '‚';
/// `\\`, the end of a row.
pub(super) const ROW_END: char = '⏎';

impl Token {
    pub(super) fn is(&self, symbol: char) -> bool {
        self.kind == Kind::Symbol(symbol)
    }

    /// Returns the token as text, without a backslash. Symbols that cannot be part of the head of a function are empty.
    pub(super) fn text(&self) -> &str {
        match &self.kind {
            Kind::Number(text) | Kind::Letters(text) | Kind::Word(text) | Kind::Command(text) => {
                text
            }
            Kind::Symbol(symbol) => symbol_text(*symbol),
        }
    }

    pub(super) fn is_command(&self, name: &str) -> bool {
        matches!(&self.kind, Kind::Command(command) if command == name)
    }
}

/// Returns the text of a symbol that can be part of the head of a function, else an empty text.
fn symbol_text(symbol: char) -> &'static str {
    match symbol {
        '(' => "(",
        ')' => ")",
        '{' => "{",
        '}' => "}",
        '_' => "_",
        '^' => "^",
        '-' => "-",
        '=' => "=",
        ',' => ",",
        '\'' => "'",
        _ => "",
    }
}

/// Splits `text` into tokens. Returns `None` if a command or character is not known.
pub(super) fn tokens(text: &str) -> Option<Vec<Token>> {
    let mut lexer = Lexer {
        chars: text.chars().collect(),
        at: 0,
        tokens: Vec::new(),
        spaced: false,
        braces: Vec::new(),
        upright: 0,
        dollar_is_currency: dollar_is_currency(text),
    };
    while lexer.at < lexer.chars.len() {
        lexer.step()?;
    }
    Some(lexer.tokens)
}

/// Returns whether the command `name` sets the size of a bracket: `\left`, `\Biggr`.
fn is_delimiter(name: &str) -> bool {
    let size = name.strip_prefix("big").or_else(|| name.strip_prefix("Big"));
    let side = size.map(|side| side.strip_prefix('g').unwrap_or(side));
    matches!(name, "left" | "right") || matches!(side, Some("" | "l" | "r" | "m"))
}

/// Returns whether `text` has exactly one dollar sign, before a number, so that it is a currency. Pairs of signs delimit
/// formulas.
fn dollar_is_currency(text: &str) -> bool {
    let mut signs = text.match_indices('$');
    let one = signs.next().filter(|_| signs.next().is_none());
    one.is_some_and(|(at, _)| text[at + 1..].trim_start().starts_with(|c: char| c.is_ascii_digit()))
}

/// The state of [`tokens`].
pub(super) struct Lexer {
    pub(super) chars: Vec<char>,
    /// Index of the next character.
    pub(super) at: usize,
    tokens: Vec<Token>,
    spaced: bool,
    /// Kinds of the open braces.
    braces: Vec<Brace>,
    /// Number of open braces of `\text` and the like.
    upright: usize,
    dollar_is_currency: bool,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Brace {
    Group,
    Upright,
}

impl Lexer {
    pub(super) fn peek(&self, ahead: usize) -> Option<char> {
        self.chars.get(self.at + ahead).copied()
    }

    fn push(&mut self, kind: Kind) {
        let spaced = std::mem::take(&mut self.spaced);
        self.tokens.push(Token { kind, spaced });
    }

    fn symbol(&mut self, symbol: char) {
        self.push(Kind::Symbol(symbol));
    }

    fn command(&mut self, name: &str) {
        self.push(Kind::Command(name.to_string()));
    }

    /// Reads characters while `predicate` is true.
    pub(super) fn take(&mut self, predicate: impl Fn(char) -> bool) -> String {
        let start = self.at;
        while self.peek(0).is_some_and(&predicate) {
            self.at += 1;
        }
        self.chars[start..self.at].iter().collect()
    }

    fn step(&mut self) -> Option<()> {
        let c = self.peek(0)?;
        let next_is_digit = self.peek(1).is_some_and(|next| next.is_ascii_digit());
        if c.is_ascii_digit() || (c == '.' && next_is_digit) {
            return self.number();
        }
        if c == '\\' {
            return self.backslash();
        }
        if let Some(digit) = superscript(c) {
            return self.superscripts(digit);
        }
        if let Some((numerator, denominator)) = vulgar_fraction(c) {
            self.at += 1;
            self.command("frac");
            for digits in [numerator, denominator] {
                self.symbol('{');
                self.push(Kind::Number(digits.to_string()));
                self.symbol('}');
            }
            return Some(());
        }
        if c.is_alphabetic() && character_symbol(c).is_none() {
            let letters = self.take(|c| c.is_alphabetic() && character_symbol(c).is_none());
            self.push(if self.upright > 0 { Kind::Word(letters) } else { Kind::Letters(letters) });
            return Some(());
        }
        self.at += 1;
        self.punctuation(c)
    }

    /// Reads digits with an optional decimal point and an optional exponent as in `1e-5`.
    fn number(&mut self) -> Option<()> {
        let mut digits = self.take(|c| c.is_ascii_digit());
        let has_point = self.peek(0) == Some('.');
        if has_point && self.peek(1).is_some_and(|next| next.is_ascii_digit()) {
            self.at += 1;
            digits = format!("{digits}.{}", self.take(|c| c.is_ascii_digit()));
            // 1.2.3 is not a number.
            if self.peek(0) == Some('.') && self.peek(1).is_some_and(|next| next.is_ascii_digit()) {
                return None;
            }
        }
        // "3./2"
        if self.peek(0) == Some('.') && self.peek(1).is_some_and(|next| "/*+-)^}".contains(next)) {
            self.at += 1;
        }
        let sign = usize::from(matches!(self.peek(1), Some('-' | '+')));
        let has_exponent = matches!(self.peek(0), Some('e' | 'E'))
            && self.peek(1 + sign).is_some_and(|c| c.is_ascii_digit());
        if has_exponent {
            let is_negative = self.peek(1) == Some('-');
            self.at += 1 + sign;
            let power = self.take(|c| c.is_ascii_digit());
            digits = format!("{digits}e{}{power}", if is_negative { "-" } else { "" });
        }
        self.push(Kind::Number(digits));
        Some(())
    }

    /// Reads an exponent in superscript characters: `x²`, `10¹²`.
    fn superscripts(&mut self, first: char) -> Option<()> {
        let mut digits = String::from(first);
        self.at += 1;
        while let Some(digit) = self.peek(0).and_then(superscript) {
            digits.push(digit);
            self.at += 1;
        }
        self.symbol('^');
        self.symbol('{');
        if digits.starts_with('-') {
            self.symbol('-');
        }
        self.push(Kind::Number(digits.trim_start_matches('-').to_string()));
        self.symbol('}');
        Some(())
    }

    fn punctuation(&mut self, c: char) -> Option<()> {
        match c {
            _ if c.is_whitespace() || c == '~' => self.spaced = true,
            '$' if self.dollar_is_currency => self.symbol('$'),
            '$' => {}
            // {,} separates thousands, {\,} is a space.
            '{' if self.follows(",}") => {
                self.at += 2;
                self.symbol(THOUSANDS);
            }
            '{' if self.braced_space() => self.spaced = true,
            '{' => {
                self.braces.push(Brace::Group);
                self.symbol('{');
            }
            '}' => match self.braces.pop()? {
                Brace::Group => self.symbol('}'),
                Brace::Upright => {
                    self.upright -= 1;
                    self.spaced = true;
                }
            },
            ',' if self.peek(0) == Some('\\') && self.peek(1) == Some('!') => {
                self.symbol(THOUSANDS)
            }
            '*' if self.peek(0) == Some('*') => {
                self.at += 1;
                self.symbol('^');
            }
            // In 5!=120, without a space, ! is a factorial.
            '<' | '>' | '!' | '=' if self.peek(0) == Some('=') && (c != '!' || self.spaced) => {
                self.at += 1;
                self.symbol(match c {
                    '<' => '≤',
                    '>' => '≥',
                    '!' => '≠',
                    _ => '=',
                });
            }
            _ => match character_symbol(c)? {
                "" => {}
                name if name.len() > 1 && name.is_ascii() => self.command(name),
                symbol => self.symbol(symbol.chars().next()?),
            },
        }
        Some(())
    }

    fn backslash(&mut self) -> Option<()> {
        self.at += 1;
        // After trimming, a text can end in a backslash: "5\ ".
        let Some(c) = self.peek(0) else {
            return Some(());
        };
        if !c.is_ascii_alphabetic() {
            self.at += 1;
            match c {
                '!' => {}
                '{' => self.symbol(SET_OPEN),
                '}' => self.symbol(SET_CLOSE),
                '\\' => {
                    self.symbol(ROW_END);
                    self.row_height();
                }
                '|' => self.symbol('‖'),
                '$' | '%' | '#' | '&' => self.symbol(c),
                '(' | ')' | '[' | ']' => {}
                _ if c.is_whitespace() || ",;:>".contains(c) => self.spaced = true,
                _ => return None,
            }
            return Some(());
        }
        let name = self.take(|c| c.is_ascii_alphabetic());
        self.named_command(&name)
    }

    fn named_command(&mut self, name: &str) -> Option<()> {
        if SPACES.contains(&name) {
            self.spaced = true;
        } else if IGNORED_COMMANDS.contains(&name) {
            self.skip_spaces();
        } else if ["color", "textcolor"].contains(&name) {
            self.braced()?;
        } else if INVISIBLE_COMMANDS.contains(&name) {
            self.braced()?;
            self.spaced = true;
        } else if name == "not" && self.peek(0) == Some('=') {
            self.at += 1;
            self.symbol('≠');
        } else if is_delimiter(name) {
            self.delimiter(name);
        } else if UPRIGHT_COMMANDS.contains(&name) && self.braced_comma() {
            self.symbol(THOUSANDS);
        } else if UPRIGHT_COMMANDS.contains(&name) {
            self.skip_spaces();
            if self.peek(0) == Some('{') {
                self.at += 1;
                self.spaced = true;
                self.braces.push(Brace::Upright);
                self.upright += 1;
            }
        } else if matches!(name, "begin" | "end") {
            let environment = self.braced()?;
            // An array has its column format as a second argument.
            if name == "begin" && environment == "array" {
                self.braced()?;
            }
            self.command(&format!("{name} {environment}"));
        } else if let Some((_, symbol)) =
            COMMAND_SYMBOLS.iter().find(|(known, _)| known.split(' ').any(|known| known == name))
        {
            match *symbol {
                name if name.len() > 1 && name.is_ascii() => self.command(name),
                symbol => self.symbol(symbol.chars().next()?),
            }
        } else {
            self.command(name);
        }
        Some(())
    }

    /// Reads the bar after `\left` or `\right`, or an invisible delimiter as in `\right.`. Other brackets are left to be
    /// read as usual.
    fn delimiter(&mut self, name: &str) {
        self.skip_spaces();
        let is_left = name == "left" || name.ends_with('l');
        let is_right = name == "right" || name.ends_with('r');
        match self.peek(0) {
            Some('|') if is_left || is_right => {
                self.at += 1;
                self.symbol(if is_left { BAR_OPEN } else { BAR_CLOSE });
            }
            Some('.') => self.at += 1,
            _ => {}
        }
    }
}
