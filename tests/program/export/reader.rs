//! A reader of GGUF files for these tests, written from the description of the format and not from the writer.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use serde_json::{Value, json};

/// The keys and tensors of a file.
pub(super) struct Gguf {
    /// Values by key.
    pub(super) keys: BTreeMap<String, Value>,
    /// Tensors by name.
    pub(super) tensors: BTreeMap<String, Tensor>,
}

/// A tensor as stored.
pub(super) struct Tensor {
    /// Shape, rows first.
    pub(super) shape: Vec<usize>,
    /// `ggml_type`.
    pub(super) kind: u32,
    /// The bytes of the values.
    pub(super) bytes: Vec<u8>,
}

impl Tensor {
    /// Returns the values of a tensor in f32.
    pub(super) fn f32s(&self) -> Vec<f32> {
        assert_eq!(self.kind, 0, "not f32");
        let values = self.bytes.chunks_exact(4);
        values.map(|four| f32::from_le_bytes(four.try_into().unwrap())).collect()
    }
}

/// Bytes per block and values per block of a `ggml_type`.
fn block(kind: u32) -> (usize, usize) {
    match kind {
        0 => (4, 1),
        1 | 30 => (2, 1),
        2 => (18, 32),
        6 => (22, 32),
        8 => (34, 32),
        12 => (144, 256),
        14 => (210, 256),
        other => panic!("unknown type {other}"),
    }
}

impl Gguf {
    /// Reads a file. Panics if it breaks a rule of the format.
    pub(super) fn read(path: &Path) -> Self {
        let bytes = fs::read(path).unwrap();
        let mut at = Cursor { bytes: &bytes, at: 0 };
        assert_eq!(at.take(4), b"GGUF");
        assert_eq!(at.u32(), 3);
        let (tensors, keys) = (at.u64(), at.u64());
        let mut found = Self { keys: BTreeMap::new(), tensors: BTreeMap::new() };
        for _ in 0..keys {
            let name = at.text();
            let kind = at.u32();
            let value = at.value(kind);
            assert!(found.keys.insert(name.clone(), value).is_none(), "{name} is set twice");
        }
        let mut infos = Vec::new();
        for _ in 0..tensors {
            let name = at.text();
            let dims = at.u32();
            let mut shape: Vec<usize> = (0..dims).map(|_| at.u64()).collect();
            shape.reverse();
            infos.push((name, shape, at.u32(), at.u64()));
        }
        let data = at.at.next_multiple_of(32);
        assert!(bytes[at.at..data].iter().all(|byte| *byte == 0));
        let mut end = 0;
        for (name, shape, kind, offset) in infos {
            // Tensors follow one another, with padding up to a multiple of 32.
            assert_eq!(offset, end, "{name}");
            let (size, values) = block(kind);
            assert!(shape.last().unwrap().is_multiple_of(values), "{name} {shape:?}");
            let len = shape.iter().product::<usize>() / values * size;
            let stored = bytes[data + offset..][..len].to_vec();
            end = (offset + len).next_multiple_of(32);
            let tensor = Tensor { shape, kind, bytes: stored };
            assert!(found.tensors.insert(name.clone(), tensor).is_none(), "{name} twice");
        }
        assert_eq!(bytes.len(), data + end);
        found
    }

    /// Returns the texts of a key.
    pub(super) fn texts(&self, key: &str) -> Vec<&str> {
        self.keys[key].as_array().unwrap().iter().map(|text| text.as_str().unwrap()).collect()
    }
}

struct Cursor<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Cursor<'a> {
    fn take(&mut self, count: usize) -> &'a [u8] {
        self.at += count;
        &self.bytes[self.at - count..self.at]
    }

    fn u32(&mut self) -> u32 {
        u32::from_le_bytes(self.take(4).try_into().unwrap())
    }

    fn u64(&mut self) -> usize {
        u64::from_le_bytes(self.take(8).try_into().unwrap()) as usize
    }

    fn text(&mut self) -> String {
        let len = self.u64();
        String::from_utf8(self.take(len).to_vec()).unwrap()
    }

    fn value(&mut self, kind: u32) -> Value {
        match kind {
            4 => json!(self.u32()),
            5 => json!(self.u32() as i32),
            6 => json!(f32::from_bits(self.u32())),
            7 => json!(self.take(1)[0] == 1),
            8 => json!(self.text()),
            9 => {
                let (kind, count) = (self.u32(), self.u64());
                (0..count).map(|_| self.value(kind)).collect()
            }
            other => panic!("unknown type {other}"),
        }
    }
}
