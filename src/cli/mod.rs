//! Subcommands: one file each, arguments to calls, no logic.

pub mod report;
pub mod prepare;
