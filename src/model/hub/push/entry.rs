//! A file to push, read once for its hash.

use std::fs;
use std::io::Read;
use std::path::PathBuf;

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;

use super::outgoing::Content;
use super::{PushFile, stopped};
use crate::error::{Error, Result};
use crate::input_file;
use crate::interrupt;
use crate::model::file_hash::{FileHash, hash_file};
use crate::model::hub::names;

/// Number of bytes at the start of a file by which the hub tells text from data.
const SAMPLE: u64 = 512;

/// A file to push, with its hash.
#[derive(Debug)]
pub(super) struct Entry {
    pub(super) name: String,
    path: PathBuf,
    pub(super) hash: FileHash,
}

impl Entry {
    /// Reads a file once.
    pub(super) fn read(file: &PushFile) -> Result<Self> {
        if interrupt::requested() {
            return Err(stopped());
        }
        if let Err(problem) = names::check_path(&file.name) {
            let problem = format!("cannot be pushed under this name: {problem}");
            return Err(Error::file(&file.path, problem, "rename the file"));
        }
        let hash = hash_file(&file.path)?;
        Ok(Self { name: file.name.clone(), path: file.path.clone(), hash })
    }

    /// Returns the whole content.
    pub(super) fn bytes(&self) -> Result<Vec<u8>> {
        let bytes = input_file::read(&self.path).map_err(|e| Error::io(&self.path, "read", e))?;
        if FileHash::of_bytes(&bytes) == self.hash { Ok(bytes) } else { Err(self.changed()) }
    }

    /// Returns the first bytes, encoded.
    pub(super) fn sample(&self) -> Result<String> {
        let fail = |e| Error::io(&self.path, "read", e);
        let mut bytes = Vec::new();
        let file = input_file::open(&self.path).map_err(fail)?;
        file.take(SAMPLE).read_to_end(&mut bytes).map_err(fail)?;
        Ok(BASE64.encode(bytes))
    }

    /// Returns a part of the file as the body of a request.
    pub(super) fn section(&self, start: u64, length: u64) -> Content {
        Content::Section { path: self.path.clone(), start, length }
    }

    /// Checks that the file has the size that it had when it was hashed.
    pub(super) fn check_unchanged(&self) -> Result<()> {
        let now = fs::metadata(&self.path).map_err(|e| Error::io(&self.path, "read", e))?;
        if now.len() == self.hash.bytes { Ok(()) } else { Err(self.changed()) }
    }

    fn changed(&self) -> Error {
        Error::file(&self.path, "changed while it was pushed", "push again when nothing writes it")
    }
}
