//! The files pairs are written to.

use std::io::Write;
use std::path::{Path, PathBuf};

use super::{PrepareOptions, Source};
use crate::data::pair::PreferencePair;
use crate::error::{Error, Result};
use crate::output::WholeFile;

/// The output files.
pub(super) struct Paths {
    pub(super) output: PathBuf,
    pub(super) held_out: Option<PathBuf>,
    pub(super) stats: PathBuf,
}

impl Paths {
    /// The paths `options` ask for, if they may be written.
    pub(super) fn new(options: &PrepareOptions) -> Result<Self> {
        let output = options.output.clone();
        if output.file_name().is_none() || output.is_dir() {
            return Err(Error::file(
                &output,
                "is a folder",
                "give --output a file name: pairs.jsonl",
            ));
        }
        let beside = |suffix: &str| {
            let stem = output.file_stem().unwrap_or_default().to_string_lossy();
            output.with_file_name(format!("{stem}.{suffix}"))
        };
        let extension = output.extension().map_or("jsonl".into(), |e| e.to_string_lossy());
        let held_out = match &options.held_out {
            Some(path) => path.clone(),
            None => beside(&format!("held-out.{extension}")),
        };
        let holds_out = options.rules.held_out_fraction > 0.0;
        if options.held_out.is_some() && !holds_out {
            let problem = "held_out_fraction is 0: nothing would be held out";
            let remedy = "set held_out_fraction = 0.05 in the config";
            return Err(Error::invalid("--held-out", problem, remedy));
        }
        let held_out = holds_out.then_some(held_out);
        let paths = Self { stats: beside("stats.json"), held_out, output: output.clone() };
        paths.check(options)?;
        Ok(paths)
    }

    /// Refuses to write over an input, over another output, or over anything unless asked to.
    fn check(&self, options: &PrepareOptions) -> Result<()> {
        let all: Vec<&PathBuf> = [Some(&self.stats), Some(&self.output), self.held_out.as_ref()]
            .into_iter()
            .flatten()
            .collect();
        for (i, path) in all.iter().enumerate() {
            let is_input = |source: &Source| match source {
                Source::File(input, _) => input.canonicalize().ok() == path.canonicalize().ok(),
                Source::Memory(..) => false,
            };
            if path.exists() && options.sources.iter().any(is_input) {
                return Err(Error::file(path, "is an input too", "give another --output"));
            }
            if all.iter().take(i).any(|other| other == path) {
                return Err(Error::file(
                    path,
                    "is two outputs at once",
                    "give --held-out another name",
                ));
            }
            if path.exists() && !options.overwrite {
                let remedy = "pass --overwrite to replace it, or give another --output";
                return Err(Error::file(path, "exists already", remedy));
            }
        }
        Ok(())
    }

    /// The folder of the output, where there must be room.
    pub(super) fn folder(&self) -> &Path {
        match self.output.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent,
            _ => Path::new("."),
        }
    }
}

/// The form of an output file.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Form {
    /// JSON Lines of [`PreferencePair`]s.
    #[default]
    Lines,
    /// The original project's: a JSON array of {"question", "chosen", "rejected"}, indented by 4, non-ASCII escaped.
    Array,
}

impl Form {
    /// A pair as it stands in the file, without what separates it from the next.
    pub(super) fn encode(self, pair: &PreferencePair) -> Vec<u8> {
        match self {
            Self::Lines => {
                let mut line = serde_json::to_vec(pair).unwrap_or_default();
                line.push(b'\n');
                line
            }
            Self::Array => {
                let mut out = String::from("    {");
                let fields = [
                    ("question", &pair.prompt),
                    ("chosen", &pair.chosen),
                    ("rejected", &pair.rejected),
                ];
                for (i, (key, value)) in fields.into_iter().enumerate() {
                    out.push_str(if i == 0 { "\n" } else { ",\n" });
                    out.extend(["        \"", key, "\": "]);
                    push_ascii_json(&mut out, value);
                }
                out.push_str("\n    }");
                out.into_bytes()
            }
        }
    }
}

/// A JSON string as Python's `json.dumps` writes it: everything outside printable ASCII escaped.
fn push_ascii_json(out: &mut String, text: &str) {
    out.push('"');
    for c in text.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            '\u{8}' => out.push_str("\\b"),
            '\u{c}' => out.push_str("\\f"),
            ' '..='~' => out.push(c),
            _ => {
                for unit in c.encode_utf16(&mut [0; 2]) {
                    out.push_str(&format!("\\u{unit:04x}"));
                }
            }
        }
    }
    out.push('"');
}

/// A file of pairs being written.
pub(super) struct PairsFile {
    file: WholeFile,
    path: PathBuf,
    form: Form,
    empty: bool,
}

impl PairsFile {
    pub(super) fn create(path: &Path, form: Form) -> Result<Self> {
        let file = WholeFile::create(path)?;
        Ok(Self { file, path: path.to_path_buf(), form, empty: true })
    }

    pub(super) fn push(&mut self, encoded: &[u8]) -> Result<()> {
        let separator: &[u8] = match (self.form, self.empty) {
            (Form::Lines, _) => b"",
            (Form::Array, true) => b"[\n",
            (Form::Array, false) => b",\n",
        };
        self.empty = false;
        self.write(separator)?;
        self.write(encoded)
    }

    pub(super) fn commit(mut self) -> Result<()> {
        match (self.form, self.empty) {
            (Form::Lines, _) => {}
            (Form::Array, true) => self.write(b"[]")?,
            (Form::Array, false) => self.write(b"\n]")?,
        }
        self.file.commit()
    }

    fn write(&mut self, bytes: &[u8]) -> Result<()> {
        self.file.write_all(bytes).map_err(|e| Error::io(&self.path, "write", e))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Expected text from Python: `json.dump([...], f, indent=4)`.
    #[test]
    fn the_array_form_is_pythons() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x.json");
        let pair = PreferencePair {
            id: "1".into(),
            prompt: "é \"q\" \\ \n\t\u{7f}\u{1}".into(),
            chosen: "😀/".into(),
            rejected: "\u{8}\u{c}\r~".into(),
            chosen_score: None,
            rejected_score: None,
        };
        let mut file = PairsFile::create(&path, Form::Array).unwrap();
        file.push(&Form::Array.encode(&pair)).unwrap();
        file.push(&Form::Array.encode(&PreferencePair { prompt: String::new(), ..pair })).unwrap();
        file.commit().unwrap();
        let rest = "\n        \"chosen\": \"\\ud83d\\ude00/\",\n        \"rejected\": \"\\b\\f\\r~\"\n    }";
        let first = "\"\\u00e9 \\\"q\\\" \\\\ \\n\\t\\u007f\\u0001\"";
        let expected = format!(
            "[\n    {{\n        \"question\": {first},{rest},\n    {{\n        \"question\": \"\",{rest}\n]"
        );
        assert_eq!(std::fs::read_to_string(&path).unwrap(), expected);
        PairsFile::create(&path, Form::Array).unwrap().commit().unwrap();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "[]");
    }
}
