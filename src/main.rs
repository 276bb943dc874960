//! The program: parses the command line, chooses the backend and runs. This is the only place that names a backend.

// `eprintln!` panics if stderr cannot be written; `say!` does not.
#![warn(clippy::print_stderr)]

use std::io::{ErrorKind, Write};
use std::process::ExitCode;

use arithmo::cli::{Cli, Command, sandbox_exec};
use arithmo::data::row_limit::set_max_row_bytes;
use arithmo::{Error, Result, interrupt, process};
use arithmo_backends::{BackendKind, find_device};
use clap::Parser;

const PLACE: &str = "--backend";

const AUTO_REMEDY: &str = "leave --backend out to use the best one that starts";

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
    run(cli)
}

/// Runs the command, on a backend if it needs one.
fn run(cli: &Cli) -> Result<()> {
    if let Some(result) = cli.run_without_backend() {
        return result;
    }
    #[cfg_attr(
        not(any(feature = "wgpu", feature = "cuda")),
        allow(unused_variables, reason = "the CPU is one device")
    )]
    let (kind, index) = choose_device(cli)?;
    match kind {
        #[cfg(feature = "ndarray")]
        BackendKind::NdArray => cli.run::<arithmo_backends::ndarray::Cpu>(&Default::default()),
        #[cfg(feature = "wgpu")]
        BackendKind::Wgpu => {
            let device = index.map(arithmo_backends::wgpu::device);
            cli.run::<arithmo_backends::wgpu::Gpu>(&device.unwrap_or_default())
        }
        #[cfg(feature = "cuda")]
        BackendKind::Cuda => {
            let device = index.map(arithmo_backends::cuda::device);
            cli.run::<arithmo_backends::cuda::Gpu>(&device.unwrap_or_default())
        }
        #[allow(unreachable_patterns, reason = "reached where a backend is left out of the build")]
        kind => Err(not_built(kind)),
    }
}

/// Returns the requested backend, or for `auto` the best one in this build that starts, and the index of the
/// requested device, if any.
fn choose_device(cli: &Cli) -> Result<(BackendKind, Option<usize>)> {
    let requested = requested_backend(cli)?;
    let (kind, index) = match (&cli.device, requested) {
        (Some(device), _) => {
            let (kind, index) = named_device(device, requested)?;
            (kind, Some(index))
        }
        (None, Some(kind)) => (kind, None),
        (None, None) => {
            let best = BackendKind::best().ok_or_else(|| {
                let problem = "no backend in this build starts";
                Error::invalid(PLACE, problem, "build it with the feature ndarray")
            })?;
            return Ok((best, None));
        }
    };
    kind.start_device(index).map_err(|reason| {
        let remedy = format!("check the driver, or {AUTO_REMEDY}");
        Error::invalid(PLACE, format!("{kind} {reason}"), remedy)
    })?;
    if kind != BackendKind::NdArray && kind.on_cpu() && !cli.quiet {
        arithmo::say!(
            "note: {kind} finds only a software driver here; --backend ndarray is faster"
        );
    }
    Ok((kind, index))
}

/// Parses the name of the requested backend; returns `None` for `auto`.
fn requested_backend(cli: &Cli) -> Result<Option<BackendKind>> {
    if cli.backend == "auto" {
        return Ok(None);
    }
    let kind = cli.backend.parse::<BackendKind>();
    let kind = kind.map_err(|problem| Error::invalid(PLACE, problem, AUTO_REMEDY))?;
    if kind.compiled() { Ok(Some(kind)) } else { Err(not_built(kind)) }
}

/// Finds the device called `device` in the requested backend. Without one, a number counts the devices of the best
/// backend, and a name may belong to any backend.
fn named_device(device: &str, requested: Option<BackendKind>) -> Result<(BackendKind, usize)> {
    let found = match requested {
        Some(kind) => find_device([kind], device),
        None if device.parse::<usize>().is_ok() => find_device(BackendKind::best(), device),
        None => find_device(BackendKind::available(), device),
    };
    found.map_err(|problem| {
        let remedy = "use a number or a part of a name that `arithmo devices` lists";
        Error::invalid("--device", problem, remedy)
    })
}

/// Returns the error for a backend that is not in this build.
fn not_built(kind: BackendKind) -> Error {
    let problem = format!("{kind} is not in this build");
    Error::invalid(
        PLACE,
        problem,
        format!("build it with `cargo build --release --features {kind}`"),
    )
}
