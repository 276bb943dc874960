//! Reads rows from a parquet table, using only the few flat columns that they need, some hundred rows at a time.

use std::path::Path;

use serde_json::{Map, Number, Value};

use super::{Row, conversational, from_row};
use crate::data::columnar::{self, Cell, Column, Kind, Table};
use crate::data::{json_lines, row_limit};
use crate::error::{Error, Result};

/// Names of the columns that are read if the table has them.
const WANTED: [&str; 8] = [
    "id",
    "prompt",
    "question",
    "completion",
    "chosen",
    "rejected",
    "chosen_score",
    "rejected_score",
];

/// The column of labels, which is read only for rows that need it.
const LABEL: &str = "label";

/// Maximum ratio of the rows' size in memory to the size of the file. Text compresses to a tenth, while a crafted table
/// compresses to nearly nothing.
const MAX_EXPANSION: u64 = 1000;
/// Size in memory, in bytes, that every table may have regardless of [`MAX_EXPANSION`].
const MIN_MEMORY_LIMIT: u64 = 256 << 20;
/// Approximate number of bytes that a row takes in memory besides its texts.
const ROW_BYTES: u64 = 256;

/// Reads every row of the table at `path`.
pub(super) fn read_parquet<T: Row>(path: &Path) -> Result<Vec<T>> {
    let damaged = |part: String, e| {
        let (problem, too_large) = columnar::explain(&e);
        if too_large {
            Error::file(path, format!("{part}: {problem}"), row_limit::REMEDY)
        } else {
            Error::file(path, format!("{part} is damaged: {problem}"), "fetch the file again")
        }
    };
    let opened = Table::open(path).map_err(|e| Error::io(path, "open", e))?;
    let table = opened.map_err(|e| damaged("the footer".to_string(), e))?;
    let columns = find_columns::<T>(path, &table)?;
    let memory_limit = MAX_EXPANSION.saturating_mul(table.length()).max(MIN_MEMORY_LIMIT);
    let (mut rows, mut used) = (Vec::new(), 0);
    for group in 0..table.groups() {
        let total = table.rows(group);
        let part = format!("row group {group} ({total} rows from row {})", rows.len() + 1);
        let mut batches =
            Batches::open(&table, group, &columns).map_err(|e| damaged(part.clone(), e))?;
        while let Some(batch) = batches.next().map_err(|e| damaged(part.clone(), e))? {
            for row in batch {
                let number = rows.len() + 1;
                let place = || format!("{}: row {number}", path.display());
                let row = row.map_err(|problem| Error::invalid(place(), problem, T::COLUMNS))?;
                json_lines::check_size(&row)
                    .map_err(|problem| Error::invalid(place(), problem, row_limit::REMEDY))?;
                used += memory(&row);
                if used > memory_limit {
                    let problem = format!(
                        "its first {number} rows take more memory than the limit of {memory_limit} bytes for a file of {} bytes",
                        table.length()
                    );
                    return Err(Error::file(
                        path,
                        problem,
                        "is the file damaged? if not, convert it to .jsonl",
                    ));
                }
                rows.push(from_row(row, number).map_err(|e| e.at(place()))?);
            }
        }
    }
    Ok(rows)
}

/// Estimates the number of bytes that a row takes in memory.
fn memory(row: &Value) -> u64 {
    let texts = row.as_object().into_iter().flat_map(Map::values);
    let bytes = texts.filter_map(Value::as_str).map(|text| text.len() as u64);
    ROW_BYTES + bytes.sum::<u64>()
}

/// A column to read.
struct Wanted {
    name: &'static str,
    index: usize,
}

/// Finds the columns to read and checks that each holds one value per row, of a readable type.
fn find_columns<T: Row>(path: &Path, table: &Table) -> Result<Vec<Wanted>> {
    let place = || path.display().to_string();
    let mut found = Vec::new();
    let needs_label = T::REQUIRED.iter().any(|set| set.contains(&LABEL));
    for name in WANTED.into_iter().chain(needs_label.then_some(LABEL)) {
        let column = table.flat(name).map_err(|problem| {
            if problem.contains("a list") {
                conversational(name).at(place())
            } else {
                Error::file(path, problem, "rename one of them")
            }
        })?;
        let Some(column) = column else { continue };
        if let Kind::Other(kind) = &column.kind {
            let problem = format!("column {name} is of type {kind}");
            return Err(Error::file(path, problem, T::COLUMNS));
        }
        found.push(Wanted { name, index: column.index });
    }
    let indices: Vec<usize> = found.iter().map(|column| column.index).collect();
    if let Some(codec) = table.unreadable_codec(&indices) {
        return Err(Error::file(
            path,
            format!("is compressed with {codec}, which is not supported"),
            "write the table again with zstd compression, or as .jsonl",
        ));
    }
    let has = |name: &&str| found.iter().any(|column| column.name == *name);
    if !T::REQUIRED.iter().any(|set| set.iter().all(has)) {
        let wanted: Vec<String> = T::REQUIRED.iter().map(|set| set.join(" and ")).collect();
        let problem =
            format!("has no columns {}, only {}", wanted.join(" or "), table.names().join(", "));
        return Err(Error::file(path, problem, T::COLUMNS));
    }
    Ok(found)
}

/// Reads the rows of a row group batch by batch.
struct Batches {
    columns: Vec<(&'static str, Column)>,
    remaining: u64,
    batch: u64,
}

/// The rows of a batch: each a JSON object, or the problem with it.
type Decoded = Vec<std::result::Result<Value, String>>;

impl Batches {
    /// Opens the `wanted` columns of the row group `group`.
    fn open(table: &Table, group: usize, wanted: &[Wanted]) -> parquet::errors::Result<Self> {
        let columns = wanted
            .iter()
            .map(|column| Ok((column.name, table.column(group, column.index)?)))
            .collect::<parquet::errors::Result<_>>()?;
        let indices: Vec<usize> = wanted.iter().map(|column| column.index).collect();
        Ok(Self { columns, remaining: table.rows(group), batch: table.batch(group, &indices) })
    }

    /// Decodes the next rows, or returns `None` after the last one.
    fn next(&mut self) -> parquet::errors::Result<Option<Decoded>> {
        let rows = self.batch.min(self.remaining) as usize;
        if rows == 0 {
            return Ok(None);
        }
        self.remaining -= rows as u64;
        let mut cells = Vec::with_capacity(self.columns.len());
        for (name, column) in &mut self.columns {
            cells.push((*name, column.read_flat(rows)?.into_iter()));
        }
        let mut row = || {
            let mut row = Map::new();
            for (name, column) in &mut cells {
                row.insert((*name).to_string(), value(name, column.next().flatten())?);
            }
            Ok(Value::Object(row))
        };
        Ok(Some((0..rows).map(|_| row()).collect()))
    }
}

/// Converts the cell of the column `name` to JSON.
fn value(name: &str, cell: Option<Cell>) -> std::result::Result<Value, String> {
    Ok(match cell {
        None => Value::Null,
        Some(Cell::Text(bytes)) => match std::str::from_utf8(bytes.data()) {
            Ok(text) => text.into(),
            Err(e) => {
                return Err(format!("{name}: is not UTF-8 from byte {} on", e.valid_up_to()));
            }
        },
        Some(Cell::Integer(number)) => match (i64::try_from(number), u64::try_from(number)) {
            (Ok(number), _) => number.into(),
            (_, Ok(number)) => number.into(),
            _ => Value::Null,
        },
        Some(Cell::Real(number)) => Number::from_f64(number).map_or(Value::Null, Value::Number),
        Some(Cell::Flag(flag)) => flag.into(),
    })
}
