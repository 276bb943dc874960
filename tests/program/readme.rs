//! Checks README.md and the pages in `docs/` against the repository and the program: links lead to files, commands and
//! TOML parse, flags and keys exist, and the list of folders and the import order match the tree.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use arithmo::cli::Cli;
use arithmo::config::RunConfig;
use arithmo::data::prepare::Rules;
use arithmo::iterate::rounds::IterateConfig;
use clap::{CommandFactory, Parser};

use crate::pages::{blocks, commands, inline_code, pages_below, prose, read, root};

/// Maximum number of lines of README.md.
const MAX_LINES: usize = 200;

/// Returns README.md and the pages of the guide, which show how the program is called.
fn guide() -> Vec<String> {
    [vec!["README.md".to_string()], pages_below("docs/guide")].concat()
}

/// Returns all pages of the project.
fn all_pages() -> Vec<String> {
    let top = ["README.md", "CONTRIBUTING.md", "CHANGELOG.md", "assets/README.md"];
    let top = top.into_iter().chain(["backends/README.md"]).map(str::to_string).collect();
    [top, pages_below("docs")].concat()
}

#[test]
fn the_readme_is_short() {
    let lines = read("README.md").lines().count();
    assert!(lines <= MAX_LINES, "README.md has {lines} lines, {MAX_LINES} are allowed");
}

#[test]
fn the_list_of_folders_matches_the_tree() {
    let readme = blocks(&read("README.md"));
    let is_list = |text: &str| text.lines().all(|line| line.contains("/ "));
    let list = readme.iter().find(|block| is_list(&block.text)).unwrap();
    let name = |line: &str| line.split_once("/ ").unwrap().0.to_string();
    let listed: BTreeSet<String> = list.text.lines().map(name).collect();
    assert!(list.text.lines().count() <= 20, "{listed:?}");
    let ignored = read(".gitignore");
    let ignored: BTreeSet<&str> = ignored.lines().map(|line| line.trim_matches('/')).collect();
    let entries = fs::read_dir(root()).unwrap().map(|entry| entry.unwrap());
    let folders = entries.filter(|entry| entry.path().is_dir());
    let names = folders.map(|entry| entry.file_name().into_string().unwrap());
    let visible = names.filter(|name| !name.starts_with('.') && !ignored.contains(name.as_str()));
    assert_eq!(listed, visible.collect::<BTreeSet<_>>());
}

/// Returns the anchor that GitHub makes of a heading.
fn anchor(heading: &str) -> String {
    let kept = |c: &char| c.is_alphanumeric() || " -_".contains(*c);
    let text = heading.trim_start_matches('#').trim().to_lowercase();
    text.chars().filter(kept).map(|c| if c == ' ' { '-' } else { c }).collect()
}

/// Returns the problem of the link `target` on a page in `folder`, if there is one.
fn link_problem(folder: &Path, page: &str, target: &str) -> Option<String> {
    if target.starts_with("http") {
        return None;
    }
    let (file, section) = target.split_once('#').unwrap_or((target, ""));
    let path = if file.is_empty() { root().join(page) } else { folder.join(file) };
    if !path.exists() {
        return Some(format!("{page}: {target}: there is no such file"));
    }
    let text = fs::read_to_string(&path).unwrap_or_default();
    let mut headings = text.lines().filter(|line| line.starts_with('#'));
    let found = section.is_empty() || headings.any(|heading| anchor(heading) == section);
    (!found).then(|| format!("{page}: {target}: there is no such heading"))
}

#[test]
fn links_lead_to_files_and_headings() {
    let mut problems = Vec::new();
    for page in all_pages() {
        let path = root().join(&page);
        let prose = prose(&read(&page));
        let ends = prose.split("](").skip(1).filter_map(|rest| rest.split_once(')'));
        problems.extend(
            ends.filter_map(|(target, _)| link_problem(path.parent().unwrap(), &page, target)),
        );
    }
    assert!(problems.is_empty(), "{problems:#?}");
    assert_eq!(anchor("## `prepare.toml`, 2"), "preparetoml-2");
}

#[test]
fn every_guide_page_is_linked_from_the_readme() {
    let readme = read("README.md");
    for page in all_pages().iter().filter(|page| page.starts_with("docs/")) {
        assert!(readme.contains(&format!("({page})")), "README.md does not link to {page}");
    }
}

/// Returns the calls of the program in the code blocks of a page.
fn calls(page: &str) -> Vec<Vec<String>> {
    let shell = |language: &str| ["", "sh", "text"].contains(&language);
    let blocks = blocks(&read(page)).into_iter().filter(|block| shell(&block.language));
    let mut calls = Vec::new();
    for words in blocks.flat_map(|block| commands(&block.text)) {
        let cargo = ["cargo", "run", "--release", "--"];
        match words.strip_prefix(&cargo.map(String::from)) {
            Some(rest) => calls.push([&["arithmo".to_string()], rest].concat()),
            None if words[0] == "arithmo" => calls.push(words),
            None => {}
        }
    }
    calls
}

#[test]
fn commands_parse_and_each_is_shown() {
    let mut shown = BTreeSet::new();
    for page in guide() {
        for call in calls(&page) {
            let parsed = Cli::try_parse_from(&call);
            assert!(parsed.is_ok(), "{page}: {}: {}", call.join(" "), parsed.unwrap_err());
            shown.insert(call[1].clone());
        }
    }
    let program = Cli::command();
    let commands = program.get_subcommands().filter(|command| !command.is_hide_set());
    let missing: Vec<&str> =
        commands.map(|command| command.get_name()).filter(|name| !shown.contains(*name)).collect();
    assert!(missing.is_empty(), "no page shows arithmo {missing:?}");
}

/// Flags of other programs that the pages name.
const OTHER_FLAGS: [&str; 10] = [
    "--release",
    "--features",
    "--no-default-features",
    "--workspace",
    "--bench",
    "--tasks",
    "--num_fewshot",
    "--path",
    "--outtype",
    "--outfile",
];

#[test]
fn flags_in_the_text_exist() {
    let program = Cli::command();
    let flags = |command: &clap::Command| -> Vec<String> {
        let flags = command.get_arguments().filter_map(|argument| argument.get_long());
        flags.map(|flag| format!("--{flag}")).collect()
    };
    let subcommands = program.get_subcommands().flat_map(|command| {
        let deeper = command.get_subcommands().flat_map(flags);
        flags(command).into_iter().chain(deeper)
    });
    let known: BTreeSet<String> = flags(&program).into_iter().chain(subcommands).collect();
    for page in guide() {
        for code in inline_code(&read(&page)) {
            let flags = code.split_whitespace().filter(|word| word.starts_with("--"));
            for flag in flags.map(|flag| flag.split('=').next().unwrap()) {
                let exists =
                    known.contains(flag) || OTHER_FLAGS.contains(&flag) || flag == "--help";
                assert!(exists, "{page}: `{code}`: there is no {flag}");
            }
        }
    }
}

#[test]
fn keys_in_the_text_exist() {
    let reference = read("docs/configuration.md");
    let tables = ["model", "data", "lora", "dpo", "train"];
    for page in guide() {
        for code in inline_code(&read(&page)) {
            let key = code.split([' ', '=']).next().unwrap();
            let (table, name) = key.split_once('.').unwrap_or_default();
            let is_file = ["md", "jsonl", "toml", "safetensors", "json"].contains(&name);
            if tables.contains(&table) && !is_file && !name.contains('(') {
                let row = format!("| `{key}` |");
                assert!(reference.contains(&row), "{page}: `{code}`: there is no key {key}");
            }
        }
    }
}

#[test]
fn toml_blocks_are_valid_configurations() {
    let folder = tempfile::tempdir().unwrap();
    let mut count = 0;
    let all = all_pages();
    let blocks =
        all.iter().flat_map(|page| blocks(&read(page)).into_iter().map(move |b| (page, b)));
    for (page, block) in blocks.filter(|(_, block)| block.language == "toml") {
        let name = block.text.lines().next().and_then(|line| line.strip_prefix("# "));
        let name = name.unwrap_or("run.toml");
        let path = folder.path().join(name);
        fs::write(&path, &block.text).unwrap();
        let read = match name {
            "run.toml" => RunConfig::load(&path, &[]).map(drop),
            "prepare.toml" => Rules::load(&path, None).map(drop),
            "iterate.toml" => IterateConfig::load(&path).map(drop),
            other => panic!("{page}: the program reads no {other}"),
        };
        read.unwrap_or_else(|error| panic!("{page}: {error}"));
        count += 1;
    }
    assert!(count > 5, "only {count} blocks of TOML were found");
}

/// Returns the output of `scripts/check-imports.sh --print`.
#[cfg(unix)]
fn printed_order() -> String {
    let script = root().join("scripts/check-imports.sh");
    let output = std::process::Command::new("bash").arg(script).arg("--print").output().unwrap();
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).unwrap()
}

#[test]
#[cfg(unix)]
fn the_import_order_equals_the_scripts() {
    let printed = printed_order();
    let page = read("docs/architecture.md");
    let begin = "<!-- scripts/check-imports.sh --print -->\n";
    let (_, rest) = page.split_once(begin).unwrap();
    let (stated, _) = rest.split_once("<!-- end -->").unwrap();
    assert_eq!(stated, printed, "write the output of scripts/check-imports.sh --print to the page");
    // The script refuses new modules, but does not notice removed ones.
    for module in inline_code(&printed) {
        let file = root().join(format!("src/{module}.rs"));
        let folder = root().join(format!("src/{module}/mod.rs"));
        assert!(file.is_file() || folder.is_file(), "there is no module {module}");
    }
}

#[test]
fn the_test_command_equals_that_of_ci() {
    let readme = blocks(&read("README.md"));
    let all: Vec<Vec<String>> = readme.iter().flat_map(|block| commands(&block.text)).collect();
    let tests = |words: &&Vec<String>| words.join(" ").starts_with("cargo test");
    let command = all.iter().find(tests).unwrap().join(" ");
    let ci = read(".ci/run");
    let stage = ci.lines().find(|line| line.starts_with("stage \"tests\"")).unwrap();
    // CI has the full golden data, so it also runs the tests that need them.
    assert_eq!(stage, format!("stage \"tests\" {command} -- --include-ignored"));
    assert!(read("CONTRIBUTING.md").contains(&command));
}
