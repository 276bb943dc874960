//! Evaluation: answers of a model scored against known ones, with intervals and paired tests.

pub mod answers;
pub mod sandbox;
pub mod statistics;

use regex::Regex;

/// A pattern written in this crate.
#[allow(
    clippy::expect_used,
    reason = "constants, each of which a test compiles"
)]
fn pattern(text: &str) -> Regex {
    Regex::new(text).expect("a pattern of this crate")
}
