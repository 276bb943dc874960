//! Evaluation: scorers, sandbox, statistics, and the command as a user calls it.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod answers;
