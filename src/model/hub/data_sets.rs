//! Parses the addresses of data sets, `hf://datasets/owner/name[@revision]/path`, and selects the files they match.

use std::collections::BTreeSet;

use hf_hub::{Repo, RepoType};

use super::names;
use crate::error::{Error, Result};

/// Extensions of the files that are fetched from a folder of a data set.
const DATA_EXTENSIONS: [&str; 4] = ["parquet", "jsonl", "json", "xml"];

/// Splits an address into the repository and the path within it.
///
/// # Errors
/// The address is not of this form, or one of its names is not valid.
pub(super) fn parse_url(hf_url: &str) -> Result<(Repo, String)> {
    let wrong = || {
        Error::invalid(
            hf_url,
            "is not an address of a data set",
            "write hf://datasets/owner/name/path, or hf://datasets/owner/name@revision/path",
        )
    };
    let rest = hf_url.strip_prefix("hf://datasets/").ok_or_else(wrong)?;
    let mut parts = rest.splitn(3, '/');
    let (owner, name) = (parts.next().ok_or_else(wrong)?, parts.next().ok_or_else(wrong)?);
    let path = parts.next().unwrap_or_default().trim_matches('/');
    let (name, revision) = name.split_once('@').unwrap_or((name, "main"));
    if !path.is_empty() && names::check_path(path).is_err() {
        return Err(wrong());
    }
    // As in Python, a revision with slashes is written refs%2Fconvert%2Fparquet.
    let revision = revision.replace("%2F", "/").replace("%2f", "/");
    let id = format!("{owner}/{name}");
    let repo = names::repository(&id, RepoType::Dataset, &revision, hf_url)?;
    Ok((repo, path.to_string()))
}

/// Selects those of the repository's `files` that match `path`; if `files` is `None` (unknown), `path` itself.
///
/// # Errors
/// No file matches, or `path` is not a valid pattern.
pub(super) fn select(files: Option<&[String]>, path: &str, hf_url: &str) -> Result<Vec<String>> {
    let Some(files) = files else {
        return Ok(vec![path.to_string()]);
    };
    let is_glob = path.contains(['*', '?', '[']);
    let pattern = glob::Pattern::new(path).map_err(|e| {
        Error::invalid(hf_url, format!("is not a valid pattern: {e}"), "correct it")
    })?;
    let options = glob::MatchOptions { require_literal_separator: true, ..Default::default() };
    let is_data = |name: &str| {
        let extension = name.rsplit_once('.').map(|(_, extension)| extension.to_ascii_lowercase());
        extension.is_some_and(|extension| DATA_EXTENSIONS.contains(&extension.as_str()))
    };
    let inside = |name: &str| {
        let below = name.strip_prefix(path).is_some_and(|rest| rest.starts_with('/'));
        (path.is_empty() || below) && is_data(name)
    };
    let wanted = |name: &&String| {
        if is_glob {
            pattern.matches_with(name, options)
        } else {
            name.as_str() == path || inside(name)
        }
    };
    let mut names: Vec<String> = files.iter().filter(wanted).cloned().collect();
    names.sort();
    if names.is_empty() {
        let folders: BTreeSet<&str> =
            files.iter().filter_map(|f| Some(f.rsplit_once('/')?.0)).collect();
        let some: Vec<String> = folders.into_iter().take(8).map(names::quoted).collect();
        return Err(Error::invalid(
            hf_url,
            format!("names no file; the data set has {} files", files.len()),
            format!("check the path; some of its folders: {}", some.join(", ")),
        ));
    }
    Ok(names)
}
