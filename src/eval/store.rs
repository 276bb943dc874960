//! Results of a long evaluation, kept as they come: a file of JSON lines beside the final one, taken up again by the same
//! command.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use sha2::{Digest, Sha256};

use crate::error::{Error, Result};
use crate::output::remove;

/// What an evaluation's numbers depend on, by name: model, adapter, data, prompt, limits.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Settings(pub Map<String, Value>);

impl Settings {
    /// Adds one.
    pub fn with(mut self, name: &str, value: impl Into<Value>) -> Self {
        self.0.insert(name.to_string(), value.into());
        self
    }

    /// Adds what is asked: the first `problems` problems of `data`, answers of at most `max_new_tokens` tokens.
    ///
    /// # Errors
    /// `data` cannot be read.
    pub fn asking(self, data: &Path, problems: usize, max_new_tokens: usize) -> Result<Self> {
        Ok(self
            .with("data", data.display().to_string())
            .with("data_sha256", sha256(data)?)
            .with("problems", problems)
            .with("max_new_tokens", max_new_tokens))
    }

    /// What differs in `new`, in words. Where files lie does not count, what is in them does: their hashes are settings too.
    pub fn differences(&self, new: &Self) -> Vec<String> {
        let missing = Value::Null;
        let names = self.0.keys().chain(new.0.keys().filter(|name| !self.0.contains_key(*name)));
        names
            .map(|name| {
                (name, self.0.get(name).unwrap_or(&missing), new.0.get(name).unwrap_or(&missing))
            })
            .filter(|(name, old, new)| old != new && !["data", "adapter"].contains(&name.as_str()))
            .map(|(name, old, new)| format!("{name} was {old}, is {new}"))
            .collect()
    }
}

/// Records by index, on disk as soon as they are put.
#[derive(Debug)]
pub struct Store<T> {
    path: PathBuf,
    file: File,
    done: BTreeMap<usize, T>,
}

#[derive(Serialize, Deserialize)]
struct Line<T> {
    index: usize,
    record: T,
}

#[derive(Serialize, Deserialize)]
struct Head {
    settings: Settings,
}

impl<T: Serialize + DeserializeOwned> Store<T> {
    /// Starts the file `path`, or takes it up: a torn last line is left out.
    ///
    /// # Errors
    /// It belongs to other `settings` (the differences are named), is damaged, or cannot be written.
    pub fn open(path: &Path, settings: &Settings) -> Result<Self> {
        let fail = |action| move |e| Error::io(path, action, e);
        if let Some(folder) = path.parent() {
            std::fs::create_dir_all(folder).map_err(|e| Error::io(folder, "make the folder", e))?;
        }
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(path)
            .map_err(fail("open"))?;
        let mut text = String::new();
        file.read_to_string(&mut text).map_err(fail("read"))?;
        let whole = text.rfind('\n').map_or(0, |end| end + 1);
        let mut lines = text[..whole].lines().zip(1..);
        let mut done = BTreeMap::new();
        if let Some((head, _)) = lines.next() {
            check(path, head, settings)?;
            for (line, number) in lines {
                let line: Line<T> =
                    serde_json::from_str(line).map_err(|e| damaged(path, number, &e))?;
                done.insert(line.index, line.record);
            }
        }
        file.set_len(whole as u64).map_err(fail("write"))?;
        file.seek(SeekFrom::End(0)).map_err(fail("write"))?;
        let mut store = Self { path: path.to_path_buf(), file, done };
        if whole == 0 {
            store.line(&Head { settings: settings.clone() })?;
        }
        Ok(store)
    }

    /// What is there, by index.
    pub fn done(&self) -> &BTreeMap<usize, T> {
        &self.done
    }

    /// Keeps a record.
    ///
    /// # Errors
    /// The disk is full.
    pub fn put(&mut self, index: usize, record: T) -> Result<()> {
        let line = Line { index, record };
        self.line(&line)?;
        self.done.insert(index, line.record);
        Ok(())
    }

    /// What to say where an interrupted run left some of `total` records undone; any other end is as it was.
    ///
    /// # Errors
    /// `ended`, if it is one.
    pub fn kept(&self, ended: Result<()>, total: usize) -> Result<()> {
        match ended {
            Err(Error::Interrupted { .. }) => Err(Error::Interrupted {
                note: format!(
                    "{} of {total} answers are kept; the same command goes on",
                    self.done.len()
                ),
            }),
            ended => ended,
        }
    }

    /// All records in order; the file goes when its content is elsewhere: call [`Finished::remove`] then.
    pub fn finish(self) -> (Vec<T>, Finished) {
        (self.done.into_values().collect(), Finished(self.path))
    }

    fn line(&mut self, value: &impl Serialize) -> Result<()> {
        let fail = |e| Error::io(&self.path, "write", e);
        let mut line = serde_json::to_string(value).map_err(|e| fail(e.into()))?;
        line.push('\n');
        self.file.write_all(line.as_bytes()).map_err(fail)
    }
}

/// A file whose records are complete.
#[derive(Debug)]
pub struct Finished(PathBuf);

impl Finished {
    /// Removes it.
    ///
    /// # Errors
    /// The system refuses.
    pub fn remove(self) -> Result<()> {
        remove(&self.0)
    }
}

fn check(path: &Path, head: &str, settings: &Settings) -> Result<()> {
    let head: Head = serde_json::from_str(head).map_err(|e| damaged(path, 1, &e))?;
    refuse_others(path, &head.settings, settings)
}

/// Refuses to go on with what other settings made.
///
/// # Errors
/// They differ.
pub fn refuse_others(path: &Path, old: &Settings, new: &Settings) -> Result<()> {
    let differences = old.differences(new);
    if differences.is_empty() {
        return Ok(());
    }
    let problem = format!("was begun with other settings: {}", differences.join("; "));
    Err(Error::file(path, problem, "give another --output, or --overwrite to begin anew"))
}

fn damaged(path: &Path, line: usize, error: &serde_json::Error) -> Error {
    let place = format!("{}:{line}", path.display());
    Error::invalid(place, format!("is damaged: {error}"), "begin anew with --overwrite")
}

/// SHA-256 of a file, in hexadecimal.
///
/// # Errors
/// It cannot be read.
pub fn sha256(path: &Path) -> Result<String> {
    let fail = |e| Error::io(path, "read", e);
    let mut file = File::open(path).map_err(fail)?;
    let (mut digest, mut buffer) = (Sha256::new(), vec![0; 1 << 16]);
    loop {
        match file.read(&mut buffer).map_err(fail)? {
            0 => break,
            read => digest.update(&buffer[..read]),
        }
    }
    Ok(digest.finalize().iter().map(|byte| format!("{byte:02x}")).collect())
}
