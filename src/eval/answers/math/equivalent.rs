//! Compares two answers by value.

use crate::eval::answers::expression::same;

/// Returns whether two answers have the same value.
///
/// Numbers are compared by exact value, expressions by their values at many points, tuples and lists element by element,
/// sets and pairs of solutions in any order, and assignments (`x=1,y=2`) by name. Units differ only if both answers have
/// one. Answers that cannot be parsed are compared as text.
///
/// ```
/// use arithmo::eval::answers::equivalent;
/// assert!(equivalent(r"\frac{1}{4}", "0.25") && equivalent("[1, 2)", r"\left[1,2.0\right)"));
/// assert!(equivalent(r"\{1, 2\}", "2, 1") && equivalent("0.5", r"50\%"));
/// assert!(equivalent("x^2 + 1", "1+x^{2}") && equivalent("x=1,y=2", "(x,y)=(1,2)"));
/// assert!(!equivalent("(1, 2)", "(2, 1)") && !equivalent("0.33", r"\frac{1}{3}"));
/// ```
pub fn equivalent(one: &str, other: &str) -> bool {
    same(one, other)
}
