//! Parses brackets: groups, tuples, intervals, sets and matrices.

use super::super::lexer::{ROW_END, SET_CLOSE, SET_OPEN};
use super::super::tree::Node;
use super::Parser;
use super::lists::{are_inequalities, to_list};

impl Parser {
    /// Parses a group: `(a)` and `{a}` are `a`, `(a, b)` is a tuple or an interval, and `{a, b}` is a set. An open
    /// interval may be written with reversed brackets, `]a, b[`.
    pub(super) fn group(&mut self) -> Option<Node> {
        let open = self.symbol()?;
        self.at += 1;
        let mut items = self.items()?;
        let close = self.symbol()?;
        self.at += 1;
        let is_pair = match open {
            '{' => close == '}',
            '⟨' => close == '⟩',
            _ => matches!(close, '(' | '[' | ')' | ']'),
        };
        let is_same_kind = matches!((open, close), ('(', ')') | ('[', ']') | ('{', '}'));
        match items.len() {
            _ if !is_pair => None,
            1 if is_same_kind => items.pop(),
            1 => None,
            _ if open == '{' => Some(Node::Set(items)),
            _ => {
                let open = if open == ']' { '(' } else { open };
                let close = if close == '[' { ')' } else { close };
                Some(Node::Tuple(open, close, items))
            }
        }
    }

    /// Parses a set, `\{a, b\}`, or `\{x : condition\}`, of which only the condition is returned.
    pub(super) fn set(&mut self) -> Option<Node> {
        self.expect(SET_OPEN)?;
        if self.accept(SET_CLOSE) {
            return Some(Node::Name("emptyset".to_string()));
        }
        self.in_set = true;
        let items = self.items()?;
        if self.accept('|') || self.accept(':') {
            let condition = self.list()?;
            self.expect(SET_CLOSE)?;
            let is_name = matches!(&items[..], [Node::Name(_)]);
            return is_name.then_some(condition);
        }
        self.expect(SET_CLOSE)?;
        Some(Node::Set(items))
    }

    /// Parses the rows of a matrix up to its end, or the relations of a `cases` environment.
    pub(super) fn matrix(&mut self, environment: &str) -> Option<Node> {
        if environment == "cases" {
            let items = self.items()?;
            self.next_is_command("end cases").then(|| self.at += 1)?;
            return Some(if are_inequalities(&items) {
                Node::Sets('∧', items)
            } else {
                to_list(items)
            });
        }
        let known = ["pmatrix", "bmatrix", "Bmatrix", "matrix", "smallmatrix", "array"];
        if !known.contains(&environment) {
            return None;
        }
        let end = format!("end {environment}");
        let mut rows = vec![Vec::new()];
        while !self.next_is_command(&end) {
            let cell = self.relation()?;
            rows.last_mut()?.push(cell);
            if self.accept(ROW_END) {
                // The last row may also end with `\\`.
                if !self.next_is_command(&end) {
                    rows.push(Vec::new());
                }
            } else if !self.accept('&') && !self.next_is_command(&end) {
                return None;
            }
        }
        self.at += 1;
        let width = rows.first().map_or(0, Vec::len);
        let is_full = width > 0 && rows.iter().all(|row| row.len() == width);
        is_full.then_some(Node::Matrix(rows))
    }
}
