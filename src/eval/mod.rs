//! Evaluation: scores a model's answers against known ones, with confidence intervals and paired tests.

pub mod answers;
pub mod change;
pub mod compare;
pub mod folder;
pub mod judged;
pub mod pot;
pub mod predict;
pub mod predictions;
pub mod preference;
pub mod problems;
pub mod sandbox;
pub mod settings;
pub mod statistics;
pub mod store;
pub mod task;

use regex::Regex;

/// Compiles a regular expression that is a constant of this crate.
#[allow(clippy::expect_used, reason = "constants, each of which a test compiles")]
fn pattern(text: &str) -> Regex {
    Regex::new(text).expect("a valid pattern of this crate")
}
