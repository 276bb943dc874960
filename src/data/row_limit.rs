//! Limits the size of a row in data files, so that a damaged or crafted file ends in an error instead of taking all
//! memory. All readers share one limit, which `--max-row-bytes` sets.

use std::sync::atomic::{AtomicU64, Ordering};

/// Default limit in bytes: 64 MiB. The largest posts are a thousand times smaller.
pub const DEFAULT_MAX_ROW_BYTES: u64 = 64 << 20;

static MAX_ROW_BYTES: AtomicU64 = AtomicU64::new(DEFAULT_MAX_ROW_BYTES);

/// Remedy shown in errors about a row that is longer than the limit.
pub(crate) const REMEDY: &str =
    "is the file damaged, or of another kind? where such rows are meant, raise --max-row-bytes";

/// Sets the row limit of all readers in this process, in bytes.
pub fn set_max_row_bytes(bytes: u64) {
    MAX_ROW_BYTES.store(bytes, Ordering::Relaxed);
}

/// Returns the row limit in bytes. It applies to a line of JSON Lines, to a `<row …/>` of XML, and to the texts of one
/// row of a table together.
pub fn max_row_bytes() -> u64 {
    MAX_ROW_BYTES.load(Ordering::Relaxed)
}

/// Returns the problem text for a row of more than `limit` bytes.
pub(crate) fn problem(limit: u64) -> String {
    format!("the row is longer than the limit of {limit} bytes")
}
