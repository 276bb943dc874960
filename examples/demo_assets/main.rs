//! Rebuilds `assets/demo/`: the rows and the tiny model that `arithmo demo` works on. The same bytes on every machine.
//!
//! `cargo run --example demo_assets [-- FOLDER]`

mod model;
mod problems;
mod rows;

use std::path::PathBuf;

use arithmo::Result;
use arithmo::output::write_whole;

/// Every file: its path below the folder, and its bytes.
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
    let folder = std::env::args()
        .nth(1)
        .map_or_else(default_folder, PathBuf::from);
    for (name, bytes) in files()? {
        let path = folder.join(name);
        write_whole(&path, &bytes)?;
        eprintln!("{:>8} bytes  {}", bytes.len(), path.display());
    }
    Ok(())
}

fn default_folder() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("assets/demo")
}
