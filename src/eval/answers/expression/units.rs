//! Units of measurement and counted things, with conversion factors to base units.

use std::collections::BTreeMap;

use num_rational::BigRational;
use num_traits::{One, pow::Pow};

/// A product of powers of base units and a factor: km/h is 1000/3600 m/s.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Unit {
    /// Number of base units in one of this unit.
    pub(super) factor: BigRational,
    /// Exponent of each base unit.
    pub(super) powers: BTreeMap<String, i32>,
}

/// The words for a unit, its base unit, and the number of base units in it (numerator, denominator).
type Row = (&'static str, &'static str, (i64, i64));

#[rustfmt::skip]
const UNITS: &[Row] = &[
    ("m meter metre", "meter", (1, 1)), ("cm centimeter centimetre", "meter", (1, 100)),
    ("mm millimeter millimetre", "meter", (1, 1000)), ("km kilometer kilometre", "meter", (1000, 1)),
    ("dm decimeter", "meter", (1, 10)), ("nm nanometer", "meter", (1, 1_000_000_000)), ("micrometer micron", "meter", (1, 1_000_000)),
    ("in inch inches", "inch", (1, 1)), ("ft foot feet", "inch", (12, 1)), ("yd yard", "inch", (36, 1)),
    ("mi mile", "inch", (63_360, 1)),
    ("g gram", "gram", (1, 1)), ("kg kilogram", "gram", (1000, 1)), ("mg milligram", "gram", (1, 1000)),
    ("ton tonne", "ton", (1, 1)), ("lb lbs pound", "pound", (1, 1)), ("oz ounce", "ounce", (1, 1)),
    ("s sec second", "second", (1, 1)), ("min minute", "second", (60, 1)), ("h hr hour", "second", (3600, 1)),
    ("ms millisecond", "second", (1, 1000)), ("day", "second", (86_400, 1)), ("week", "second", (604_800, 1)),
    ("month", "month", (1, 1)), ("yr year", "month", (12, 1)), ("decade", "month", (120, 1)), ("century", "month", (1200, 1)),
    ("L l liter litre", "liter", (1, 1)), ("ml mL milliliter millilitre", "liter", (1, 1000)),
    ("gal gallon", "gallon", (1, 1)), ("quart", "gallon", (1, 4)), ("pint", "gallon", (1, 8)), ("cup", "gallon", (1, 16)),
    ("tablespoon tbsp", "tablespoon", (1, 1)), ("teaspoon tsp", "tablespoon", (1, 3)),
    ("dollar usd USD buck", "dollar", (1, 1)), ("cent", "dollar", (1, 100)), ("dime", "dime", (1, 1)),
    ("euro", "euro", (1, 1)), ("yen", "yen", (1, 1)), ("rupee", "rupee", (1, 1)),
    ("deg degree", "degree", (1, 1)), ("rad radian", "radian", (1, 1)), ("Hz hertz", "hertz", (1, 1)), ("N newton", "newton", (1, 1)),
    ("J joule", "joule", (1, 1)), ("W watt", "watt", (1, 1)), ("V volt", "volt", (1, 1)), ("acre", "acre", (1, 1)),
    ("unit", "unit", (1, 1)), ("people person", "person", (1, 1)), ("children child kid", "child", (1, 1)),
    ("men man", "man", (1, 1)), ("women woman", "woman", (1, 1)), ("way", "way", (1, 1)), ("fish", "fish", (1, 1)),
    ("box boxes", "box", (1, 1)), ("inhabitant", "inhabitant", (1, 1)), ("bit", "bit", (1, 1)), ("byte", "byte", (1, 1)),
    ("apple", "apple", (1, 1)), ("book", "book", (1, 1)), ("game", "game", (1, 1)), ("student", "student", (1, 1)),
    ("coin", "coin", (1, 1)), ("ball", "ball", (1, 1)), ("egg", "egg", (1, 1)), ("car", "car", (1, 1)),
    ("piece", "piece", (1, 1)), ("page", "page", (1, 1)), ("point", "point", (1, 1)), ("ticket", "ticket", (1, 1)),
    ("marble", "marble", (1, 1)), ("card", "card", (1, 1)), ("step", "step", (1, 1)), ("item", "item", (1, 1)),
];

/// Words that end in s but are not plurals of counted things.
#[rustfmt::skip]
const NOT_PLURALS: &[&str] = &[
    "times", "plus", "minus", "less", "thus", "tens", "hundreds", "thousands", "millions", "billions", "dozens", "halves",
    "thirds", "fourths", "quarters", "fifths", "sixths", "sevenths", "eighths", "ninths", "tenths", "this", "always",
    "plurals", "odds", "gross", "modulus", "radius", "squares", "cubes", "versus", "bases", "ones",
];

/// Adjectives before a unit that do not change it.
pub(super) const ADJECTIVES: &[&str] = &[
    "positive",
    "negative",
    "different",
    "distinct",
    "total",
    "whole",
    "ordered",
    "possible",
    "additional",
    "more",
    "blue",
    "red",
    "green",
    "white",
    "black",
    "yellow",
    "nautical",
    "fluid",
];

/// Letters that are units only in text: `5\text{ m}` is a length, `5m` is a product.
const ONLY_IN_TEXT: &[&str] = &["m", "g", "s", "h", "L", "l", "N", "J", "W", "V"];

impl Unit {
    /// Returns the unit that `word` names. A plural that names no unit of measurement is the unit of the things it counts
    /// (`apples`). `is_text` means that the word is in `\text{}` or the like, where letters such as `m` are units too.
    pub(super) fn from_name(word: &str, is_text: bool) -> Option<Self> {
        if !is_text && ONLY_IN_TEXT.contains(&word) {
            return None;
        }
        let lower = word.to_lowercase();
        // "mph" and "kph" consist of two units.
        if matches!(lower.as_str(), "mph" | "kph" | "kmh") {
            let length = Self::from_name(if lower == "mph" { "mile" } else { "km" }, true)?;
            return Some(length.times(&Self::from_name("hour", true)?, -1));
        }
        let row = |word: &str| {
            let mut rows = UNITS.iter();
            rows.find(|(words, ..)| words.split(' ').any(|known| known == word))
        };
        let singular = |word: &str| {
            let stem = word.strip_suffix('s').filter(|stem| stem.len() >= 2)?;
            row(stem)
        };
        let is_long = lower.len() > 2;
        let known = row(word)
            .or_else(|| row(&lower).filter(|_| is_long))
            .or_else(|| singular(&lower))
            .or_else(|| (lower == "centuries").then(|| row("century")).flatten());
        if let Some((_, base, (numerator, denominator))) = known {
            let factor = BigRational::new((*numerator).into(), (*denominator).into());
            return Some(Self::multiple(base, factor));
        }
        let is_plural = lower.len() >= 4
            && lower.ends_with('s')
            && !lower.ends_with("ss")
            && lower.chars().all(char::is_alphabetic)
            && !NOT_PLURALS.contains(&lower.as_str());
        let stem = lower.trim_end_matches('s');
        is_plural.then(|| Self::multiple(stem, BigRational::one()))
    }

    /// Creates the unit of `factor` base units `base`.
    pub(super) fn multiple(base: &str, factor: BigRational) -> Self {
        Self { factor, powers: BTreeMap::from([(base.to_string(), 1)]) }
    }

    /// Multiplies this unit by `other` to the power of `power`.
    pub(super) fn times(mut self, other: &Self, power: i32) -> Self {
        self.factor *= Pow::pow(&other.factor, power);
        for (base, exponent) in &other.powers {
            *self.powers.entry(base.clone()).or_default() += exponent * power;
        }
        self.powers.retain(|_, exponent| *exponent != 0);
        self
    }

    /// Raises this unit to the power of `power`, as in square feet.
    pub(super) fn raised(&self, power: i32) -> Self {
        let one = Self { factor: BigRational::one(), powers: BTreeMap::new() };
        one.times(self, power)
    }

    /// Returns whether this unit is that of angles in degrees.
    pub(super) fn is_degree(&self) -> bool {
        self.powers.len() == 1 && self.powers.get("degree") == Some(&1)
    }
}

/// Returns the factor by which a word multiplies the number before it: three million.
pub(super) fn multiplier(word: &str) -> Option<i64> {
    Some(match word.to_lowercase().as_str() {
        "dozen" => 12,
        "hundred" => 100,
        "thousand" => 1_000,
        "million" => 1_000_000,
        "billion" => 1_000_000_000,
        "trillion" => 1_000_000_000_000,
        _ => return None,
    })
}
