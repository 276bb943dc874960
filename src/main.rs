//! The program: parse, choose the backend, run. The only place that names a backend.

use std::process::ExitCode;

use arithmo::cli::{Cli, Command, sandbox_exec};
use arithmo::{Error, Result, allocator, interrupt, process};
use arithmo_backends::BackendKind;
use clap::Parser;

#[global_allocator]
static ALLOCATOR: allocator::CacheAligned = allocator::CacheAligned;

fn main() -> ExitCode {
    let cli = Cli::parse();
    match start(&cli) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::from(error.exit_status())
        }
    }
}

fn start(cli: &Cli) -> Result<()> {
    // What becomes another program starts no thread before.
    if let Command::SandboxExec(args) = &cli.command {
        return sandbox_exec::run(args);
    }
    process::set_up();
    interrupt::install();
    run(cli)
}

fn run(cli: &Cli) -> Result<()> {
    if let Some(result) = cli.run_without_backend() {
        return result;
    }
    match choose(cli)? {
        #[cfg(feature = "ndarray")]
        BackendKind::NdArray => cli.run::<arithmo_backends::ndarray::Cpu>(&Default::default()),
        #[cfg(feature = "wgpu")]
        BackendKind::Wgpu => cli.run::<arithmo_backends::wgpu::Gpu>(&Default::default()),
        #[cfg(feature = "cuda")]
        BackendKind::Cuda => cli.run::<arithmo_backends::cuda::Gpu>(&Default::default()),
        #[allow(
            unreachable_patterns,
            reason = "reached where a backend is left out of the build"
        )]
        kind => Err(not_built(kind)),
    }
}

/// The backend asked for, or for `auto` the best of those in this program that starts.
fn choose(cli: &Cli) -> Result<BackendKind> {
    let place = "--backend";
    if cli.backend == "auto" {
        return BackendKind::best().ok_or_else(|| {
            let problem = "no backend of this program starts";
            Error::invalid(place, problem, "build it with the feature ndarray")
        });
    }
    let best = "leave --backend out to take the best that starts";
    let kind = cli.backend.parse::<BackendKind>();
    let kind = kind.map_err(|problem| Error::invalid(place, problem, best))?;
    if !kind.compiled() {
        return Err(not_built(kind));
    }
    kind.start().map_err(|reason| {
        let remedy = format!("check the driver, or {best}");
        Error::invalid(place, format!("{kind} {reason}"), remedy)
    })?;
    if kind != BackendKind::NdArray && kind.on_cpu() && !cli.quiet {
        eprintln!("note: {kind} finds only a software driver here; --backend ndarray is faster");
    }
    Ok(kind)
}

fn not_built(kind: BackendKind) -> Error {
    let problem = format!("{kind} is not in this program");
    Error::invalid(
        "--backend",
        problem,
        format!("build it with `cargo build --release --features {kind}`"),
    )
}
