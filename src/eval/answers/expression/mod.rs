//! Parses mathematical expressions in LaTeX or plain text, evaluates them exactly or in high precision, and compares them by
//! value.
//!
//! The length of a text, its depth, the digits of its numbers and the work of a comparison are bounded. An answer that
//! exceeds a bound, or cannot be parsed completely, has no value and is compared as text.

mod compare;
mod complex;
mod evaluate;
mod exact;
mod layout;
mod lexer;
mod parser;
mod real;
mod real_functions;
mod symbols;
mod tree;
mod units;

use num_rational::BigRational;

pub(super) use compare::same;

/// Returns the exact value of a closed expression: numbers, sums, products, quotients, powers, roots, factorials and so on.
/// Returns `None` if it is not rational, has names, units or several values, is too large, or cannot be parsed.
///
/// Commas between groups of three digits are read as separators of thousands.
///
/// ```
/// use arithmo::eval::answers::rational_value;
/// assert_eq!(rational_value(r"2^{10} - \sqrt{16}"), rational_value("1,020"));
/// assert_eq!(rational_value(r"3\pi"), None);
/// ```
pub fn rational_value(text: &str) -> Option<BigRational> {
    let text = without_emphasis(text);
    let answer = parser::parse(text, parser::Commas::Thousands)?;
    exact::exact(&answer.tree, &exact::Budget::new(compare::MAX_WORK))
}

/// Removes white space, Markdown and quotes around `text`.
fn without_emphasis(text: &str) -> &str {
    text.trim_matches(|c: char| c.is_whitespace() || "*`\"".contains(c))
}
