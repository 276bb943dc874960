//! Rewrites what Jinja has and minijinja does not, before a template is compiled.
//!
//! - Line ends become `\n`.
//! - `{% generation %}` ... `{% endgeneration %}` of transformers becomes a filter block with a scope of its own.
//! - `'...' % x` becomes a filter.
//! - A macro that reads `varargs` or `kwargs` gets them as parameters.
//!
//! White space control (`-`, `+`) and the number of lines stay as they are.

use super::functions::{MARK, PERCENT, VARIADIC};

/// A template as minijinja compiles it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Rewritten {
    /// The source.
    pub source: String,
    /// Whether it has `generation` blocks.
    pub marks_generation: bool,
}

/// Rewrites the template `source`. What is not a valid template stays so.
pub(super) fn rewrite(source: &str) -> Rewritten {
    let source = source.replace("\r\n", "\n").replace('\r', "\n");
    let mut writer = Writer { out: String::new(), marks_generation: false, variadic: Vec::new() };
    let mut rest = source.as_str();
    while let Some(at) = next_tag(rest) {
        writer.out.push_str(&rest[..at]);
        rest = &rest[at..];
        let end = tag_end(rest);
        let tag = &rest[..end];
        rest = &rest[end..];
        writer.push_tag(tag, rest);
        if tag_name(tag) == "raw" {
            let end = end_of_raw(rest);
            writer.out.push_str(&rest[..end]);
            rest = &rest[end..];
        }
    }
    writer.out.push_str(rest);
    Rewritten { source: writer.out, marks_generation: writer.marks_generation }
}

/// Returns where the next tag, expression or comment begins.
fn next_tag(text: &str) -> Option<usize> {
    ["{%", "{{", "{#"].iter().filter_map(|open| text.find(open)).min()
}

/// Returns the length of the tag, expression or comment that `text` begins with, or that of `text` if it does not end.
fn tag_end(text: &str) -> usize {
    let (kind, close) = match &text[..2] {
        "{#" => return text.find("#}").map_or(text.len(), |at| at + 2),
        "{{" => ('{', "}}"),
        _ => ('%', "%}"),
    };
    let mut depth = 0_usize;
    let mut at = 2;
    while at < text.len() {
        let rest = &text[at..];
        if rest.starts_with(close) && (kind == '%' || depth == 0) {
            return at + 2;
        }
        let Some(c) = rest.chars().next() else { break };
        match c {
            '\'' | '"' => {
                at += literal_length(rest);
                continue;
            }
            '{' => depth += 1,
            '}' => depth = depth.saturating_sub(1),
            _ => {}
        }
        at += c.len_utf8();
    }
    text.len()
}

/// Returns the length of the text literal that `text` begins with, with its quotes.
fn literal_length(text: &str) -> usize {
    let mut chars = text.char_indices();
    let Some((_, quote)) = chars.next() else { return 0 };
    while let Some((at, c)) = chars.next() {
        if c == '\\' {
            chars.next();
        } else if c == quote {
            return at + 1;
        }
    }
    text.len()
}

/// Returns the name of a statement, or an empty text if `tag` is none.
fn tag_name(tag: &str) -> &str {
    let Some(inside) = tag.strip_prefix("{%") else { return "" };
    let inside = inside.trim_start_matches(['-', '+']).trim_start();
    &inside[..identifier_length(inside)]
}

fn identifier_length(text: &str) -> usize {
    text.find(|c: char| !(c.is_alphanumeric() || c == '_')).unwrap_or(text.len())
}

/// Returns where the `endraw` statement begins, or the length of `text`.
fn end_of_raw(text: &str) -> usize {
    let ends = |at: &usize| tag_name(&text[*at..]) == "endraw";
    text.match_indices("{%").map(|(at, _)| at).find(ends).unwrap_or(text.len())
}

struct Writer {
    out: String,
    marks_generation: bool,
    /// Name of each open macro, if it reads `varargs` or `kwargs`.
    variadic: Vec<Option<String>>,
}

impl Writer {
    /// Appends `tag`, which `rest` follows.
    fn push_tag(&mut self, tag: &str, rest: &str) {
        let name = tag_name(tag);
        match name {
            "generation" | "endgeneration" => {
                self.marks_generation = true;
                // What is set inside is unknown behind the block, as in transformers.
                let begin = format!("with %}}{{% filter {MARK}");
                let end = "endfilter %}{% endwith";
                let new = if name == "generation" { &begin } else { end };
                self.out.push_str(&tag.replacen(name, new, 1));
            }
            "macro" => self.push_macro(tag, rest),
            "endmacro" => {
                self.out.push_str(tag);
                if let Some(Some(name)) = self.variadic.pop() {
                    // The white space control of the end applies after what is inserted.
                    let end = tag.rfind(['-', '+']).filter(|at| tag[*at..].len() == 3);
                    if let Some(at) = end {
                        self.out.truncate(self.out.len() - (tag.len() - at));
                        self.out.push_str("%}");
                    }
                    let control = end.map_or("", |at| &tag[at..=at]);
                    self.out.push_str(&format!("{{% set {name} = {VARIADIC}({name}) {control}%}}"));
                }
            }
            _ if tag.starts_with("{#") => self.out.push_str(tag),
            _ => self.out.push_str(&rewrite_percent(tag)),
        }
    }

    fn push_macro(&mut self, tag: &str, rest: &str) {
        let body = &rest[..end_of_macro(rest)];
        let is_variadic = has_word(body, "varargs") || has_word(body, "kwargs");
        let declared = tag.find("macro").map_or("", |at| tag[at + 5..].trim_start());
        let name = declared[..identifier_length(declared)].to_string();
        let parameters = tag.find('(').zip(tag.rfind(')')).filter(|(open, close)| open < close);
        match parameters
            .filter(|_| is_variadic && !has_word(tag, "varargs") && !has_word(tag, "kwargs"))
        {
            Some((open, close)) => {
                let comma = if tag[open + 1..close].trim().is_empty() { "" } else { ", " };
                let added = format!("{comma}varargs=(), kwargs={{}}");
                self.out.push_str(&[&tag[..close], &added, &tag[close..]].concat());
                self.variadic.push(Some(name));
            }
            None => {
                self.out.push_str(tag);
                self.variadic.push(None);
            }
        }
    }
}

/// Returns where the `endmacro` statement begins, or the length of `text`.
fn end_of_macro(text: &str) -> usize {
    let ends = |at: &usize| tag_name(&text[*at..]) == "endmacro";
    text.match_indices("{%").map(|(at, _)| at).find(ends).unwrap_or(text.len())
}

fn has_word(text: &str, word: &str) -> bool {
    let is_part = |c: char| c.is_alphanumeric() || c == '_';
    text.match_indices(word).any(|(at, _)| {
        let (before, after) = (&text[..at], &text[at + word.len()..]);
        !before.ends_with(is_part) && !after.starts_with(is_part) && !before.ends_with('.')
    })
}

/// Replaces `'...' % operand` in a tag or expression by `'...'|__percent(operand)`.
fn rewrite_percent(tag: &str) -> String {
    let mut out = String::with_capacity(tag.len());
    let mut at = 0;
    while at < tag.len() {
        let rest = &tag[at..];
        if !rest.starts_with(['\'', '"']) {
            let next = rest.find(['\'', '"']).unwrap_or(rest.len());
            out.push_str(&rest[..next]);
            at += next;
            continue;
        }
        let literal = literal_length(rest);
        out.push_str(&rest[..literal]);
        at += literal;
        let after = &tag[at..];
        let operator = after.trim_start();
        let Some(operand) = operator.strip_prefix('%').filter(|rest| !rest.starts_with('}')) else {
            continue;
        };
        let operand = operand.trim_start();
        let length = operand_length(operand);
        out.push_str(&format!("|{PERCENT}({})", rewrite_percent(&operand[..length])));
        at = tag.len() - operand.len() + length;
    }
    out
}

/// Returns the length of the operand that `text` begins with: a name, a literal or a group in brackets, with what is
/// applied to it.
fn operand_length(text: &str) -> usize {
    let mut at = match text.chars().next() {
        Some('\'' | '"') => literal_length(text),
        Some('(' | '[' | '{') => group_length(text),
        _ => identifier_length(text),
    };
    loop {
        let rest = &text[at..];
        match rest.chars().next() {
            Some('(' | '[') => at += group_length(rest),
            Some('.' | '|') => {
                let name = rest[1..].trim_start();
                at += rest.len() - name.len() + identifier_length(name);
            }
            _ => return at,
        }
    }
}

/// Returns the length of the group in brackets that `text` begins with.
fn group_length(text: &str) -> usize {
    let (mut depth, mut at) = (0_usize, 0);
    while at < text.len() {
        let rest = &text[at..];
        let Some(c) = rest.chars().next() else { break };
        match c {
            '\'' | '"' => {
                at += literal_length(rest);
                continue;
            }
            '(' | '[' | '{' => depth += 1,
            ')' | ']' | '}' => depth = depth.saturating_sub(1),
            _ => {}
        }
        at += c.len_utf8();
        if depth == 0 {
            return at;
        }
    }
    text.len()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn becomes(source: &str, expected: &str) {
        assert_eq!(rewrite(source).source, expected);
    }

    #[test]
    fn generation_blocks_become_filter_blocks() {
        becomes(
            "a\r\n{%- generation -%}x{% endgeneration +%}\rb",
            "a\n{%- with %}{% filter __mark_generation -%}x{% endfilter %}{% endwith +%}\nb",
        );
        assert!(!rewrite("{{ '{% generation %}' }}{# {% generation %} #}").marks_generation);
        becomes(
            "{% raw %}{% generation %}{{ 'a' % b }}{% endraw %}",
            "{% raw %}{% generation %}{{ 'a' % b }}{% endraw %}",
        );
    }

    #[test]
    fn the_percent_of_a_text_becomes_a_filter() {
        becomes("{{ '%s-%d' % ('a', 3) ~ x }}", "{{ '%s-%d'|__percent(('a', 3)) ~ x }}");
        becomes("{{ \"%s\" % m.get('a')[0]|trim }}", "{{ \"%s\"|__percent(m.get('a')[0]|trim) }}");
        becomes("{% if x == 'a' %}{{ 7 % 3 }}%}", "{% if x == 'a' %}{{ 7 % 3 }}%}");
        becomes("{{ {'a': {'b': '%}'}} }}", "{{ {'a': {'b': '%}'}} }}");
    }

    #[test]
    fn macros_that_read_varargs_get_them() {
        becomes(
            "{% macro m(a) -%}{{ varargs }}{%- endmacro -%} x",
            "{% macro m(a, varargs=(), kwargs={}) -%}{{ varargs }}{%- endmacro %}\
             {% set m = __variadic(m) -%} x",
        );
        becomes(
            "{% macro m(kwargs) %}{{ kwargs }}{% endmacro %}",
            "{% macro m(kwargs) %}{{ kwargs }}{% endmacro %}",
        );
    }

    #[test]
    fn no_source_makes_it_panic() {
        let pieces = [
            "{%",
            "%}",
            "{{",
            "}}",
            "{#",
            "#}",
            "-",
            "+",
            "'",
            "\"",
            "\\",
            "é",
            "数",
            "%",
            "(",
            ")",
            "[",
            "{",
            ".",
            "|",
            " ",
            "\n",
            "macro",
            "endmacro",
            "raw",
            "endraw",
            "generation",
            "varargs",
            "a",
        ];
        // Every sequence of pieces that a linear congruential generator draws.
        let mut state = 1_u64;
        for length in (1..14).cycle().take(20_000) {
            let source: String = (0..length)
                .map(|_| {
                    state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                    pieces[(state >> 33) as usize % pieces.len()]
                })
                .collect();
            let _ = rewrite(&source);
        }
    }

    #[test]
    fn what_does_not_end_stays_as_it_is() {
        for source in ["{{ 'a", "{% if x", "{# x", "{% raw %}{{", "{% macro m(", "{{ 'a\\"] {
            becomes(source, source);
        }
    }
}
