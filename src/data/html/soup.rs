//! Extracts the same text from HTML as BeautifulSoup 4.15 does with
//! `BeautifulSoup(html, "html.parser").get_text(separator=" ")`.
//!
//! No tree is built. The text depends only on the open elements (which strings are hidden, where white space is kept) and
//! on where one string ends and the next begins.

use std::collections::HashMap;

use super::names::{LONGEST, OpenNames, name_number, name_numbers};
use super::tokenizer::{Dialect, RejectedMarkup, Sink, StartTag, Tokenizer};

/// Elements that never have content.
const VOID: [u128; 24] = name_numbers([
    "area", "base", "br", "col", "embed", "hr", "img", "input", "keygen", "link", "menuitem",
    "meta", "param", "source", "track", "wbr", "basefont", "bgsound", "command", "frame", "image",
    "isindex", "nextid", "spacer",
]);
/// Elements whose strings `get_text` of the whole document leaves out.
const HIDDEN: [u128; 5] = name_numbers(["rt", "rp", "style", "script", "template"]);
/// Elements in which a string of white space is not shortened.
const PRESERVE: [u128; 2] = name_numbers(["pre", "textarea"]);

/// Returns the strings of `html` separated by single spaces, like BeautifulSoup's `get_text(separator=" ")`.
///
/// # Errors
/// BeautifulSoup raises `ParserRejectedMarkup` on this markup.
pub(super) fn soup_text(html: &str) -> Result<String, RejectedMarkup> {
    let mut soup = Soup { out: String::with_capacity(html.len()), ..Soup::default() };
    Tokenizer::run(html, Dialect::Cpython, &mut soup)?;
    soup.end_string(Kind::Text);
    Ok(soup.out)
}

/// The kind of a finished string.
#[derive(PartialEq, Eq)]
enum Kind {
    Text,
    Cdata,
    Hidden,
}

/// The state of BeautifulSoup's tree builder that matters for the text.
#[derive(Default)]
struct Soup {
    out: String,
    /// Length of `out` before the current string's separator, and the index at which the string itself starts.
    string: Option<(usize, usize)>,
    /// Whether `out` has a string, so that the next one needs a separator.
    any: bool,
    open: OpenNames,
    /// Number of open elements in [`HIDDEN`].
    hidden: usize,
    /// Number of open elements in [`PRESERVE`].
    preserve: usize,
    /// For each name, the number of void elements whose end tags are to be ignored because they were closed at once.
    already_closed: Vec<(u128, usize)>,
    /// Numbers assigned to the names that do not fit a number.
    long_names: HashMap<String, u128>,
}

impl Soup {
    /// Returns the number of a tag name.
    fn name(&mut self, raw: &str) -> u128 {
        if raw.len() <= LONGEST && raw.is_ascii() {
            return name_number(raw.as_bytes());
        }
        let next = u128::MAX - self.long_names.len() as u128;
        *self.long_names.entry(raw.to_lowercase()).or_insert(next)
    }

    /// Ends the current string: removes it if it is not visible, and shortens it if it is only white space.
    fn end_string(&mut self, kind: Kind) {
        let Some((before, start)) = self.string.take() else {
            return;
        };
        let visible = match kind {
            Kind::Text => self.hidden == 0,
            Kind::Cdata => true,
            Kind::Hidden => false,
        };
        if !visible {
            self.out.truncate(before);
            return;
        }
        self.any = true;
        let blank = |b| matches!(b, b' ' | b'\n' | b'\t' | b'\r' | 0xc);
        let string = &self.out[start..];
        if self.preserve == 0 && string.bytes().all(blank) {
            let kept = if string.contains('\n') { '\n' } else { ' ' };
            self.out.truncate(start);
            self.out.push(kept);
        }
    }

    /// Counts an element as opened or closed if it affects the visibility or white space of strings.
    fn count(&mut self, name: u128, opened: bool) {
        let update = |counter: &mut usize| if opened { *counter += 1 } else { *counter -= 1 };
        if HIDDEN.contains(&name) {
            update(&mut self.hidden);
        } else if PRESERVE.contains(&name) {
            update(&mut self.preserve);
        }
    }

    /// Closes the innermost element called `name` and all elements inside it.
    fn close(&mut self, name: u128) {
        self.end_string(Kind::Text);
        if let Some(depth) = self.open.innermost(name) {
            while self.open.len() > depth {
                if let Some(closed) = self.open.pop() {
                    self.count(closed, false);
                }
            }
        }
    }

    /// Adds a complete string that is separate from the text around it.
    fn whole_string(&mut self, text: &str, kind: Kind) {
        self.end_string(Kind::Text);
        self.text(text);
        self.end_string(kind);
    }
}

impl Sink for Soup {
    fn text(&mut self, text: &str) {
        if self.string.is_none() {
            let before = self.out.len();
            if self.any {
                self.out.push(' ');
            }
            self.string = Some((before, self.out.len()));
        }
        self.out.push_str(text);
    }

    fn start_tag(&mut self, tag: StartTag<'_>) {
        let name = self.name(tag.name);
        self.end_string(Kind::Text);
        if tag.self_closing {
            return; // Opened and closed at once.
        }
        if VOID.contains(&name) {
            match self.already_closed.iter_mut().find(|closed| closed.0 == name) {
                Some((_, count)) => *count += 1,
                None => self.already_closed.push((name, 1)),
            }
            return;
        }
        self.open.push(name);
        self.count(name, true);
    }

    fn end_tag(&mut self, name: &str) {
        let name = self.name(name);
        let mut closed = self.already_closed.iter_mut();
        match closed.find(|closed| closed.0 == name && closed.1 > 0) {
            // An ignored end tag does not end the current string either.
            Some((_, count)) => *count -= 1,
            None => self.close(name),
        }
    }

    fn cdata(&mut self, text: &str) {
        self.whole_string(text, Kind::Cdata);
    }

    fn hidden(&mut self) {
        self.whole_string("", Kind::Hidden);
    }
}
