//! `doctor`: reports the backends of this machine, checks every operation on one of them, and
//! measures its speed.

mod checks;
pub mod speed;

use arithmo_backends::{BackendKind, MatmulProvider, TrainBackend};
use serde_json::{Value, json};

use self::checks::{Row, check_operations};
use self::speed::Speed;
use crate::error::{Error, Result};

/// The function that writes a line of the result.
pub type Out<'a> = dyn FnMut(&str) -> Result<()> + 'a;

/// A compiled or known backend and whether it starts.
struct BackendState {
    kind: BackendKind,
    /// Why it does not start, if it does not.
    refusal: Option<String>,
}

/// Starts every backend, checks and times the one of `device`, and writes a line for each result to
/// `out`. With `as_json`, a last line repeats everything as JSON.
///
/// # Errors
/// An operation gives wrong results; everything else has been written by then.
pub fn doctor<B: TrainBackend>(as_json: bool, device: &B::Device, out: &mut Out<'_>) -> Result<()> {
    out("Backends")?;
    let mut found = Vec::new();
    for kind in BackendKind::ALL {
        // Written before the next backend is started, which may take long or never return.
        let backend = BackendState::start(kind);
        let state = backend.refusal.as_deref().unwrap_or("starts");
        out(&format!("  {:<10}{state}", kind.to_string()))?;
        found.push(backend);
    }
    let name = device_name::<B>(device);
    out(&format!("\nChecked: {name}"))?;
    if let Some(bytes) = B::available_memory_bytes(device) {
        out(&format!("  {:.1} GB of memory available", bytes as f64 / 1e9))?;
    }
    let by = B::matmul_provider(device);
    if let Some(line) = gemm_provider_line(&by) {
        out(&line)?;
    }

    out(
        "\nOperations, compared with results computed in f64 on the CPU; errors are relative to the largest value",
    )?;
    out(&Row::header())?;
    let rows = check_operations::<B>(device, out)?;
    let speed = speed::measure::<B>(device, out)?;

    if as_json {
        out(&json(&found, &name, &by, &rows, &speed).to_string())?;
    }
    let wrong: Vec<String> = rows.iter().filter(|r| !r.ok()).map(Row::name).collect();
    if wrong.is_empty() {
        Ok(())
    } else {
        Err(Error::run(
            format!("wrong on {name}: {}", wrong.join(", ")),
            "do not train on it: update its driver, or use another --backend; if that changes nothing, report it with \
             this output",
        ))
    }
}

impl BackendState {
    /// Starts a backend.
    fn start(kind: BackendKind) -> Self {
        let refusal = if kind.compiled() {
            kind.start().err()
        } else {
            Some(format!("is not in this program: build it with --features {kind}"))
        };
        Self { kind, refusal }
    }
}

/// Returns the names of the backend and of its device.
pub fn device_name<B: TrainBackend>(device: &B::Device) -> String {
    let place = format!("{} {device:?}", B::name(device));
    match B::device_name(device) {
        Some(model) => format!("{place}, {model}"),
        None => place,
    }
}

/// Returns the line about the GEMM library; `None` if the backend has no choice.
fn gemm_provider_line(by: &MatmulProvider) -> Option<String> {
    match by {
        MatmulProvider::Backend => None,
        MatmulProvider::Library(name) => Some(format!("  GEMM by {name}, self-test passed")),
        MatmulProvider::Fallback(reason) => {
            Some(format!("  GEMM by the backend's kernels: {reason}"))
        }
    }
}

/// Returns the GEMM library, or why there is none, as JSON; null if the backend has no choice.
pub fn gemm_provider_json(by: &MatmulProvider) -> Value {
    match by {
        MatmulProvider::Backend => Value::Null,
        MatmulProvider::Library(name) => json!({ "library": name, "refusal": null }),
        MatmulProvider::Fallback(reason) => json!({ "library": null, "refusal": reason }),
    }
}

/// Returns the whole result as a JSON object.
fn json(
    found: &[BackendState],
    name: &str,
    by: &MatmulProvider,
    rows: &[Row],
    speed: &Speed,
) -> Value {
    let backends = found.iter().map(|backend| {
        json!({
            "name": backend.kind.name(),
            "compiled": backend.kind.compiled(),
            "starts": backend.refusal.is_none(),
            "refusal": backend.refusal,
        })
    });
    json!({
        "command": "doctor",
        "backends": backends.collect::<Vec<_>>(),
        "device": name,
        "products_by": gemm_provider_json(by),
        "ok": rows.iter().all(Row::ok),
        "operations": rows.iter().map(Row::json).collect::<Vec<_>>(),
        "products": speed.gemms.iter().map(|gemm| gemm.json()).collect::<Vec<_>>(),
        "copy_bytes_per_second": speed.copy,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_line_names_the_gemm_library_or_why_there_is_none() {
        let library = MatmulProvider::Library("fast 1.2".to_string());
        let refused = MatmulProvider::Fallback("it is not found".to_string());
        let said = |by| gemm_provider_line(by).unwrap_or_default();
        assert!(said(&library).ends_with("by fast 1.2, self-test passed"));
        assert!(said(&refused).ends_with("kernels: it is not found"));
        assert_eq!(gemm_provider_line(&MatmulProvider::Backend), None);
        assert_eq!(gemm_provider_json(&library)["library"], "fast 1.2");
        assert_eq!(gemm_provider_json(&refused)["refusal"], "it is not found");
        assert_eq!(gemm_provider_json(&MatmulProvider::Backend), Value::Null);
    }
}
