//! Lists words that are numbers, or that change the value of the number before them.

use num_bigint::BigInt;
use num_rational::BigRational;

/// Returns the factor by which a word multiplies the number before it: `million`, `dozen`.
pub(super) fn multiplier(word: &str) -> Option<BigRational> {
    let factor: u64 = match word.to_ascii_lowercase().as_str() {
        "dozen" | "dozens" => 12,
        "hundred" | "hundreds" => 100,
        "thousand" | "thousands" => 1_000,
        "lakh" | "lakhs" => 100_000,
        "million" | "millions" | "mn" | "mln" => 1_000_000,
        "crore" | "crores" => 10_000_000,
        "billion" | "billions" | "bn" => 1_000_000_000,
        "trillion" | "trillions" => 1_000_000_000_000,
        _ => return None,
    };
    Some(BigRational::from(BigInt::from(factor)))
}

/// Returns the factor of a letter directly after the digits: `5k`. `m`, `b` and `t` are factors only in amounts of money;
/// elsewhere they are units or variables.
pub(super) fn letter_multiplier(letter: &str, is_money: bool) -> Option<BigRational> {
    let factor: u64 = match letter {
        "k" | "K" => 1_000,
        "M" => 1_000_000,
        "B" => 1_000_000_000,
        "m" if is_money => 1_000_000,
        "b" if is_money => 1_000_000_000,
        "t" | "T" if is_money => 1_000_000_000_000,
        _ => return None,
    };
    Some(BigRational::from(BigInt::from(factor)))
}

/// Words that change the value of the number before them.
const CHANGES: &[&str] = &[
    "mio",
    "mrd",
    "kk",
    "doubled",
    "tripled",
    "halved",
    "squared",
    "cubed",
    "factorial",
    "mod",
    "modulo",
    "power",
    "half",
    "halves",
    "thirds",
    "fourths",
    "fifths",
    "sixths",
    "sevenths",
    "eighths",
    "ninths",
    "tenths",
    "hundredths",
    "thousandths",
    "millionths",
    "millionen",
    "milliarde",
    "milliarden",
    "tausend",
    "hundert",
    "dutzend",
    "mille",
    "milliard",
    "milliards",
    "douzaine",
    "douzaines",
    "millones",
    "mil",
    "mila",
    "milioni",
    "miliardi",
    "milhões",
    "miljoen",
    "duizend",
    "тысяч",
    "тысячи",
    "тыс",
    "миллион",
    "миллиона",
    "миллионов",
    "млн",
    "млрд",
    "viertel",
    "drittel",
    "fünftel",
    "achtel",
    "cuartos",
    "tercios",
    "terzi",
    "quarti",
    "pi",
    "sqrt",
    "below",
    "fold",
];

/// Returns whether a word changes the value of the number before it: `3 squared`, `2 thirds`, `3 Millionen`.
pub(super) fn changes_value(word: &str) -> bool {
    let ideographs = ['十', '百', '千', '万', '萬', '億', '亿', '兆', '천', '만', '억'];
    let multiplies = multiplier(word).is_some();
    multiplies || CHANGES.contains(&word.to_lowercase().as_str()) || word.starts_with(ideographs)
}

/// Returns whether a word after `1` makes it a fraction: `1 third`. After other numbers it is an ordinal: `18 third
/// graders`.
pub(super) fn is_fraction_of_one(word: &str) -> bool {
    const ORDINALS: [&str; 8] =
        ["third", "fourth", "quarter", "fifth", "sixth", "eighth", "tenth", "hundredth"];
    ORDINALS.contains(&word)
}

/// Returns the denominator of the fraction that a word names, and whether the word is a plural: `third`, `quarters`.
pub(super) fn part_name(word: &str) -> Option<(u64, bool)> {
    const PARTS: [(&str, &str, u64); 14] = [
        ("half", "halves", 2),
        ("third", "thirds", 3),
        ("quarter", "quarters", 4),
        ("fourth", "fourths", 4),
        ("fifth", "fifths", 5),
        ("sixth", "sixths", 6),
        ("seventh", "sevenths", 7),
        ("eighth", "eighths", 8),
        ("ninth", "ninths", 9),
        ("tenth", "tenths", 10),
        ("twelfth", "twelfths", 12),
        ("hundredth", "hundredths", 100),
        ("thousandth", "thousandths", 1_000),
        ("millionth", "millionths", 1_000_000),
    ];
    let word = word.to_lowercase();
    let part = PARTS.iter().find(|(one, several, _)| [one, several].contains(&&word.as_str()));
    part.map(|(_, several, parts)| (*parts, *several == word))
}

/// Returns the value of a single word for a number below a hundred: `seven`, `twenty`.
pub(super) fn small_number(word: &str) -> Option<u64> {
    const SMALL: [&str; 20] = [
        "zero",
        "one",
        "two",
        "three",
        "four",
        "five",
        "six",
        "seven",
        "eight",
        "nine",
        "ten",
        "eleven",
        "twelve",
        "thirteen",
        "fourteen",
        "fifteen",
        "sixteen",
        "seventeen",
        "eighteen",
        "nineteen",
    ];
    const TENS: [&str; 8] =
        ["twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety"];
    let word = word.to_ascii_lowercase();
    let index = |words: &[&str]| words.iter().position(|known| *known == word);
    let small = index(&SMALL).map(|value| value as u64);
    small.or_else(|| index(&TENS).map(|tens| 20 + 10 * tens as u64))
}
