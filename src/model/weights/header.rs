//! Reads the header of a safetensors file and checks all of it before any tensor is used.

use std::collections::BTreeSet;
use std::fmt;
use std::fs::File;
use std::io::Read;
use std::path::Path;

use burn::tensor::DType;
use serde::Deserialize;
use serde::de::{Deserializer, IgnoredAny, MapAccess, Visitor};

use super::{Entry, FETCH_AGAIN};
use crate::error::{Error, Result};

/// Longest header that the format allows, in bytes.
const MAX_HEADER: u64 = 100_000_000;

/// One tensor as the header describes it.
#[derive(Deserialize)]
struct Info {
    dtype: String,
    shape: Vec<usize>,
    data_offsets: (u64, u64),
}

/// The header's tensors in file order, with duplicates (a map would hide them).
struct Header(Vec<(String, Info)>);

impl<'de> Deserialize<'de> for Header {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        struct InOrder;
        impl<'de> Visitor<'de> for InOrder {
            type Value = Header;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object of tensors")
            }

            fn visit_map<A: MapAccess<'de>>(
                self,
                mut map: A,
            ) -> std::result::Result<Header, A::Error> {
                let mut tensors = Vec::new();
                while let Some(name) = map.next_key::<String>()? {
                    if name == "__metadata__" {
                        map.next_value::<IgnoredAny>()?;
                    } else {
                        tensors.push((name, map.next_value()?));
                    }
                }
                Ok(Header(tensors))
            }
        }
        deserializer.deserialize_map(InOrder)
    }
}

/// Reads and checks the header; the returned entries have `file` 0.
pub(super) fn read_header(file: &mut File, path: &Path) -> Result<Vec<(String, Entry)>> {
    let bad = |problem: String| Error::file(path, problem, FETCH_AGAIN);
    let io = |e| Error::io(path, "read", e);
    let size = file.metadata().map_err(io)?.len();
    if size < 8 {
        return Err(bad(format!("is {size} bytes long, not even a safetensors header")));
    }
    let mut length = [0u8; 8];
    file.read_exact(&mut length).map_err(io)?;
    let length = u64::from_le_bytes(length);
    if length > MAX_HEADER {
        return Err(bad(format!(
            "is not a safetensors file: byte 0 asks for a header of {length} bytes"
        )));
    }
    let data_start = 8 + length;
    if data_start > size {
        return Err(bad(format!(
            "ends at byte {size}, inside its header (bytes 8 to {data_start})"
        )));
    }
    let mut text = vec![0u8; length as usize];
    file.read_exact(&mut text).map_err(io)?;
    let header: Header = serde_json::from_slice(&text)
        .map_err(|e| bad(format!("the header (bytes 8 to {data_start}) is not valid: {e}")))?;
    check_header(header, data_start, size).map_err(bad)
}

/// Checks the format's rules: known dtypes, sizes that fit the shapes, no gap, no overlap, nothing truncated or left
/// over.
fn check_header(
    header: Header,
    data_start: u64,
    size: u64,
) -> std::result::Result<Vec<(String, Entry)>, String> {
    let mut seen = BTreeSet::new();
    let mut entries = Vec::with_capacity(header.0.len());
    for (name, info) in header.0 {
        let entry = locate(info, data_start).map_err(|problem| format!("{name}: {problem}"))?;
        if !seen.insert(name.clone()) {
            return Err(format!("the header names {name} twice"));
        }
        entries.push((name, entry));
    }
    check_layout(&entries, data_start, size)?;
    Ok(entries)
}

/// Returns the location of one tensor in the file, or the problem if its dtype is unknown or its size does not fit its
/// shape.
fn locate(info: Info, data_start: u64) -> std::result::Result<Entry, String> {
    let Some(dtype) = dtype_named(&info.dtype) else {
        return Err(format!("unknown element type {:?}", info.dtype));
    };
    let (from, to) = info.data_offsets;
    let wanted = info.shape.iter().try_fold(dtype.size(), |n, dim| n.checked_mul(*dim));
    let len = wanted.filter(|len| to.checked_sub(from) == Some(*len as u64));
    let Some(len) = len else {
        return Err(format!(
            "bytes {from} to {to} of the data do not hold {:?} of {}",
            info.shape, info.dtype
        ));
    };
    let Some(start) = data_start.checked_add(from) else {
        return Err(format!("starts at the impossible byte {from}"));
    };
    Ok(Entry { file: 0, dtype, shape: info.shape, start, len })
}

/// Checks that the tensors follow one another without gap or overlap, up to the last byte of the file.
fn check_layout(
    entries: &[(String, Entry)],
    data_start: u64,
    size: u64,
) -> std::result::Result<(), String> {
    let mut order: Vec<&(String, Entry)> = entries.iter().collect();
    order.sort_by_key(|(_, entry)| (entry.start, entry.len));
    let mut end = data_start;
    for (name, entry) in order {
        let start = entry.start;
        if start < end {
            return Err(format!("{name}: at byte {start} overlaps the tensor that ends at {end}"));
        }
        if start > end {
            return Err(format!("{name}: at byte {start} leaves a gap after byte {end}"));
        }
        end = start.saturating_add(entry.len as u64);
        if end > size {
            return Err(format!("ends at byte {size}, but {name} reaches to byte {end}"));
        }
    }
    if end != size {
        return Err(format!("has {} bytes after its last tensor (byte {end})", size - end));
    }
    Ok(())
}

/// Returns the dtype for a name in the file format, if there is one.
fn dtype_named(name: &str) -> Option<DType> {
    Some(match name {
        "F64" => DType::F64,
        "F32" => DType::F32,
        "F16" => DType::F16,
        "BF16" => DType::BF16,
        "I64" => DType::I64,
        "I32" => DType::I32,
        "I16" => DType::I16,
        "I8" => DType::I8,
        "U64" => DType::U64,
        "U32" => DType::U32,
        "U16" => DType::U16,
        // BOOL and the 8-bit floats are read as bytes; as weights they are refused.
        "U8" | "BOOL" | "F8_E4M3" | "F8_E5M2" => DType::U8,
        _ => return None,
    })
}
