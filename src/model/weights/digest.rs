//! Hashes the contents of weights, to tell models apart.

use rayon::prelude::*;
use sha2::{Digest, Sha256};

use super::WeightFiles;
use crate::error::{Error, Result};
use crate::interrupt;

/// Number of bytes that a thread reads and hashes at once.
const PIECE: usize = 1 << 20;

impl WeightFiles {
    /// Computes the SHA-256 of every tensor's name, dtype, shape and bytes, in the order of names: the result is the
    /// same however the tensors are distributed over files. All threads read; a tensor contributes the hashes of its
    /// pieces of 1 MiB.
    ///
    /// # Errors
    /// A file cannot be read, or the user interrupts.
    pub fn digest(&self) -> Result<[u8; 32]> {
        let mut whole = Sha256::new();
        for (name, entry) in &self.tensors {
            let (dtype, shape) = (entry.dtype, &entry.shape);
            whole.update(format!("{name} {dtype:?} {shape:?}\n"));
            let pieces = (0..entry.len.div_ceil(PIECE)).into_par_iter();
            let room = || vec![0u8; PIECE.min(entry.len)];
            let hashes = pieces.map_init(room, |room, index| {
                if interrupt::requested() {
                    let note = "the weights were being read; nothing is lost".to_string();
                    return Err(Error::Interrupted { note });
                }
                let start = index * PIECE;
                let piece = &mut room[..PIECE.min(entry.len - start)];
                self.read_elements(entry, start, piece)?;
                Ok(Sha256::digest(piece))
            });
            for hash in hashes.collect::<Result<Vec<_>>>()? {
                whole.update(hash);
            }
        }
        Ok(whole.finalize().into())
    }
}
