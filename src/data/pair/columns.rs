//! Pairs from a parquet table: the few flat columns a pair needs, a row group at a time.

use std::fs::File;
use std::panic::{self, AssertUnwindSafe};
use std::path::Path;

use parquet::basic::Compression;
use parquet::column::reader::{ColumnReader, ColumnReaderImpl};
use parquet::data_type::{ByteArray, DataType};
use parquet::errors::ParquetError;
use parquet::file::reader::{FileReader, RowGroupReader, SerializedFileReader};
use serde_json::{Map, Value};

use super::{Row, conversational, from_row};
use crate::error::{Error, Result};

/// Columns read where the table has them.
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

/// Reads every row of the table at `path`.
pub(super) fn read_parquet<T: Row>(path: &Path) -> Result<Vec<T>> {
    let damaged = |what: String, e: ParquetError| {
        Error::file(path, format!("{what} is damaged: {e}"), "fetch the file again")
    };
    let file = File::open(path).map_err(|e| Error::io(path, "open", e))?;
    let reader =
        SerializedFileReader::new(file).map_err(|e| damaged("the footer".to_string(), e))?;
    let columns = find_columns::<T>(path, &reader)?;
    let mut pairs = Vec::new();
    for group in 0..reader.num_row_groups() {
        let first = pairs.len() + 1;
        let rows = reader.metadata().row_group(group).num_rows();
        let what = || format!("row group {group} ({rows} rows from row {first})");
        let values = read_group(&reader, group, &columns).map_err(|e| damaged(what(), e))?;
        let mut values: Vec<_> = values.into_iter().map(Vec::into_iter).collect();
        for _ in 0..rows {
            let cells = columns.iter().zip(&mut values);
            let row: Map<String, Value> = cells
                .map(|((name, _), column)| (name.to_string(), column.next().unwrap_or(Value::Null)))
                .collect();
            let number = pairs.len() + 1;
            let place = || format!("{}: row {number}", path.display());
            pairs.push(from_row(Value::Object(row), number).map_err(|e| e.at(place()))?);
        }
    }
    Ok(pairs)
}

/// Names and leaf indices of the wanted columns, which must be flat and of a type that is read here.
fn find_columns<T: Row>(
    path: &Path,
    reader: &SerializedFileReader<File>,
) -> Result<Vec<(&'static str, usize)>> {
    let schema = reader.metadata().file_metadata().schema_descr();
    let mut found = Vec::new();
    for name in WANTED {
        let leaf = schema.columns().iter().position(|c| c.path().parts()[0] == name);
        let Some(index) = leaf else { continue };
        if schema.column(index).path().parts().len() > 1 || schema.column(index).max_rep_level() > 0
        {
            return Err(conversational(name).at(path.display().to_string()));
        }
        for group in reader.metadata().row_groups() {
            let codec = group.column(index).compression();
            if matches!(codec, Compression::ZSTD(_) | Compression::LZO) {
                return Err(Error::file(
                    path,
                    format!("column {name} is compressed with {codec}, which is not built in"),
                    "write the table again with snappy compression, or as .jsonl",
                ));
            }
        }
        found.push((name, index));
    }
    let has = |name: &&str| found.iter().any(|(found, _)| found == name);
    if !T::REQUIRED.iter().any(|all| all.iter().all(has)) {
        let wanted: Vec<String> = T::REQUIRED.iter().map(|all| all.join(" and ")).collect();
        let have: Vec<&str> = schema.root_schema().get_fields().iter().map(|f| f.name()).collect();
        let problem = format!("has no columns {}, only {}", wanted.join(" or "), have.join(", "));
        return Err(Error::file(path, problem, T::COLUMNS));
    }
    Ok(found)
}

/// The wanted columns of one row group.
fn read_group(
    reader: &SerializedFileReader<File>,
    group: usize,
    columns: &[(&str, usize)],
) -> std::result::Result<Vec<Vec<Value>>, ParquetError> {
    let read = || {
        let group = reader.get_row_group(group)?;
        columns.iter().map(|(_, index)| read_column(group.as_ref(), *index)).collect()
    };
    // The parquet crate asserts on some damaged pages instead of returning an error; nothing of the reader is used
    // after that.
    panic::catch_unwind(AssertUnwindSafe(read))
        .unwrap_or_else(|_| Err(ParquetError::General("pages and footer disagree".to_string())))
}

/// All values of one column of a row group, one a row; absent ones are null.
fn read_column(
    group: &dyn RowGroupReader,
    index: usize,
) -> std::result::Result<Vec<Value>, ParquetError> {
    let rows = usize::try_from(group.metadata().num_rows())
        .map_err(|_| ParquetError::General("negative number of rows".to_string()))?;
    match group.get_column_reader(index)? {
        ColumnReader::ByteArrayColumnReader(reader) => {
            read_values(reader, rows, |bytes| text(&bytes))
        }
        ColumnReader::Int32ColumnReader(reader) => read_values(reader, rows, |n| Ok(n.into())),
        ColumnReader::Int64ColumnReader(reader) => read_values(reader, rows, |n| Ok(n.into())),
        ColumnReader::FloatColumnReader(reader) => read_values(reader, rows, |n| Ok(n.into())),
        ColumnReader::DoubleColumnReader(reader) => read_values(reader, rows, |n| Ok(n.into())),
        ColumnReader::BoolColumnReader(reader) => read_values(reader, rows, |b| Ok(b.into())),
        _ => Err(ParquetError::NYI("a column of a type other than text and numbers".to_string())),
    }
}

fn text(bytes: &ByteArray) -> std::result::Result<Value, ParquetError> {
    let text = bytes.as_utf8()?;
    Ok(Value::String(text.to_string()))
}

fn read_values<T: DataType>(
    mut reader: ColumnReaderImpl<T>,
    rows: usize,
    convert: impl Fn(T::T) -> std::result::Result<Value, ParquetError>,
) -> std::result::Result<Vec<Value>, ParquetError> {
    let (mut values, mut levels, mut read) = (Vec::new(), Vec::new(), 0);
    while read < rows {
        let (records, ..) =
            reader.read_records(rows - read, Some(&mut levels), None, &mut values)?;
        if records == 0 {
            return Err(ParquetError::General(format!(
                "a column ends after {read} of {rows} rows"
            )));
        }
        read += records;
    }
    // A required column has no levels; an optional one has level 1 where a value is present.
    let mut values = values.into_iter();
    if levels.is_empty() {
        return values.map(convert).collect();
    }
    let mut cell = |level| match level {
        0 => Ok(Value::Null),
        _ => values.next().map_or(Ok(Value::Null), &convert),
    };
    levels.into_iter().map(&mut cell).collect()
}
