//! `doctor`: what this machine has, whether every operation is right on it, and how fast it is.

mod attention;
mod checks;
mod operations;
pub mod speed;

use arithmo_backends::{BackendKind, TrainBackend};
use serde_json::{Value, json};

use self::checks::{Row, check_operations};
use self::speed::Speed;
use crate::error::{Error, Result};

/// Where a line of the result goes.
pub type Out<'a> = dyn FnMut(&str) -> Result<()> + 'a;

/// A backend that could be used.
struct Found {
    kind: BackendKind,
    /// Why it cannot.
    refusal: Option<String>,
}

/// Looks for backends, checks and times the one of `device`, and writes a line for everything to `out`; with `as_json`,
/// all of it once more in a last line of JSON.
///
/// # Errors
/// An operation gives wrong numbers here; everything else has been written by then.
pub fn doctor<B: TrainBackend>(as_json: bool, device: &B::Device, out: &mut Out<'_>) -> Result<()> {
    let found: Vec<Found> = BackendKind::ALL.into_iter().map(Found::look).collect();
    out("Backends")?;
    for backend in &found {
        let state = backend.refusal.as_deref().unwrap_or("starts");
        out(&format!("  {:<10}{state}", backend.kind.to_string()))?;
    }
    let name = device_name::<B>(device);
    out(&format!("\nChecked: {name}"))?;
    if let Some(bytes) = B::available_memory_bytes(device) {
        out(&format!(
            "  {:.1} GB of memory can be had",
            bytes as f64 / 1e9
        ))?;
    }

    out("\nOperations, beside their references in f32; errors are relative to the largest value")?;
    out(&Row::header())?;
    let rows = check_operations::<B>(device, out)?;
    let speed = speed::measure::<B>(device, out)?;

    if as_json {
        out(&json(&found, &name, &rows, &speed).to_string())?;
    }
    let wrong: Vec<String> = rows.iter().filter(|r| !r.ok()).map(Row::name).collect();
    match wrong.is_empty() {
        true => Ok(()),
        false => Err(Error::run(
            format!("wrong on {name}: {}", wrong.join(", ")),
            "do not train on it: update its driver, or use another --backend; if that changes nothing, report it with \
             this output",
        )),
    }
}

impl Found {
    fn look(kind: BackendKind) -> Self {
        let refusal = match kind.compiled() {
            true => kind.start().err(),
            false => Some(format!(
                "is not in this program: build it with --features {kind}"
            )),
        };
        Self { kind, refusal }
    }
}

/// The backend and the device it uses, as they call themselves.
pub fn device_name<B: TrainBackend>(device: &B::Device) -> String {
    let place = format!("{} {device:?}", B::name(device));
    match B::device_name(device) {
        Some(model) => format!("{place}, {model}"),
        None => place,
    }
}

fn json(found: &[Found], name: &str, rows: &[Row], speed: &Speed) -> Value {
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
        "ok": rows.iter().all(Row::ok),
        "operations": rows.iter().map(Row::json).collect::<Vec<_>>(),
        "products": speed.products.iter().map(|product| product.json()).collect::<Vec<_>>(),
        "copy_bytes_per_second": speed.copy,
    })
}
