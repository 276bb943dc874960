//! Tests of evaluation: the scorers, the sandbox, and the commands as a user calls them.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]
#![allow(clippy::too_many_lines, reason = "some tests have long tables of cases")]

mod answers;
mod calls;
mod changed;
mod command;
mod compare;
mod completions;
mod escapes;
mod expressions;
mod mistakes;
mod pages;
mod pot;
mod preference;
mod programs;
mod real_model;
mod resume;
#[path = "../suite/signal.rs"]
mod signal;
#[path = "../support/mod.rs"]
mod support;
mod word_problems;
