//! Reads scores, flags and ids in the types that different writers use, with the same rules for JSON Lines and parquet.
//! pandas turns integers into floats if a value is missing; other writers store flags as 0 and 1.

use std::fmt;

use serde::Deserialize;
use serde::de::{self, Deserializer, Visitor};

use crate::data::columnar::Cell;

/// A vote score: an integer, or a float without a fraction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Score(pub(super) i64);

/// Whether an answer is accepted: a boolean, 0 or 1, or null for false.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Flag(pub(super) bool);

/// A question's id: text, an integer, or a float without a fraction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Id(pub(super) String);

/// A type that can be read from a field of a row. Each conversion returns `None` if the type does not allow it.
pub(super) trait Field: Sized {
    /// Description of the allowed values for messages.
    const EXPECTED: &'static str;

    fn from_integer(_: i128) -> Option<Self> {
        None
    }

    fn from_flag(_: bool) -> Option<Self> {
        None
    }

    fn from_text(_: &str) -> Option<Self> {
        None
    }

    /// Returns the value for null.
    fn null() -> Option<Self> {
        None
    }

    /// Converts a float if it is an integer of a size that floats represent exactly.
    fn from_real(number: f64) -> Option<Self> {
        let whole = number.fract() == 0.0 && number.abs() < 9_007_199_254_740_992.0;
        whole.then_some(number as i128).and_then(Self::from_integer)
    }

    /// Converts a table's cell in the column `name`, or returns the problem.
    fn from_cell(cell: Option<&Cell>, name: &str) -> std::result::Result<Self, String> {
        let (found, value) = match cell {
            None => ("null".to_string(), Self::null()),
            Some(Cell::Integer(number)) => (number.to_string(), Self::from_integer(*number)),
            Some(Cell::Real(number)) => (number.to_string(), Self::from_real(*number)),
            Some(Cell::Flag(flag)) => (flag.to_string(), Self::from_flag(*flag)),
            Some(Cell::Text(bytes)) => match std::str::from_utf8(bytes.data()) {
                Ok(text) => ("text".to_string(), Self::from_text(text)),
                Err(_) => ("not UTF-8".to_string(), None),
            },
        };
        value.ok_or_else(|| format!("{name} is {found}, expected {}", Self::EXPECTED))
    }
}

impl Field for Score {
    const EXPECTED: &'static str = "an integer";

    fn from_integer(number: i128) -> Option<Self> {
        i64::try_from(number).ok().map(Self)
    }
}

impl Field for Flag {
    const EXPECTED: &'static str = "true or false, or 1 or 0";

    fn from_integer(number: i128) -> Option<Self> {
        matches!(number, 0 | 1).then_some(Self(number == 1))
    }

    fn from_flag(flag: bool) -> Option<Self> {
        Some(Self(flag))
    }

    fn null() -> Option<Self> {
        Some(Self(false))
    }
}

impl Field for Id {
    const EXPECTED: &'static str = "an integer or text";

    fn from_integer(number: i128) -> Option<Self> {
        Some(Self(number.to_string()))
    }

    fn from_text(text: &str) -> Option<Self> {
        Some(Self(text.to_string()))
    }
}

struct FieldVisitor<T>(std::marker::PhantomData<T>);

impl<T: Field> Visitor<'_> for FieldVisitor<T> {
    type Value = T;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(T::EXPECTED)
    }

    fn visit_i64<E: de::Error>(self, number: i64) -> Result<T, E> {
        let wrong = || E::invalid_value(de::Unexpected::Signed(number), &self);
        T::from_integer(i128::from(number)).ok_or_else(wrong)
    }

    fn visit_u64<E: de::Error>(self, number: u64) -> Result<T, E> {
        let wrong = || E::invalid_value(de::Unexpected::Unsigned(number), &self);
        T::from_integer(i128::from(number)).ok_or_else(wrong)
    }

    fn visit_f64<E: de::Error>(self, number: f64) -> Result<T, E> {
        let wrong = || E::invalid_value(de::Unexpected::Float(number), &self);
        T::from_real(number).ok_or_else(wrong)
    }

    fn visit_bool<E: de::Error>(self, flag: bool) -> Result<T, E> {
        let wrong = || E::invalid_type(de::Unexpected::Bool(flag), &self);
        T::from_flag(flag).ok_or_else(wrong)
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<T, E> {
        let wrong = || E::invalid_type(de::Unexpected::Str(text), &self);
        T::from_text(text).ok_or_else(wrong)
    }

    fn visit_unit<E: de::Error>(self) -> Result<T, E> {
        T::null().ok_or_else(|| E::invalid_type(de::Unexpected::Unit, &self))
    }
}

macro_rules! deserialize {
    ($($field:ty),*) => {$(
        impl<'de> Deserialize<'de> for $field {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                deserializer.deserialize_any(FieldVisitor(std::marker::PhantomData))
            }
        }
    )*};
}

deserialize!(Score, Flag, Id);

#[cfg(test)]
mod tests {
    use super::*;

    fn json<T: Field + for<'de> Deserialize<'de>>(text: &str) -> Option<T> {
        serde_json::from_str(text).ok()
    }

    /// JSON and tables follow one rule.
    #[test]
    fn scores_flags_and_ids_as_writers_write_them() {
        for (text, cell, score, flag, id) in [
            ("3", Some(Cell::Integer(3)), Some(3), None, Some("3")),
            ("3.0", Some(Cell::Real(3.0)), Some(3), None, Some("3")),
            ("3.5", Some(Cell::Real(3.5)), None, None, None),
            ("1e300", Some(Cell::Real(1e300)), None, None, None),
            ("-1", Some(Cell::Integer(-1)), Some(-1), None, Some("-1")),
            ("0", Some(Cell::Integer(0)), Some(0), Some(false), Some("0")),
            ("1.0", Some(Cell::Real(1.0)), Some(1), Some(true), Some("1")),
            ("true", Some(Cell::Flag(true)), None, Some(true), None),
            ("null", None, None, Some(false), None),
            (
                "18446744073709551615",
                Some(Cell::Integer(18_446_744_073_709_551_615)),
                None,
                None,
                Some("18446744073709551615"),
            ),
            ("\"true\"", Some(Cell::Text("true".into())), None, None, Some("true")),
        ] {
            let cell = cell.as_ref();
            assert_eq!(json::<Score>(text).map(|s| s.0), score, "{text}");
            assert_eq!(Score::from_cell(cell, "x").ok().map(|s| s.0), score, "{text}");
            assert_eq!(json::<Flag>(text).map(|f| f.0), flag, "{text}");
            assert_eq!(Flag::from_cell(cell, "x").ok().map(|f| f.0), flag, "{text}");
            assert_eq!(json::<Id>(text).map(|i| i.0).as_deref(), id, "{text}");
            assert_eq!(Id::from_cell(cell, "x").ok().map(|i| i.0).as_deref(), id, "{text}");
        }
        let error = Score::from_cell(Some(&Cell::Real(3.5)), "answers.pm_score").unwrap_err();
        assert_eq!(error, "answers.pm_score is 3.5, expected an integer");
    }
}
