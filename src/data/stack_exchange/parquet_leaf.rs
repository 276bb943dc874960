//! The values of one parquet column, row by row.

use parquet::basic::Type as PhysicalType;
use parquet::column::reader::{ColumnReader, ColumnReaderImpl};
use parquet::data_type::{DataType, Int32Type, Int64Type};
use parquet::errors::{ParquetError, Result as ParquetResult};
use parquet::schema::types::ColumnDescriptor;

/// A column of 64 or 32 bit integers.
pub(super) enum Integers {
    Wide(Leaf<Int64Type>),
    Narrow(Leaf<Int32Type>),
}

impl Integers {
    pub(super) fn new(reader: ColumnReader, column: &ColumnDescriptor) -> ParquetResult<Self> {
        Ok(match column.physical_type() {
            PhysicalType::INT32 => Self::Narrow(Leaf::new(reader, column)?),
            _ => Self::Wide(Leaf::new(reader, column)?),
        })
    }

    /// The values of the next `rows` rows; `None` for null.
    pub(super) fn read(&mut self, rows: usize) -> ParquetResult<Vec<Vec<Option<i64>>>> {
        match self {
            Self::Wide(leaf) => leaf.read(rows),
            Self::Narrow(leaf) => {
                let widen =
                    |row: Vec<Option<i32>>| row.into_iter().map(|v| v.map(i64::from)).collect();
                Ok(leaf.read(rows)?.into_iter().map(widen).collect())
            }
        }
    }
}

/// A leaf column: one value a row, or those of a list a row.
pub(super) struct Leaf<T: DataType> {
    reader: ColumnReaderImpl<T>,
    /// Definition level of a value that is not null, and the least one at which a list element exists at all.
    present: i16,
    exists: i16,
}

impl<T: DataType> Leaf<T> {
    pub(super) fn new(reader: ColumnReader, column: &ColumnDescriptor) -> ParquetResult<Self> {
        let kind = || ParquetError::General(format!("column {} changed its type", column.path()));
        let reader = T::get_column_reader(reader).ok_or_else(kind)?;
        let present = column.max_def_level();
        // A null element of a list still is one; a list that is null or empty has none. The levels below the
        // list's own are optional fields inside the element.
        let exists = column.repeated_ancestor_def_level();
        Ok(Self { reader, present, exists })
    }

    /// The values of the next `rows` rows; `None` for null.
    pub(super) fn read(&mut self, rows: usize) -> ParquetResult<Vec<Vec<Option<T::T>>>> {
        let (mut values, mut defined, mut repeated) = (Vec::new(), Vec::new(), Vec::new());
        let (read, _, levels) =
            self.reader.read_records(rows, Some(&mut defined), Some(&mut repeated), &mut values)?;
        if read != rows {
            return Err(ParquetError::General(format!(
                "the column ends after {read} rows of {rows}"
            )));
        }
        let mut values = values.into_iter();
        let mut out: Vec<Vec<Option<T::T>>> = Vec::with_capacity(rows);
        for i in 0..levels {
            if repeated.get(i).is_none_or(|&level| level == 0) {
                out.push(Vec::new());
            }
            let level = defined.get(i).copied().unwrap_or(self.present);
            let Some(row) = out.last_mut() else { continue };
            if level == self.present {
                row.push(values.next());
            } else if level >= self.exists {
                row.push(None);
            }
        }
        Ok(out)
    }
}
