//! Reads rows from a parquet table, using only the few columns that they need, some hundred rows at a time. A column holds one
//! value per row, or the messages of a conversation: a list of structures.

use std::path::Path;

use serde_json::{Map, Number, Value};

use super::{Row, RowReader};
use crate::data::columnar::{self, Cell, Column, Kind, Table};
use crate::data::{json_lines, row_limit};
use crate::error::{Error, Result};

/// Names of the columns that are read if the table has them.
const WANTED: [&str; 11] = [
    "id",
    "prompt",
    "question",
    "completion",
    "chosen",
    "rejected",
    "chosen_score",
    "rejected_score",
    "messages",
    "conversations",
    "tools",
];

/// Columns that may hold the messages of a conversation.
const MESSAGES: [&str; 6] =
    ["prompt", "completion", "chosen", "rejected", "messages", "conversations"];

/// A column that cannot be read from a table, and must not be left out silently.
const VARIABLES: &str = "chat_template_kwargs";

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
pub(super) fn read_parquet<T: Row>(path: &Path, mut reader: RowReader<'_>) -> Result<Vec<T>> {
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
                rows.push(reader.read(row, number, place)?);
            }
        }
    }
    Ok(rows)
}

/// Estimates the number of bytes that a row takes in memory.
fn memory(row: &Value) -> u64 {
    let values = row.as_object().into_iter().flat_map(Map::values);
    ROW_BYTES + values.map(value_memory).sum::<u64>()
}

fn value_memory(value: &Value) -> u64 {
    match value {
        Value::String(text) => text.len() as u64,
        Value::Array(items) => items.iter().map(memory).sum(),
        _ => 0,
    }
}

/// A column to read.
struct Wanted {
    name: &'static str,
    /// Field of the messages in the column, if it is a list of messages.
    field: Option<String>,
    index: usize,
}

/// Finds the columns to read and checks that each holds one value per row, of a readable type.
fn find_columns<T: Row>(path: &Path, table: &Table) -> Result<Vec<Wanted>> {
    let mut found = Vec::new();
    let needs_label = T::REQUIRED.iter().any(|set| set.contains(&LABEL));
    for name in WANTED.into_iter().chain(needs_label.then_some(LABEL)) {
        if MESSAGES.contains(&name)
            && let Some(fields) = table.list_fields(name)
        {
            found.extend(find_messages(path, table, name, fields)?);
            continue;
        }
        let column = table.flat(name).map_err(|problem| Error::file(path, problem, T::COLUMNS))?;
        let Some(column) = column else { continue };
        if let Kind::Other(kind) = &column.kind {
            let problem = format!("column {name} is of type {kind}");
            return Err(Error::file(path, problem, T::COLUMNS));
        }
        found.push(Wanted { name, field: None, index: column.index });
    }
    if found.iter().any(|column| column.field.is_some()) && table.names().contains(&VARIABLES) {
        let problem = format!("column {VARIABLES} cannot be read from a table");
        return Err(Error::file(
            path,
            problem,
            "write the rows as .jsonl, or leave the column out",
        ));
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
    columns: Vec<(&'static str, Option<String>, Column)>,
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
            .map(|column| {
                Ok((column.name, column.field.clone(), table.column(group, column.index)?))
            })
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
        for (name, field, column) in &mut self.columns {
            cells.push((*name, field.as_deref(), column.read_lists(rows)?.into_iter()));
        }
        let mut row = || {
            let mut row = Map::new();
            for (name, field, column) in &mut cells {
                let cells = column.next().unwrap_or_default();
                match field {
                    None => {
                        let cell = cells.into_iter().next().flatten();
                        row.insert((*name).to_string(), value(name, cell)?);
                    }
                    Some(field) => add_field(&mut row, name, field, cells)?,
                }
            }
            Ok(Value::Object(row))
        };
        Ok(Some((0..rows).map(|_| row()).collect()))
    }
}

/// Finds the columns with the fields of the messages in the column `name`.
fn find_messages(
    path: &Path,
    table: &Table,
    name: &'static str,
    fields: Vec<String>,
) -> Result<Vec<Wanted>> {
    let wrong = |problem: String| {
        Error::file(
            path,
            problem,
            "write the rows as .jsonl, in which messages may have any fields",
        )
    };
    let mut found = Vec::new();
    for field in fields {
        let Some(column) = table.in_list(name, &field).map_err(wrong)? else { continue };
        if let Kind::Other(kind) = &column.kind {
            return Err(wrong(format!("column {name}.{field} is of type {kind}")));
        }
        found.push(Wanted { name, field: Some(field), index: column.index });
    }
    Ok(found)
}

/// Adds the field `field` to the messages of the column `name`, one cell for each message.
fn add_field(
    row: &mut Map<String, Value>,
    name: &str,
    field: &str,
    cells: Vec<Option<Cell>>,
) -> std::result::Result<(), String> {
    let messages = row.entry(name).or_insert_with(|| Value::Array(Vec::new()));
    let Value::Array(messages) = messages else {
        return Err(format!("{name}: is a list and a single value"));
    };
    messages.resize_with(messages.len().max(cells.len()), || Value::Object(Map::new()));
    for (message, cell) in messages.iter_mut().zip(cells) {
        message[field] = value(&format!("{name}.{field}"), cell)?;
    }
    Ok(())
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
