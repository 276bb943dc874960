//! HTML to text a person, and a language model, can read.
//!
//! Blocks are separated by blank lines, list items stand on lines of their own, quotes begin with `> `, code is
//! fenced or in backticks, `x<sup>2</sup>` is `x^2`, links are their text, images are dropped. TeX
//! (`$…$`, `$$…$$`, `\(…\)`, `\[…\]`, `\begin…\end`) keeps its whitespace; elsewhere runs of it become one space.

use memchr::memchr2;

use super::entities::unescape;
use super::names::packed;
use super::roles::{Math, Role, role};
use super::tokenizer::{Dialect, Sink, Tokenizer};

/// The readable text of an HTML fragment, without space at either end.
///
/// A `<` that begins no HTML element is text, as in `$x<y$`.
///
/// ```
/// let text = arithmo::data::html::readable_text("<p>Find $x<y$:</p><ul><li>a<sup>2</sup><li><code>b</code></ul>");
/// assert_eq!(text, "Find $x<y$:\n\n- a^2\n- `b`");
/// ```
pub fn readable_text(html: &str) -> String {
    let mut page = Page { out: String::with_capacity(html.len()), ..Page::default() };
    // The forgiving dialect still gives up on `<![x`: what was read up to there is kept, the rest is text.
    if let Err(rejected) = Tokenizer::run(html, Dialect::Forgiving, &mut page) {
        page.text(&html[rejected.offset..]);
    }
    while !page.open.is_empty() {
        page.close_last();
    }
    page.out.truncate(page.out.trim_end().len());
    page.out
}

const P: u128 = packed(b"p");

#[derive(Debug)]
struct Open {
    name: u128,
    role: Role,
    /// Length of the output when the element was opened, for what is decided when it closes.
    start: usize,
}

/// What stands before each line inside a quote or an item.
#[derive(Debug)]
struct Margin {
    /// Before the first line, until that is written.
    first: Option<String>,
    rest: String,
}

#[derive(Default)]
struct Page {
    out: String,
    open: Vec<Open>,
    margins: Vec<Margin>,
    /// Line breaks to write before the next text.
    breaks: u8,
    /// Whether the next text on this line is separated by a space.
    space: bool,
    hidden: usize,
    preformatted: usize,
    code: usize,
    math: Math,
    /// Cells so far in the table row.
    cells: usize,
}

impl Page {
    /// Asks for at least `breaks` line breaks before the next text.
    fn break_line(&mut self, breaks: u8) {
        self.breaks = self.breaks.max(breaks);
        self.space = false;
        self.math = Math::None;
    }

    /// Writes the breaks, margins and space that are due before text.
    fn begin_text(&mut self) {
        if self.out.is_empty() || self.breaks > 0 {
            if !self.out.is_empty() {
                for _ in 1..self.breaks {
                    self.out.push('\n');
                    self.margin(false);
                    self.out.truncate(self.out.trim_end_matches(' ').len());
                }
                self.out.push('\n');
            }
            self.margin(true);
        } else if self.space {
            self.out.push(' ');
        }
        (self.breaks, self.space) = (0, false);
    }

    /// Writes the margin of a line; a line with text uses up the first-line margins.
    fn margin(&mut self, has_text: bool) {
        for margin in &mut self.margins {
            match (has_text, &margin.first) {
                (true, Some(first)) => {
                    self.out.push_str(first);
                    margin.first = None;
                }
                (false, Some(_)) => {}
                _ => self.out.push_str(&margin.rest),
            }
        }
    }

    /// Text in which every space counts.
    fn verbatim(&mut self, text: &str) {
        for (i, line) in text.split('\n').enumerate() {
            if i > 0 {
                self.out.push('\n');
                self.margin(true);
            }
            self.out.push_str(line);
        }
    }

    fn flowing(&mut self, text: &str) {
        let mut rest = text;
        while !rest.is_empty() {
            let in_math = self.math != Math::None;
            if !in_math && rest.starts_with(blank) {
                rest = rest.trim_start_matches(blank);
                self.space = true;
                continue;
            }
            let plain = if in_math { tex_run(rest) } else { plain_run(rest) };
            let (next, delimiter) = match plain {
                0 => self.math.step(rest),
                _ => (self.math, 0),
            };
            let length = match (plain, delimiter) {
                (0, 0) => 1, // A lone `$` or backslash.
                (0, n) => n,
                (n, _) => n,
            };
            let (now, later) = rest.split_at(length);
            if !self.out.is_empty() || !now.trim().is_empty() {
                if self.breaks > 0 || self.out.is_empty() || self.space {
                    self.begin_text();
                }
                self.verbatim(now);
            }
            self.math = next;
            rest = later;
        }
    }

    fn open(&mut self, name: u128, role: Role) {
        match role {
            Role::Block(breaks) => {
                self.break_line(breaks);
                self.cells = 0;
            }
            Role::List(_) => {
                let nested = self.open.iter().any(|open| matches!(open.role, Role::List(_)));
                self.break_line(if nested { 1 } else { 2 });
            }
            Role::Item => {
                self.break_line(1);
                let bullet = self.bullet();
                let rest = " ".repeat(bullet.len());
                self.margins.push(Margin { first: Some(bullet), rest });
            }
            Role::Quote => {
                self.break_line(2);
                let (first, rest) = (Some("> ".to_string()), "> ".to_string());
                self.margins.push(Margin { first, rest });
            }
            Role::Preformatted => {
                self.break_line(2);
                self.preformatted += 1;
            }
            Role::Code | Role::Script(_) => {
                if role == Role::Code {
                    self.code += 1;
                }
                if self.hidden == 0 && self.preformatted == 0 && (self.space || self.breaks > 0) {
                    self.begin_text();
                }
            }
            Role::Cell => {
                if self.cells > 0 && self.hidden == 0 {
                    self.space = true;
                    self.flowing("| ");
                }
                self.cells += 1;
            }
            Role::Hidden => self.hidden += 1,
            Role::Inline | Role::LineBreak | Role::Rule | Role::Nothing => {}
        }
        self.open.push(Open { name, role, start: self.out.len() });
    }

    /// What the next item of the innermost list begins with.
    fn bullet(&mut self) -> String {
        let list = self.open.iter_mut().rev().find_map(|open| match &mut open.role {
            Role::List(number) => Some(number),
            _ => None,
        });
        match list {
            Some(Some(number)) => {
                *number += 1;
                format!("{}. ", *number - 1)
            }
            _ => "- ".to_string(),
        }
    }

    fn close_last(&mut self) {
        let Some(open) = self.open.pop() else { return };
        match open.role {
            Role::Block(breaks) => self.break_line(breaks),
            Role::List(_) => {
                let nested = self.open.iter().any(|open| matches!(open.role, Role::List(_)));
                self.break_line(if nested { 1 } else { 2 });
            }
            Role::Item | Role::Quote => {
                self.break_line(if open.role == Role::Item { 1 } else { 2 });
                self.margins.pop();
            }
            Role::Preformatted => {
                self.preformatted -= 1;
                self.fence(open.start);
                self.break_line(2);
            }
            Role::Code => {
                self.code -= 1;
                if self.code == 0 && self.preformatted == 0 {
                    self.surround_code(open.start);
                }
            }
            Role::Script(mark) => self.mark_script(open.start, mark),
            Role::Hidden => self.hidden -= 1,
            _ => {}
        }
    }

    /// Puts the preformatted text that starts at `start`, collected without margins, between fences.
    fn fence(&mut self, start: usize) {
        let text = self.out.split_off(start);
        let text = text.strip_prefix('\n').unwrap_or(&text).trim_end();
        if text.trim().is_empty() {
            return;
        }
        let fence = "`".repeat(longest_run(text, '`').max(2) + 1);
        self.begin_text();
        self.verbatim(&format!("{fence}\n{text}\n{fence}"));
    }

    fn surround_code(&mut self, start: usize) {
        let code = self.out.split_off(start);
        let text = code.trim();
        if !text.is_empty() {
            let ticks = "`".repeat(if text.contains('`') { longest_run(text, '`') + 1 } else { 1 });
            let pad = if text.starts_with('`') || text.ends_with('`') { " " } else { "" };
            self.out.extend([&ticks, pad, text, pad, &ticks]);
        }
        self.space |= code.ends_with(char::is_whitespace);
    }

    /// `^2`, `_i`, or `^(n+1)` for what was written since `start`.
    fn mark_script(&mut self, start: usize, mark: char) {
        if self.preformatted > 0 || self.code > 0 || start > self.out.len() {
            return;
        }
        let content = self.out.split_off(start);
        let text = content.trim();
        if text.is_empty() {
            return;
        }
        self.out.push(mark);
        if text.chars().all(char::is_alphanumeric) {
            self.out.push_str(text);
        } else {
            self.out.extend(["(", text, ")"]);
        }
    }

    /// Closes elements up to and including the innermost one `wanted`, unless one of `barrier` is in between.
    fn close_to(&mut self, wanted: impl Fn(&Open) -> bool, barrier: impl Fn(&Open) -> bool) {
        let found = self.open.iter().rposition(|open| wanted(open) || barrier(open));
        if let Some(depth) = found.filter(|&depth| self.open.get(depth).is_some_and(&wanted)) {
            while self.open.len() > depth {
                self.close_last();
            }
        }
    }
}

fn blank(c: char) -> bool {
    c.is_ascii_whitespace() || matches!(c, '\u{b}' | '\u{a0}')
}

/// Bytes up to the next character that may end TeX.
fn tex_run(text: &str) -> usize {
    memchr2(b'$', b'\\', text.as_bytes()).unwrap_or(text.len())
}

/// Bytes that can be copied as they are: up to the next `$`, backslash, or space that is not a single `' '`
/// between words.
fn plain_run(text: &str) -> usize {
    let bytes = text.as_bytes();
    let special = |&b: &u8| b <= b' ' || matches!(b, b'$' | b'\\' | 0xc2);
    let mut from = 0;
    while let Some(n) = bytes.get(from..).and_then(|rest| rest.iter().position(special)) {
        let at = from + n;
        let single = |next: &u8| !special(next);
        match bytes.get(at) {
            Some(b' ') if bytes.get(at + 1).is_some_and(single) => from = at + 1,
            // 0xc2 begins a no-break space, among others.
            Some(0xc2) if bytes.get(at + 1) != Some(&0xa0) => from = at + 2,
            Some(b) if *b < b' ' && !blank(char::from(*b)) => from = at + 1,
            _ => return at,
        }
    }
    bytes.len()
}

fn longest_run(text: &str, wanted: char) -> usize {
    text.split(|c| c != wanted).map(str::len).max().unwrap_or(0)
}

impl Sink for Page {
    fn text(&mut self, text: &str) {
        if self.hidden > 0 {
            return;
        }
        let text = unescape(text);
        if self.preformatted > 0 {
            self.out.push_str(&text);
        } else {
            self.flowing(&text);
        }
    }

    fn start_tag(&mut self, name: &str, self_closing: bool) {
        let Some(role) = role(name) else { return };
        let name = packed(name.as_bytes());
        match role {
            Role::LineBreak if self.preformatted > 0 => self.out.push('\n'),
            Role::LineBreak => {
                let breaks = (self.breaks + 1).min(2);
                self.break_line(breaks);
            }
            Role::Rule => self.break_line(2),
            Role::Nothing => {}
            _ => {
                let list = |open: &Open| matches!(open.role, Role::List(_));
                match role {
                    Role::Item => self.close_to(|open| open.role == Role::Item, list),
                    Role::Block(_) if name == P => self.close_to(
                        |open| open.name == P,
                        |open| matches!(open.role, Role::Item | Role::Quote | Role::Cell),
                    ),
                    _ => {}
                }
                self.open(name, role);
                if self_closing {
                    self.close_last();
                }
            }
        }
    }

    fn end_tag(&mut self, name: &str) {
        if role(name).is_some() {
            let name = packed(name.as_bytes());
            self.close_to(|open| open.name == name, |_| false);
        }
    }

    fn cdata(&mut self, text: &str) {
        self.text(text);
    }

    fn hidden(&mut self) {}

    fn is_element(&self, name: &str) -> bool {
        role(name).is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::readable_text;

    fn check(html: &str, expected: &str) {
        assert_eq!(readable_text(html), expected, "{html}");
    }

    #[test]
    fn paragraphs_lists_and_quotes() {
        check("<p>One\ntwo</p>\n\n<p>Three<br>four</p>\n", "One two\n\nThree\nfour");
        check("<p>a<p>b", "a\n\nb");
        check(
            "<ul>\n<li>x</li>\n<li>y\n<ul>\n<li>z</li>\n</ul></li>\n</ul>\n<p>end</p>",
            "- x\n- y\n  - z\n\nend",
        );
        check("<ol><li>x<li><p>y</p><p>z</p></ol>", "1. x\n\n2. y\n\n   z");
        check("<blockquote>\n<p>a</p>\n<p>b</p>\n</blockquote>\n<p>c</p>", "> a\n>\n> b\n\nc");
        check(
            "<table><tr><th>a</th><th>b</th></tr><tr><td>1</td><td>2</td></tr></table>",
            "a | b\n1 | 2",
        );
    }

    #[test]
    fn code_keeps_every_space() {
        check(
            "<p>Run:</p><pre><code>if x &lt; 1:\n    y()\n</code></pre><p>ok</p>",
            "Run:\n\n```\nif x < 1:\n    y()\n```\n\nok",
        );
        check("<p>use <code>a  &amp;&amp; b</code>, <code>`</code></p>", "use `a && b`, `` ` ``");
        check(
            "<blockquote><pre><code>a\n\nb</code></pre></blockquote>",
            "> ```\n> a\n> \n> b\n> ```",
        );
        check("<pre>```</pre>", "````\n```\n````");
    }

    #[test]
    fn tex_is_untouched() {
        check(
            "<p>$$\\begin{align}\na &amp;= b \\\\\n  c\n\\end{align}$$</p>",
            "$$\\begin{align}\na &= b \\\\\n  c\n\\end{align}$$",
        );
        check(
            "<p>a  \\(x  y\\)  b \\begin{x}  \\begin{y} \n\\end{y}  \\end{x}  z</p>",
            "a \\(x  y\\) b \\begin{x}  \\begin{y} \n\\end{y}  \\end{x} z",
        );
        check("<p>If $x<y$ and $1<2$, $a<b>c$</p>", "If $x<y$ and $1<2$, $ac$");
        check(
            "<p>Let <span class=\"math-container\">$x  \\in \\$ $</span>  be</p>",
            "Let $x  \\in \\$ $ be",
        );
    }

    #[test]
    fn small_things() {
        check("x<sup>2</sup>+y<sub>i+1</sub> <a href='u'>link</a><img src=x>", "x^2+y_(i+1) link");
        check("<script>x</script>a<!-- b -->c &nbsp; d &hellip;", "ac d …");
        check("<![x a", "<![x a");
        check("a < b </ x> c <x-y>d</x-y>", "a < b </ x> c <x-y>d</x-y>");
        check("", "");
    }
}
