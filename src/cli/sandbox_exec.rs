//! `arithmo sandbox-exec`: the program calls itself so to run a generated program; not for people.

use std::path::PathBuf;

use clap::Args;

use crate::error::Result;
use crate::eval::sandbox::become_restricted;

/// Arguments of `arithmo sandbox-exec`.
#[derive(Args, Clone, Debug)]
pub struct SandboxExecArgs {
    /// CPU time.
    #[arg(long)]
    pub cpu_seconds: u64,
    /// Address space.
    #[arg(long)]
    pub memory_bytes: u64,
    /// What the program may read.
    #[arg(long)]
    pub read: Vec<PathBuf>,
    /// The program and its arguments.
    #[arg(last = true, required = true)]
    pub command: Vec<String>,
}

/// Becomes the program.
///
/// # Errors
/// Always, if it returns: the program did not start.
pub fn run(args: &SandboxExecArgs) -> Result<()> {
    Err(become_restricted(args.cpu_seconds, args.memory_bytes, &args.read, &args.command))
}
