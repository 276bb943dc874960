//! Decodes the values of a column row by row.

use parquet::column::reader::{ColumnReader, ColumnReaderImpl};
use parquet::data_type::{ByteArray, DataType};
use parquet::errors::{ParquetError, Result};
use parquet::schema::types::ColumnDescriptor;

use super::pages::Budget;
use super::{Kind, general, guarded};

/// A non-null value of a column.
#[derive(Clone, Debug)]
pub(in crate::data) enum Cell {
    /// Text, not yet checked to be UTF-8.
    Text(ByteArray),
    Integer(i128),
    Real(f64),
    Flag(bool),
}

/// A column of one row group, with one value or one list of values per row.
pub(in crate::data) struct Column {
    reader: ColumnReader,
    kind: Kind,
    levels: Levels,
    budget: Budget,
}

/// Definition levels of a column.
#[derive(Clone, Copy)]
struct Levels {
    /// Level of a value that is not null.
    present: i16,
    /// Lowest level at which a list element exists.
    exists: i16,
}

impl Column {
    pub(super) fn new(
        reader: ColumnReader,
        column: &ColumnDescriptor,
        kind: Kind,
        budget: Budget,
    ) -> Result<Self> {
        if matches!(kind, Kind::Other(_)) {
            return Err(general(format!(
                "column {} has values of an unsupported type",
                column.path()
            )));
        }
        // A null element of a list counts as an element, while a null or empty list has none. Levels above `exists` belong
        // to optional fields inside the element.
        let levels = Levels {
            present: column.max_def_level(),
            exists: column.repeated_ancestor_def_level(),
        };
        Ok(Self { reader, kind, levels, budget })
    }

    /// Reads the next `rows` rows and returns the values of each, with `None` for null.
    ///
    /// # Errors
    /// The pages are damaged, end too early, or exceed a limit.
    pub(in crate::data) fn read_lists(&mut self, rows: usize) -> Result<Vec<Vec<Option<Cell>>>> {
        self.budget.reset();
        let (levels, unsigned) = (self.levels, self.kind == Kind::Integer { unsigned: true });
        guarded(|| match &mut self.reader {
            ColumnReader::ByteArrayColumnReader(reader) => read(reader, levels, rows, Cell::Text),
            ColumnReader::Int32ColumnReader(reader) => read(reader, levels, rows, |n| {
                Cell::Integer(if unsigned { i128::from(n as u32) } else { i128::from(n) })
            }),
            ColumnReader::Int64ColumnReader(reader) => read(reader, levels, rows, |n| {
                Cell::Integer(if unsigned { i128::from(n as u64) } else { i128::from(n) })
            }),
            ColumnReader::FloatColumnReader(reader) => {
                read(reader, levels, rows, |n| Cell::Real(f64::from(n)))
            }
            ColumnReader::DoubleColumnReader(reader) => read(reader, levels, rows, Cell::Real),
            ColumnReader::BoolColumnReader(reader) => read(reader, levels, rows, Cell::Flag),
            _ => Err(ParquetError::NYI("values of this type".into())),
        })
    }

    /// Reads the next `rows` rows of a column with one value per row.
    ///
    /// # Errors
    /// Same as [`Self::read_lists`].
    pub(in crate::data) fn read_flat(&mut self, rows: usize) -> Result<Vec<Option<Cell>>> {
        let lists = self.read_lists(rows)?.into_iter();
        Ok(lists.map(|row| row.into_iter().next().flatten()).collect())
    }
}

/// Reads `rows` rows and splits the values into one list per row.
fn read<T: DataType>(
    reader: &mut ColumnReaderImpl<T>,
    Levels { present, exists }: Levels,
    rows: usize,
    convert: impl Fn(T::T) -> Cell,
) -> Result<Vec<Vec<Option<Cell>>>> {
    let (mut values, mut defined, mut repeated) = (Vec::new(), Vec::new(), Vec::new());
    let (mut read, mut total) = (0, 0);
    while read < rows {
        let (records, _, levels) = reader.read_records(
            rows - read,
            Some(&mut defined),
            Some(&mut repeated),
            &mut values,
        )?;
        if records == 0 {
            return Err(general(format!("the column ends after {read} rows of {rows}")));
        }
        (read, total) = (read + records, total + levels);
    }
    let mut values = values.into_iter();
    let mut out: Vec<Vec<Option<Cell>>> = Vec::with_capacity(rows);
    for i in 0..total {
        if repeated.get(i).is_none_or(|&level| level == 0) {
            out.push(Vec::new());
        }
        let level = defined.get(i).copied().unwrap_or(present);
        let Some(row) = out.last_mut() else { continue };
        if level == present {
            row.push(values.next().map(&convert));
        } else if level >= exists {
            row.push(None);
        }
    }
    Ok(out)
}
