//! Converts HTML to text that people and language models can read.
//!
//! Blocks are separated by blank lines, list items are on separate lines, quotes begin with `> `, code is fenced or in
//! backticks, `x<sup>2</sup>` becomes `x^2`, links become their text, and images are dropped. TeX (`$…$`, `$$…$$`, `\(…\)`,
//! `\[…\]`, `\begin…\end`) keeps its white space; elsewhere, white space becomes one space. Ordered lists keep the numbers
//! that a browser shows. MathML becomes its TeX, or else its elements in a line.
//!
//! The time is linear in the length of the text for any markup: the stack of open elements is never searched element by
//! element, and elements that add a prefix to each line or surround their text are nested only to a limited depth.

mod flow;
mod marks;

use super::attributes::attribute;
use super::entities::unescape;
use super::lists::List;
use super::mathml::Formula;
use super::names::{OpenNames, name_number};
use super::roles::{Math, Role, role};
use super::tokenizer::{Dialect, Sink, StartTag, Tokenizer};

/// Converts an HTML fragment to readable text without white space at its ends.
///
/// A `<` that begins no HTML element is text, as in `$x<y$`.
///
/// ```
/// let text = arithmo::data::html::readable_text("<p>Find $x<y$:</p><ul><li>a<sup>2</sup><li><code>b</code></ul>");
/// assert_eq!(text, "Find $x<y$:\n\n- a^2\n- `b`");
/// ```
pub fn readable_text(html: &str) -> String {
    let mut page = Page {
        out: String::with_capacity(html.len()),
        lookahead: 2 * html.len(),
        ..Page::default()
    };
    // The forgiving dialect still rejects `<![x`. The text from there on is then kept as it is.
    if let Err(rejected) = Tokenizer::run(html, Dialect::Forgiving, &mut page) {
        page.text(&html[rejected.offset..]);
    }
    page.end_formula();
    while !page.open.is_empty() {
        page.close_last();
    }
    page.out.truncate(page.out.trim_end().len());
    page.out
}

const P: u128 = name_number(b"p");
/// Maximum nesting depth of quotes and items that are indented.
const MAX_MARGINS: usize = 32;
/// Maximum nesting depth of superscripts and subscripts that are marked.
const MAX_SCRIPTS: usize = 16;

/// An open element.
#[derive(Debug)]
struct Open {
    role: Role,
    /// Whether the element added a margin.
    margin: bool,
    /// Length of the output when the element was opened.
    start: usize,
}

/// A prefix of each line inside a quote or an item.
#[derive(Debug)]
struct Margin {
    /// Prefix of the first line, until that is written.
    first: Option<String>,
    /// Prefix of all other lines.
    rest: String,
}

/// The readable text and the state of its conversion.
#[derive(Default)]
struct Page {
    out: String,
    open: Vec<Open>,
    /// Names of the elements in `open`.
    names: OpenNames,
    /// Indices in `open` of items and lists.
    items_and_lists: Vec<usize>,
    /// Indices in `open` of `p` and of the elements that a `p` cannot extend beyond.
    paragraph_bounds: Vec<usize>,
    lists: Vec<List>,
    margins: Vec<Margin>,
    /// The MathML formula that is being read.
    formula: Option<Formula>,
    /// Number of bytes that may still be read ahead to count list items.
    lookahead: usize,
    /// Number of line breaks to write before the next text.
    breaks: u8,
    /// Whether to write a space before the next text on this line.
    space: bool,
    /// Number of open elements whose content is not shown.
    hidden: usize,
    /// Number of open preformatted elements.
    preformatted: usize,
    /// Number of open code elements.
    code: usize,
    /// Number of open superscripts and subscripts.
    scripts: usize,
    math: Math,
    /// Number of cells so far in the table row.
    cells: usize,
}

impl Page {
    /// Opens an element that is not a line break, a rule or a formula.
    fn open(&mut self, tag: &StartTag<'_>, role: Role) {
        let name = name_number(tag.name.as_bytes());
        let mut margin = false;
        match role {
            Role::Block(breaks) => {
                self.break_line(breaks);
                self.cells = 0;
            }
            Role::List { ordered } => {
                self.break_around_list();
                self.lists.push(if ordered {
                    List::ordered(tag, &mut self.lookahead)
                } else {
                    List::unordered()
                });
            }
            Role::Item => {
                self.break_line(1);
                let bullet = match self.lists.last_mut() {
                    Some(list) => list.bullet(tag),
                    None => "- ".to_string(),
                };
                let rest = " ".repeat(bullet.len());
                margin = self.push_margin(bullet, rest);
            }
            Role::Quote => {
                self.break_line(2);
                margin = self.push_margin("> ".to_string(), "> ".to_string());
            }
            Role::Preformatted => {
                if self.preformatted == 0 {
                    self.break_line(2);
                }
                self.preformatted += 1;
            }
            Role::Code | Role::Script(_) => self.open_mark(role),
            Role::Cell => {
                if self.cells > 0 && self.hidden == 0 {
                    self.space = true;
                    self.flowing("| ");
                }
                self.cells += 1;
            }
            Role::Hidden => self.hidden += 1,
            Role::Inline | Role::Formula | Role::LineBreak | Role::Rule | Role::Nothing => {}
        }
        let depth = self.open.len();
        if matches!(role, Role::Item | Role::List { .. }) {
            self.items_and_lists.push(depth);
        }
        if name == P || matches!(role, Role::Item | Role::Quote | Role::Cell) {
            self.paragraph_bounds.push(depth);
        }
        self.names.push(name);
        self.open.push(Open { role, margin, start: self.out.len() });
    }

    /// Opens code, a superscript or a subscript. Pending breaks and spaces are written first, so that the mark is placed
    /// directly before the text.
    fn open_mark(&mut self, role: Role) {
        if role == Role::Code {
            self.code += 1;
        } else {
            self.scripts += 1;
        }
        if self.hidden == 0 && self.preformatted == 0 && (self.space || self.breaks > 0) {
            self.begin_text();
        }
    }

    /// Adds a margin to the following lines. Returns false if the maximum depth is reached.
    fn push_margin(&mut self, first: String, rest: String) -> bool {
        let room = self.margins.len() < MAX_MARGINS;
        if room {
            let first = Some(first);
            self.margins.push(Margin { first, rest });
        }
        room
    }

    /// Breaks the line before or after a list. A nested list has no blank line around it.
    fn break_around_list(&mut self) {
        self.break_line(if self.lists.is_empty() { 2 } else { 1 });
    }

    /// Closes the innermost element.
    fn close_last(&mut self) {
        let Some(open) = self.open.pop() else { return };
        self.names.pop();
        for depths in [&mut self.items_and_lists, &mut self.paragraph_bounds] {
            depths.pop_if(|depth| *depth == self.open.len());
        }
        match open.role {
            Role::Block(breaks) => self.break_line(breaks),
            Role::List { .. } => {
                self.lists.pop();
                self.break_around_list();
            }
            Role::Item | Role::Quote => {
                self.break_line(if open.role == Role::Item { 1 } else { 2 });
                if open.margin {
                    self.margins.pop();
                }
            }
            Role::Preformatted => {
                self.preformatted -= 1;
                if self.preformatted == 0 {
                    self.fence(open.start);
                    self.break_line(2);
                }
            }
            Role::Code => {
                self.code -= 1;
                if self.code == 0 && self.preformatted == 0 {
                    self.surround_code(open.start);
                }
            }
            Role::Script(mark) => {
                self.scripts -= 1;
                if self.scripts < MAX_SCRIPTS {
                    self.mark_script(open.start, mark);
                }
            }
            Role::Hidden => self.hidden -= 1,
            _ => {}
        }
    }

    /// Closes the element at `depth` and all elements inside it.
    fn close_from(&mut self, depth: usize) {
        while self.open.len() > depth {
            self.close_last();
        }
    }

    /// Closes the open item of the innermost list before another item begins.
    fn close_item(&mut self) {
        let nearest = self.items_and_lists.last().copied();
        let role = |depth: usize| self.open.get(depth).map(|open| open.role);
        if let Some(depth) = nearest.filter(|depth| role(*depth) == Some(Role::Item)) {
            self.close_from(depth);
        }
    }

    /// Closes an open `p` before another `p` begins, unless an item, a quote or a cell is between them.
    fn close_paragraph(&mut self) {
        let nearest = self.paragraph_bounds.last().copied();
        let paragraph = self.names.innermost(P);
        if let Some(depth) = nearest.filter(|depth| paragraph == Some(*depth)) {
            self.close_from(depth);
        }
    }

    /// Ends the current formula, if there is one, and writes it.
    fn end_formula(&mut self) {
        let Some(formula) = self.formula.take() else {
            return;
        };
        let text = formula.finish();
        if self.preformatted > 0 {
            self.out.push_str(&text);
        } else {
            self.flowing(&text);
        }
    }

    /// Returns whether an element of this role ends an unclosed formula.
    fn ends_formula(&self, role: Option<Role>) -> bool {
        let block = matches!(
            role,
            Some(
                Role::Block(_) | Role::List { .. } | Role::Item | Role::Quote | Role::Preformatted
            )
        );
        block && self.formula.as_ref().is_some_and(|formula| !formula.in_annotation())
    }
}

/// Returns whether an element repeats the MathML before it as HTML, which KaTeX adds to each formula.
fn repeats_formula(tag: &StartTag<'_>) -> bool {
    tag.attributes.contains("katex-html")
        && attribute(tag.attributes, "class").is_some_and(|class| class.contains("katex-html"))
}

impl Sink for Page {
    fn text(&mut self, text: &str) {
        if self.hidden > 0 {
            return;
        }
        let text = unescape(text);
        if let Some(formula) = &mut self.formula {
            formula.text(&text);
        } else if self.preformatted > 0 {
            self.out.push_str(&text);
        } else {
            self.flowing(&text);
        }
    }

    fn start_tag(&mut self, tag: StartTag<'_>) {
        let role = role(tag.name);
        if self.ends_formula(role) {
            self.end_formula();
        }
        if let Some(formula) = &mut self.formula {
            return formula.start_tag(&tag);
        }
        let Some(mut role) = role else { return };
        if role == Role::Inline && repeats_formula(&tag) {
            role = Role::Hidden;
        }
        match role {
            Role::LineBreak if self.preformatted > 0 => self.out.push('\n'),
            Role::LineBreak => {
                let breaks = (self.breaks + 1).min(2);
                self.break_line(breaks);
            }
            Role::Rule => self.break_line(2),
            Role::Nothing => {}
            Role::Formula => {
                if self.hidden == 0 {
                    self.formula = Some(Formula::new(&tag));
                }
                if tag.self_closing {
                    self.end_formula();
                }
            }
            _ => {
                match role {
                    Role::Item => self.close_item(),
                    Role::Block(_) if name_number(tag.name.as_bytes()) == P => {
                        self.close_paragraph()
                    }
                    _ => {}
                }
                self.open(&tag, role);
                if tag.self_closing {
                    self.close_last();
                }
            }
        }
    }

    fn end_tag(&mut self, name: &str) {
        if let Some(formula) = &mut self.formula {
            let element = role(name);
            if formula.end_tag(name) || element.is_none() {
                return;
            }
            if element == Some(Role::Formula) {
                return self.end_formula();
            }
            if formula.in_annotation() {
                return;
            }
            if self.ends_formula(element) {
                self.end_formula();
            }
        }
        if role(name).is_some()
            && let Some(depth) = self.names.innermost(name_number(name.as_bytes()))
        {
            self.close_from(depth);
        }
    }

    fn cdata(&mut self, text: &str) {
        self.text(text);
    }

    fn hidden(&mut self) {}

    fn is_element(&self, name: &str) -> bool {
        self.formula.is_some() || role(name).is_some()
    }
}

#[cfg(test)]
mod tests;
