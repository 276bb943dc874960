//! Converts HTML to text, either byte for byte like the original project's Python or in a readable form.

mod attributes;
mod entities;
mod lists;
mod mathml;
mod names;
mod readable;
mod roles;
mod search;
mod soup;
mod tokenizer;

pub use entities::unescape;
pub use readable::readable_text;
pub use tokenizer::RejectedMarkup;

/// Converts an HTML fragment to text like the original project: `BeautifulSoup(html, "html.parser")
/// .get_text(separator=" ")` of BeautifulSoup 4.15 on CPython 3.11.7, followed by `html.unescape`.
///
/// ```
/// let text = arithmo::data::html::original_text("<p>Is $a &amp;lt; b$?<br>Yes</p>");
/// assert_eq!(text.as_deref(), Ok("Is $a < b$? Yes"));
/// ```
///
/// # Errors
/// Python's parser rejects this markup (it raises `ParserRejectedMarkup`).
pub fn original_text(html: &str) -> Result<String, RejectedMarkup> {
    let text = soup::soup_text(html)?;
    Ok(match unescape(&text) {
        std::borrow::Cow::Borrowed(_) => text,
        std::borrow::Cow::Owned(unescaped) => unescaped,
    })
}

/// Converts an HTML fragment to text like BeautifulSoup's `get_text(separator=" ")`: [`original_text`] without its last
/// step.
///
/// # Errors
/// Same as [`original_text`].
pub fn beautiful_soup_text(html: &str) -> Result<String, RejectedMarkup> {
    soup::soup_text(html)
}
