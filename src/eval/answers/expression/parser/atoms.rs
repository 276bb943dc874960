//! Parses numbers, names and commands.

use super::super::lexer::{BAR_CLOSE, BAR_OPEN, Kind, SET_OPEN};
use super::super::symbols::NAME_COMMANDS;
use super::super::tree::{Constant, Function, Node};
use super::super::units::multiplier;
use super::arithmetic::decimal;
use super::{Parser, is_word};

impl Parser {
    pub(super) fn atom(&mut self) -> Option<Node> {
        match self.kind()?.clone() {
            Kind::Number(digits) => self.number(&digits),
            Kind::Letters(letters) => self.name(&letters, false),
            Kind::Word(word) => self.name(&word, true),
            Kind::Command(name) => {
                self.at += 1;
                self.nested(|parser| parser.command(&name))
            }
            Kind::Symbol('(' | '{') if self.based_group() => self.based(self.at + 1),
            Kind::Symbol('(' | '[' | '{' | '⟨' | ']') => self.enclosed(Self::group),
            Kind::Symbol(SET_OPEN) => self.enclosed(Self::set),
            Kind::Symbol('|' | BAR_OPEN) => self.absolute_value(),
            Kind::Symbol(_) => {
                self.currency = Some(self.accept_currency()?);
                let is_negative = self.accept('-');
                let size = match self.kind()? {
                    Kind::Symbol('{') | Kind::Number(_) | Kind::Command(_) => self.atom()?,
                    _ => return None,
                };
                Some(if is_negative { Node::Negative(size.into()) } else { size })
            }
        }
    }

    fn number(&mut self, digits: &str) -> Option<Node> {
        if let Some(node) = self.based(self.at) {
            return Some(node);
        }
        self.at += 1;
        if let Some(node) = self.repeating(digits) {
            return Some(node);
        }
        Some(Node::Number(decimal(digits)?))
    }

    /// Parses a subscript, `{12}` or `n`, and returns its text.
    pub(super) fn index(&mut self) -> Option<String> {
        if !self.accept('{') {
            return match self.kind()?.clone() {
                Kind::Letters(_) => match self.first_letter()? {
                    Node::Name(name) => Some(name),
                    Node::Constant(Constant::E) => Some("e".to_string()),
                    Node::Constant(Constant::I) => Some("i".to_string()),
                    _ => None,
                },
                Kind::Number(text) | Kind::Word(text) | Kind::Command(text) => {
                    self.at += 1;
                    Some(text)
                }
                Kind::Symbol(_) => None,
            };
        }
        let mut text = String::new();
        while !self.accept('}') {
            match self.kind()? {
                Kind::Symbol('{') => return None,
                Kind::Symbol(symbol) => text.push(*symbol),
                Kind::Number(part)
                | Kind::Letters(part)
                | Kind::Word(part)
                | Kind::Command(part) => text.push_str(part),
            }
            self.at += 1;
        }
        (!text.is_empty()).then_some(text)
    }

    /// Parses the name, constant or function at the start of letters. `is_text` means that they are in `\text{}` or the
    /// like.
    fn name(&mut self, letters: &str, is_text: bool) -> Option<Node> {
        let lower = letters.to_lowercase();
        if Function::from_name(letters).is_some()
            || matches!(letters, "log" | "ln" | "lg" | "sqrt" | "cbrt")
        {
            self.at += 1;
            return self.nested(|parser| parser.command(letters));
        }
        if let Some(factor) = multiplier(letters).filter(|_| letters.len() > 1) {
            self.at += 1;
            return Some(Node::integer(factor));
        }
        match lower.as_str() {
            "pi" => return self.constant(Constant::Pi),
            "infinity" | "infty" | "inf" => return self.constant(Constant::Infinity),
            _ => {}
        }
        let are_capitals = letters.chars().all(char::is_uppercase);
        // ABC is a sequence of points, while AB is a product.
        if are_capitals && letters.chars().count() > 2 {
            self.at += 1;
            return self.subscripted(letters.to_string());
        }
        let is_letter = letters.chars().count() == 1;
        if is_letter || (!is_text && !is_word(letters) && !NAME_COMMANDS.contains(&letters)) {
            return self.first_letter();
        }
        self.at += 1;
        // The case of words is ignored.
        let word = if is_word(letters) { lower } else { letters.to_string() };
        self.subscripted(word)
    }

    fn constant(&mut self, constant: Constant) -> Option<Node> {
        self.at += 1;
        Some(Node::Constant(constant))
    }

    /// Parses the first letter of the next token, or its first `pi`, and leaves the other letters.
    pub(super) fn first_letter(&mut self) -> Option<Node> {
        let letters = self.letters()?.to_string();
        let is_text = matches!(self.kind(), Some(Kind::Word(_)));
        // "pir" is pi times r.
        if let Some(rest) = letters.strip_prefix("pi") {
            self.leave(rest, is_text);
            return Some(Node::Constant(Constant::Pi));
        }
        let first = letters.chars().next()?;
        self.leave(&letters[first.len_utf8()..], is_text);
        let is_plain = !(self.next_is('_') || self.next_is('\''));
        match first {
            'e' if is_plain => Some(Node::Constant(Constant::E)),
            'i' if is_plain => Some(Node::Constant(Constant::I)),
            _ => self.subscripted(first.to_string()),
        }
    }

    /// Replaces the next token by its remaining letters `rest`, or consumes it if there are none.
    pub(super) fn leave(&mut self, rest: &str, is_text: bool) {
        match self.tokens.get_mut(self.at) {
            Some(token) if !rest.is_empty() => {
                token.spaced = false;
                token.kind = if is_text {
                    Kind::Word(rest.to_string())
                } else {
                    Kind::Letters(rest.to_string())
                };
            }
            _ => self.at += 1,
        }
    }

    fn subscripted(&mut self, mut name: String) -> Option<Node> {
        if self.accept('_') {
            name = format!("{name}_{}", self.index()?);
        }
        let mut primes = 0;
        while primes < 4 && self.accept('\'') {
            name.push('\'');
            primes += 1;
        }
        // f(0) is a value of f, not f times 0.
        let is = |ahead: usize, symbol: char| {
            self.tokens.get(self.at + ahead).is_some_and(|token| token.is(symbol))
        };
        if let (true, Some(Kind::Number(digits)), true) =
            (is(0, '('), self.tokens.get(self.at + 1).map(|token| &token.kind), is(2, ')'))
        {
            name = format!("{name}({digits})");
            self.at += 3;
        }
        Some(Node::Name(name))
    }

    fn command(&mut self, name: &str) -> Option<Node> {
        match name {
            "frac" => {
                let (numerator, denominator) = (self.argument()?, self.argument()?);
                Some(Node::Product(vec![numerator, Node::Inverse(denominator.into())]))
            }
            "binom" => {
                let (top, chosen) = (self.argument()?, self.argument()?);
                Some(Node::Call(Function::Binomial, vec![top, chosen]))
            }
            "sqrt" | "cbrt" => self.root(name),
            "log" | "ln" | "lg" => self.logarithm(name),
            "pi" => Some(Node::Constant(Constant::Pi)),
            "infty" => Some(Node::Constant(Constant::Infinity)),
            "lfloor" | "lceil" => {
                let inner = self.sum()?;
                let (close, function) = match name {
                    "lfloor" => ("rfloor", Function::Floor),
                    _ => ("rceil", Function::Ceiling),
                };
                self.next_is_command(close).then(|| self.at += 1)?;
                Some(Node::Call(function, vec![inner]))
            }
            "mathbb" | "mathcal" | "overline" | "vec" | "hat" | "tilde" | "overrightarrow"
            | "widehat" | "underline" => {
                let name = match (name, self.index()?.as_str()) {
                    ("mathbb", "R") => "reals".to_string(),
                    ("mathbb", "Z") => "integers".to_string(),
                    (name, text) => format!("{name} {text}"),
                };
                self.subscripted(name)
            }
            _ if name.starts_with("begin ") => self.matrix(name.trim_start_matches("begin ")),
            _ if NAME_COMMANDS.contains(&name) => self.subscripted(name.to_string()),
            _ => self.function(Function::from_name(name)?),
        }
    }

    /// Parses one argument of a command: a group, or a single digit, letter or command.
    pub(super) fn argument(&mut self) -> Option<Node> {
        match self.kind()?.clone() {
            Kind::Number(digits) => {
                let (first, rest) = digits.split_at_checked(1)?;
                let value = decimal(first)?;
                match self.tokens.get_mut(self.at) {
                    Some(token) if !rest.is_empty() => token.kind = Kind::Number(rest.to_string()),
                    _ => self.at += 1,
                }
                Some(Node::Number(value))
            }
            Kind::Letters(_) | Kind::Word(_) => self.first_letter(),
            Kind::Symbol('-') => None,
            _ => self.atom(),
        }
    }

    fn absolute_value(&mut self) -> Option<Node> {
        self.at += 1;
        self.enclosed(|parser| {
            parser.bars = 1;
            let inner = parser.sum()?;
            (parser.accept('|') || parser.accept(BAR_CLOSE)).then_some(())?;
            Some(Node::Call(Function::Abs, vec![inner]))
        })
    }
}
