//! Evaluation: scorers, sandbox, and the command as a user calls it.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]
#![allow(clippy::too_many_lines, reason = "tables of cases, and the one story of an evaluation")]

mod answers;
mod calls;
mod command;
mod compare;
mod mistakes;
mod pot;
mod preference;
mod programs;
mod resume;
