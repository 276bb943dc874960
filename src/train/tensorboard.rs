//! Writes TensorBoard event files: TFRecord framing around two small protobuf messages, encoded by hand.
//!
//! Formats: `tensorflow/core/lib/io/record_writer.h` (framing) and `tensorflow/core/util/event.proto`,
//! `tensorflow/core/framework/summary.proto` (field numbers).

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use crate::error::{Error, Result};
use crate::input_file;

const PREFIX: &str = "events.out.tfevents.";

/// An event file that is open for appending. Every call writes whole records without buffering.
#[derive(Debug)]
pub struct EventFile {
    file: File,
    path: PathBuf,
}

impl EventFile {
    /// Creates a new file `events.out.tfevents.<seconds>.<host>` in `folder`, which is created if it is missing.
    ///
    /// The file begins with TensorBoard's restart marker, so that events of earlier files at `first_step` or later are not
    /// shown. Its name sorts after those of all earlier files, because TensorBoard reads them in the order of their names.
    ///
    /// # Errors
    /// The folder or the file cannot be created.
    pub fn create(folder: &Path, first_step: u64) -> Result<Self> {
        fs::create_dir_all(folder).map_err(|e| Error::io(folder, "make the folder", e))?;
        let seconds = newest_time(folder)?.map_or(now() as u64, |t| (now() as u64).max(t + 1));
        let path = folder.join(format!("{PREFIX}{seconds:010}.{}", host()));
        let file = OpenOptions::new()
            .append(true)
            .create_new(true)
            .open(&path)
            .map_err(|e| Error::io(&path, "make the file", e))?;
        let mut events = Self { file, path };
        let time = now();
        let mut bytes = frame(&Message::event(time, 0).text(3, b"brain.Event:2").0);
        let session_start = Message::default().varint(1, 1);
        bytes.extend(frame(&Message::event(time, first_step).text(7, &session_start.0).0));
        events.write(&bytes)?;
        Ok(events)
    }

    /// Appends one event with a scalar per `(tag, value)` at `step`. TensorBoard stores f32.
    ///
    /// # Errors
    /// The disk is full or the file cannot be written.
    pub fn scalars<'a>(
        &mut self,
        step: u64,
        values: impl IntoIterator<Item = (&'a str, f64)>,
    ) -> Result<()> {
        self.write(&frame(&scalar_event(now(), step, values)))
    }

    /// Returns the path of the file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    fn write(&mut self, bytes: &[u8]) -> Result<()> {
        self.file.write_all(bytes).map_err(|e| Error::io(&self.path, "write", e))
    }
}

/// Removes the event files in `folder` that this program wrote on this machine. Does nothing if the folder is missing.
///
/// # Errors
/// The folder cannot be read or a file cannot be removed.
pub(super) fn remove_event_files(folder: &Path) -> Result<()> {
    let host = host();
    let ours = |path: &PathBuf| {
        let name = file_name(path);
        let rest = name.strip_prefix(PREFIX);
        let time = rest.and_then(|rest| rest.strip_suffix(&host)?.strip_suffix('.'));
        time.is_some_and(|time| time.bytes().all(|byte| byte.is_ascii_digit()))
    };
    for path in event_files(folder)?.into_iter().filter(ours) {
        fs::remove_file(&path).map_err(|e| Error::io(&path, "remove", e))?;
    }
    Ok(())
}

/// Returns all event files in `folder`, including those of other programs.
pub(super) fn event_files(folder: &Path) -> Result<Vec<PathBuf>> {
    if !folder.exists() {
        return Ok(Vec::new());
    }
    let fail = |e| Error::io(folder, "list the folder", e);
    let mut paths = Vec::new();
    for entry in fs::read_dir(folder).map_err(fail)? {
        let path = entry.map_err(fail)?.path();
        if file_name(&path).starts_with(PREFIX) {
            paths.push(path);
        }
    }
    Ok(paths)
}

/// Returns the latest time in the names of the event files in `folder`.
fn newest_time(folder: &Path) -> Result<Option<u64>> {
    let time = |path: &PathBuf| {
        let name = file_name(path);
        name.strip_prefix(PREFIX)?.split('.').next()?.parse().ok()
    };
    Ok(event_files(folder)?.iter().filter_map(time).max())
}

fn file_name(path: &Path) -> String {
    path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default()
}

/// Returns the current time in seconds since 1970.
fn now() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |elapsed| elapsed.as_secs_f64())
}

/// Returns the name of this machine from the environment, reduced to letters, digits, `-` and `.`.
fn host() -> String {
    let name = std::env::var("HOSTNAME")
        .or_else(|_| input_file::read_to_string("/proc/sys/kernel/hostname"))
        .unwrap_or_default();
    let keep = |c: &char| c.is_ascii_alphanumeric() || matches!(c, '-' | '.');
    let name: String = name.chars().filter(keep).take(64).collect();
    if name.is_empty() { "localhost".to_string() } else { name }
}

/// Encodes the message `Event { wall_time = 1, step = 2, summary = 5 { value = 1 { tag = 1, simple_value = 2 } } }`, where
/// the numbers are field numbers.
fn scalar_event<'a>(
    wall_time: f64,
    step: u64,
    values: impl IntoIterator<Item = (&'a str, f64)>,
) -> Vec<u8> {
    let mut summary = Message::default();
    for (tag, value) in values {
        let value = Message::default().text(1, tag.as_bytes()).float(2, value as f32);
        summary = summary.text(1, &value.0);
    }
    Message::event(wall_time, step).text(5, &summary.0).0
}

/// A protobuf message under construction (<https://protobuf.dev/programming-guides/encoding/>).
#[derive(Default)]
struct Message(Vec<u8>);

impl Message {
    /// Creates an event with its first two fields, time and step.
    fn event(wall_time: f64, step: u64) -> Self {
        let event = Self::default().double(1, wall_time);
        // Protobuf omits a number with the default value 0.
        if step == 0 { event } else { event.varint(2, step) }
    }

    /// Appends the key of a field.
    fn key(&mut self, field: u8, wire_type: u8) {
        self.0.push(field << 3 | wire_type);
    }

    fn raw_varint(&mut self, mut value: u64) {
        while value >= 0x80 {
            self.0.push(value as u8 | 0x80);
            value >>= 7;
        }
        self.0.push(value as u8);
    }

    fn varint(mut self, field: u8, value: u64) -> Self {
        self.key(field, 0);
        self.raw_varint(value);
        self
    }

    fn double(mut self, field: u8, value: f64) -> Self {
        self.key(field, 1);
        self.0.extend(value.to_le_bytes());
        self
    }

    /// Appends a length-delimited field: a string or an embedded message.
    fn text(mut self, field: u8, bytes: &[u8]) -> Self {
        self.key(field, 2);
        self.raw_varint(bytes.len() as u64);
        self.0.extend(bytes);
        self
    }

    fn float(mut self, field: u8, value: f32) -> Self {
        self.key(field, 5);
        self.0.extend(value.to_le_bytes());
        self
    }
}

/// Encodes a TFRecord: the length, its masked checksum, the bytes, and their masked checksum, all little-endian.
fn frame(record: &[u8]) -> Vec<u8> {
    let length = (record.len() as u64).to_le_bytes();
    let mut bytes = Vec::with_capacity(record.len() + 16);
    bytes.extend(length);
    bytes.extend(masked(crc32c(&length)).to_le_bytes());
    bytes.extend(record);
    bytes.extend(masked(crc32c(record)).to_le_bytes());
    bytes
}

/// Masks a checksum by rotation and addition, so that the checksum of data that contains checksums is not degenerate.
fn masked(crc: u32) -> u32 {
    crc.rotate_right(15).wrapping_add(0xa282_ead8)
}

/// Computes the CRC-32C checksum (Castagnoli, RFC 3720 B.4) bit by bit. A few hundred bytes per step need no table.
fn crc32c(bytes: &[u8]) -> u32 {
    let step = |crc: u32, byte: &u8| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| (crc >> 1) ^ (0x82f6_3b78 * (crc & 1)))
    };
    !bytes.iter().fold(!0, step)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn crc32c_of_known_strings() {
        // RFC 3720 B.4, and the usual check value.
        assert_eq!(crc32c(b"123456789"), 0xe306_9283);
        assert_eq!(crc32c(&[0; 32]), 0x8a91_36aa);
        assert_eq!(crc32c(&[0xff; 32]), 0x62a8_ab43);
        let rising: Vec<u8> = (0..32).collect();
        assert_eq!(crc32c(&rising), 0x46dd_794e);
    }

    fn hex(bytes: &[u8]) -> String {
        bytes.iter().map(|byte| format!("{byte:02x}")).collect()
    }

    /// The expected bytes come from the `RecordWriter` of TensorBoard 2.21 for events with the same content.
    #[test]
    fn records_equal_those_of_tensorboard() {
        let version = Message::event(1234.5, 0).text(3, b"brain.Event:2").0;
        assert_eq!(
            hex(&frame(&version)),
            "1800000000000000a37f4b220900000000004a93401a0d627261696e2e4576656e743a3265b8d3fb"
        );
        let scalars =
            scalar_event(1234.5, 300, [("train/loss", std::f64::consts::LN_2), ("x", -2.0)]);
        assert_eq!(
            hex(&frame(&scalars)),
            "2b00000000000000861bc34b0900000000004a934010ac022a1d0a110a0a747261696e2f6c6f7373\
             151872313f0a080a017815000000c0ddb488b8"
        );
    }

    #[test]
    fn scalar_event_bytes() {
        let bytes = scalar_event(1.0, 300, [("a", 0.5)]);
        let expected = [
            &[0x09][..],                                    // field 1, 64 bit
            &[0, 0, 0, 0, 0, 0, 0xf0, 0x3f],                // 1.0
            &[0x10, 0xac, 0x02],                            // field 2, varint 300
            &[0x2a, 10],                                    // field 5, 10 bytes
            &[0x0a, 8],                                     // summary.value, 8 bytes
            &[0x0a, 1, b'a', 0x15, 0x00, 0x00, 0x00, 0x3f], // tag "a", simple_value 0.5
        ];
        assert_eq!(bytes, expected.concat());
    }

    #[test]
    fn a_later_file_sorts_after_an_earlier_one() {
        let folder = tempfile::tempdir().unwrap();
        let names: Vec<String> = (0..3)
            .map(|_| EventFile::create(folder.path(), 0).unwrap())
            .map(|events| file_name(events.path()))
            .collect();
        let mut sorted = names.clone();
        sorted.sort();
        sorted.dedup();
        assert_eq!(names, sorted);
    }
}
