//! Verifies a downloaded file against the hub's metadata.

use std::fs::File;
use std::io::{self, Seek};

use ureq::Body;
use ureq::http::Response;

use super::client::header_text;
use crate::model::file_hash::FileHash;

/// The hub's metadata of a file, unchecked.
#[derive(Debug)]
pub(super) struct Meta {
    pub(super) commit: Option<String>,
    pub(super) etag: Option<String>,
    pub(super) size: Option<u64>,
}

impl Meta {
    /// Reads commit, etag and size from the first response: large files redirect to a storage and carry `x-linked-*`.
    pub(super) fn from_response(response: &Response<Body>) -> Self {
        let headers = response.headers();
        let etag = header_text(headers, "x-linked-etag").or_else(|| header_text(headers, "etag"));
        let total =
            header_text(headers, "content-range").and_then(|range| range.rsplit('/').next());
        let length = header_text(headers, "content-length").filter(|_| response.status() == 200);
        Self {
            commit: header_text(headers, "x-repo-commit").map(str::to_string),
            etag: etag.map(|etag| etag.trim_start_matches("W/").trim_matches('"').to_string()),
            size: [header_text(headers, "x-linked-size"), total, length]
                .into_iter()
                .flatten()
                .find_map(|size| size.trim().parse().ok()),
        }
    }
}

/// Checks the length, and for large files (whose etag is their SHA-256) the content. The inner error describes the
/// mismatch.
pub(super) fn verify(file: &mut File, meta: &Meta) -> io::Result<Result<(), String>> {
    let length = file.metadata()?.len();
    if let Some(size) = meta.size.filter(|size| *size != length) {
        return Ok(Err(format!("is {length} bytes long instead of {size}")));
    }
    let is_sha256 =
        |etag: &&String| etag.len() == 64 && etag.bytes().all(|b| b.is_ascii_hexdigit());
    let Some(wanted) = meta.etag.as_ref().filter(is_sha256) else {
        return Ok(Ok(()));
    };
    file.rewind()?;
    let got = FileHash::of_rest(file)?.sha256;
    if got.eq_ignore_ascii_case(wanted) {
        Ok(Ok(()))
    } else {
        Ok(Err(format!("arrived damaged: its SHA-256 is {got} instead of {wanted}")))
    }
}
