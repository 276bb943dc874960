//! The model card of a result: `README.md` with the metadata that the Hugging Face hub reads.
//!
//! A card ends with a comment that contains the hash of the text above it. A card whose hash differs was edited, and is never
//! replaced.

mod text;

use std::path::Path;

use serde_json::{Map, Value};

use self::text::{Card, Kind};
use crate::error::{Error, Result};
use crate::input_file;
use crate::model::file_hash::FileHash;
use crate::output::{FileList, write_whole};
use crate::train::folder::run_of_adapter;
use crate::train::logger::METRICS_FILE;
use crate::train::manifest::RunManifest;
use crate::train::selection::BestStep;

/// Name of the card in the folder of a result.
pub const CARD: &str = "README.md";

/// Start of the comment at the end of a card.
const MARK: &str = "<!-- Written by arithmo; SHA-256 of the text above: ";

/// A line of the log.
type Line = Map<String, Value>;

/// Writes the card of the run in `run_dir` into the folder of its `result`, unless a card is there that this program did not
/// write or that was edited. `best` is the step that became the result, if it is not the last one.
///
/// # Errors
/// The log cannot be read, or the folder is not writable.
pub fn write_card(run_dir: &Path, result: &Path, best: Option<BestStep>) -> Result<()> {
    let Some(manifest) = RunManifest::read(run_dir)? else {
        return Ok(());
    };
    let kind = if manifest.config.model.use_peft { Kind::Adapter } else { Kind::Whole };
    let named = std::fs::canonicalize(run_dir).unwrap_or_else(|_| run_dir.to_path_buf());
    let title = file_name(&named);
    let card = Card { manifest: &manifest, lines: read_log(run_dir)?, best, kind, title };
    let path = result.join(CARD);
    if is_replaceable(&path)? {
        let folder = file_name(result);
        FileList::add(run_dir, [format!("{folder}/{CARD}")])?;
        write_whole(&path, sealed(card.text()).as_bytes())?;
    }
    Ok(())
}

/// Writes a card into `output`, a model into which `adapter` was merged, if the adapter is in the folder of its run. A card that
/// this program did not write or that was edited stays.
///
/// # Errors
/// The manifest or the log of the run cannot be read, or the folder is not writable.
pub fn write_merged_card(adapter: &Path, output: &Path) -> Result<()> {
    let real = std::fs::canonicalize(adapter).map_err(|e| Error::io(adapter, "open", e))?;
    let Some(run_dir) = run_of_adapter(&real) else {
        return Ok(());
    };
    let Some(manifest) = RunManifest::read(run_dir)? else {
        return Ok(());
    };
    let (lines, title) = (read_log(run_dir)?, file_name(output));
    let card = Card { manifest: &manifest, lines, best: None, kind: Kind::Merged, title };
    let path = output.join(CARD);
    if is_replaceable(&path)? {
        write_whole(&path, sealed(card.text()).as_bytes())?;
    }
    Ok(())
}

/// Reads the log of a run.
fn read_log(run_dir: &Path) -> Result<Vec<Line>> {
    let log = run_dir.join(METRICS_FILE);
    let text = input_file::read_to_string(&log).map_err(|e| Error::io(&log, "read", e))?;
    // The run wrote these lines itself.
    Ok(text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect())
}

/// Returns whether there is no card at `path`, or one that is as this program wrote it. Says so if not.
fn is_replaceable(path: &Path) -> Result<bool> {
    if !path.exists() && !path.is_symlink() {
        return Ok(true);
    }
    let card = input_file::read_to_string(path).map_err(|e| Error::io(path, "read", e))?;
    let is_ours = is_unedited(&card);
    if !is_ours {
        say!("note: {}: was edited and is kept", path.display());
    }
    Ok(is_ours)
}

/// Returns whether `path` is a card that is not as this program wrote it.
pub(super) fn is_edited_card(path: &Path) -> bool {
    let is_card = path.file_name().is_some_and(|name| name == CARD);
    is_card && input_file::read_to_string(path).map_or(true, |card| !is_unedited(&card))
}

/// Adds the comment with the hash of `text`.
fn sealed(text: String) -> String {
    let hash = FileHash::of_bytes(text.as_bytes()).sha256;
    format!("{text}{MARK}{hash} -->\n")
}

/// Returns whether `card` is exactly as this program wrote it.
fn is_unedited(card: &str) -> bool {
    let text = card.rfind(MARK).and_then(|end| card.get(..end));
    text.is_some_and(|text| sealed(text.to_string()) == card)
}

/// Returns the last part of a path.
fn file_name(path: &Path) -> String {
    path.file_name().unwrap_or(path.as_os_str()).to_string_lossy().into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_edited_card_is_recognized() {
        let card = sealed("# Card\n\ntext\n".to_string());
        assert!(is_unedited(&card));
        for edited in [
            card.replace("text", "Text"),
            format!("{card}more"),
            format!("more{card}"),
            "# Mine\n".to_string(),
            String::new(),
        ] {
            assert!(!is_unedited(&edited), "{edited}");
        }
    }
}
