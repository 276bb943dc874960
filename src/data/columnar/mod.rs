//! Reads parquet tables: finds columns by their exact path and decodes their values a few rows at a time, in bounded memory.
//!
//! The parquet crate parses the footer and decodes values. The modules `pages` and `codec` read and decompress pages,
//! because that crate trusts the sizes in a page's header, reads zstd only through a C library, and treats a page without
//! values as the end of a column.

mod cells;
mod codec;
mod header;
mod pages;
mod schema;

use std::fs::File;
use std::path::Path;
use std::sync::Arc;

use parquet::basic::Compression;
use parquet::column::reader::get_column_reader;
use parquet::errors::{ParquetError, Result as ParquetResult};
use parquet::file::metadata::{ParquetMetaData, ParquetMetaDataReader};

pub(super) use self::cells::{Cell, Column};
use self::pages::{Budget, Pages};
pub(super) use self::schema::{Found, Kind};
use super::row_limit;
use crate::input_file;

/// Maximum number of rows decoded at a time.
const BATCH_ROWS: u64 = 256;
/// Approximate number of values of a list column decoded at a time, by the average list length that the footer gives.
const BATCH_VALUES: u64 = 1 << 16;

/// An open parquet file.
pub(super) struct Table {
    file: Arc<File>,
    metadata: ParquetMetaData,
    length: u64,
}

impl Table {
    /// Reads the footer of the file at `path`.
    ///
    /// # Errors
    /// The file cannot be opened, or has no readable footer.
    pub(super) fn open(path: &Path) -> std::io::Result<ParquetResult<Self>> {
        let file = input_file::open(path)?;
        let length = file.metadata()?.len();
        let metadata = guarded(|| ParquetMetaDataReader::new().parse_and_finish(&file));
        Ok(metadata.map(|metadata| Self { file: Arc::new(file), metadata, length }))
    }

    /// Returns the size of the file in bytes.
    pub(super) fn length(&self) -> u64 {
        self.length
    }

    /// Returns the number of row groups.
    pub(super) fn groups(&self) -> usize {
        self.metadata.num_row_groups()
    }

    /// Returns the number of rows in a row group.
    pub(super) fn rows(&self, group: usize) -> u64 {
        self.metadata.row_group(group).num_rows().max(0) as u64
    }

    /// Returns the compressed size of a row group in bytes.
    pub(super) fn compressed_bytes(&self, group: usize) -> u64 {
        let columns = self.metadata.row_group(group).columns().iter();
        let bytes = columns.map(|column| column.compressed_size().max(0) as u64);
        bytes.fold(0, u64::saturating_add)
    }

    /// Returns how many rows of a row group to decode at a time, by the number of values in `columns`.
    pub(super) fn batch(&self, group: usize, columns: &[usize]) -> u64 {
        let group = self.metadata.row_group(group);
        let rows = group.num_rows().max(1) as u64;
        let values = |column: &usize| group.columns().get(*column).map_or(0, |c| c.num_values());
        let max_values = columns.iter().map(values).max().unwrap_or(0).max(0) as u64;
        (BATCH_VALUES / (max_values / rows).max(1)).clamp(1, BATCH_ROWS)
    }

    /// Returns the name of an unsupported codec that one of `columns` is compressed with, or `None` if all are supported.
    pub(super) fn unreadable_codec(&self, columns: &[usize]) -> Option<String> {
        let groups = self.metadata.row_groups().iter();
        let mut codecs = groups.flat_map(|group| {
            let columns = columns.iter().filter_map(|index| group.columns().get(*index));
            columns.map(|column| column.compression())
        });
        codecs.any(|codec| codec == Compression::LZO).then(|| "LZO".to_string())
    }

    /// Opens a column of a row group.
    ///
    /// # Errors
    /// The footer's description of the column is invalid.
    pub(super) fn column(&self, group: usize, column: usize) -> ParquetResult<Column> {
        let descriptor = self.metadata.file_metadata().schema_descr().column(column);
        let group = self.metadata.row_group(group);
        let chunk =
            group.columns().get(column).ok_or_else(|| general("the row group lacks a column"))?;
        let kind = Kind::of(&descriptor);
        let repeated = descriptor.max_rep_level() > 0;
        let budget = Budget::new(repeated);
        let pages = Pages::new(&self.file, chunk, row_limit::max_row_bytes(), budget.clone())?;
        let reader = guarded(|| Ok(get_column_reader(descriptor.clone(), Box::new(pages))))?;
        Column::new(reader, &descriptor, kind, budget)
    }
}

/// Creates an error of the parquet crate's type.
fn general(problem: impl ToString) -> ParquetError {
    ParquetError::General(problem.to_string())
}

/// Returns the problem without the crate's prefix, and whether a larger `--max-row-bytes` would solve it.
pub(super) fn explain(error: &ParquetError) -> (String, bool) {
    let text = error.to_string();
    let text = text.strip_prefix("Parquet error: ").unwrap_or(&text);
    (text.to_string(), text.contains(pages::TOO_LARGE))
}

/// Runs `read` and turns a panic into an error, because the parquet crate panics on some damaged files. The values that
/// `read` uses must not be used after an error.
fn guarded<T>(read: impl FnOnce() -> ParquetResult<T>) -> ParquetResult<T> {
    std::panic::catch_unwind(std::panic::AssertUnwindSafe(read))
        .unwrap_or_else(|_| Err(general("pages and footer disagree")))
}
