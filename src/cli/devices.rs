//! Implements `arithmo devices`.

use arithmo_backends::{BackendKind, DeviceInfo, devices};
use clap::Args;
use serde_json::{Value, json};

use crate::error::{Error, Result};

/// List the devices of every backend in this build.
#[derive(Args, Clone, Debug)]
pub struct DevicesArgs {
    /// Print one line of JSON instead of a table.
    #[arg(long)]
    pub json: bool,
}

/// Prints the devices as their drivers describe them; `*` marks the one that `--backend auto` uses. Nothing is
/// computed.
///
/// # Errors
/// No backend finds a device, or stdout cannot be written.
pub fn run(args: &DevicesArgs) -> Result<()> {
    let found: Vec<DeviceInfo> = BackendKind::available().flat_map(devices).collect();
    let auto = BackendKind::best_among(&found);
    let chosen = |device: &DeviceInfo| device.is_default && auto == Some(device.backend);
    if args.json {
        let list = found.iter().map(|device| to_json(device, chosen(device)));
        let list: Vec<Value> = list.collect();
        return super::print_line(&json!({"command": "devices", "devices": list}).to_string());
    }
    if found.is_empty() {
        let remedy = "see what `arithmo doctor` says about the drivers";
        return Err(Error::run("no backend in this build finds a device", remedy));
    }
    let longest = found.iter().map(|device| device.name.chars().count()).max();
    let longest = longest.unwrap_or(0).max("name".len()) + 2;
    super::print_line(&format!(
        "  {:<9}{:<7}{:<longest$}{:<16}{:>8}{:>8}  {:<15}{}",
        "backend", "index", "name", "kind", "GB", "free", "computes in", "a buffer, a tensor"
    ))?;
    for device in &found {
        super::print_line(&line(device, chosen(device), longest))?;
    }
    super::print_line(
        "\n* used by --backend auto, if it starts; choose another with --backend BACKEND --device INDEX|NAME",
    )
}

/// Formats a device as a line of the table.
fn line(device: &DeviceInfo, chosen: bool, longest: usize) -> String {
    let gigabytes = |bytes: Option<u64>| match bytes {
        Some(bytes) => format!("{:.1}", bytes as f64 / 1e9),
        None => "-".to_string(),
    };
    let limits = match device.limits {
        Some(limits) => {
            format!("at most {} MiB, {} MiB", limits.buffer >> 20, limits.binding >> 20)
        }
        None => "-".to_string(),
    };
    format!(
        "{} {:<9}{:<7}{:<longest$}{:<16}{:>8}{:>8}  {:<15}{limits}",
        if chosen { "*" } else { " " },
        device.backend.name(),
        device.index,
        device.name,
        device.class.name(),
        gigabytes(device.memory.map(|memory| memory.total)),
        gigabytes(device.memory.map(|memory| memory.free)),
        dtypes(device).join(" "),
    )
}

/// Returns the names of the dtypes in which the device computes.
fn dtypes(device: &DeviceInfo) -> Vec<&'static str> {
    if device.dtypes.is_empty() {
        return vec!["computes nothing"];
    }
    device.dtypes.iter().map(|dtype| dtype.name()).collect()
}

/// Describes a device as JSON.
fn to_json(device: &DeviceInfo, chosen: bool) -> Value {
    let names: Vec<&str> = device.dtypes.iter().map(|dtype| dtype.name()).collect();
    json!({
        "backend": device.backend.name(),
        "index": device.index,
        "name": device.name,
        "kind": device.class.name(),
        "memory_bytes": device.memory.map(|memory| memory.total),
        "free_bytes": device.memory.map(|memory| memory.free),
        "starts": !device.dtypes.is_empty(),
        "dtypes": names,
        "max_buffer_bytes": device.limits.map(|limits| limits.buffer),
        "max_tensor_bytes": device.limits.map(|limits| limits.binding),
        "auto": chosen,
    })
}
