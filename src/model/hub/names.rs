//! Checks names from users and hubs before any of them becomes part of a URL or a path.
//!
//! A hub is not trusted: its names must not lead out of the cache.

use hf_hub::{Repo, RepoType};
use sha2::{Digest, Sha256};

use crate::error::{Error, Result};
use crate::model::identity::hex;

/// Longest name of a file or folder on common file systems, in bytes.
const LONGEST_NAME: usize = 255;

/// Returns `text` in lower case if it is a commit (40 hexadecimal digits).
pub(super) fn commit(text: &str) -> Option<String> {
    let is_commit = text.len() == 40 && text.bytes().all(|b| b.is_ascii_hexdigit());
    is_commit.then(|| text.to_ascii_lowercase())
}

/// Quotes at most 80 characters of `text` for a message.
pub(super) fn quoted(text: &str) -> String {
    match text.char_indices().nth(80) {
        Some((end, _)) => format!("{:?}…", &text[..end]),
        None => format!("{text:?}"),
    }
}

/// Returns whether `id` can be the id of a repository, `owner/name`, by the hub's own rules.
pub(super) fn is_id(id: &str) -> bool {
    let part = |part: &str| {
        let plain = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
        let edge = |c: char| c.is_ascii_alphanumeric() || c == '_';
        part.len() <= 96
            && part.starts_with(edge)
            && part.ends_with(edge)
            && part.chars().all(plain)
            // The cache's folders separate owner and name by "--".
            && !part.contains("--")
            && !part.contains("..")
    };
    let parts: Vec<&str> = id.split('/').collect();
    parts.len() <= 2 && parts.iter().all(|name| part(name))
}

/// Checks that `id` can be the id of a repository.
pub(super) fn check_id(id: &str, place: &str) -> Result<()> {
    if is_id(id) {
        return Ok(());
    }
    Err(Error::invalid(
        place,
        format!("{} is neither an existing folder nor a hub id", quoted(id)),
        "name the path of a model folder, or owner/name",
    ))
}

/// Returns a repository at a revision, both checked. `place` names the option or address they come from.
pub(super) fn repository(id: &str, kind: RepoType, revision: &str, place: &str) -> Result<Repo> {
    check_id(id, place)?;
    if let Err(problem) = check_revision(revision) {
        return Err(Error::invalid(
            id,
            format!("{} is not a revision: {problem}", quoted(revision)),
            "set --revision, model.revision or @revision to a branch, a tag or a commit, for example main",
        ));
    }
    Ok(Repo::with_revision(id.to_string(), kind, revision.to_string()))
}

pub(super) type Check = std::result::Result<(), &'static str>;

/// Checks the name of a branch, tag or commit by the rules of `git check-ref-format`; names like `refs/pr/1` are
/// valid.
pub(super) fn check_revision(revision: &str) -> Check {
    if revision.contains([' ', '~', '^', ':', '?', '*', '[']) {
        return Err("it holds a space or one of ~ ^ : ? * [");
    }
    if revision.starts_with('-') || revision == "@" || revision.contains("@{") {
        return Err("it begins with '-', is '@' or holds '@{'");
    }
    if revision.contains("..") || revision.ends_with('.') {
        return Err("it holds '..' or ends with '.'");
    }
    if revision.split('/').any(|part| part.starts_with('.') || part.ends_with(".lock")) {
        return Err("a part of it begins with '.' or ends with '.lock'");
    }
    check_path(revision)
}

/// Checks the path of a file in a repository: names separated by single slashes, none of which denotes another folder
/// on any operating system.
pub(super) fn check_path(path: &str) -> Check {
    if path.chars().any(char::is_control) {
        return Err("it holds a control character");
    }
    if path.contains('\\') {
        return Err("it holds a backslash, which separates folders on Windows");
    }
    let drive = path.as_bytes().get(1) == Some(&b':');
    if drive && path.starts_with(|c: char| c.is_ascii_alphabetic()) {
        return Err("it begins with a Windows drive");
    }
    if cfg!(windows) && path.contains(':') {
        return Err("it holds a colon, which names a stream of a file on Windows");
    }
    for name in path.split('/') {
        match name {
            "" => {
                return Err(
                    "it is empty, or has an empty name at its start, in its middle or at its end",
                );
            }
            "." | ".." => return Err("it holds '.' or '..' as a name"),
            _ if name.len() > LONGEST_NAME => return Err("a name in it is longer than 255 bytes"),
            _ => {}
        }
    }
    Ok(())
}

/// Returns the file name of the blob with this etag. The hub's etags are hexadecimal hashes of the content; they are
/// used as they are, so that other programs find the blob. For any other etag the name is a hash that no other file
/// of any commit has.
pub(super) fn blob(etag: Option<&str>, commit: &str, path: &str) -> String {
    let is_hash = |etag: &&str| {
        matches!(etag.len(), 40 | 64) && etag.bytes().all(|byte| byte.is_ascii_hexdigit())
    };
    if let Some(etag) = etag.filter(is_hash) {
        return etag.to_ascii_lowercase();
    }
    let etag = etag.unwrap_or_default();
    hex(Sha256::digest(format!("{commit}\n{path}\n{etag}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_commit_is_40_hexadecimal_digits() {
        let digits = "0123456789abcdefABCDEF012345678901234567";
        assert_eq!(commit(digits), Some(digits.to_lowercase()));
        for text in [
            "",
            "main",
            "..",
            "/etc",
            "unknown",
            &digits[1..],
            &format!("{digits}0"),
            &format!("{}/", &digits[1..]),
            &format!("{}\n", &digits[1..]),
            &format!("{}é", &digits[2..]),
        ] {
            assert_eq!(commit(text), None, "{text:?}");
        }
    }

    #[test]
    fn revisions_follow_git() {
        for good in [
            "main",
            "v1.0",
            "refs/pr/1",
            "refs/convert/parquet",
            "feature/a_b-c",
            "0123456789abcdef0123456789abcdef01234567",
            "a@b",
            "é",
        ] {
            assert_eq!(check_revision(good), Ok(()), "{good:?}");
        }
        let long = "x".repeat(300);
        for bad in [
            "", "/", "/abs", "a/", "a//b", "..", "../x", "a/../b", "a..b", ".", ".x", "a/.x",
            "x.lock", "x.lock/y", "a.", "@", "a@{1}", "-x", "a b", "a~1", "a^", "a:b", "a?", "a*",
            "a[", "a\\b", "..\\x", "C:\\x", "a\0b", "a\nb", "main\n", "\u{7f}", "\u{85}", &long,
        ] {
            assert!(check_revision(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn paths_stay_in_their_folder() {
        for good in ["config.json", "data/a b/0.parquet", "~/x", "ab:c", "..x", "ü☃", "a?b#c", "-x"]
        {
            assert_eq!(check_path(good), Ok(()), "{good:?}");
        }
        let long = format!("a/{}", "x".repeat(256));
        for bad in [
            "",
            ".",
            "..",
            "/",
            "/etc/passwd",
            "../x",
            "a/../b",
            "a/..",
            "./x",
            "a/./b",
            "a//b",
            "x/",
            "..\\x",
            "a\\..\\x",
            "C:\\x",
            "c:/x",
            "C:x",
            "\\\\host\\x",
            "a\0",
            "\n",
            "a\rb",
            &long,
        ] {
            assert!(check_path(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn ids_follow_the_hub() {
        for good in ["gpt2", "mistralai/Mistral-7B-v0.1", "a_/_b", "HuggingFaceH4/a.b-c"] {
            assert!(check_id(good, "--model").is_ok(), "{good:?}");
        }
        let long = format!("a/{}", "b".repeat(97));
        for bad in [
            "", "/", "a/", "/a", "a/b/c", "a//b", "../x", "..", "a/..", "a/.b", "a/b.", "-a/b",
            "a/b-", "a--b/c", "a..b", "a b", "a\nb/c", "évil/x", "a\\b", "C:\\x", "a/b\0", &long,
        ] {
            assert!(check_id(bad, "--model").is_err(), "{bad:?}");
        }
    }

    #[test]
    fn blobs_are_named_by_a_hash() {
        let (sha, git) = ("A".repeat(64), "b".repeat(40));
        assert_eq!(blob(Some(&sha), "c", "x"), "a".repeat(64));
        assert_eq!(blob(Some(&git), "c", "x"), git);
        let long = "a".repeat(400);
        let made = [None, Some(""), Some(".."), Some("../x"), Some("/abs"), Some("x"), Some(&long)]
            .map(|etag| blob(etag, "c", "x"));
        for name in &made {
            assert!(name.len() == 64 && name.bytes().all(|b| b.is_ascii_hexdigit()));
        }
        // Two files with the same etag, as servers derive it from time and size, remain two blobs.
        assert_ne!(blob(Some("x"), "c", "x"), blob(Some("x"), "c", "y"));
        assert_ne!(blob(Some("x"), "c", "x"), blob(Some("x"), "d", "x"));
        assert_ne!(blob(Some("x"), "c", "x"), blob(Some("y"), "c", "x"));
    }

    #[test]
    fn messages_quote_a_part_of_a_long_name() {
        assert_eq!(quoted("a\u{1b}"), "\"a\\u{1b}\"");
        assert!(quoted(&"é".repeat(100_000)).len() < 200);
    }
}
