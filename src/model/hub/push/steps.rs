//! The steps of a push: create the repository, ask what is missing, send it, and make the commit.

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde::Deserialize;
use serde_json::{Value, json};
use sha1::{Digest, Sha1};

use super::entry::Entry;
use super::outgoing::Upload;
use super::{Push, Pushed};
use crate::error::Result;
use crate::model::hub::address::redacted;
use crate::model::hub::client::{Attempt, Failure};
use crate::model::hub::names::{self, quoted};
use crate::model::identity::hex;
use crate::progress::ProgressMode;

/// Size above which a file is always sent to the storage, in bytes; the hub takes no larger ones in a commit.
const MAX_REGULAR: u64 = 10 << 20;

/// Number of files that the hub is asked about at once.
const ASKED: usize = 256;

const JSON: &str = "application/json";

/// The way in which a file gets into the commit.
#[derive(Clone, Debug)]
pub(super) enum Mode {
    /// The commit contains the file itself.
    Regular(Vec<u8>),
    /// The commit refers to the file in the storage.
    Large,
}

impl Push<'_> {
    /// Creates the repository unless it exists.
    pub(super) fn create(&self, private: Option<bool>) -> Attempt<()> {
        let (owner, name) = self.to.repo.split_once('/').unwrap_or(("", &self.to.repo));
        let mut body = json!({"name": name, "organization": owner, "type": "model"});
        if let (Some(private), Some(fields)) = (private, body.as_object_mut()) {
            fields.insert("private".to_string(), private.into());
        }
        let url = format!("{}/api/repos/create", self.client.endpoint);
        let request = Upload::post(url, JSON, body.to_string().into_bytes());
        let response = self.sent(&request)?;
        match response.status().as_u16() {
            409 => Ok(()),
            // A token that may only write to some repositories cannot create one that exists.
            403 if self.exists()? => Ok(()),
            _ => self.accepted(response, &request.url).map(drop),
        }
    }

    /// Returns whether the repository exists and the token may read it.
    fn exists(&self) -> Attempt<bool> {
        let url = format!("{}/api/models/{}", self.client.endpoint, self.to.repo);
        Ok(self.client.get(&url, None)?.status() == 200)
    }

    /// Pushes the files: asks which are missing, sends them, and makes the commit.
    pub(super) fn run(&self, files: &[Entry], message: &str) -> Attempt<Pushed> {
        let url = format!("{}/{}", redacted(&self.client.endpoint), self.to.repo);
        let (mut sent, mut failures) = (0, 0);
        loop {
            let mut changed = Vec::new();
            for files in files.chunks(ASKED) {
                changed.extend(self.client.retried(|_| {}, || self.changed(files))?);
            }
            if changed.is_empty() {
                return Ok(Pushed { url, commit: None, files: 0, sent });
            }
            let large = changed.iter().filter(|(_, mode)| matches!(mode, Mode::Large));
            let large: Vec<&Entry> = large.map(|(file, _)| *file).collect();
            for files in large.chunks(ASKED) {
                sent += self.store(files)?;
            }
            match self.commit(&changed, message) {
                Ok(commit) => {
                    return Ok(Pushed { url, commit: Some(commit), files: changed.len(), sent });
                }
                // The commit may have been made although its answer was lost: asking again tells.
                Err(Failure::Unreachable(_)) if failures + 1 < self.client.retries => {
                    failures += 1;
                    self.client.wait(failures)?;
                }
                Err(failure) => return Err(failure),
            }
        }
    }

    /// Asks the hub how each file gets into the commit, and returns those that it does not have.
    fn changed<'f>(&self, files: &'f [Entry]) -> Attempt<Vec<(&'f Entry, Mode)>> {
        #[derive(Deserialize)]
        struct Answer {
            files: Vec<FileAnswer>,
        }
        #[derive(Deserialize)]
        #[serde(rename_all = "camelCase")]
        struct FileAnswer {
            path: String,
            upload_mode: String,
            #[serde(default)]
            should_ignore: bool,
            oid: Option<String>,
        }
        let asked = files.iter().map(|file| {
            Ok(json!({"path": file.name, "size": file.hash.bytes, "sample": file.sample()?}))
        });
        let asked = asked.collect::<Result<Vec<Value>>>()?;
        let body = json!({"files": asked}).to_string().into_bytes();
        let answer: Answer = self.ask(&Upload::post(self.url("preupload"), JSON, body))?;
        let mut changed = Vec::new();
        for file in files {
            let found = answer.files.iter().find(|answer| answer.path == file.name);
            let Some(found) = found else {
                return Err(self.wrong_answer(&format!("does not say how to upload {}", file.name)));
            };
            if found.should_ignore {
                if self.client.progress != ProgressMode::Quiet {
                    say!("note: {}: the repository's .gitignore excludes it", file.name);
                }
                continue;
            }
            let is_large = found.upload_mode == "lfs" || file.hash.bytes > MAX_REGULAR;
            let (mode, oid) = if is_large {
                (Mode::Large, file.hash.sha256.clone())
            } else {
                let bytes = file.bytes()?;
                let oid = git_hash(&bytes);
                (Mode::Regular(bytes), oid)
            };
            if found.oid.as_deref() != Some(oid.as_str()) {
                changed.push((file, mode));
            }
        }
        Ok(changed)
    }

    /// Makes one commit of all files, and returns its hash.
    fn commit(&self, files: &[(&Entry, Mode)], message: &str) -> Attempt<String> {
        #[derive(Deserialize)]
        #[serde(rename_all = "camelCase")]
        struct Answer {
            commit_oid: String,
        }
        let header = json!({"key": "header", "value": {"summary": message, "description": ""}});
        let mut lines = format!("{header}\n");
        for (file, mode) in files {
            let line = match mode {
                Mode::Regular(bytes) => json!({
                    "key": "file",
                    "value": {"path": file.name, "content": BASE64.encode(bytes), "encoding": "base64"},
                }),
                Mode::Large => json!({
                    "key": "lfsFile",
                    "value": {
                        "path": file.name,
                        "algo": "sha256",
                        "oid": file.hash.sha256,
                        "size": file.hash.bytes,
                    },
                }),
            };
            lines.push_str(&format!("{line}\n"));
        }
        let request = Upload::post(self.url("commit"), "application/x-ndjson", lines.into_bytes());
        let answer: Answer = self.ask(&request)?;
        names::commit(&answer.commit_oid).ok_or_else(|| {
            let named = quoted(&answer.commit_oid);
            self.wrong_answer(&format!(
                "names the commit {named}, which is not 40 hexadecimal digits"
            ))
        })
    }
}

/// Returns the hash by which git names the content of a file.
fn git_hash(bytes: &[u8]) -> String {
    let mut hasher = Sha1::new();
    hasher.update(format!("blob {}\0", bytes.len()));
    hasher.update(bytes);
    hex(hasher.finalize())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_have_the_hashes_of_git() {
        // `git hash-object` of an empty file and of "hello\n".
        assert_eq!(git_hash(b""), "e69de29bb2d1d6434b8b29ae775ad8c2e48c5391");
        assert_eq!(git_hash(b"hello\n"), "ce013625030ba8dba906f756967f9e9ca394464a");
    }
}
