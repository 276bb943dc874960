//! Finds columns by their exact path and determines the type of their values.

use parquet::basic::{ConvertedType, LogicalType, Type as PhysicalType};
use parquet::schema::types::{ColumnDescriptor, Type, TypePtr};

use super::Table;

/// The type of a column's values.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::data) enum Kind {
    Text,
    Integer {
        unsigned: bool,
    },
    Real,
    Flag,
    /// Null in every row.
    Null,
    /// An unsupported type (date, decimal, ...), by its name.
    Other(String),
}

impl Kind {
    /// Determines the type of a column's values.
    pub(super) fn of(column: &ColumnDescriptor) -> Self {
        let (physical, converted) = (column.physical_type(), column.converted_type());
        let logical = column.logical_type_ref();
        let plain = match logical {
            None => true,
            Some(LogicalType::Integer(_)) => true,
            Some(LogicalType::String | LogicalType::Enum | LogicalType::Json) => true,
            Some(_) => false,
        };
        let unsigned = matches!(logical, Some(LogicalType::Integer(int)) if !int.is_signed)
            || matches!(
                converted,
                ConvertedType::UINT_8
                    | ConvertedType::UINT_16
                    | ConvertedType::UINT_32
                    | ConvertedType::UINT_64
            );
        let integer = unsigned
            || matches!(
                converted,
                ConvertedType::NONE
                    | ConvertedType::INT_8
                    | ConvertedType::INT_16
                    | ConvertedType::INT_32
                    | ConvertedType::INT_64
            );
        let text = matches!(
            converted,
            ConvertedType::NONE | ConvertedType::UTF8 | ConvertedType::ENUM | ConvertedType::JSON
        );
        match physical {
            _ if matches!(logical, Some(LogicalType::Unknown)) => Self::Null,
            PhysicalType::BYTE_ARRAY if plain && text => Self::Text,
            PhysicalType::INT32 | PhysicalType::INT64 if plain && integer => {
                Self::Integer { unsigned }
            }
            PhysicalType::FLOAT | PhysicalType::DOUBLE => Self::Real,
            PhysicalType::BOOLEAN => Self::Flag,
            _ => Self::Other(match (logical, converted) {
                (Some(logical), _) => format!("{logical:?}"),
                (None, ConvertedType::NONE) => physical.to_string(),
                (None, converted) => converted.to_string(),
            }),
        }
    }

    /// Returns the type's name for messages.
    pub(in crate::data) fn name(&self) -> &str {
        match self {
            Self::Text => "text",
            Self::Integer { .. } => "integer",
            Self::Real => "floating point",
            Self::Flag => "boolean",
            Self::Null => "null",
            Self::Other(name) => name,
        }
    }
}

/// A column that was found in the schema.
#[derive(Clone, Debug)]
pub(in crate::data) struct Found {
    pub(in crate::data) index: usize,
    pub(in crate::data) kind: Kind,
}

/// Description of why a column cannot be read.
type Problem = String;

impl Table {
    /// Returns the names of all top-level columns.
    pub(in crate::data) fn names(&self) -> Vec<&str> {
        let fields = self.root().get_fields().iter();
        fields.map(|field| field.name()).collect()
    }

    fn root(&self) -> &Type {
        self.metadata.file_metadata().schema_descr().root_schema()
    }

    /// Finds the column `name`, which must have one value per row. Returns `None` if there is no such column.
    ///
    /// # Errors
    /// The column is a list or a structure, or there are several of that name.
    pub(in crate::data) fn flat(&self, name: &str) -> Result<Option<Found>, Problem> {
        let Some(field) = only_field(self.root(), name)? else {
            return Ok(None);
        };
        if field.is_group() || is_repeated(field) {
            return Err(format!("column {name} is a list or a structure, not one value per row"));
        }
        self.leaf(&[name]).map(Some)
    }

    /// Returns the names of the fields of the structures in the column `list`, or `None` if it is not a list of structures or
    /// there is no such column.
    pub(in crate::data) fn list_fields(&self, list: &str) -> Option<Vec<String>> {
        let column = only_field(self.root(), list).ok()??;
        if !column.is_group() {
            return None;
        }
        let structure = match list_element(column, &mut Vec::new()) {
            Some(element) if element.is_group() => element,
            Some(_) => return None,
            None => column,
        };
        Some(structure.get_fields().iter().map(|field| field.name().to_string()).collect())
    }

    /// Finds the field `field` of the column `list`, which is a list of structures, or a structure of lists as Hugging
    /// Face's `Sequence` writes it. Returns `None` if there is no such field.
    ///
    /// # Errors
    /// The column or the field has another form, or there are several of that name.
    pub(in crate::data) fn in_list(
        &self,
        list: &str,
        field: &str,
    ) -> Result<Option<Found>, Problem> {
        let Some(column) = only_field(self.root(), list)? else {
            return Ok(None);
        };
        let not_a_list = || format!("column {list} is not a list of structures");
        if !column.is_group() {
            return Err(not_a_list());
        }
        let mut path = vec![list];
        if let Some(element) = list_element(column, &mut path) {
            // A list of structures.
            if !element.is_group() {
                return Err(not_a_list());
            }
            let Some(found) = only_field(element, field)? else {
                return Ok(None);
            };
            if found.is_group() || is_repeated(found) {
                return Err(format!("column {list}.{field} is not one value per {list}"));
            }
            path.push(field);
        } else if column.get_basic_info().converted_type() == ConvertedType::NONE {
            // A structure of lists.
            let Some(found) = only_field(column, field)? else {
                return Ok(None);
            };
            path.push(field);
            let element = list_element(found, &mut path);
            if element.is_none_or(|element| element.is_group()) {
                return Err(format!("column {list}.{field} is not a list of values"));
            }
        } else {
            return Err(not_a_list());
        }
        self.leaf(&path).map(Some)
    }

    /// Finds the column of values with exactly this path.
    fn leaf(&self, path: &[&str]) -> Result<Found, Problem> {
        let columns = self.metadata.file_metadata().schema_descr().columns();
        let found = columns.iter().position(|column| {
            let parts = column.path().parts();
            parts.len() == path.len() && parts.iter().zip(path).all(|(a, b)| a == b)
        });
        let described = found.and_then(|index| Some((index, columns.get(index)?)));
        let Some((index, column)) = described else {
            return Err(format!("column {} cannot be found", path.join(".")));
        };
        if column.max_rep_level() > 1 {
            return Err(format!("column {} is a list of lists", path.join(".")));
        }
        Ok(Found { index, kind: Kind::of(column) })
    }
}

/// Returns the field `name` of a group, or `None` if there is none.
///
/// # Errors
/// There are several fields of that name.
fn only_field<'a>(group: &'a Type, name: &str) -> Result<Option<&'a Type>, Problem> {
    let mut found = group.get_fields().iter().filter(|field| field.name() == name);
    let first = found.next().map(TypePtr::as_ref);
    match found.next() {
        Some(_) => Err(format!("there are two columns {name}")),
        None => Ok(first),
    }
}

/// Returns the element type of a list and appends the names between list and element to `path`. Returns `None` if `list`
/// is not a list.
///
/// A list is a group with a list annotation that contains one repeated field. That field is the element or a group around
/// it, under any names: `list.element`, `list.item`, `bag.array_element`, `bag.array`, ... Older writers use no annotation
/// and repeat the element itself.
fn list_element<'a>(list: &'a Type, path: &mut Vec<&'a str>) -> Option<&'a Type> {
    if is_repeated(list) {
        return Some(list);
    }
    let annotated = list.get_basic_info().converted_type() == ConvertedType::LIST
        || matches!(list.get_basic_info().logical_type_ref(), Some(LogicalType::List));
    let [repeated] = fields(list) else {
        return None;
    };
    if !annotated || !is_repeated(repeated) {
        return None;
    }
    path.push(repeated.name());
    match fields(repeated) {
        // A repeated group of several fields is the element itself.
        [only] if !is_repeated(only) => {
            path.push(only.name());
            Some(only)
        }
        _ => Some(repeated),
    }
}

/// Returns the fields of a group, or none for a primitive type.
fn fields(group: &Type) -> &[TypePtr] {
    if group.is_group() { group.get_fields() } else { &[] }
}

fn is_repeated(field: &Type) -> bool {
    let info = field.get_basic_info();
    info.has_repetition() && info.repetition() == parquet::basic::Repetition::REPEATED
}
