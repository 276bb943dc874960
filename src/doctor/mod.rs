//! `doctor`: what this machine has, whether every operation is right on it, and how fast it is.

mod attention;
mod checks;
mod operations;
pub mod speed;

use arithmo_backends::{BackendKind, ProductsBy, TrainBackend};
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
        out(&format!("  {:.1} GB of memory can be had", bytes as f64 / 1e9))?;
    }
    let by = B::products_by(device);
    if let Some(line) = products_line(&by) {
        out(&line)?;
    }

    out("\nOperations, beside their references in f32; errors are relative to the largest value")?;
    out(&Row::header())?;
    let rows = check_operations::<B>(device, out)?;
    let speed = speed::measure::<B>(device, out)?;

    if as_json {
        out(&json(&found, &name, &by, &rows, &speed).to_string())?;
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
            false => Some(format!("is not in this program: build it with --features {kind}")),
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

/// What multiplies matrices; nothing where there is no choice.
fn products_line(by: &ProductsBy) -> Option<String> {
    match by {
        ProductsBy::Backend => None,
        ProductsBy::Library(name) => Some(format!("  products by {name}, self-test passed")),
        ProductsBy::KernelsFor(reason) => {
            Some(format!("  products by the backend's kernels: {reason}"))
        }
    }
}

/// What multiplies matrices, for a line of JSON: the library, or why there is none; nothing where there is no choice.
pub fn products_by(by: &ProductsBy) -> Value {
    match by {
        ProductsBy::Backend => Value::Null,
        ProductsBy::Library(name) => json!({ "library": name, "refusal": null }),
        ProductsBy::KernelsFor(reason) => json!({ "library": null, "refusal": reason }),
    }
}

fn json(found: &[Found], name: &str, by: &ProductsBy, rows: &[Row], speed: &Speed) -> Value {
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
        "products_by": products_by(by),
        "ok": rows.iter().all(Row::ok),
        "operations": rows.iter().map(Row::json).collect::<Vec<_>>(),
        "products": speed.products.iter().map(|product| product.json()).collect::<Vec<_>>(),
        "copy_bytes_per_second": speed.copy,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_says_what_multiplies_and_why() {
        let library = ProductsBy::Library("fast 1.2".to_string());
        let refused = ProductsBy::KernelsFor("it is not found".to_string());
        let said = |by| products_line(by).unwrap_or_default();
        assert!(said(&library).ends_with("by fast 1.2, self-test passed"));
        assert!(said(&refused).ends_with("kernels: it is not found"));
        assert_eq!(products_line(&ProductsBy::Backend), None);
        assert_eq!(products_by(&library)["library"], "fast 1.2");
        assert_eq!(products_by(&refused)["refusal"], "it is not found");
        assert_eq!(products_by(&ProductsBy::Backend), Value::Null);
    }
}
