//! Parses lists, relations, ratios and operations on sets, which are above sums in the grammar.

use super::super::lexer::{Kind, ROW_END, Token};
use super::super::symbols::NAME_COMMANDS;
use super::super::tree::Node;
use super::Parser;

impl Parser {
    /// Parses relations with commas, semicolons, "and" or "or" between them.
    pub(super) fn list(&mut self) -> Option<Node> {
        let start = self.at;
        let items = self.items()?;
        let contains =
            |word: &str| self.tokens[start..self.at].iter().any(|token| token.text() == word);
        if contains("and") && !contains("or") && are_inequalities(&items) {
            return Some(Node::Sets('∧', items));
        }
        Some(to_list(items))
    }

    pub(super) fn items(&mut self) -> Option<Vec<Node>> {
        let mut items = vec![self.relation()?];
        while self.separator() {
            items.push(self.relation()?);
        }
        Some(items)
    }

    fn separator(&mut self) -> bool {
        let start = self.at;
        if self.accept(',') || self.accept(';') || self.accept(ROW_END) {
            // "1, 2, and 3"
            self.accept_word(&["and", "or"]);
        } else if !(self.accept_word(&["and", "or"]) || self.accept('∨') || self.accept('&')) {
            return false;
        }
        self.at > start
    }

    pub(super) fn relation(&mut self) -> Option<Node> {
        let first = match self.function_head() {
            Some(head) => head,
            None => self.ratio()?,
        };
        let (mut operands, mut operators) = (vec![first], Vec::new());
        while let Some(operator) = self.relation_operator() {
            operators.push(operator);
            operands.push(self.ratio()?);
        }
        let node = if operators.is_empty() {
            operands.pop()?
        } else {
            Node::Relation(operands, operators)
        };
        self.modulo(node)
    }

    /// Consumes a sign of a relation, or the word "in" before a set, and returns the sign.
    fn relation_operator(&mut self) -> Option<char> {
        if self.letters() == Some("in") {
            let bracket = self.tokens.get(self.at + 1).map(|token| &token.kind);
            let is_set = matches!(bracket, Some(Kind::Symbol('(' | '[' | '{' | '⦃')));
            self.at += usize::from(is_set);
            return is_set.then_some('∈');
        }
        let operator = self.symbol()?;
        let is_relation = "=<>≤≥≠≡≈∼∈⇒⇔".contains(operator);
        self.at += usize::from(is_relation);
        is_relation.then_some(operator)
    }

    /// Parses `f(x)`, `f^{-1}(x)` or `F_{1}(x, y)` before an equals sign as one name.
    fn function_head(&mut self) -> Option<Node> {
        /// Maximum number of tokens before the equals sign.
        const MAX_TOKENS: usize = 20;
        let ahead = self.tokens.iter().skip(self.at).take(MAX_TOKENS);
        let texts: Vec<&str> = ahead.map(Token::text).collect();
        let end = texts.iter().position(|text| *text == "=")?;
        let open = texts[..end].iter().position(|text| *text == "(")?;
        let (name, arguments) = (&texts[..open], texts[open + 1..end].strip_suffix(&[")"])?);
        let is_letter =
            |text: &str| text.chars().count() == 1 && text.chars().all(char::is_alphabetic);
        let is_name = match name {
            [] => return None,
            [_] | [_, "'"] | [_, "_", _] => true,
            [_, "^", "{", "'", "}"] | [_, "^", "{", "-", "1", "}"] => true,
            [_, "_", "{", index @ .., "}"] => !index.contains(&"}"),
            _ => false,
        };
        let are_variables = arguments.iter().enumerate().all(|(at, text)| match at % 2 {
            0 => is_letter(text) || NAME_COMMANDS.contains(text),
            _ => *text == ",",
        });
        if !(is_name && is_letter(name[0]) && are_variables && arguments.len() % 2 == 1) {
            return None;
        }
        let head = texts[..end].concat();
        self.at += end;
        Some(Node::Name(head))
    }

    /// Parses a modulus after `node`: `\pmod{n}`, `(mod n)`, `mod n`.
    fn modulo(&mut self, node: Node) -> Option<Node> {
        if self.next_is_command("pmod") {
            self.at += 1;
            let modulus = self.atom()?;
            return Some(Node::Modulo(node.into(), modulus.into()));
        }
        let is_mod = |kind: Option<&Kind>| match kind {
            Some(Kind::Letters(text) | Kind::Word(text) | Kind::Command(text)) => {
                matches!(text.as_str(), "mod" | "bmod")
            }
            _ => false,
        };
        let has_bracket = self.next_is('(');
        let word = self.tokens.get(self.at + usize::from(has_bracket));
        if !is_mod(word.map(|token| &token.kind)) {
            return Some(node);
        }
        self.at += 1 + usize::from(has_bracket);
        let modulus = self.ratio()?;
        if has_bracket {
            self.expect(')')?;
        }
        Some(Node::Modulo(node.into(), modulus.into()))
    }

    pub(super) fn ratio(&mut self) -> Option<Node> {
        let mut parts = vec![self.sets()?];
        while !self.in_set && self.accept(':') {
            parts.push(self.sets()?);
        }
        match parts.len() {
            1 => parts.pop(),
            _ => Some(Node::Ratio(parts)),
        }
    }

    fn sets(&mut self) -> Option<Node> {
        let mut node = self.quantity()?;
        while let Some(operator @ ('∪' | '∩' | '∖')) = self.set_operator() {
            let next = self.quantity()?;
            node = match node {
                Node::Sets(same, mut all) if same == operator && operator != '∖' => {
                    all.push(next);
                    Node::Sets(same, all)
                }
                // Different operators are not mixed, so that the tree stays flat.
                Node::Sets(..) => return None,
                node => Node::Sets(operator, vec![node, next]),
            };
        }
        Some(node)
    }

    fn set_operator(&mut self) -> Option<char> {
        if self.accept_word(&["U", "cup", "union"]) {
            return Some('∪');
        }
        let operator = self.symbol().filter(|operator| "∪∩∖".contains(*operator))?;
        self.at += 1;
        Some(operator)
    }
}

/// Returns whether `items` are several inequalities. With "and" or a brace, all of them hold: `x > 3 and x < 5`.
pub(super) fn are_inequalities(items: &[Node]) -> bool {
    let is_inequality = |item: &Node| match item {
        Node::Relation(_, operators) => operators.iter().all(|operator| "<>≤≥".contains(*operator)),
        _ => false,
    };
    items.len() > 1 && items.iter().all(is_inequality)
}

/// Combines `items` into a list, or returns a single item itself. In `n = 2, 3, 4` and `x = 1, x = 2`, the list of values is
/// assigned to the name.
pub(super) fn to_list(mut items: Vec<Node>) -> Node {
    let assigned = |item: &Node| match item {
        Node::Relation(sides, operators) if operators[..] == ['='] => {
            sides[0].label().map(|label| (label, sides.clone()))
        }
        _ => None,
    };
    let is_relation = |item: &Node| matches!(item, Node::Relation(..));
    if let [_] = items[..] {
        return items.swap_remove(0);
    }
    let Some((name, sides)) = items.first().and_then(assigned) else {
        return Node::List(items);
    };
    let values: Option<Vec<Node>> = if items[1..].iter().any(is_relation) {
        let value = |item: &Node| {
            let (_, mut sides) = assigned(item).filter(|(other, _)| *other == name)?;
            sides.pop()
        };
        items.iter().map(value).collect()
    } else {
        Some(sides[1..].iter().chain(&items[1..]).cloned().collect())
    };
    match values {
        Some(values) => Node::Relation(vec![sides[0].clone(), Node::List(values)], vec!['=']),
        None => Node::List(items),
    }
}
