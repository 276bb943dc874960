//! Reads and decompresses the pages of a column chunk one at a time, within size limits.

use std::fs::File;
use std::io::{self, BufReader, Read};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use parquet::basic::Compression;
use parquet::column::page::{Page, PageMetadata, PageReader};
use parquet::errors::{ParquetError, Result};
use parquet::file::metadata::ColumnChunkMetaData;

use super::codec::decompress;
use super::general;
use super::header::{PageHeader, PageKind};
use crate::read_at::read_exact_at;

/// Part of every message about a limit that `--max-row-bytes` can raise.
pub(super) const TOO_LARGE: &str = "above the limit";
/// Maximum size of a page as a multiple of the row limit. A page holds several rows, and a dictionary page the values of
/// many.
const ROWS_PER_PAGE: u64 = 4;
/// Size in bytes that every page may have regardless of the row limit. Most writers make pages of 1 MiB, some of 100 MB.
const MIN_PAGE_LIMIT: u64 = 256 << 20;
/// Maximum number of values that one read of a list column may take.
const MAX_LIST_VALUES: u64 = 1 << 24;

/// Limits how many values one read of a list column may take, because a row of a billion answers fits in a page of a few
/// bytes. The column and its page reader share the budget.
#[derive(Clone, Debug)]
pub(super) struct Budget(Option<Arc<AtomicU64>>);

impl Budget {
    /// Creates the budget of a column. Only a `repeated` column needs a limit; others have one value per row.
    pub(super) fn new(repeated: bool) -> Self {
        Self(repeated.then(|| Arc::new(AtomicU64::new(MAX_LIST_VALUES))))
    }

    /// Restores the full budget before the next read.
    pub(super) fn reset(&self) {
        if let Some(remaining) = &self.0 {
            remaining.store(MAX_LIST_VALUES, Ordering::Relaxed);
        }
    }

    /// Subtracts `values` from the budget.
    ///
    /// # Errors
    /// The budget is exhausted.
    fn take(&self, values: u32) -> Result<()> {
        let Some(remaining) = &self.0 else { return Ok(()) };
        let before = remaining.load(Ordering::Relaxed);
        let after = before.checked_sub(u64::from(values)).ok_or_else(|| {
            general(format!("some rows have more than {MAX_LIST_VALUES} list elements"))
        })?;
        remaining.store(after, Ordering::Relaxed);
        Ok(())
    }
}

/// Reads the pages of a column chunk.
pub(super) struct Pages {
    input: BufReader<Section>,
    codec: Compression,
    /// Number of values that the footer says are still to come.
    remaining: u64,
    /// Maximum size of a page in bytes.
    limit: usize,
    budget: Budget,
}

impl Pages {
    /// Creates a reader of the pages of `chunk`, for rows of at most `max_row_bytes`.
    pub(super) fn new(
        file: &Arc<File>,
        chunk: &ColumnChunkMetaData,
        max_row_bytes: u64,
        budget: Budget,
    ) -> Result<Self> {
        // Some writers store a dictionary offset of 0 if there is no dictionary page.
        let first = chunk.data_page_offset();
        let start = match chunk.dictionary_page_offset() {
            Some(dictionary) if dictionary > 0 => dictionary.min(first),
            _ => first,
        };
        let number =
            |n: i64| u64::try_from(n).map_err(|_| general("the footer states a negative size"));
        let (start, length) = (number(start)?, number(chunk.compressed_size())?);
        let section = Section { file: file.clone(), at: start, end: start.saturating_add(length) };
        Ok(Self {
            input: BufReader::with_capacity(1 << 16, section),
            codec: chunk.compression(),
            remaining: number(chunk.num_values())?,
            limit: usize::try_from(max_row_bytes.saturating_mul(ROWS_PER_PAGE).max(MIN_PAGE_LIMIT))
                .unwrap_or(usize::MAX),
            budget,
        })
    }

    /// Reads the body of a page without decompressing it.
    ///
    /// # Errors
    /// The page is larger than the limit, compressed or decompressed, or the file ends within it.
    fn read_body(&mut self, header: &PageHeader) -> Result<Vec<u8>> {
        let largest = header.uncompressed.max(header.compressed);
        if largest > self.limit {
            return Err(general(format!(
                "a page has {largest} bytes, {TOO_LARGE} of {}",
                self.limit
            )));
        }
        let mut bytes = Vec::new();
        let read = (&mut self.input).take(header.compressed as u64).read_to_end(&mut bytes)?;
        if read != header.compressed {
            let problem = format!("a page ends after {read} of {} bytes", header.compressed);
            return Err(general(problem));
        }
        Ok(bytes)
    }

    /// Decodes a page. Returns `None` if it has no values or is of a kind that is skipped.
    fn page(&mut self, header: &PageHeader, body: &[u8]) -> Result<Option<Page>> {
        let decompressed = |body: &[u8], size| decompress(self.codec, body, size);
        Ok(match header.kind {
            PageKind::Dictionary { values, encoding, sorted } => {
                let buf = decompressed(body, header.uncompressed)?;
                if values as usize > buf.len() {
                    return Err(general(format!(
                        "a dictionary of {values} values has {} bytes",
                        buf.len()
                    )));
                }
                Some(Page::DictionaryPage {
                    buf: buf.into(),
                    num_values: values,
                    encoding,
                    is_sorted: sorted,
                })
            }
            PageKind::Data { values: 0, .. } | PageKind::DataV2 { values: 0, .. } => None,
            PageKind::Data { values, encoding, definition_levels, repetition_levels } => {
                Some(Page::DataPage {
                    buf: decompressed(body, header.uncompressed)?.into(),
                    num_values: self.count(values)?,
                    encoding,
                    def_level_encoding: definition_levels,
                    rep_level_encoding: repetition_levels,
                    statistics: None,
                })
            }
            PageKind::DataV2 { .. } => Some(self.page_v2(header, body)?),
            PageKind::Other => None,
        })
    }

    /// Decodes a data page of version 2, whose levels are never compressed.
    fn page_v2(&mut self, header: &PageHeader, body: &[u8]) -> Result<Page> {
        let PageKind::DataV2 {
            values,
            nulls,
            rows,
            encoding,
            definition_bytes,
            repetition_bytes,
            compressed,
        } = header.kind
        else {
            return Err(general("not a data page of version 2"));
        };
        let levels = definition_bytes as usize + repetition_bytes as usize;
        let (Some((level_bytes, values_bytes)), Some(size)) =
            (body.split_at_checked(levels), header.uncompressed.checked_sub(levels))
        else {
            return Err(general("a page's levels are longer than the page"));
        };
        let mut buf = level_bytes.to_vec();
        if compressed {
            buf.extend(decompress(self.codec, values_bytes, size)?);
        } else {
            buf.extend(values_bytes);
        }
        Ok(Page::DataPageV2 {
            buf: buf.into(),
            num_values: self.count(values)?,
            encoding,
            num_nulls: nulls,
            num_rows: rows,
            def_levels_byte_len: definition_bytes,
            rep_levels_byte_len: repetition_bytes,
            is_compressed: compressed,
            statistics: None,
        })
    }

    /// Subtracts `values` from the budget and from the number of values still to come, and returns it.
    ///
    /// # Errors
    /// The budget is exhausted, or the footer states fewer values.
    fn count(&mut self, values: u32) -> Result<u32> {
        self.budget.take(values)?;
        let remaining = self.remaining.checked_sub(u64::from(values));
        self.remaining =
            remaining.ok_or_else(|| general("pages hold more values than the footer states"))?;
        Ok(values)
    }
}

impl PageReader for Pages {
    /// Returns the next page that has values, or `None` at the end of the column.
    fn get_next_page(&mut self) -> Result<Option<Page>> {
        while self.remaining > 0 {
            let header = PageHeader::read(&mut self.input)?;
            let body = self.read_body(&header)?;
            if let Some(page) = self.page(&header, &body)? {
                return Ok(Some(page));
            }
        }
        Ok(None)
    }

    fn peek_next_page(&mut self) -> Result<Option<PageMetadata>> {
        Err(ParquetError::NYI("pages are read in order".into()))
    }

    fn skip_next_page(&mut self) -> Result<()> {
        Err(ParquetError::NYI("pages are read in order".into()))
    }

    /// Returns whether the last page read ends a row. Only the next page tells, so this is true only after the last page.
    fn at_record_boundary(&mut self) -> Result<bool> {
        Ok(self.remaining == 0)
    }
}

impl Iterator for Pages {
    type Item = Result<Page>;

    fn next(&mut self) -> Option<Self::Item> {
        self.get_next_page().transpose()
    }
}

/// A byte range of a file.
struct Section {
    file: Arc<File>,
    at: u64,
    end: u64,
}

impl Read for Section {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let remaining = usize::try_from(self.end - self.at).unwrap_or(usize::MAX);
        let length = remaining.min(buffer.len());
        let Some(buffer) = buffer.get_mut(..length) else {
            return Ok(0);
        };
        read_exact_at(&self.file, buffer, self.at)?;
        self.at += length as u64;
        Ok(length)
    }
}
