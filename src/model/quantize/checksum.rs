//! Checksums of the files of a quantized model on disk, because a byte that flipped on the disk would otherwise be
//! computed with unnoticed.
//!
//! CRC-32 detects any flipped byte, and CPUs compute it faster than memory is read; it does not protect against
//! intent.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use crc32fast::Hasher;
use rayon::prelude::*;

use crate::error::{Error, Result};
use crate::input_file;
use crate::output::write_whole;
use crate::read_at::read_exact_at;

/// Name of the checksum file in the model's folder.
const CHECKSUM_FILE: &str = "checksums.json";

/// Bytes that a thread reads at once; they stay in its cache while they are summed.
const PIECE: u64 = 1 << 18;

/// Writes the checksums of all files of `folder` to [`CHECKSUM_FILE`].
///
/// # Errors
/// A file cannot be read, or the checksum file cannot be written.
pub(super) fn write_checksums(folder: &Path) -> Result<()> {
    let fail = |e| Error::io(folder, "read", e);
    let mut all = BTreeMap::new();
    for entry in fs::read_dir(folder).map_err(fail)? {
        let entry = entry.map_err(fail)?;
        let name = entry.file_name().to_string_lossy().into_owned();
        all.insert(name, file_checksum(&entry.path())?);
    }
    let text = serde_json::to_string_pretty(&all).unwrap_or_default();
    write_whole(&folder.join(CHECKSUM_FILE), format!("{text}\n").as_bytes())
}

/// Returns the first file of `folder` that differs from its checksum, or the checksum file if that cannot be read.
/// Returns `None` if no file has changed.
pub(super) fn first_changed(folder: &Path) -> Option<PathBuf> {
    let checksums = folder.join(CHECKSUM_FILE);
    let text = input_file::read(&checksums).unwrap_or_default();
    let Ok(all) = serde_json::from_slice::<BTreeMap<String, String>>(&text) else {
        return Some(checksums);
    };
    let files = all.into_iter().map(|(name, sum)| (folder.join(name), sum));
    let changed = |(path, sum): &(PathBuf, String)| file_checksum(path).ok().as_ref() != Some(sum);
    files.into_iter().find(changed).map(|(path, _)| path)
}

/// Computes the checksum of a file on all threads.
fn file_checksum(path: &Path) -> Result<String> {
    let fail = |e| Error::io(path, "read", e);
    let file = input_file::open(path).map_err(fail)?;
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

    /// Compares with the check value of CRC-32/ISO-HDLC in the catalog of parametrized CRC algorithms, and checks
    /// joined pieces.
    #[test]
    fn sums_are_crc_32_however_long_the_file_is() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        fs::write(&path, b"123456789").unwrap();
        assert_eq!(file_checksum(&path).unwrap(), "cbf43926");
        fs::write(&path, b"").unwrap();
        assert_eq!(file_checksum(&path).unwrap(), "00000000");
        for length in [PIECE as usize, 2 * PIECE as usize + 12_345] {
            let bytes: Vec<u8> = (0..length).map(|at| (at * at / 7) as u8).collect();
            fs::write(&path, &bytes).unwrap();
            let whole = format!("{:08x}", crc32fast::hash(&bytes));
            assert_eq!(file_checksum(&path).unwrap(), whole);
        }
    }

    #[test]
    fn first_changed_names_the_changed_file() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        assert_eq!(first_changed(folder.path()), Some(path(CHECKSUM_FILE)));
        fs::write(path("a"), b"some bytes").unwrap();
        fs::write(path("b"), b"others").unwrap();
        write_checksums(folder.path()).unwrap();
        assert_eq!(first_changed(folder.path()), None);
        fs::write(path("b"), b"othess").unwrap();
        assert_eq!(first_changed(folder.path()), Some(path("b")));
        fs::remove_file(path("a")).unwrap();
        assert_eq!(first_changed(folder.path()), Some(path("a")));
    }
}
