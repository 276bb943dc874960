//! HTML to text, in two ways: byte for byte as the original project's Python did, or readable.

mod entities;
mod names;
mod readable;
mod roles;
mod soup;
mod tokenizer;

pub use entities::unescape;
pub use readable::readable_text;
pub use tokenizer::RejectedMarkup;

/// The original project's text of an HTML fragment: `BeautifulSoup(html, "html.parser").get_text(separator=" ")`
/// of BeautifulSoup 4.15 on CPython 3.11.7, then `html.unescape` once more.
///
/// ```
/// let text = arithmo::data::html::original_text("<p>Is $a &amp;lt; b$?<br>Yes</p>");
/// assert_eq!(text.as_deref(), Ok("Is $a < b$? Yes"));
/// ```
///
/// # Errors
/// Python's parser gives up on this markup (it raises `ParserRejectedMarkup`).
pub fn original_text(html: &str) -> Result<String, RejectedMarkup> {
    let text = soup::soup_text(html)?;
    Ok(match unescape(&text) {
        std::borrow::Cow::Borrowed(_) => text,
        std::borrow::Cow::Owned(unescaped) => unescaped,
    })
}

/// [`original_text`] before its last step: what `get_text(separator=" ")` returns.
///
/// # Errors
/// As [`original_text`].
pub fn beautiful_soup_text(html: &str) -> Result<String, RejectedMarkup> {
    soup::soup_text(html)
}
