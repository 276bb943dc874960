//! Resolves the values of `--input` to files and detects their formats.

use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};

use super::Format;
use crate::error::{Error, Result};
use crate::input_file;

/// Downloads the files of an `hf://…` address and returns their local paths.
pub type Fetch<'a> = &'a dyn Fn(&str) -> Result<Vec<PathBuf>>;

/// Returns the files that `inputs` name, in the given order and without repetitions.
///
/// An input is a file, a folder, a glob pattern, or an `hf://datasets/owner/name[@revision]/path` address, which `fetch`
/// downloads. A folder stands for all `.parquet` and `.jsonl` files and every `Posts.xml` in it, at any depth, sorted by
/// name; the other XML files of a dump are skipped.
///
/// # Errors
/// An input matches no file, or `fetch` fails.
pub fn resolve(inputs: &[String], fetch: Fetch<'_>) -> Result<Vec<PathBuf>> {
    let mut files: Vec<PathBuf> = Vec::new();
    for input in inputs {
        let mut found = if input.starts_with("hf://") {
            let fetched = fetch(input)?;
            let each = fetched.iter().map(|path| files_at(path));
            each.collect::<Result<Vec<_>>>()?.concat()
        } else if Path::new(input).exists() {
            files_at(Path::new(input))?
        } else {
            files_matching(input)?
        };
        if found.is_empty() {
            let problem = "contains no .parquet file, no .jsonl file and no Posts.xml";
            return Err(Error::invalid(format!("--input {input}"), problem, "name a file"));
        }
        found.retain(|path| !files.contains(path));
        files.append(&mut found);
    }
    Ok(files)
}

/// Returns the data files that a glob pattern matches.
fn files_matching(pattern: &str) -> Result<Vec<PathBuf>> {
    let place = format!("--input {pattern}");
    let remedy = "name a file, a folder, a glob pattern in quotes, or an hf://datasets/… address";
    // As in a shell, `*` matches neither a path separator nor a hidden file.
    let options = glob::MatchOptions {
        require_literal_separator: true,
        require_literal_leading_dot: true,
        ..glob::MatchOptions::default()
    };
    let paths = glob::glob_with(pattern, options).map_err(|e| Error::invalid(&place, e, remedy))?;
    let mut files = Vec::new();
    for path in paths {
        let path = path.map_err(|e| Error::invalid(&place, e, remedy))?;
        files.append(&mut files_at(&path)?);
    }
    if files.is_empty() {
        let problem = "there is no such file or folder, and as a pattern it matches nothing";
        return Err(Error::invalid(place, problem, remedy));
    }
    Ok(files)
}

/// Returns `path` itself if it is a file, or the data files in that folder, sorted.
fn files_at(path: &Path) -> Result<Vec<PathBuf>> {
    if !path.is_dir() {
        return Ok(vec![path.to_path_buf()]);
    }
    let read = |e| Error::io(path, "list", e);
    let entries = fs::read_dir(path).map_err(read)?;
    let mut entries: Vec<PathBuf> =
        entries.map(|entry| Ok(entry?.path())).collect::<std::io::Result<_>>().map_err(read)?;
    entries.sort();
    let mut files = Vec::new();
    for entry in entries {
        let name = entry.file_name().unwrap_or_default().to_string_lossy();
        if name.starts_with('.') {
            continue;
        }
        if entry.is_dir() {
            files.append(&mut files_at(&entry)?);
        } else if [".parquet", ".jsonl", "Posts.xml"].iter().any(|end| name.ends_with(end)) {
            files.push(entry);
        }
    }
    Ok(files)
}

/// Detects the format of the file at `path` from its first bytes.
///
/// # Errors
/// The file cannot be read, or its first bytes match no format.
pub fn sniff(path: &Path) -> Result<Format> {
    let open = |e| Error::io(path, "read", e);
    if !fs::metadata(path).map_err(open)?.is_file() {
        let problem = "is not a regular file, so that its first bytes can be read only once";
        let remedy = "give its format with --format posts-xml|jsonl";
        return Err(Error::file(path, problem, remedy));
    }
    let mut start = Vec::new();
    input_file::open(path).map_err(open)?.take(4096).read_to_end(&mut start).map_err(open)?;
    let start = start.strip_prefix(b"\xef\xbb\xbf").unwrap_or(&start).trim_ascii_start();
    match start.first() {
        Some(_) if start.starts_with(b"PAR1") => Ok(Format::H4),
        Some(b'<') => Ok(Format::PostsXml),
        // An empty file is a JSON Lines file without lines.
        Some(b'{') | None => Ok(Format::Jsonl),
        Some(_) => {
            let problem = "is neither parquet, nor XML, nor JSON Lines by its first bytes";
            let remedy = "name another file, or give its format with --format h4|posts-xml|jsonl";
            Err(Error::file(path, problem, remedy))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn no_fetch(_: &str) -> Result<Vec<PathBuf>> {
        panic!("nothing to fetch")
    }

    #[test]
    fn files_folders_patterns_and_addresses() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        fs::create_dir(at("deep")).unwrap();
        for name in ["b.jsonl", "a.parquet", "deep/Posts.xml", "deep/Users.xml", ".x.jsonl"] {
            fs::write(at(name), "").unwrap();
        }
        let all = vec![at("a.parquet"), at("b.jsonl"), at("deep/Posts.xml")];
        let here = folder.path().display();
        let find = |inputs: &[String]| resolve(inputs, &no_fetch);
        assert_eq!(find(&[here.to_string()]).unwrap(), all);
        let pattern = format!("{here}/*.jsonl");
        assert_eq!(
            find(&[pattern, here.to_string()]).unwrap(),
            [1, 0, 2].map(|i: usize| all[i].clone())
        );
        let fetch = |_: &str| Ok(vec![folder.path().to_path_buf()]);
        assert_eq!(resolve(&["hf://datasets/x/y/z".into()], &fetch).unwrap(), all);
        let error = find(&[format!("{here}/*.csv")]).unwrap_err().to_string();
        assert!(error.contains("matches nothing"), "{error}");
    }

    #[test]
    fn first_bytes_tell_the_format() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x");
        let sniffed = |bytes: &[u8]| {
            fs::write(&path, bytes).unwrap();
            sniff(&path).ok()
        };
        assert_eq!(sniffed(b"PAR1\x15"), Some(Format::H4));
        assert_eq!(sniffed(b"\xef\xbb\xbf\n<?xml"), Some(Format::PostsXml));
        assert_eq!(sniffed(b"{\"qid\""), Some(Format::Jsonl));
        assert_eq!(sniffed(b""), Some(Format::Jsonl));
        assert_eq!(sniffed(b"[1]"), None);
    }
}
