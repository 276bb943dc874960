//! Chooses the backend of a command and runs the command on it. This is the only file of `src/` that names a backend.
//!
//! It belongs to the library so that code that is generic over the backend is compiled once, here: unoptimized and lightly
//! optimized builds of the program and of the tests link that code instead of compiling it again.

use arithmo_backends::{BackendKind, find_device};

use crate::cli::Cli;
use crate::error::{Error, Result, check_work};

const PLACE: &str = "--backend";

const AUTO_REMEDY: &str = "leave --backend out to use the best one that starts";

/// Runs the command, on a backend if it needs one.
///
/// # Errors
/// The requested backend is not in this build or does not start, or any error of the command.
pub fn run(cli: &Cli) -> Result<()> {
    if let Some(result) = cli.run_without_backend() {
        return result;
    }
    let (kind, index) = choose_device(cli)?;
    run_on(cli, kind, index)?;
    check_work()
}

/// Runs the command on a device of the backend `kind`; `None` is its default device.
#[cfg_attr(
    not(any(feature = "wgpu", feature = "cuda")),
    allow(unused_variables, reason = "the CPU is one device")
)]
fn run_on(cli: &Cli, kind: BackendKind, index: Option<usize>) -> Result<()> {
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
        say!("note: {kind} finds only a software driver here; --backend ndarray is faster");
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
