//! Fractions in one character.

/// Returns the numerator and denominator of a fraction in one character, such as `¾`.
#[rustfmt::skip]
pub(super) fn vulgar_fraction(c: char) -> Option<(u8, u8)> {
    Some(match c {
        '½' => (1, 2),
        '⅓' => (1, 3), '⅔' => (2, 3),
        '¼' => (1, 4), '¾' => (3, 4),
        '⅕' => (1, 5), '⅖' => (2, 5), '⅗' => (3, 5), '⅘' => (4, 5),
        '⅙' => (1, 6), '⅚' => (5, 6),
        '⅛' => (1, 8), '⅜' => (3, 8), '⅝' => (5, 8), '⅞' => (7, 8),
        _ => return None,
    })
}
