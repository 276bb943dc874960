//! Keeps the results of a long evaluation in a file of JSON lines until all are complete, so that the same command can
//! continue after an interruption.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::settings::{ResultKey, Settings};
use crate::error::{Error, Result};
use crate::input_file;
use crate::output::{WholeFile, open_to_append, remove};

/// Version of the record format. Version 0, which had no number in the file, kept answers together with their prompts.
const FORM: u32 = 1;

/// Records by index, each of which is written to disk as soon as it is added.
#[derive(Debug)]
pub struct Store<T> {
    path: PathBuf,
    /// The new content of the file before the first record is added. It gets the file's name with that record, so that a
    /// call that fails earlier changes nothing.
    unnamed: Option<WholeFile>,
    /// The file at `path`, open to append.
    file: Option<File>,
    done: BTreeMap<usize, T>,
    capacity: usize,
}

#[derive(Serialize, Deserialize)]
struct Line<T> {
    index: usize,
    record: T,
}

#[derive(Serialize, Deserialize)]
struct Head {
    #[serde(default)]
    form: u32,
    settings: Settings,
}

impl<T: Serialize + DeserializeOwned> Store<T> {
    /// Opens the file `path` for `capacity` records and reads the records it has. A torn last line is dropped; records of an
    /// earlier call with fewer rows are kept. A new file appears on disk with the first record that is added.
    ///
    /// # Errors
    /// The file has another key (the error names the differences), is damaged, or cannot be read or written.
    pub fn open(path: &Path, key: &ResultKey, capacity: usize) -> Result<Self> {
        let head = Head { form: FORM, settings: key.settings() };
        let (old_head, done) = read(path, key, capacity)?;
        let (mut unnamed, mut file) = (None, None);
        if old_head.is_some_and(|old| old == head.settings) {
            file = Some(open_without_torn_line(path)?);
        } else {
            // The file is new or there are more rows than before, so a new head is written before any record is added.
            let mut lines = to_line(path, &head)?;
            for (index, record) in &done {
                lines += &to_line(path, &Line { index: *index, record })?;
            }
            let mut whole = WholeFile::create(path)?;
            let written = whole.write_all(lines.as_bytes());
            written.map_err(|e| Error::io(path, "write", e))?;
            unnamed = Some(whole);
        }
        Ok(Self { path: path.to_path_buf(), unnamed, file, done, capacity })
    }

    /// Returns the records so far, by index.
    pub fn done(&self) -> &BTreeMap<usize, T> {
        &self.done
    }

    /// Adds a record and writes it to disk.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn put(&mut self, index: usize, record: T) -> Result<()> {
        let line = Line { index, record };
        let text = to_line(&self.path, &line)?;
        let fail = |e| Error::io(&self.path, "write", e);
        if let Some(mut unnamed) = self.unnamed.take() {
            unnamed.write_all(text.as_bytes()).map_err(fail)?;
            unnamed.commit()?;
            self.file = Some(open_to_append(&self.path)?);
        } else {
            let file = self.file.as_mut();
            let file = file.ok_or_else(|| fail(io::Error::other("it could not be created")))?;
            file.write_all(text.as_bytes()).map_err(fail)?;
        }
        self.done.insert(index, line.record);
        Ok(())
    }

    /// Returns `result`. If it is an interruption, its note is replaced by the number of records kept.
    ///
    /// # Errors
    /// `result` is an error.
    pub fn with_kept_note(&self, result: Result<()>) -> Result<()> {
        match result {
            Err(Error::Interrupted { .. }) => Err(Error::Interrupted {
                note: format!(
                    "{} of {} answers are kept; run the same command again to continue",
                    self.done.len(),
                    self.capacity
                ),
            }),
            result => result,
        }
    }

    /// Returns all records in order. Call [`Finished::remove`] once they are saved elsewhere.
    ///
    /// # Errors
    /// Records are missing.
    pub fn finish(self) -> Result<(Vec<T>, Finished)> {
        if self.done.len() != self.capacity {
            let missing = self.capacity - self.done.len();
            let problem = format!("{}: {missing} answers are missing", self.path.display());
            return Err(Error::run(problem, "run the same command again"));
        }
        Ok((self.done.into_values().collect(), Finished(self.path)))
    }
}

/// The file of a [`Store`] whose records are complete.
#[derive(Debug)]
pub struct Finished(PathBuf);

impl Finished {
    /// Removes the file.
    ///
    /// # Errors
    /// The file cannot be removed.
    pub fn remove(self) -> Result<()> {
        remove(&self.0)
    }
}

/// Removes the file of kept records at `path`, whatever its settings and version.
///
/// # Errors
/// The file is not one of kept records, or cannot be read or removed.
pub fn remove_kept(path: &Path) -> Result<()> {
    let Some(bytes) = kept_bytes(path)? else { return Ok(()) };
    let head = bytes.split(|byte| *byte == b'\n').next().unwrap_or_default();
    if serde_json::from_slice::<Head>(head).is_err() {
        let problem = "has the name of a file of kept answers, but is not such a file";
        return Err(Error::file(path, problem, "move it elsewhere, or choose another output"));
    }
    remove(path)
}

/// Returns the whole lines of the file at `path`, or `None` if there is no file.
fn kept_bytes(path: &Path) -> Result<Option<Vec<u8>>> {
    match input_file::open(path).and_then(|mut file| whole_lines(&mut file)) {
        Ok(bytes) => Ok(Some(bytes)),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(Error::io(path, "read", e)),
    }
}

/// Reads the file at `path`: the settings in its head, and the records. Returns no settings and no records if there is no
/// file or it has no head.
fn read<T: DeserializeOwned>(
    path: &Path,
    key: &ResultKey,
    capacity: usize,
) -> Result<(Option<Settings>, BTreeMap<usize, T>)> {
    let mut done = BTreeMap::new();
    let Some(bytes) = kept_bytes(path)? else { return Ok((None, done)) };
    let damaged = |line: usize, error: &dyn std::fmt::Display| {
        let place = format!("{}:{line}", path.display());
        Error::invalid(place, format!("is damaged: {error}"), key.remedy())
    };
    let mut lines = bytes.split_inclusive(|byte| *byte == b'\n').zip(1..);
    let Some((head, _)) = lines.next() else {
        return Ok((None, done));
    };
    let head: Head = serde_json::from_slice(head).map_err(|e| damaged(1, &e))?;
    if head.form != FORM {
        let problem =
            "was written by another version of this program, which kept answers in another format";
        return Err(Error::file(path, problem, key.remedy()));
    }
    key.check(path, &head.settings)?;
    for (line, number) in lines {
        let line: Line<T> = serde_json::from_slice(line).map_err(|e| damaged(number, &e))?;
        if line.index >= capacity {
            return Err(damaged(number, &format!("there is no row {}", line.index)));
        }
        done.insert(line.index, line.record);
    }
    Ok((Some(head.settings), done))
}

/// Opens the file at `path` to append to it, after cutting off a torn last line.
fn open_without_torn_line(path: &Path) -> Result<File> {
    let mut file = open_to_append(path)?;
    let whole = whole_lines(&mut file).map_err(|e| Error::io(path, "read", e))?.len();
    file.set_len(whole as u64).map_err(|e| Error::io(path, "write", e))?;
    Ok(file)
}

/// Reads the lines of `file` that end with a line feed.
fn whole_lines(file: &mut File) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes)?;
    let whole = bytes.iter().rposition(|byte| *byte == b'\n');
    bytes.truncate(whole.map_or(0, |end| end + 1));
    Ok(bytes)
}

fn to_line(path: &Path, value: &impl Serialize) -> Result<String> {
    let line = serde_json::to_string(value);
    let line = line.map_err(|e| Error::io(path, "write", e.into()))?;
    Ok(line + "\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(rows: &[&str]) -> ResultKey {
        ResultKey::new(Settings::default(), "problems", rows)
    }

    fn open(path: &Path, rows: &[&str]) -> Result<Store<String>> {
        Store::open(path, &key(rows), rows.len())
    }

    #[test]
    fn records_survive_a_torn_character_and_more_rows() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("new/kept.jsonl");
        let mut store = open(&path, &["a", "b"]).unwrap();
        store.put(0, "é".into()).unwrap();
        store.put(1, "é".into()).unwrap();
        drop(store);
        // Simulates a crash in the middle of the last "é".
        let bytes = std::fs::read(&path).unwrap();
        let torn = bytes.iter().rposition(|byte| *byte == 0xc3).unwrap();
        std::fs::write(&path, &bytes[..=torn]).unwrap();
        let store = open(&path, &["a", "b"]).unwrap();
        assert_eq!(store.done().len(), 1);
        assert!(store.finish().is_err(), "one is missing");

        let mut more = open(&path, &["a", "b", "c"]).unwrap();
        more.put(1, "2".into()).unwrap();
        more.put(2, "3".into()).unwrap();
        drop(more);
        let (all, _) = open(&path, &["a", "b", "c"]).unwrap().finish().unwrap();
        assert_eq!(all, ["é", "2", "3"]);
        // The file is now for three rows, so a call with two cannot continue it.
        let fewer = open(&path, &["a", "b"]).unwrap_err().to_string();
        assert!(fewer.contains("problems was 3, is 2"), "{fewer}");
    }

    /// A call that fails before its first record leaves the folder unchanged, whether the file is new or has fewer rows.
    #[test]
    fn a_store_without_a_new_record_changes_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("kept.jsonl");
        drop(open(&path, &["a", "b"]).unwrap());
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
        open(&path, &["c"]).unwrap().put(0, "1".into()).unwrap();
        let before = std::fs::read(&path).unwrap();
        drop(open(&path, &["c", "d"]).unwrap());
        assert!(std::fs::read(&path).unwrap() == before);
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
    }

    #[cfg(unix)]
    #[test]
    fn a_hard_link_to_the_file_keeps_its_content() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        open(&at("kept.jsonl"), &["a", "b"]).unwrap().put(0, "1".into()).unwrap();
        std::fs::hard_link(at("kept.jsonl"), at("backup")).unwrap();
        let before = std::fs::read(at("backup")).unwrap();
        open(&at("kept.jsonl"), &["a", "b"]).unwrap().put(1, "2".into()).unwrap();
        assert!(std::fs::read(at("backup")).unwrap() == before);
        assert_eq!(open(&at("kept.jsonl"), &["a", "b"]).unwrap().done().len(), 2);
    }

    #[test]
    fn files_of_somebody_else_are_not_removed() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        remove_kept(&at("nothing")).unwrap();
        std::fs::write(at("notes"), "mine\n").unwrap();
        assert!(remove_kept(&at("notes")).is_err() && at("notes").exists());
        open(&at("kept"), &["a"]).unwrap().put(0, "x".into()).unwrap();
        remove_kept(&at("kept")).unwrap();
        assert!(!at("kept").exists());
    }

    #[test]
    fn files_of_another_version_and_damaged_files_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("kept.jsonl");
        let head = |form: &str| {
            let settings = serde_json::to_string(&key(&["a"]).settings()).unwrap();
            format!("{{{form}\"settings\": {settings}}}\n")
        };
        for (text, said) in [
            (head("") + "{\"index\": 0, \"record\": \"q 1\"}\n", "another version"),
            (head("\"form\": 1, ") + "{\"index\": 1, \"record\": \"\"}\n", ":2: is damaged"),
            (head("\"form\": 1, ") + "{\"index\": 0, \"record\": 3}\n", ":2: is damaged"),
            ("no JSON\n".to_string(), ":1: is damaged"),
        ] {
            std::fs::write(&path, text).unwrap();
            let message = open(&path, &["a"]).unwrap_err().to_string();
            assert!(message.contains(said), "{message}");
        }
    }
}
