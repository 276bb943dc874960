//! Implements `arithmo completions` and `arithmo man`: shell completions and manual pages.

use std::path::PathBuf;

use clap::{Args, CommandFactory};
use clap_complete::Shell;

use super::Cli;
use crate::error::{Error, Result};
use crate::output::{check, write_whole};

/// Arguments of `arithmo completions`.
#[derive(Args, Clone, Debug)]
pub struct CompletionsArgs {
    /// Shell to complete commands and flags in.
    #[arg(value_enum)]
    pub shell: Shell,
}

impl CompletionsArgs {
    /// Prints the completion script.
    ///
    /// # Errors
    /// stdout cannot be written.
    pub fn run(&self) -> Result<()> {
        let mut script = Vec::new();
        clap_complete::generate(self.shell, &mut Cli::command(), "arithmo", &mut script);
        super::print_text(&String::from_utf8_lossy(&script))
    }
}

/// Arguments of `arithmo man`.
#[derive(Args, Clone, Debug)]
pub struct ManArgs {
    /// Folder for the pages, one per subcommand: arithmo.1, arithmo-train.1, ...
    #[arg(value_name = "DIR")]
    pub folder: PathBuf,
    /// Replace pages that exist.
    #[arg(long)]
    pub overwrite: bool,
}

impl ManArgs {
    /// Writes the manual pages.
    ///
    /// # Errors
    /// A page exists and may not be replaced, or cannot be written.
    pub fn run(&self) -> Result<()> {
        let mut command = Cli::command();
        command.build();
        let pages = pages(&command)?;
        let paths: Vec<PathBuf> =
            pages.iter().map(|(name, _)| self.folder.join(format!("{name}.1"))).collect();
        if let Some(path) = paths.iter().find(|path| path.exists() && !self.overwrite) {
            return Err(check::exists_error(path));
        }
        for (path, (_, page)) in paths.iter().zip(&pages) {
            write_whole(path, page)?;
        }
        Ok(())
    }
}

/// Returns the name and the roff text of the manual page of `command`, then of each of its visible subcommands.
fn pages(command: &clap::Command) -> Result<Vec<(String, Vec<u8>)>> {
    let name = command.get_display_name().unwrap_or(command.get_name()).to_string();
    let mut page = Vec::new();
    clap_mangen::Man::new(command.clone())
        .render(&mut page)
        .map_err(|e| Error::io(&name, "write", e))?;
    let mut pages = vec![(name, page)];
    let shown = command.get_subcommands().filter(|one| !one.is_hide_set());
    for subcommand in shown.filter(|one| one.get_name() != "help") {
        pages.extend(self::pages(subcommand)?);
    }
    Ok(pages)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_command_has_a_page() {
        let mut command = Cli::command();
        command.build();
        let pages = pages(&command).unwrap();
        let names: Vec<&str> = pages.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(names[0], "arithmo");
        assert!(names.contains(&"arithmo-train") && names.contains(&"arithmo-evaluate-gsm8k"));
        assert!(!names.iter().any(|name| name.contains("sandbox") || name.ends_with("help")));
        let train = pages.iter().find(|(name, _)| name == "arithmo-train").unwrap();
        let text = String::from_utf8(train.1.clone()).unwrap();
        assert!(text.starts_with(".ie") && text.contains("\\-\\-config"), "{text}");
    }
}
