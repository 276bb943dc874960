//! Two evaluations of the same problems.

use std::path::{Path, PathBuf};

use super::pages::comparison_page;
use super::{EvaluateArgs, missing};
use crate::cli::print_line;
use crate::error::{Error, Result};
use crate::eval::compare::{compare, comparison_table, write_comparison};
use crate::eval::folder::Folder;
use crate::eval::judged::{Judged, judge_all, read_judged};
use crate::eval::predictions::read_predictions;
use crate::eval::task::Task;
use crate::report::evaluation::write_evaluation_page;

/// Compares, prints the table, writes `comparison.json` and the page.
pub(super) fn run(args: &EvaluateArgs, sides: &[PathBuf]) -> Result<()> {
    let [first, second] = sides else {
        return Err(missing("--compare"));
    };
    let task = args.task.map(super::TaskName::task);
    let (a, of_a) = side(first, task)?;
    let (b, of_b) = side(second, task)?;
    if of_a != of_b {
        let problem = format!(
            "{} is of {}, {} of {}",
            first.display(),
            of_a.name(),
            second.display(),
            of_b.name()
        );
        return Err(Error::invalid("--compare", problem, "compare evaluations of one task"));
    }
    let names = [first, second].map(|path| path.display().to_string());
    let names = [names[0].as_str(), names[1].as_str()];
    let compared = compare(&a, &b, names)?;
    let shown = match &args.scorer {
        Some(name) => compared.iter().find(|one| one.scorer == *name),
        None => compared.iter().find(|one| one.scorer == of_a.main_rule()).or(compared.first()),
    };
    let Some(shown) = shown else {
        let there: Vec<&str> = compared.iter().map(|one| one.scorer.as_str()).collect();
        let problem = format!("is none of {}", there.join(", "));
        return Err(Error::invalid("--scorer", problem, "name one of them"));
    };
    let folder = args.output.clone().unwrap_or_else(|| PathBuf::from("evaluation/comparison"));
    write_comparison(&folder.join("comparison.json"), &compared, names)?;
    let page = folder.join("index.html");
    write_evaluation_page(&page, &comparison_page(&compared, shown, [&a, &b], names, of_a))?;
    print_line(&comparison_table(&compared, shown, names))?;
    print_line(&format!("\nThe changed answers, side by side: {}", page.display()))
}

/// One evaluation: its folder, or a predictions file, which is scored.
fn side(path: &Path, task: Option<Task>) -> Result<(Vec<Judged>, Task)> {
    let folder = Folder(path.to_path_buf());
    let verdicts = folder.file("verdicts.jsonl");
    if verdicts.is_file() {
        let of = folder.task()?.or(task).ok_or_else(|| unknown(path))?;
        return Ok((read_judged(&verdicts)?, of));
    }
    let file = if path.is_dir() { folder.predictions() } else { path.to_path_buf() };
    let of = task.ok_or_else(|| unknown(path))?;
    if of.scorers().is_empty() || of == Task::Gsm8kPot {
        let problem = "holds no verdicts.jsonl, and a predictions file alone has no verdicts";
        return Err(Error::file(path, problem, "evaluate it first, then compare the folders"));
    }
    Ok((judge_all(&read_predictions(&file)?, None, of.scorers()), of))
}

fn unknown(path: &Path) -> Error {
    let problem = "does not say of which task it is";
    Error::file(path, problem, "name the task: arithmo evaluate gsm8k --compare A B")
}
