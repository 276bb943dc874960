//! The keys of a GGUF file: names with typed values, encoded little-endian.

/// The value of a key.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Value {
    /// An unsigned integer of 32 bits.
    U32(u32),
    /// A float of 32 bits.
    F32(f32),
    /// True or false.
    Bool(bool),
    /// A text.
    Text(String),
    /// A list of signed integers of 32 bits.
    I32s(Vec<i32>),
    /// A list of floats of 32 bits.
    F32s(Vec<f32>),
    /// A list of true and false.
    Bools(Vec<bool>),
    /// A list of texts.
    Texts(Vec<String>),
}

/// Type numbers of the format (`gguf_metadata_value_type`).
const U32: u32 = 4;
const I32: u32 = 5;
const F32: u32 = 6;
const BOOL: u32 = 7;
const TEXT: u32 = 8;
const LIST: u32 = 9;

impl Value {
    /// Appends the type and the value.
    pub(super) fn encode(&self, out: &mut Vec<u8>) {
        match self {
            Self::U32(value) => {
                out.extend(U32.to_le_bytes());
                out.extend(value.to_le_bytes());
            }
            Self::F32(value) => {
                out.extend(F32.to_le_bytes());
                out.extend(value.to_le_bytes());
            }
            Self::Bool(value) => {
                out.extend(BOOL.to_le_bytes());
                out.push(u8::from(*value));
            }
            Self::Text(value) => {
                out.extend(TEXT.to_le_bytes());
                encode_text(value, out);
            }
            Self::I32s(values) => {
                list(I32, values, out, |value, out| out.extend(value.to_le_bytes()));
            }
            Self::F32s(values) => {
                list(F32, values, out, |value, out| out.extend(value.to_le_bytes()));
            }
            Self::Bools(values) => {
                list(BOOL, values, out, |value, out| out.push(u8::from(*value)));
            }
            Self::Texts(values) => list(TEXT, values, out, |value, out| encode_text(value, out)),
        }
    }
}

/// Appends a list: its type, that of its elements, their number, and the elements.
fn list<T>(kind: u32, values: &[T], out: &mut Vec<u8>, encode: impl Fn(&T, &mut Vec<u8>)) {
    out.extend(LIST.to_le_bytes());
    out.extend(kind.to_le_bytes());
    out.extend((values.len() as u64).to_le_bytes());
    values.iter().for_each(|value| encode(value, out));
}

/// Appends a text: its length in bytes, then the bytes.
pub(super) fn encode_text(text: &str, out: &mut Vec<u8>) {
    out.extend((text.len() as u64).to_le_bytes());
    out.extend(text.as_bytes());
}

/// The keys of a file in the order in which they are written. Each is set once.
#[derive(Clone, Debug, Default)]
pub(super) struct Keys(Vec<(String, Value)>);

impl Keys {
    /// Adds a key.
    pub(super) fn set(&mut self, key: impl Into<String>, value: Value) {
        self.0.push((key.into(), value));
    }

    /// Adds a key with an integer.
    pub(super) fn set_u32(&mut self, key: impl Into<String>, value: usize) {
        self.set(key, Value::U32(u32::try_from(value).unwrap_or(u32::MAX)));
    }

    /// Adds a key with a float.
    pub(super) fn set_f32(&mut self, key: impl Into<String>, value: f64) {
        self.set(key, Value::F32(value as f32));
    }

    /// Adds a key with a text.
    pub(super) fn set_text(&mut self, key: impl Into<String>, value: impl Into<String>) {
        self.set(key, Value::Text(value.into()));
    }

    /// Returns the value of a key.
    #[cfg(test)]
    pub(super) fn get(&self, key: &str) -> Option<&Value> {
        self.0.iter().find(|(name, _)| name == key).map(|(_, value)| value)
    }

    /// Returns the number of keys.
    pub(super) fn count(&self) -> usize {
        self.0.len()
    }

    /// Appends all keys with their values.
    pub(super) fn encode(&self, out: &mut Vec<u8>) {
        for (name, value) in &self.0 {
            encode_text(name, out);
            value.encode(out);
        }
    }
}
