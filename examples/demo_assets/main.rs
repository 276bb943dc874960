//! Rebuilds `assets/demo/`: the rows and the small model that `arithmo demo` uses.
//!
//! `cargo run --release --example demo_assets` builds everything; with `-- --texts` all but the
//! weights, which take minutes. Training can also be done separately: `-- --lessons`, `arithmo
//! train --config configs/sft.toml`, `-- --weights`.

mod model;
mod problems;
mod rows;

use std::path::{Path, PathBuf};

use arithmo::output::write_whole;
use arithmo::{Error, Result};

/// Returns all files but the weights, with their paths below `assets/demo`.
///
/// # Errors
/// A temporary folder cannot be written.
pub(crate) fn files() -> Result<Vec<(String, Vec<u8>)>> {
    let rows = rows::rows();
    let mut files = model::files(&rows)?;
    let lines: Vec<String> = rows.iter().map(|row| format!("{row}\n")).collect();
    files.push(("rows.jsonl".to_string(), lines.concat().into_bytes()));
    Ok(files)
}

fn main() -> Result<()> {
    let assets = root().join("assets/demo");
    let work = root().join("target/demo_assets");
    match std::env::args().nth(1).as_deref() {
        None => {
            write(&assets, files()?)?;
            model::write_training(&work)?;
            model::train()?;
            write(&assets, vec![model::weights(&work)?])
        }
        Some("--lessons") => model::write_training(&work),
        Some("--texts") => write(&assets, files()?),
        Some("--weights") => write(&assets, vec![model::weights(&work)?]),
        Some(other) => {
            let remedy = "use --texts, --lessons, --weights, or no argument";
            Err(Error::invalid(other, "is unknown", remedy))
        }
    }
}

fn write(folder: &Path, files: Vec<(String, Vec<u8>)>) -> Result<()> {
    for (name, bytes) in files {
        let path = folder.join(name);
        write_whole(&path, &bytes)?;
        eprintln!("{:>8} bytes  {}", bytes.len(), path.display());
    }
    Ok(())
}

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}
