//! `arithmo devices`.

use arithmo_backends::{BackendKind, DeviceInfo, devices};
use clap::Args;
use serde_json::{Value, json};

use crate::error::{Error, Result};

/// List the devices of every backend in this program.
#[derive(Args, Clone, Debug)]
pub struct DevicesArgs {
    /// Print one line of JSON instead of a table.
    #[arg(long)]
    pub json: bool,
}

/// Lists them on stdout; `*` is the one that `--backend auto` takes.
///
/// # Errors
/// There is none.
pub fn run(args: &DevicesArgs) -> Result<()> {
    let found: Vec<DeviceInfo> = BackendKind::available().flat_map(devices).collect();
    let auto = BackendKind::best();
    let taken = |device: &DeviceInfo| device.is_default && auto == Some(device.backend);
    if args.json {
        let list = found.iter().map(|device| to_json(device, taken(device)));
        let list: Vec<Value> = list.collect();
        return super::print_line(&json!({"command": "devices", "devices": list}).to_string());
    }
    if found.is_empty() {
        let remedy = "see what `arithmo doctor` says about the drivers";
        return Err(Error::run("no backend of this program finds a device", remedy));
    }
    let longest = found.iter().map(|device| device.name.chars().count()).max();
    let longest = longest.unwrap_or(0).max("name".len()) + 2;
    super::print_line(&format!(
        "  {:<9}{:<7}{:<longest$}{:<16}{:>8}{:>8}  {:<15}{}",
        "backend", "index", "name", "kind", "GB", "free", "computes in", "a buffer, a tensor"
    ))?;
    for device in &found {
        super::print_line(&line(device, taken(device), longest))?;
    }
    super::print_line(
        "\n* what --backend auto takes; another: --backend BACKEND --device INDEX|NAME",
    )
}

fn line(device: &DeviceInfo, taken: bool, longest: usize) -> String {
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
        if taken { "*" } else { " " },
        device.backend.name(),
        device.index,
        device.name,
        device.class.name(),
        gigabytes(device.memory.map(|memory| memory.total)),
        gigabytes(device.memory.map(|memory| memory.free)),
        dtypes(device).join(" "),
    )
}

/// Names of the types it computes in; "does not start" where it does not.
fn dtypes(device: &DeviceInfo) -> Vec<&'static str> {
    match device.dtypes.is_empty() {
        true => vec!["does not start"],
        false => device.dtypes.iter().map(|dtype| dtype.name()).collect(),
    }
}

fn to_json(device: &DeviceInfo, taken: bool) -> Value {
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
        "auto": taken,
    })
}
