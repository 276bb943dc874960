//! The output files of `prepare` and their formats.

use std::io::Write;
use std::path::{Path, PathBuf};

use super::{PrepareOptions, Source};
use crate::data::pair::PreferencePair;
use crate::data::python_json::push_json_string;
use crate::error::{Error, Result};
use crate::output::{OutputFile, Target, WholeFile};

/// Paths of the output files.
pub(super) struct Paths {
    pub(super) output: PathBuf,
    pub(super) held_out: Option<PathBuf>,
    pub(super) stats: PathBuf,
}

impl Paths {
    /// Determines the output paths and checks that they may be written.
    pub(super) fn new(options: &PrepareOptions) -> Result<Self> {
        let output = options.output.clone();
        if output.file_name().is_none() || output.is_dir() {
            return Err(Error::file(
                &output,
                "is a folder",
                "give --output a file name: pairs.jsonl",
            ));
        }
        let sibling = |suffix: &str| {
            let stem = output.file_stem().unwrap_or_default().to_string_lossy();
            output.with_file_name(format!("{stem}.{suffix}"))
        };
        let extension = output.extension().map_or("jsonl".into(), |e| e.to_string_lossy());
        let held_out = match &options.held_out {
            Some(path) => path.clone(),
            None => sibling(&format!("held-out.{extension}")),
        };
        let holds_out = options.rules.held_out_fraction > 0.0;
        if options.held_out.is_some() && !holds_out {
            let problem = "held_out_fraction is 0, so that nothing would be held out";
            let remedy = "set held_out_fraction = 0.05 in the config";
            return Err(Error::invalid("--held-out", problem, remedy));
        }
        let held_out = holds_out.then_some(held_out);
        let paths = Self { stats: sibling("stats.json"), held_out, output: output.clone() };
        paths.check(options)?;
        for (option, path) in
            [("--output", Some(&paths.output)), ("--held-out", paths.held_out.as_ref())]
        {
            path.map_or(Ok(()), |path| check_extension(option, path))?;
        }
        Ok(paths)
    }

    /// Checks that no output replaces an input or another output, and that existing files may be overwritten.
    fn check(&self, options: &PrepareOptions) -> Result<()> {
        let all: Vec<&PathBuf> = [Some(&self.stats), Some(&self.output), self.held_out.as_ref()]
            .into_iter()
            .flatten()
            .collect();
        let sources = options.sources.iter().filter_map(|source| match source {
            Source::File(input, _) => Some(input.as_path()),
            Source::Memory(..) => None,
        });
        let others = options.exclude_questions.iter().chain(&options.config);
        let inputs: Vec<&Path> = sources.chain(others.map(PathBuf::as_path)).collect();
        for (i, path) in all.iter().enumerate() {
            let output = OutputFile {
                path,
                overwrite: options.overwrite,
                // Other names are derived from the output's.
                stream: Some(*path) == options.held_out.as_ref(),
            };
            let target = Target::resolve(path)?;
            let same =
                |other: &&PathBuf| Target::resolve(other).is_ok_and(|other| other.is_same(&target));
            if all.iter().take(i).any(same) {
                return Err(Error::file(
                    path,
                    "would be two outputs at once",
                    "give --held-out another name",
                ));
            }
            output.check(inputs.iter().copied())?;
        }
        Ok(())
    }

    /// Returns the held-out file of an earlier run if this run does not replace it. Its pairs may be among the new ones.
    pub(super) fn stale_held_out(&self) -> Option<PathBuf> {
        let stem = self.output.file_stem()?.to_string_lossy();
        let extension = self.output.extension().unwrap_or("jsonl".as_ref());
        let name = format!("{stem}.held-out.{}", extension.to_string_lossy());
        let path = self.output.with_file_name(name);
        (self.held_out.is_none() && path.exists()).then_some(path)
    }

    /// Returns the folder of the output, which is also used for temporary files.
    pub(super) fn folder(&self) -> &Path {
        match self.output.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent,
            _ => Path::new("."),
        }
    }
}

/// Checks that the file name has an extension that the readers of pairs accept. A device or a FIFO may have any name.
fn check_extension(option: &str, path: &Path) -> Result<()> {
    if path.exists() && !path.is_file() {
        return Ok(());
    }
    let extension = path.extension().unwrap_or_default().to_string_lossy();
    match extension.to_ascii_lowercase().as_str() {
        "jsonl" | "ndjson" | "json" => Ok(()),
        _ => {
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            let problem = if extension.is_empty() {
                format!("{name} has no extension")
            } else {
                format!("{name}: pairs cannot be written as {extension}")
            };
            let remedy =
                "end the name in .jsonl (or .ndjson, or .json), because the pairs are JSON";
            Err(Error::invalid(option, problem, remedy))
        }
    }
}

/// Format of an output file.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Form {
    /// JSON Lines of [`PreferencePair`]s.
    #[default]
    Lines,
    /// The original project's format: a JSON array of {"question", "chosen", "rejected"}, indented by 4 spaces and with
    /// non-ASCII characters escaped.
    Array,
}

impl Form {
    /// Returns the bytes of a pair in the file: a JSON line with its line break, or an element of the array without the
    /// comma before it.
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
                    push_json_string(&mut out, value, true);
                }
                out.push_str("\n    }");
                out.into_bytes()
            }
        }
    }
}

/// Writes a file of pairs.
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

    /// Appends a pair encoded by [`Form::encode`].
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

    /// Completes the file and returns it under its temporary name.
    pub(super) fn into_file(mut self) -> Result<WholeFile> {
        match (self.form, self.empty) {
            (Form::Lines, _) => {}
            (Form::Array, true) => self.write(b"[]")?,
            (Form::Array, false) => self.write(b"\n]")?,
        }
        Ok(self.file)
    }

    fn write(&mut self, bytes: &[u8]) -> Result<()> {
        self.file.write_all(bytes).map_err(|e| Error::io(&self.path, "write", e))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The expected text comes from Python: `json.dump([...], f, indent=4)`.
    #[test]
    fn the_array_form_equals_pythons() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x.json");
        let pair = PreferencePair {
            id: "1".into(),
            prompt: "é \"q\" \\ \n\t\u{7f}\u{1}".into(),
            chosen: "😀/".into(),
            rejected: "\u{8}\u{c}\r~".into(),
            chosen_score: None,
            rejected_score: None,
            rendered: None,
        };
        let mut file = PairsFile::create(&path, Form::Array).unwrap();
        file.push(&Form::Array.encode(&pair)).unwrap();
        file.push(&Form::Array.encode(&PreferencePair { prompt: String::new(), ..pair })).unwrap();
        file.into_file().unwrap().commit().unwrap();
        let rest = "\n        \"chosen\": \"\\ud83d\\ude00/\",\n        \"rejected\": \"\\b\\f\\r~\"\n    }";
        let first = "\"\\u00e9 \\\"q\\\" \\\\ \\n\\t\\u007f\\u0001\"";
        let expected = format!(
            "[\n    {{\n        \"question\": {first},{rest},\n    {{\n        \"question\": \"\",{rest}\n]"
        );
        assert_eq!(std::fs::read_to_string(&path).unwrap(), expected);
        PairsFile::create(&path, Form::Array).unwrap().into_file().unwrap().commit().unwrap();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "[]");
    }
}
