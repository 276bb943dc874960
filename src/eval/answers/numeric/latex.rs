//! Reads the LaTeX commands in and around numbers.

use super::token::{Kind, Lexer};
use crate::eval::answers::rational_value;

/// Maximum length in bytes of a command's arguments. Longer arguments do not contain a number.
const MAX_ARGUMENT_BYTES: usize = 400;

impl Lexer<'_> {
    /// Reads the command at the next backslash.
    pub(super) fn command(&mut self) {
        let rest = &self.rest()[1..];
        let name_end = rest.find(|c: char| !c.is_ascii_alphabetic()).unwrap_or(rest.len());
        if name_end == 0 {
            return self.escape(rest.chars().next());
        }
        let (name, after) = rest.split_at(name_end);
        let length = 1 + name_end;
        match name {
            "frac" | "dfrac" | "tfrac" | "cfrac" | "nicefrac" | "sfrac" => self.formula(length, 2),
            "sqrt" => self.formula(length, 1),
            "times" | "cdot" | "ast" => self.push(Kind::Operator('×'), length),
            "div" => self.push(Kind::Operator('÷'), length),
            "pm" | "mp" => self.push(Kind::Operator('±'), length),
            "le" | "leq" | "leqslant" | "lt" | "ge" | "geq" | "geqslant" | "gt" | "ne" | "neq" => {
                self.push(Kind::Operator('≤'), length);
            }
            "approx" | "simeq" | "cong" | "equiv" | "Rightarrow" | "rightarrow" | "implies"
            | "to" | "longrightarrow" | "Longrightarrow" => self.push(Kind::Equals, length),
            "circ" | "degree" => self.push(Kind::Degree, length),
            "dollar" | "textdollar" => self.push(Kind::Currency('$'), length),
            "pounds" | "textsterling" => self.push(Kind::Currency('£'), length),
            "euro" | "texteuro" => self.push(Kind::Currency('€'), length),
            "newline" | "hline" => self.push(Kind::Break, length),
            "begin" | "end" => self.push(Kind::Break, length + group_length(after)),
            // Their first argument is not text of the answer.
            "color" | "textcolor" | "hspace" | "vspace" | "label" | "tag" | "cancel"
            | "phantom" | "hphantom" => self.space(length + group_length(after)),
            _ if is_layout(name) => self.space(length),
            _ => self.push(Kind::Symbol, length),
        }
    }

    /// Reads a backslash and the character after it.
    fn escape(&mut self, sign: Option<char>) {
        let length = 1 + sign.map_or(0, char::len_utf8);
        match sign {
            Some('$') => self.push(Kind::Currency('$'), length),
            Some('%') => self.push(Kind::Percent, length),
            Some('{') => self.push(Kind::Open, length),
            Some('}') => self.push(Kind::Close, length),
            Some('\\') => self.push(Kind::Break, length),
            Some(',' | ';' | ':' | '>' | ' ' | '(' | ')' | '[' | ']') => self.space(length),
            Some('!' | '_' | '#' | '&' | '|' | '/') => self.skip(length),
            _ => self.skip(1),
        }
    }

    /// Reads a fraction or a root with its arguments. `name_length` is the length of the command without arguments.
    fn formula(&mut self, name_length: usize, arguments: usize) {
        let rest = self.rest();
        let near = &rest[..rest.floor_char_boundary(MAX_ARGUMENT_BYTES)];
        let mut end = name_length;
        let mut plain = true;
        if arguments == 1 && near[end..].starts_with('[') {
            end += near[end..].find(']').map_or(0, |close| close + 1);
        }
        for _ in 0..arguments {
            let argument = near[end..].trim_start();
            let start = near.len() - argument.len();
            let length = match argument.chars().next() {
                Some('{') => group_length(argument),
                Some(c) if c.is_ascii_alphanumeric() => 1,
                _ => 0,
            };
            if length == 0 {
                return self.push(Kind::Symbol, name_length);
            }
            end = start + length;
            plain &=
                !near[start..end].contains(|c: char| !c.is_ascii_digit() && !"{} ".contains(c));
        }
        let value = rational_value(&near[..end]);
        self.push(Kind::Formula(value, plain && arguments == 2), end);
    }
}

/// Returns the length of the group in braces at the start of `text`, or 0 if there is no closed group.
fn group_length(text: &str) -> usize {
    if !text.starts_with('{') {
        return 0;
    }
    let near = &text[..text.floor_char_boundary(MAX_ARGUMENT_BYTES)];
    let mut depth = 0;
    for (at, c) in near.char_indices() {
        match c {
            '{' => depth += 1,
            '}' => depth -= 1,
            _ => {}
        }
        if depth == 0 {
            return at + 1;
        }
    }
    0
}

/// Returns whether a command only changes the appearance of the text after it.
fn is_layout(name: &str) -> bool {
    const LAYOUT: [&str; 37] = [
        "left",
        "right",
        "quad",
        "qquad",
        "space",
        "thinspace",
        "enspace",
        "boxed",
        "fbox",
        "mbox",
        "underline",
        "underbrace",
        "displaystyle",
        "textstyle",
        "rm",
        "bf",
        "it",
        "sf",
        "tt",
        "em",
        "large",
        "Large",
        "LARGE",
        "huge",
        "Huge",
        "small",
        "normalsize",
        "operatorname",
        "ldots",
        "dots",
        "cdots",
        "therefore",
        "because",
        "bold",
        "boldsymbol",
        "emph",
        "hfill",
    ];
    let sizes = ["text", "math", "big", "Big"];
    LAYOUT.contains(&name) || sizes.iter().any(|size| name.starts_with(size))
}
