//! The text BeautifulSoup 4.15 finds in HTML: `BeautifulSoup(html, "html.parser").get_text(separator=" ")`.
//!
//! No tree is built. The text depends on the open elements only (which strings are hidden, where whitespace is
//! kept) and on where one string ends and the next begins.

use super::names::{LONGEST, packed, packed_all};
use super::tokenizer::{Dialect, RejectedMarkup, Sink, Tokenizer};

/// Elements that never have content.
const VOID: [u128; 24] = packed_all([
    "area", "base", "br", "col", "embed", "hr", "img", "input", "keygen", "link", "menuitem",
    "meta", "param", "source", "track", "wbr", "basefont", "bgsound", "command", "frame", "image",
    "isindex", "nextid", "spacer",
]);
/// Elements whose strings `get_text` leaves out when asked for the whole document's.
const HIDDEN: [u128; 5] = packed_all(["rt", "rp", "style", "script", "template"]);
/// Elements in which a string of spaces stays as it is.
const PRESERVE: [u128; 2] = packed_all(["pre", "textarea"]);

/// The strings of `html`, separated by single spaces, as BeautifulSoup's `get_text(separator=" ")` gives them.
///
/// # Errors
/// The markup is one on which BeautifulSoup raises `ParserRejectedMarkup`.
pub(super) fn soup_text(html: &str) -> Result<String, RejectedMarkup> {
    let mut soup = Soup { out: String::with_capacity(html.len()), ..Soup::default() };
    Tokenizer::run(html, Dialect::Cpython, &mut soup)?;
    soup.end_string(Kind::Text);
    Ok(soup.out)
}

/// What a finished string is.
#[derive(PartialEq, Eq)]
enum Kind {
    Text,
    Cdata,
    Hidden,
}

#[derive(Default)]
struct Soup {
    out: String,
    /// Length of `out` before the current string's separator, and where the string itself starts.
    string: Option<(usize, usize)>,
    /// Whether a string is in `out`, so that the next one needs a separator.
    any: bool,
    open: Vec<u128>,
    hidden: usize,
    preserve: usize,
    /// Void elements closed at once, whose own end tag is still to be ignored.
    already_closed: Vec<u128>,
    /// Names that do not fit a number.
    long_names: Vec<String>,
}

impl Soup {
    fn name(&mut self, raw: &str) -> u128 {
        if raw.len() <= LONGEST && raw.is_ascii() {
            return packed(raw.as_bytes());
        }
        let lower = raw.to_lowercase();
        let index = self.long_names.iter().position(|known| *known == lower);
        let index = index.unwrap_or_else(|| {
            self.long_names.push(lower);
            self.long_names.len() - 1
        });
        u128::MAX - index as u128
    }

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

    fn count(&mut self, name: u128, up: bool) {
        let step = |counter: &mut usize| if up { *counter += 1 } else { *counter -= 1 };
        if HIDDEN.contains(&name) {
            step(&mut self.hidden);
        } else if PRESERVE.contains(&name) {
            step(&mut self.preserve);
        }
    }

    fn close(&mut self, name: u128) {
        self.end_string(Kind::Text);
        if let Some(depth) = self.open.iter().rposition(|open| *open == name) {
            while self.open.len() > depth {
                if let Some(closed) = self.open.pop() {
                    self.count(closed, false);
                }
            }
        }
    }

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

    fn start_tag(&mut self, name: &str, self_closing: bool) {
        let name = self.name(name);
        self.end_string(Kind::Text);
        if self_closing {
            return; // Opened and closed at once.
        }
        if VOID.contains(&name) {
            self.already_closed.push(name);
            return;
        }
        self.open.push(name);
        self.count(name, true);
    }

    fn end_tag(&mut self, name: &str) {
        let name = self.name(name);
        match self.already_closed.iter().position(|closed| *closed == name) {
            // Not even the current string ends here.
            Some(index) => {
                self.already_closed.swap_remove(index);
            }
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
