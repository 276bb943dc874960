//! Parses the header before each page of a column chunk, a structure of the parquet format in Thrift's compact protocol.

use std::io::{self, Read};

use parquet::basic::Encoding;
use parquet::errors::Result;

use super::general;

/// Maximum nesting depth of structures. A page header has a depth of three.
const MAX_DEPTH: u8 = 8;

/// A page header.
#[derive(Debug)]
pub(super) struct PageHeader {
    /// Size of the page in bytes when decompressed.
    pub(super) uncompressed: usize,
    /// Size of the page in bytes as it is stored.
    pub(super) compressed: usize,
    pub(super) kind: PageKind,
}

/// The kind of a page, with the header fields that only this kind has.
#[derive(Debug)]
pub(super) enum PageKind {
    Data {
        values: u32,
        encoding: Encoding,
        definition_levels: Encoding,
        repetition_levels: Encoding,
    },
    DataV2 {
        values: u32,
        nulls: u32,
        rows: u32,
        encoding: Encoding,
        definition_bytes: u32,
        repetition_bytes: u32,
        compressed: bool,
    },
    Dictionary {
        values: u32,
        encoding: Encoding,
        sorted: bool,
    },
    /// Index pages and unknown kinds, which are skipped.
    Other,
}

impl PageHeader {
    /// Reads a header. Afterwards `input` is at the first byte behind it.
    pub(super) fn read(input: &mut impl Read) -> Result<Self> {
        let mut fields = Fields::default();
        read_structure(input, 0, 0, &mut fields)
            .map_err(|e| general(format!("a page's header is damaged: {e}")))?;
        let kind = match fields.number(0, 1)? {
            0 => PageKind::Data {
                values: fields.number(5, 1)?,
                encoding: fields.encoding(5, 2)?,
                definition_levels: fields.encoding(5, 3)?,
                repetition_levels: fields.encoding(5, 4)?,
            },
            2 => PageKind::Dictionary {
                values: fields.number(7, 1)?,
                encoding: fields.encoding(7, 2)?,
                sorted: fields.flag(7, 3).unwrap_or(false),
            },
            3 => PageKind::DataV2 {
                values: fields.number(8, 1)?,
                nulls: fields.number(8, 2)?,
                rows: fields.number(8, 3)?,
                encoding: fields.encoding(8, 4)?,
                definition_bytes: fields.number(8, 5)?,
                repetition_bytes: fields.number(8, 6)?,
                compressed: fields.flag(8, 7).unwrap_or(true),
            },
            _ => PageKind::Other,
        };
        Ok(Self {
            uncompressed: fields.number(0, 2)? as usize,
            compressed: fields.number(0, 3)? as usize,
            kind,
        })
    }
}

/// The numbers and flags of a header as `(structure, field, value)`. The first number is the field id of the structure
/// (0 for the header itself), the second the field id within it.
#[derive(Default)]
struct Fields(Vec<(i16, i16, i64)>);

impl Fields {
    fn find(&self, structure: i16, field: i16) -> Option<i64> {
        let mut found = self.0.iter().filter(|f| (f.0, f.1) == (structure, field));
        found.next().map(|f| f.2)
    }

    /// Returns a number that must exist and fit a `u32`.
    fn number(&self, structure: i16, field: i16) -> Result<u32> {
        let found = self.find(structure, field);
        let number = found.and_then(|number| u32::try_from(number).ok());
        number.ok_or_else(|| match found {
            Some(number) => {
                general(format!("a page's header has {number} in field {structure}.{field}"))
            }
            None => general(format!("a page's header lacks field {structure}.{field}")),
        })
    }

    fn flag(&self, structure: i16, field: i16) -> Option<bool> {
        self.find(structure, field).map(|number| number != 0)
    }

    fn encoding(&self, structure: i16, field: i16) -> Result<Encoding> {
        Ok(match self.number(structure, field)? {
            0 => Encoding::PLAIN,
            2 => Encoding::PLAIN_DICTIONARY,
            3 => Encoding::RLE,
            #[allow(deprecated, reason = "old files have it")]
            4 => Encoding::BIT_PACKED,
            5 => Encoding::DELTA_BINARY_PACKED,
            6 => Encoding::DELTA_LENGTH_BYTE_ARRAY,
            7 => Encoding::DELTA_BYTE_ARRAY,
            8 => Encoding::RLE_DICTIONARY,
            9 => Encoding::BYTE_STREAM_SPLIT,
            other => return Err(general(format!("unknown encoding {other}"))),
        })
    }
}

/// Reads a structure and collects the numbers and flags of the header and of its direct substructures.
fn read_structure(
    input: &mut impl Read,
    structure: i16,
    depth: u8,
    fields: &mut Fields,
) -> io::Result<()> {
    if depth > MAX_DEPTH {
        return Err(invalid("structures are nested too deeply"));
    }
    let mut field = 0i16;
    loop {
        let head = byte(input)?;
        if head == 0 {
            return Ok(());
        }
        field = match head >> 4 {
            0 => zigzag(varint(input)?) as i16,
            step => field.wrapping_add(i16::from(step)),
        };
        let value = match head & 15 {
            1 => Some(1),
            2 => Some(0),
            3 => Some(i64::from(byte(input)? as i8)),
            4..=6 => Some(zigzag(varint(input)?)),
            12 => {
                // Structures inside the header's substructures (such as statistics) are not needed.
                let inner = if depth == 0 { field } else { -1 };
                read_structure(input, inner, depth + 1, fields)?;
                None
            }
            kind => {
                skip(input, kind, depth + 1)?;
                None
            }
        };
        if let Some(value) = value
            && depth < 2
        {
            fields.0.push((structure, field, value));
        }
    }
}

/// Skips a value of type `kind`.
fn skip(input: &mut impl Read, kind: u8, depth: u8) -> io::Result<()> {
    if depth > MAX_DEPTH {
        return Err(invalid("lists are nested too deeply"));
    }
    match kind {
        // A boolean that is an element of a list takes one byte.
        1..=3 => byte(input).map(drop),
        4..=6 => varint(input).map(drop),
        7 => skip_bytes(input, 8),
        8 => {
            let length = varint(input)?;
            skip_bytes(input, length)
        }
        9 | 10 => {
            let head = byte(input)?;
            let count = match head >> 4 {
                15 => varint(input)?,
                few => u64::from(few),
            };
            (0..count).try_for_each(|_| skip(input, head & 15, depth + 1))
        }
        12 => read_structure(input, -1, depth + 1, &mut Fields::default()),
        _ => Err(invalid("a value of an unknown type")),
    }
}

fn skip_bytes(input: &mut impl Read, length: u64) -> io::Result<()> {
    match io::copy(&mut input.take(length), &mut io::sink())? {
        skipped if skipped == length => Ok(()),
        _ => Err(io::ErrorKind::UnexpectedEof.into()),
    }
}

fn byte(input: &mut impl Read) -> io::Result<u8> {
    let mut byte = [0];
    input.read_exact(&mut byte)?;
    Ok(byte[0])
}

fn varint(input: &mut impl Read) -> io::Result<u64> {
    let mut number = 0;
    for shift in (0..64).step_by(7) {
        let byte = byte(input)?;
        number |= u64::from(byte & 0x7f) << shift;
        if byte < 0x80 {
            return Ok(number);
        }
    }
    Err(invalid("a number of more than 64 bits"))
}

fn zigzag(number: u64) -> i64 {
    (number >> 1) as i64 ^ -((number & 1) as i64)
}

fn invalid(problem: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, problem)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A data page header with statistics, as pyarrow writes it, encoded byte by byte after the Thrift specification.
    #[test]
    fn a_header_is_read_and_nothing_after_it() {
        let bytes = [
            0x15, 0x00, // 1: DATA_PAGE
            0x15, 0x20, // 2: 16 bytes
            0x15, 0x24, // 3: 18 compressed
            0x2c, // 5: a structure
            0x15, 0x06, // 1: 3 values
            0x15, 0x10, // 2: RLE_DICTIONARY
            0x15, 0x06, 0x15, 0x06, // 3, 4: RLE
            0x1c, // 5: statistics
            0x18, 0x02, b'a', b'b', // 1: bytes
            0x16, 0x02, // 2: a number
            0x00, 0x00, 0x00, 0xff,
        ];
        let mut input = &bytes[..];
        let header = PageHeader::read(&mut input).unwrap();
        assert_eq!((header.uncompressed, header.compressed), (16, 18));
        assert!(
            matches!(
                header.kind,
                PageKind::Data { values: 3, encoding: Encoding::RLE_DICTIONARY, .. }
            ),
            "{header:?}"
        );
        assert_eq!(input, [0xff]);
        // A truncated header is an error wherever it is cut.
        for end in 0..bytes.len() - 1 {
            assert!(PageHeader::read(&mut &bytes[..end]).is_err(), "{end}");
        }
    }

    #[test]
    fn deep_nesting_and_endless_numbers_are_errors() {
        assert!(PageHeader::read(&mut [0x1c; 100_000].as_slice()).is_err());
        assert!(PageHeader::read(&mut [0x19; 100_000].as_slice()).is_err());
        assert!(PageHeader::read(&mut [0xff; 100].as_slice()).is_err());
        // Negative sizes.
        assert!(PageHeader::read(&mut [0x15, 0, 0x15, 1, 0x15, 1, 0].as_slice()).is_err());
    }
}
