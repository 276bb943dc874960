//! Checksums of the files of a kept model: a byte that flipped on the disk would be computed with, without a word.
//!
//! CRC-32 finds every flipped byte, and processors compute it faster than memory is read; it is no protection against intent.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::path::{Path, PathBuf};

use crc32fast::Hasher;
use rayon::prelude::*;

use crate::error::{Error, Result};
use crate::output::write_whole;
use crate::read_at::read_exact_at;

/// Where they are noted, in the model's folder.
const NOTE: &str = "checksums.json";

/// Bytes a thread reads at once: they stay in its cache until they are counted.
const PIECE: u64 = 1 << 18;

/// Notes the checksums of all files of `folder`.
///
/// # Errors
/// One cannot be read, or the note not written.
pub(super) fn note(folder: &Path) -> Result<()> {
    let fail = |e| Error::io(folder, "read", e);
    let mut all = BTreeMap::new();
    for entry in fs::read_dir(folder).map_err(fail)? {
        let entry = entry.map_err(fail)?;
        let name = entry.file_name().to_string_lossy().into_owned();
        all.insert(name, of_file(&entry.path())?);
    }
    let text = serde_json::to_string_pretty(&all).unwrap_or_default();
    write_whole(&folder.join(NOTE), format!("{text}\n").as_bytes())
}

/// The first file of `folder` that is not as it was noted, or the note itself if that cannot be read; `None`: all are.
pub(super) fn first_changed(folder: &Path) -> Option<PathBuf> {
    let note = folder.join(NOTE);
    let text = fs::read(&note).unwrap_or_default();
    let Ok(all) = serde_json::from_slice::<BTreeMap<String, String>>(&text) else {
        return Some(note);
    };
    let files = all.into_iter().map(|(name, sum)| (folder.join(name), sum));
    let changed = |(path, sum): &(PathBuf, String)| of_file(path).ok().as_ref() != Some(sum);
    files.into_iter().find(changed).map(|(path, _)| path)
}

/// The checksum of a file, which all threads read.
fn of_file(path: &Path) -> Result<String> {
    let fail = |e| Error::io(path, "read", e);
    let file = File::open(path).map_err(fail)?;
    let length = file.metadata().map_err(fail)?.len();
    let pieces = (0..length.div_ceil(PIECE)).into_par_iter();
    let room = || vec![0u8; PIECE as usize];
    let sums = pieces.map_init(room, |room, index| {
        let start = index * PIECE;
        let piece = &mut room[..PIECE.min(length - start) as usize];
        read_exact_at(&file, piece, start).map_err(fail)?;
        let mut sum = Hasher::new();
        sum.update(piece);
        Ok::<_, Error>(sum)
    });
    let mut whole = Hasher::new();
    for sum in sums.collect::<Result<Vec<_>>>()? {
        whole.combine(&sum);
    }
    Ok(format!("{:08x}", whole.finalize()))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The check value of CRC-32 (`cksum` of the catalogue of parametrised CRC algorithms: CRC-32/ISO-HDLC), and pieces joined.
    #[test]
    fn sums_are_crc_32_however_long_the_file_is() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        fs::write(&path, b"123456789").unwrap();
        assert_eq!(of_file(&path).unwrap(), "cbf43926");
        fs::write(&path, b"").unwrap();
        assert_eq!(of_file(&path).unwrap(), "00000000");
        for length in [PIECE as usize, 2 * PIECE as usize + 12_345] {
            let bytes: Vec<u8> = (0..length).map(|at| (at * at / 7) as u8).collect();
            fs::write(&path, &bytes).unwrap();
            let whole = format!("{:08x}", crc32fast::hash(&bytes));
            assert_eq!(of_file(&path).unwrap(), whole);
        }
    }

    #[test]
    fn what_has_changed_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        assert_eq!(first_changed(folder.path()), Some(path(NOTE)));
        fs::write(path("a"), b"some bytes").unwrap();
        fs::write(path("b"), b"others").unwrap();
        note(folder.path()).unwrap();
        assert_eq!(first_changed(folder.path()), None);
        fs::write(path("b"), b"othess").unwrap();
        assert_eq!(first_changed(folder.path()), Some(path("b")));
        fs::remove_file(path("a")).unwrap();
        assert_eq!(first_changed(folder.path()), Some(path("a")));
    }
}
