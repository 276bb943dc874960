//! The effect of HTML elements on readable text, and the detection of TeX in text.

use super::names::{LONGEST, lower};

/// The effect of an element on the text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Role {
    /// A block that begins and ends with this many line breaks.
    Block(u8),
    /// A list: `ol` if it is ordered, else `ul`.
    List {
        ordered: bool,
    },
    Item,
    Quote,
    Preformatted,
    Code,
    /// A superscript (`^`) or subscript (`_`), by its mark.
    Script(char),
    Cell,
    /// An element whose content is not shown.
    Hidden,
    /// A MathML formula.
    Formula,
    Inline,
    LineBreak,
    Rule,
    /// An element without content and without text.
    Nothing,
}

/// Returns the role of an HTML element by its name in upper or lower case, or `None` if there is no such element.
pub(super) fn role(name: &str) -> Option<Role> {
    let mut buffer = [0; LONGEST];
    Some(match lower(name, &mut buffer) {
        "p" | "div" | "h1" | "h2" | "h3" | "h4" | "h5" | "h6" | "table" | "dl" | "section"
        | "article" | "aside" | "header" | "footer" | "main" | "nav" | "figure" | "address"
        | "fieldset" | "form" | "details" | "center" | "body" | "html" => Role::Block(2),
        "tr" | "dt" | "dd" | "caption" | "figcaption" | "summary" | "legend" | "option" => {
            Role::Block(1)
        }
        "ul" => Role::List { ordered: false },
        "ol" => Role::List { ordered: true },
        "li" => Role::Item,
        "blockquote" => Role::Quote,
        "pre" | "textarea" => Role::Preformatted,
        "code" | "tt" | "samp" => Role::Code,
        "sup" => Role::Script('^'),
        "sub" => Role::Script('_'),
        "td" | "th" => Role::Cell,
        "script" | "style" | "template" | "head" | "title" | "noscript" | "iframe" | "object"
        | "svg" | "select" | "audio" | "video" | "canvas" | "rp" => Role::Hidden,
        "math" => Role::Formula,
        "br" => Role::LineBreak,
        "hr" => Role::Rule,
        "img" | "wbr" | "input" | "col" | "link" | "meta" | "area" | "base" | "embed" | "param"
        | "source" | "track" => Role::Nothing,
        "a" | "abbr" | "b" | "bdi" | "bdo" | "big" | "button" | "cite" | "colgroup" | "data"
        | "del" | "dfn" | "em" | "font" | "i" | "ins" | "kbd" | "label" | "mark" | "o" | "q"
        | "ruby" | "rt" | "rb" | "s" | "small" | "span" | "strike" | "strong" | "tbody"
        | "tfoot" | "thead" | "time" | "u" | "var" => Role::Inline,
        _ => return None,
    })
}

/// Whether the text at some point is inside TeX.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Math {
    #[default]
    None,
    /// Inside TeX that ends at this delimiter.
    Until(&'static str),
    /// Inside this many nested environments.
    Environment(u32),
}

impl Math {
    /// Returns the state after the delimiter at the start of `rest`, and the delimiter's length, which is 0 if there is
    /// none.
    pub(super) fn step(self, rest: &str) -> (Self, usize) {
        match self {
            Self::Until(end) if rest.starts_with(end) => (Self::None, end.len()),
            Self::None => {
                let opens = [("$$", "$$"), ("$", "$"), ("\\(", "\\)"), ("\\[", "\\]")].into_iter();
                match opens.into_iter().find(|(start, _)| rest.starts_with(start)) {
                    Some((start, end)) => (Self::Until(end), start.len()),
                    None if rest.starts_with("\\begin{") => (Self::Environment(1), 7),
                    None => (self, Self::escape(rest)),
                }
            }
            Self::Environment(n) if rest.starts_with("\\begin{") => (Self::Environment(n + 1), 7),
            Self::Environment(1) if rest.starts_with("\\end{") => (Self::None, 5),
            Self::Environment(n) if rest.starts_with("\\end{") => (Self::Environment(n - 1), 5),
            _ => (self, Self::escape(rest)),
        }
    }

    /// Returns the length of an escape (`\$` or `\\`) at the start of `rest`, which delimits nothing, or 0.
    fn escape(rest: &str) -> usize {
        if rest.starts_with("\\$") || rest.starts_with("\\\\") { 2 } else { 0 }
    }
}
