//! The program: parse, choose the backend, run. The only place that names a backend.

use std::process::ExitCode;

use arithmo::cli::{Cli, Command, sandbox_exec};
use arithmo::{Error, Result, interrupt, process};
use arithmo_backends::{BackendKind, find_device};
use clap::Parser;

const PLACE: &str = "--backend";

const BEST: &str = "leave --backend out to take the best that starts";

#[cfg(feature = "ndarray")]
#[global_allocator]
static ALLOCATOR: arithmo_backends::ndarray::CacheAligned = arithmo_backends::ndarray::CacheAligned;

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
    #[cfg_attr(
        not(any(feature = "wgpu", feature = "cuda")),
        allow(unused_variables, reason = "the CPU is one device")
    )]
    let (kind, index) = choose(cli)?;
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

/// The backend asked for, or for `auto` the best of those in this program that starts; and the index of the device, where
/// one is asked for.
fn choose(cli: &Cli) -> Result<(BackendKind, Option<usize>)> {
    let asked = asked(cli)?;
    let (kind, index) = match (&cli.device, asked) {
        (Some(device), _) => {
            let (kind, index) = named_device(device, asked)?;
            (kind, Some(index))
        }
        (None, Some(kind)) => (kind, None),
        (None, None) => {
            let best = BackendKind::best().ok_or_else(|| {
                let problem = "no backend of this program starts";
                Error::invalid(PLACE, problem, "build it with the feature ndarray")
            })?;
            return Ok((best, None));
        }
    };
    kind.start_device(index).map_err(|reason| {
        let remedy = format!("check the driver, or {BEST}");
        Error::invalid(PLACE, format!("{kind} {reason}"), remedy)
    })?;
    if kind != BackendKind::NdArray && kind.on_cpu() && !cli.quiet {
        eprintln!("note: {kind} finds only a software driver here; --backend ndarray is faster");
    }
    Ok((kind, index))
}

/// The backend called by its name; `None` for `auto`.
fn asked(cli: &Cli) -> Result<Option<BackendKind>> {
    if cli.backend == "auto" {
        return Ok(None);
    }
    let kind = cli.backend.parse::<BackendKind>();
    let kind = kind.map_err(|problem| Error::invalid(PLACE, problem, BEST))?;
    match kind.compiled() {
        true => Ok(Some(kind)),
        false => Err(not_built(kind)),
    }
}

/// The device called `device`: of the backend asked for; else a number is one of the backend that would be taken anyway, a
/// name may be that of any.
fn named_device(device: &str, asked: Option<BackendKind>) -> Result<(BackendKind, usize)> {
    let found = match asked {
        Some(kind) => find_device([kind], device),
        None if device.parse::<usize>().is_ok() => find_device(BackendKind::best(), device),
        None => find_device(BackendKind::available(), device),
    };
    found.map_err(|problem| {
        let remedy = "give a number or a part of a name that `arithmo devices` lists";
        Error::invalid("--device", problem, remedy)
    })
}

fn not_built(kind: BackendKind) -> Error {
    let problem = format!("{kind} is not in this program");
    Error::invalid(
        PLACE,
        problem,
        format!("build it with `cargo build --release --features {kind}`"),
    )
}
