//! Reads the Markdown pages of the project: their code blocks, and the commands in them.

use std::fs;
use std::path::{Path, PathBuf};

/// Returns the root of the repository.
pub(crate) fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

/// Reads a page, given its path from the root.
pub(crate) fn read(page: &str) -> String {
    let path = root().join(page);
    fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

/// Returns the paths, from the root, of the Markdown files below `folder`, sorted.
pub(crate) fn pages_below(folder: &str) -> Vec<String> {
    let mut pages = Vec::new();
    for entry in fs::read_dir(root().join(folder)).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        let path = format!("{folder}/{name}");
        if root().join(&path).is_dir() {
            pages.extend(pages_below(&path));
        } else if Path::new(&name).extension().is_some_and(|extension| extension == "md") {
            pages.push(path);
        }
    }
    pages.sort();
    pages
}

/// A fenced code block.
#[derive(Debug)]
pub(crate) struct Block {
    /// The word after the opening fence; empty if there is none.
    pub(crate) language: String,
    /// The lines between the fences, without their common indentation.
    pub(crate) text: String,
}

/// Returns the code blocks of a page, in order.
pub(crate) fn blocks(page: &str) -> Vec<Block> {
    let mut blocks = Vec::new();
    let mut open: Option<(usize, Block)> = None;
    for line in page.lines() {
        let fence = line.trim_start().strip_prefix("```");
        match (&mut open, fence) {
            (None, Some(language)) => {
                let indent = line.len() - line.trim_start().len();
                let language = language.trim().to_string();
                open = Some((indent, Block { language, text: String::new() }));
            }
            (None, None) => {}
            (Some(_), Some(_)) => blocks.extend(open.take().map(|(_, block)| block)),
            (Some((indent, block)), None) => {
                block.text += line.get(*indent..).unwrap_or(line.trim_start());
                block.text += "\n";
            }
        }
    }
    assert!(open.is_none(), "a code block is not closed: {open:?}");
    blocks
}

/// Returns a page without its code blocks.
pub(crate) fn prose(page: &str) -> String {
    let mut inside = false;
    let mut prose = String::new();
    for line in page.lines() {
        if line.trim_start().starts_with("```") {
            inside = !inside;
        } else if !inside {
            prose += line;
            prose += "\n";
        }
    }
    prose
}

/// Returns the texts between backticks in a page, outside code blocks.
pub(crate) fn inline_code(page: &str) -> Vec<String> {
    let prose = prose(page);
    let lines = prose.lines();
    lines.flat_map(|line| line.split('`').skip(1).step_by(2).map(str::to_string)).collect()
}

/// Returns the simple commands of a shell script as lists of words. Quotes are resolved, lines that end in a backslash
/// are joined, pipes and `;` separate commands, and redirections and comments are left out.
pub(crate) fn commands(script: &str) -> Vec<Vec<String>> {
    let script = script.replace("\\\n", " ");
    script.lines().flat_map(line_commands).filter(|words| !words.is_empty()).collect()
}

fn line_commands(line: &str) -> Vec<Vec<String>> {
    let mut commands = vec![Vec::new()];
    let (mut word, mut begun, mut quote, mut redirected) = (String::new(), false, None, false);
    for c in line.chars().chain([' ']) {
        match (c, quote) {
            (c, Some(open)) if c == open => quote = None,
            (c, Some(_)) => word.push(c),
            ('\'' | '"', None) => (quote, begun) = (Some(c), true),
            ('#', None) if !begun => break,
            (' ' | '|' | ';' | '>' | '<', None) => {
                let ended = std::mem::take(&mut word);
                if std::mem::take(&mut begun) && !std::mem::take(&mut redirected) {
                    commands.last_mut().unwrap().push(ended);
                }
                redirected |= c == '>' || c == '<';
                if c == '|' || c == ';' {
                    commands.push(Vec::new());
                }
            }
            (c, None) => {
                word.push(c);
                begun = true;
            }
        }
    }
    commands
}

#[test]
fn scripts_are_split_into_commands() {
    let script = "a 'b c' \"d\" --x='1 2' > out.txt # not this\nb \\\n  c | d '' ; e\n# f\n";
    let expected: [&[&str]; 4] = [&["a", "b c", "d", "--x=1 2"], &["b", "c"], &["d", ""], &["e"]];
    assert_eq!(commands(script), expected);
}

#[test]
fn blocks_are_found_with_their_language() {
    let page = "text `x`\n```sh\na\n```\n1. item `y z`\n\n   ```\n   b\n     c\n   ```\n";
    let found: Vec<_> = blocks(page).into_iter().map(|b| (b.language, b.text)).collect();
    let expected = [("sh", "a\n"), ("", "b\n  c\n")].map(|(l, t)| (l.to_string(), t.to_string()));
    assert_eq!(found, expected);
    assert_eq!(inline_code(page), ["x", "y z"]);
}
