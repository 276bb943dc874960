//! The README keeps its promises: every source file is in its tree, its commands parse, its test command is CI's.
//!
//! `UPDATE_README=1 cargo test --test readme` writes the tree anew.

#![allow(clippy::unwrap_used, reason = "a test may stop at the first surprise")]

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use arithmo::cli::Cli;
use clap::Parser;

const BEGIN: &str = "<!-- tree: UPDATE_README=1 cargo test --test readme -->\n```\n";
const END: &str = "```\n<!-- end of tree -->";

/// Folders whose Rust files are listed one by one.
const LISTED: [&str; 4] = ["src", "backends/src", "tests", "examples"];

/// A description longer than this is cut at its last comma, colon or semicolon outside parentheses.
const WIDEST: usize = 104;

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

fn read(name: &str) -> String {
    fs::read_to_string(root().join(name)).unwrap()
}

/// The Rust files below `folder`, as paths from the root; a folder's `mod.rs` stands before its other files.
fn rust_files(folder: &Path) -> Vec<String> {
    let mut entries: Vec<PathBuf> =
        fs::read_dir(root().join(folder)).unwrap().map(|entry| entry.unwrap().path()).collect();
    let main =
        |path: &Path| ["mod.rs", "lib.rs", "main.rs"].iter().all(|name| !path.ends_with(name));
    entries.sort_by_key(|path| (path.is_dir(), main(path), path.clone()));
    let mut files = Vec::new();
    for path in entries {
        let relative = path.strip_prefix(root()).unwrap();
        match path.is_dir() {
            true if path.ends_with("fixtures") => {}
            true => files.extend(rust_files(relative)),
            false if path.extension().is_some_and(|e| e == "rs") && !path.ends_with("tests.rs") => {
                files.push(relative.to_str().unwrap().to_string());
            }
            false => {}
        }
    }
    files
}

fn all_files() -> Vec<String> {
    LISTED.iter().flat_map(|folder| rust_files(Path::new(folder))).collect()
}

/// The first sentence of a file's documentation.
fn description(file: &str) -> String {
    let text = read(file);
    let lines = text.lines().map_while(|line| line.strip_prefix("//!"));
    let paragraph: Vec<&str> = lines.map(str::trim).take_while(|line| !line.is_empty()).collect();
    let paragraph = paragraph.join(" ");
    let mut sentence = match paragraph.split_once(". ") {
        Some((first, _)) => first.to_string(),
        None => paragraph.trim_end_matches('.').to_string(),
    };
    if let (Some(open), Some(close)) = (sentence.find("]("), sentence.rfind(')')) {
        sentence.replace_range(open + 1..=close, "");
    }
    sentence.retain(|c| !"`[]".contains(c));
    while sentence.chars().count() > WIDEST {
        let count = |text: &str, c: char| text.matches(c).count();
        let outside = |(at, _): &(usize, char)| {
            let before = &sentence[..*at];
            count(before, '(') == count(before, ')')
        };
        let mut cuts = sentence.char_indices().filter(|(_, c)| ",:;".contains(*c));
        let Some((cut, _)) = cuts.rfind(outside) else {
            break;
        };
        sentence.truncate(cut);
    }
    sentence
}

fn tree() -> String {
    let mut text = String::new();
    for listed in LISTED {
        text += &format!("{listed}/\n");
        let mut folder = PathBuf::new();
        for file in rust_files(Path::new(listed)) {
            let path = Path::new(&file).strip_prefix(listed).unwrap();
            let parent = path.parent().unwrap();
            let depth = parent.components().count();
            if parent != folder {
                let name = parent.file_name().unwrap().to_str().unwrap();
                text += &format!("{}{name}/\n", "  ".repeat(depth));
                folder = parent.to_path_buf();
            }
            let name = path.file_name().unwrap().to_str().unwrap();
            let name = format!("{}{name}", "  ".repeat(depth + 1));
            text += &format!("{name:<26}{}\n", description(&file));
        }
    }
    text
}

/// The tree in the README, and where it stands.
fn stated(readme: &str) -> (usize, usize) {
    let begin = readme.find(BEGIN).unwrap() + BEGIN.len();
    (begin, begin + readme[begin..].find(END).unwrap())
}

/// Paths in a tree's text.
fn paths(tree: &str) -> BTreeSet<String> {
    let mut folders: Vec<(usize, String)> = Vec::new();
    let mut paths = BTreeSet::new();
    for line in tree.lines() {
        let name = line.split_whitespace().next().unwrap_or_default();
        let indent = line.len() - line.trim_start().len();
        folders.retain(|(depth, _)| *depth < indent);
        let parents: String = folders.iter().map(|(_, name)| name.as_str()).collect();
        match name.ends_with('/') {
            true => folders.push((indent, name.to_string())),
            false => drop(paths.insert(parents + name)),
        }
    }
    paths
}

#[test]
fn every_source_file_is_in_the_tree() {
    let readme = read("README.md");
    let (begin, end) = stated(&readme);
    if std::env::var_os("UPDATE_README").is_some() {
        let new = format!("{}{}{}", &readme[..begin], tree(), &readme[end..]);
        fs::write(root().join("README.md"), new).unwrap();
        return;
    }
    let files: BTreeSet<String> = all_files().into_iter().collect();
    let stated = paths(&readme[begin..end]);
    let missing: Vec<_> = files.difference(&stated).collect();
    let gone: Vec<_> = stated.difference(&files).collect();
    assert!(
        missing.is_empty() && gone.is_empty(),
        "missing: {missing:?}, gone: {gone:?}: run UPDATE_README=1 cargo test --test readme"
    );
    assert_eq!(paths(&tree()), files);
}

/// Lines of the code blocks, with lines continued by a backslash joined.
fn commands(text: &str) -> Vec<String> {
    let mut inside = false;
    let mut lines = String::new();
    for line in text.lines() {
        match line.trim_start().starts_with("```") {
            true => inside = !inside,
            false if inside => lines += &format!("{line}\n"),
            false => {}
        }
    }
    lines.replace("\\\n", " ").lines().map(str::to_string).collect()
}

/// The words of a command, as a shell takes quotes; a comment ends it.
fn words(command: &str) -> Vec<String> {
    let mut words = vec![String::new()];
    let mut quote = None;
    for c in command.chars() {
        match (c, quote) {
            ('\'' | '"', None) => quote = Some(c),
            (c, Some(open)) if c == open => quote = None,
            ('#', None) if words.last().is_some_and(String::is_empty) => break,
            (' ', None) => words.push(String::new()),
            (c, _) => words.last_mut().unwrap().push(c),
        }
    }
    words.retain(|word| !word.is_empty());
    words
}

#[test]
fn every_command_of_the_readme_parses() {
    let mut seen = BTreeSet::new();
    for command in commands(&read("README.md")) {
        let words = words(command.trim());
        let words = match words.as_slice() {
            [cargo, run, _, dashes, rest @ ..]
                if cargo == "cargo" && run == "run" && dashes == "--" =>
            {
                [&["arithmo".to_string()], rest].concat()
            }
            [arithmo, ..] if arithmo == "arithmo" => words,
            _ => continue,
        };
        let parsed = Cli::try_parse_from(&words);
        assert!(parsed.is_ok(), "{command}: {}", parsed.unwrap_err());
        seen.insert(words[1].clone());
    }
    for name in
        ["demo", "prepare", "train", "score", "generate", "merge", "report", "doctor", "bench"]
    {
        assert!(seen.contains(name), "the README shows no arithmo {name}");
    }
}

#[test]
fn the_test_command_is_the_one_ci_runs() {
    let readme = commands(&read("README.md"));
    let tests = |line: &&String| line.starts_with("cargo test");
    let command = words(readme.iter().find(tests).unwrap()).join(" ");
    let ci = read(".ci/run");
    let stage = ci.lines().find(|line| line.starts_with("stage \"tests\"")).unwrap();
    assert_eq!(stage, format!("stage \"tests\" {command}"));
    assert!(read("CONTRIBUTING.md").contains(&command));
}
