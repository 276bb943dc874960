//! What HTML elements mean to readable text, and where TeX begins and ends.

use super::names::{LONGEST, lower};

/// What an element does to the text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Role {
    /// Begins and ends with this many line breaks.
    Block(u8),
    /// `ul`, or `ol` with the number of its next item.
    List(Option<u32>),
    Item,
    Quote,
    Preformatted,
    Code,
    /// `sup` (`^`) or `sub` (`_`).
    Script(char),
    Cell,
    /// Its content is not text.
    Hidden,
    Inline,
    LineBreak,
    Rule,
    /// No content, no text.
    Nothing,
}

/// The role of an HTML element, in any case; `None` if there is no element of that name.
pub(super) fn role(name: &str) -> Option<Role> {
    let mut buffer = [0; LONGEST];
    Some(match lower(name, &mut buffer) {
        "p" | "div" | "h1" | "h2" | "h3" | "h4" | "h5" | "h6" | "table" | "dl" | "section"
        | "article" | "aside" | "header" | "footer" | "main" | "nav" | "figure" | "address"
        | "fieldset" | "form" | "details" | "center" | "body" | "html" => Role::Block(2),
        "tr" | "dt" | "dd" | "caption" | "figcaption" | "summary" | "legend" | "option" => {
            Role::Block(1)
        }
        "ul" => Role::List(None),
        "ol" => Role::List(Some(1)),
        "li" => Role::Item,
        "blockquote" => Role::Quote,
        "pre" | "textarea" => Role::Preformatted,
        "code" | "tt" | "samp" => Role::Code,
        "sup" => Role::Script('^'),
        "sub" => Role::Script('_'),
        "td" | "th" => Role::Cell,
        "script" | "style" | "template" | "head" | "title" | "noscript" | "iframe" | "object"
        | "svg" | "math" | "select" | "audio" | "video" | "canvas" | "rp" => Role::Hidden,
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

/// Whether text is inside TeX.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Math {
    #[default]
    None,
    /// Ends at this delimiter.
    Until(&'static str),
    /// This many environments deep.
    Environment(u32),
}

impl Math {
    /// The state after the delimiter that `rest` begins with, and that delimiter's length (0: none).
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

    /// `\$` and `\\` delimit nothing.
    fn escape(rest: &str) -> usize {
        if rest.starts_with("\\$") || rest.starts_with("\\\\") { 2 } else { 0 }
    }
}
