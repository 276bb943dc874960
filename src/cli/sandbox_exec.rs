//! Implements `arithmo sandbox-exec`, by which the program calls itself to run a generated program; not for people.

use std::path::PathBuf;

use clap::Args;

use crate::error::Result;
use crate::eval::sandbox::{Restriction, become_restricted};

/// Arguments of `arithmo sandbox-exec`.
#[derive(Args, Clone, Debug)]
pub struct SandboxExecArgs {
    /// Limit the CPU time, in seconds.
    #[arg(long)]
    pub cpu_seconds: u64,
    /// Limit the address space, in bytes.
    #[arg(long)]
    pub memory_bytes: u64,
    /// Let the program read this file or folder; may be repeated.
    #[arg(long)]
    pub read: Vec<PathBuf>,
    /// Set the id of the process that started this one; the two end together.
    #[arg(long)]
    pub parent: u32,
    /// Run this program with its arguments.
    #[arg(last = true, required = true)]
    pub command: Vec<String>,
}

/// Restricts this process and replaces it by the program.
///
/// # Errors
/// Always, if it returns: the program did not start.
pub fn run(args: &SandboxExecArgs) -> Result<()> {
    let restriction = Restriction {
        cpu_seconds: args.cpu_seconds,
        memory_bytes: args.memory_bytes,
        readable: &args.read,
        parent: args.parent,
    };
    Err(become_restricted(&restriction, &args.command))
}
