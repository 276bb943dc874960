//! SHA-256 of whole files, read a piece at a time.

use std::io::{self, Read};
use std::path::Path;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::identity::hex;
use crate::error::{Error, Result};
use crate::input_file;

/// Size and hash of a file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileHash {
    /// Size in bytes.
    pub bytes: u64,
    /// SHA-256 in hexadecimal.
    pub sha256: String,
}

impl FileHash {
    /// Hashes `bytes`.
    pub fn of_bytes(bytes: &[u8]) -> Self {
        Self { bytes: bytes.len() as u64, sha256: hex(Sha256::digest(bytes)) }
    }

    /// Hashes all that is still to be read.
    ///
    /// # Errors
    /// It cannot be read.
    pub(super) fn of_rest(mut from: impl Read) -> io::Result<Self> {
        let (mut hasher, mut bytes) = (Sha256::new(), 0);
        let mut piece = vec![0; 1 << 20];
        loop {
            match from.read(&mut piece)? {
                0 => break,
                read => {
                    hasher.update(piece.get(..read).unwrap_or_default());
                    bytes += read as u64;
                }
            }
        }
        Ok(Self { bytes, sha256: hex(hasher.finalize()) })
    }
}

/// Reads the file at `path` once and hashes it.
///
/// # Errors
/// It cannot be read.
pub fn hash_file(path: &Path) -> Result<FileHash> {
    let file = input_file::open(path).map_err(|e| Error::io(path, "open", e))?;
    FileHash::of_rest(file).map_err(|e| Error::io(path, "read", e))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_hashed_whole() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("abc");
        // FIPS 180-2, appendix B.1.
        std::fs::write(&path, "abc").unwrap();
        let hash = hash_file(&path).unwrap();
        assert_eq!(hash.bytes, 3);
        assert_eq!(hash.sha256, "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
        // Appendix B.3: a million letters, read in several pieces.
        std::fs::write(&path, "a".repeat(1_000_000)).unwrap();
        let million = "cdc76e5c9914fb9281a1c7e284d73e67f1809a48a497200e046d39ccc7112cd0";
        assert_eq!(hash_file(&path).unwrap().sha256, million);
        assert!(hash_file(&folder.path().join("none")).is_err());
    }
}
