//! Parses tokens into an expression tree, by recursive descent.
//!
//! ```text
//! answer   = list | words
//! list     = relation { ("," | ";" | "and" | "or") relation }
//! relation = ratio { ("=" | "<" | "\in" | ...) ratio } [ "mod" ratio ]
//! ratio    = sets { ":" sets }
//! sets     = quantity { ("\cup" | "\cap" | "\setminus") quantity }
//! quantity = sum [ unit ]
//! sum      = terms [ ("\choose" | "\over") terms ]
//! terms    = [sign] term { sign term }
//! term     = power { ["\cdot" | "/"] power }
//! power    = atom { "!" | "%" | "^" exponent | "_" index }
//! ```

mod arithmetic;
mod atoms;
mod functions;
mod groups;
mod lists;
mod numerals;
mod quantities;
mod thousands;

use super::lexer::{Kind, ROW_END, Token, tokens};
use super::symbols::SHORT_WORDS;
use super::tree::Node;
use super::units::Unit;

/// Maximum length of an answer that is parsed. The longest known answers of MATH have about 160 characters.
const MAX_BYTES: usize = 10_000;
/// Maximum number of tokens of an answer that is parsed.
const MAX_TOKENS: usize = 4_000;
/// Maximum nesting depth of an answer that is parsed, which bounds the recursion.
const MAX_DEPTH: usize = 40;

/// The reading of commas that may separate thousands or the elements of a list: `123,456`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Commas {
    Thousands,
    List,
}

/// A parsed answer.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) tree: Node,
    /// Whether the commas can also be read in the other way.
    pub(super) ambiguous: bool,
}

/// Parses `text`. Returns `None` if it cannot be parsed completely, is too long or is nested too deeply.
pub(super) fn parse(text: &str, commas: Commas) -> Option<Answer> {
    if text.len() > MAX_BYTES {
        return None;
    }
    let mut tokens = tokens(text).filter(|tokens| tokens.len() <= MAX_TOKENS)?;
    // "17..." is not complete.
    let stops = tokens.iter().rev().take_while(|token| token.is('.'));
    if stops.count() > 1 {
        return None;
    }
    let is_end = |last: &Token| ['.', ',', ';', ROW_END].iter().any(|end| last.is(*end));
    while tokens.last().is_some_and(is_end) {
        tokens.pop();
    }
    if let Some(words) = words(&tokens) {
        return Some(Answer { tree: Node::Words(words), ambiguous: false });
    }
    let (tokens, ambiguous) = thousands::join_thousands(tokens, commas);
    let mut parser = Parser { tokens, at: 0, depth: 0, bars: 0, in_set: false, currency: None };
    // "= 5", "\approx 1.47"
    if parser.next_is('=') || parser.next_is('≈') {
        parser.at += 1;
    }
    let tree = parser.list()?;
    (parser.at == parser.tokens.len()).then_some(Answer { tree, ambiguous })
}

/// Returns the words of an answer that consists of words only.
fn words(tokens: &[Token]) -> Option<String> {
    let mut words = Vec::new();
    let mut has_word = false;
    for token in tokens {
        match &token.kind {
            Kind::Word(word) => {
                has_word |= word.chars().count() > 1 && !is_mathematical(word);
                words.push(word.as_str());
            }
            Kind::Letters(word) => {
                has_word |= is_word(word) && !is_mathematical(word);
                words.push(word.as_str());
            }
            Kind::Symbol('-' | '\'' | '.' | '"') => {}
            _ => return None,
        }
    }
    let is_list = words.iter().any(|word| matches!(*word, "and" | "or"));
    (has_word && !is_list).then(|| words.join(" "))
}

/// Returns whether letters of plain text are a word and not a product of variables.
fn is_word(letters: &str) -> bool {
    letters.chars().count() >= 4 || SHORT_WORDS.contains(&letters.to_lowercase().as_str())
}

/// Returns whether `word` is a constant or name of mathematics.
fn is_mathematical(word: &str) -> bool {
    matches!(word, "infinity" | "infty" | "pi" | "inf")
        || super::symbols::NAME_COMMANDS.contains(&word)
}

struct Parser {
    tokens: Vec<Token>,
    at: usize,
    depth: usize,
    /// Number of absolute values that are open.
    bars: usize,
    /// Whether a bar separates the elements of a set from their condition.
    in_set: bool,
    /// Currency of the quantity that is being parsed.
    currency: Option<Unit>,
}

impl Parser {
    fn peek(&self) -> Option<&Token> {
        self.tokens.get(self.at)
    }

    fn kind(&self) -> Option<&Kind> {
        self.peek().map(|token| &token.kind)
    }

    fn next_is(&self, symbol: char) -> bool {
        self.peek().is_some_and(|token| token.is(symbol))
    }

    fn symbol(&self) -> Option<char> {
        match self.kind() {
            Some(Kind::Symbol(symbol)) => Some(*symbol),
            _ => None,
        }
    }

    /// Returns the letters of the next token, if it is letters or a word.
    fn letters(&self) -> Option<&str> {
        match self.kind() {
            Some(Kind::Letters(letters) | Kind::Word(letters)) => Some(letters),
            _ => None,
        }
    }

    fn next_is_command(&self, name: &str) -> bool {
        self.peek().is_some_and(|token| token.is_command(name))
    }

    /// Consumes the next token if it is `symbol`, and returns whether it was.
    fn accept(&mut self, symbol: char) -> bool {
        let accepted = self.next_is(symbol);
        self.at += usize::from(accepted);
        accepted
    }

    /// Consumes the next token if it is one of `words`, and returns whether it was.
    fn accept_word(&mut self, words: &[&str]) -> bool {
        let accepted = self.letters().is_some_and(|letters| words.contains(&letters));
        self.at += usize::from(accepted);
        accepted
    }

    /// Consumes the next token if it is the command `name`, and returns whether it was.
    fn accept_command(&mut self, name: &str) -> bool {
        let accepted = self.next_is_command(name);
        self.at += usize::from(accepted);
        accepted
    }

    fn expect(&mut self, symbol: char) -> Option<()> {
        self.accept(symbol).then_some(())
    }

    /// Parses with `rule` at the next depth, or returns `None` at the maximum depth.
    fn nested<T>(&mut self, rule: impl FnOnce(&mut Self) -> Option<T>) -> Option<T> {
        if self.depth == MAX_DEPTH {
            return None;
        }
        self.depth += 1;
        let result = rule(self);
        self.depth -= 1;
        result
    }

    /// Parses with `rule` inside brackets, where initially no absolute value and no set is open.
    fn enclosed<T>(&mut self, rule: impl FnOnce(&mut Self) -> Option<T>) -> Option<T> {
        let (bars, in_set) = (std::mem::take(&mut self.bars), std::mem::take(&mut self.in_set));
        let result = self.nested(rule);
        (self.bars, self.in_set) = (bars, in_set);
        result
    }
}
