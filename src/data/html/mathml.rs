//! Converts MathML to text: its TeX if it has any (`annotation`, `alttext`), or else its elements in a line, as in `x^2` and
//! `(a)/(b)`.

use super::attributes::attribute;
use super::tokenizer::StartTag;

/// Maximum nesting depth of elements. The tags of deeper elements are ignored.
const MAX_DEPTH: usize = 48;

/// A formula that is being read.
#[derive(Debug)]
pub(super) struct Formula {
    open: Vec<Node>,
    /// Number of open elements that are ignored because they are too deep.
    ignored: usize,
    /// TeX from annotations.
    tex: String,
    alttext: String,
    /// Whether it is a display formula.
    display: bool,
}

#[derive(Debug)]
struct Node {
    name: String,
    /// Whether the element is an annotation in TeX.
    tex: bool,
    /// Texts of the children.
    parts: Vec<String>,
}

impl Formula {
    /// Creates the formula that a `<math …>` begins.
    pub(super) fn new(tag: &StartTag<'_>) -> Self {
        let value = |name| attribute(tag.attributes, name).unwrap_or_default();
        let mut formula = Self {
            open: Vec::new(),
            ignored: 0,
            tex: String::new(),
            alttext: value("alttext").into_owned(),
            display: value("display").eq_ignore_ascii_case("block"),
        };
        formula.open("math", false);
        formula
    }

    /// Opens an element.
    fn open(&mut self, name: &str, tex: bool) {
        self.open.push(Node { name: name.to_ascii_lowercase(), tex, parts: Vec::new() });
    }

    /// Returns whether an annotation is open, which is another form of the formula and may contain HTML.
    pub(super) fn in_annotation(&self) -> bool {
        let mut open = self.open.iter();
        open.any(|node| matches!(node.name.as_str(), "annotation" | "annotation-xml"))
    }

    /// Handles a start tag inside the formula.
    pub(super) fn start_tag(&mut self, tag: &StartTag<'_>) {
        if self.open.len() >= MAX_DEPTH {
            self.ignored += usize::from(!tag.self_closing);
            return;
        }
        let encoding = attribute(tag.attributes, "encoding").unwrap_or_default();
        let encoding = encoding.to_ascii_lowercase();
        let tex = tag.name.eq_ignore_ascii_case("annotation")
            && ["tex", "latex"].iter().any(|name| encoding.ends_with(name));
        self.open(tag.name, tex);
        if tag.self_closing {
            self.close_last();
        }
    }

    /// Closes the innermost element of this name. Returns false if there is none.
    pub(super) fn end_tag(&mut self, name: &str) -> bool {
        let has_name = |node: &Node| node.name.eq_ignore_ascii_case(name);
        let Some(depth) = self.open.iter().rposition(has_name).filter(|depth| *depth > 0) else {
            return false;
        };
        if self.ignored > 0 {
            self.ignored -= 1;
            return true;
        }
        while self.open.len() > depth {
            self.close_last();
        }
        true
    }

    /// Adds text to the innermost open element.
    pub(super) fn text(&mut self, text: &str) {
        let Some(node) = self.open.last_mut() else {
            return;
        };
        if node.tex {
            self.tex.push_str(text);
            return;
        }
        // Invisible operators such as "function application" and "invisible times" are dropped.
        let is_visible = |c: &char| !matches!(c, '\u{2061}'..='\u{2064}');
        let mut visible: String = text.trim().chars().filter(is_visible).collect();
        if visible.is_empty() {
            return;
        }
        if node.name == "mtext" {
            // Words keep a space between them and the formula around them.
            let space = |edge: Option<char>| edge.filter(|c| c.is_whitespace()).map(|_| " ");
            let before = space(text.chars().next()).unwrap_or_default();
            let after = space(text.chars().next_back()).unwrap_or_default();
            visible = format!("{before}{visible}{after}");
        }
        node.parts.push(visible);
    }

    /// Closes the innermost element and adds its text to its parent.
    fn close_last(&mut self) {
        let Some(node) = self.open.pop() else { return };
        let text = node.text();
        if let Some(parent) = self.open.last_mut() {
            parent.parts.push(text);
        }
    }

    /// Ends the formula and returns it as text.
    pub(super) fn finish(mut self) -> String {
        while self.open.len() > 1 {
            self.close_last();
        }
        let spaced = |text: &str| text.split_whitespace().collect::<Vec<_>>().join(" ");
        let (tex, alttext) = (spaced(&self.tex), spaced(&self.alttext));
        let elements = self.open.pop().map(|math| math.text()).unwrap_or_default();
        if !tex.is_empty() {
            self.delimited(&tex)
        } else if alttext.contains(['\\', '^', '_', '{']) {
            self.delimited(&alttext)
        } else if elements.is_empty() {
            alttext
        } else {
            elements
        }
    }

    /// Returns `tex` between the delimiters of a display or an inline formula.
    fn delimited(&self, tex: &str) -> String {
        let tex = tex.trim_matches('$');
        if self.display { format!("$${tex}$$") } else { format!("${tex}$") }
    }
}

impl Node {
    /// Returns the text of the element.
    fn text(self) -> String {
        let part = |index: usize| self.parts.get(index).map_or("", String::as_str);
        let group = |index: usize| grouped(part(index));
        let all = || join_parts(&self.parts);
        match (self.name.as_str(), self.parts.len()) {
            ("mfrac", 2) => format!("{}/{}", group(0), group(1)),
            ("msup" | "mover", 2) => format!("{}^{}", group(0), group(1)),
            ("msub" | "munder", 2) => format!("{}_{}", group(0), group(1)),
            ("msubsup" | "munderover", 3) => format!("{}_{}^{}", group(0), group(1), group(2)),
            ("msqrt", _) => format!("sqrt({})", all()),
            ("mroot", 2) => format!("{}^(1/{})", group(0), group(1)),
            ("mfenced", _) => format!("({})", self.parts.join(", ")),
            ("mtr", _) => self.parts.join(", "),
            ("mtable", _) => format!("[{}]", self.parts.join("; ")),
            // The other children are the same formula in other forms.
            ("semantics", _) => part(0).to_string(),
            ("annotation" | "annotation-xml", _) => String::new(),
            _ => all(),
        }
    }
}

/// Joins the parts, with a space between two names unless both are single letters: `sin x`, but `xy`.
fn join_parts(parts: &[String]) -> String {
    let name = |text: &str| text.chars().count() > 1 && text.chars().all(char::is_alphabetic);
    let mut line = String::new();
    for (index, part) in parts.iter().enumerate() {
        let before = index.checked_sub(1).and_then(|index| parts.get(index));
        let letters = line.ends_with(char::is_alphabetic) && part.starts_with(char::is_alphabetic);
        if letters && (name(part) || before.is_some_and(|before| name(before))) {
            line.push(' ');
        }
        line.push_str(part);
    }
    line
}

/// Puts text in parentheses unless it is a number or a single character.
fn grouped(text: &str) -> String {
    let is_number = text.chars().all(|c| c.is_ascii_digit() || c == '.');
    if is_number || text.chars().count() <= 1 { text.to_string() } else { format!("({text})") }
}
