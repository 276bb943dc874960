//! Writes GGUF files of version 3: magic number, version, counts; the keys; name, shape, type and offset of each tensor; then
//! the tensors' bytes, each at a multiple of 32.

use std::io::Write;
use std::path::Path;

use super::tensor_type::TensorType;
use super::value::{Keys, encode_text};
use crate::error::{Error, Result};
use crate::interrupt;
use crate::output::WholeFile;

/// The first four bytes of a file.
const MAGIC: &[u8; 4] = b"GGUF";
/// Version of the format.
const VERSION: u32 = 3;
/// Every tensor starts at a multiple of this number of bytes, and so do the data as a whole. It is the format's default.
const ALIGNMENT: usize = 32;

/// A tensor of a file.
#[derive(Clone, Debug)]
pub(super) struct TensorInfo {
    /// Name in the file, as in `blk.0.attn_q.weight`.
    pub(super) name: String,
    /// Shape with the longest stride first, as Hugging Face writes it; the file has it in reverse.
    pub(super) shape: Vec<usize>,
    /// Form of the values.
    pub(super) kind: TensorType,
}

impl TensorInfo {
    /// Returns the number of bytes of the values.
    pub(super) fn bytes(&self) -> usize {
        self.kind.bytes(self.shape.iter().product())
    }
}

/// Writes a file, which appears complete or not at all. `encoded` returns the bytes of the tensor with a given index; only
/// those of one tensor are in memory.
///
/// # Errors
/// `encoded` fails, the disk is full, or the user interrupts.
pub(super) fn write_file(
    path: &Path,
    keys: &Keys,
    tensors: &[TensorInfo],
    mut encoded: impl FnMut(usize) -> Result<Vec<u8>>,
) -> Result<()> {
    let fail = |e| Error::io(path, "write", e);
    let mut file = WholeFile::create(path)?;
    file.write_all(&header(keys, tensors)).map_err(fail)?;
    for (index, tensor) in tensors.iter().enumerate() {
        if interrupt::requested() {
            let note = format!("{} was not written", path.display());
            return Err(Error::Interrupted { note });
        }
        let mut bytes = encoded(index)?;
        assert_eq!(bytes.len(), tensor.bytes(), "{tensor:?}");
        bytes.resize(bytes.len().next_multiple_of(ALIGNMENT), 0);
        file.write_all(&bytes).map_err(fail)?;
    }
    file.commit()
}

/// Returns everything before the tensors' bytes.
fn header(keys: &Keys, tensors: &[TensorInfo]) -> Vec<u8> {
    let mut out = MAGIC.to_vec();
    out.extend(VERSION.to_le_bytes());
    out.extend((tensors.len() as u64).to_le_bytes());
    out.extend((keys.count() as u64).to_le_bytes());
    keys.encode(&mut out);
    let mut offset = 0u64;
    for tensor in tensors {
        encode_text(&tensor.name, &mut out);
        out.extend((tensor.shape.len() as u32).to_le_bytes());
        for size in tensor.shape.iter().rev() {
            out.extend((*size as u64).to_le_bytes());
        }
        out.extend(tensor.kind.id().to_le_bytes());
        out.extend(offset.to_le_bytes());
        offset += tensor.bytes().next_multiple_of(ALIGNMENT) as u64;
    }
    out.resize(out.len().next_multiple_of(ALIGNMENT), 0);
    out
}
