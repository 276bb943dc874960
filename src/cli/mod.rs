//! Subcommands: one file each, arguments to calls, no logic.

pub mod prepare;
pub mod report;
