//! The program: parses the command line, prepares the process and runs the command.

// `eprintln!` panics if stderr cannot be written; `say!` does not.
#![warn(clippy::print_stderr)]

use std::io::{ErrorKind, Write};
use std::process::ExitCode;

use arithmo::cli::{Cli, Command, sandbox_exec};
use arithmo::data::row_limit::set_max_row_bytes;
use arithmo::{Error, Result, dispatch, interrupt, process};
use clap::Parser;

#[cfg(feature = "ndarray")]
#[global_allocator]
static ALLOCATOR: arithmo_backends::ndarray::CacheAligned = arithmo_backends::ndarray::CacheAligned;

fn main() -> ExitCode {
    let mut cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => return print_clap_message(&error),
    };
    match start(&mut cli) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            arithmo::say!("error: {error}");
            ExitCode::from(error.exit_status())
        }
    }
}

/// Prints the help, the version, or what is wrong with the arguments; returns the exit code.
fn print_clap_message(answer: &clap::Error) -> ExitCode {
    let mut printed = answer.print();
    if !answer.use_stderr() {
        printed = printed.and_then(|()| std::io::stdout().flush());
    }
    match printed {
        // An error's exit status is enough if stderr is closed. A reader that has gone away (`| head`) is not an
        // error.
        Err(error) if !answer.use_stderr() && error.kind() != ErrorKind::BrokenPipe => {
            arithmo::say!("error: {}", Error::io("standard output", "write", error));
            ExitCode::FAILURE
        }
        _ => ExitCode::from(u8::try_from(answer.exit_code()).unwrap_or(2)),
    }
}

/// Runs the sandboxed program, or sets up the process and runs the command.
fn start(cli: &mut Cli) -> Result<()> {
    // The sandboxed program must start before any thread exists.
    if let Command::SandboxExec(args) = &cli.command {
        return sandbox_exec::run(args);
    }
    process::set_up();
    set_max_row_bytes(cli.max_row_bytes);
    interrupt::install();
    cli.resolve_adapter()?;
    dispatch::run(cli)
}
