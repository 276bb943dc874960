//! Implements `arithmo compare`: compares two evaluations of the same problems.

use std::path::{Path, PathBuf};

use clap::{Args, ValueEnum};
use serde_json::Value;

use super::answers::foreign_prompt;
use super::pages::{Sides, comparison_page};
use crate::cli::print_line;
use crate::cli::template::TemplateArgs;
use crate::error::{Error, Result};
use crate::eval::compare::{
    ScorerComparison, compare, comparison_table, setting_differences, write_comparison,
};
use crate::eval::folder::Folder;
use crate::eval::judged::{Judged, judge_all, read_judged};
use crate::eval::predictions::read_predictions;
use crate::eval::settings::Settings;
use crate::eval::task::Task;
use crate::input_file;
use crate::output::{Lock, check, refuse_inputs_among};
use crate::report::evaluation::write_evaluation_page;

/// Arguments of `arithmo compare`.
#[derive(Args, Clone, Debug)]
pub struct CompareArgs {
    /// Compare this evaluation, given by its folder or a predictions file, ...
    #[arg(value_name = "A")]
    pub first: PathBuf,
    /// ... with this one.
    #[arg(value_name = "B")]
    pub second: PathBuf,
    /// Judge the answers by the rules of this task, where predictions files do not name it.
    #[arg(long, value_enum)]
    pub task: Option<TaskName>,
    /// Write comparison.json and the page to this folder [default: evaluation/comparison].
    #[arg(long, value_name = "DIR")]
    pub output: Option<PathBuf>,
    /// Show the changes by this scorer [default: numeric, equivalent or reward].
    #[arg(long, value_name = "NAME")]
    pub scorer: Option<String>,
    #[command(flatten)]
    pub(super) template: TemplateArgs,
    /// Replace the comparison that is in the output folder.
    #[arg(long)]
    pub overwrite: bool,
}

/// The tasks' names.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum TaskName {
    /// Word problems, answered step by step.
    Gsm8k,
    /// Word problems, answered by Python programs.
    Gsm8kPot,
    /// Competition problems, answers in formulas.
    Math,
    /// Pairs of a chosen and a rejected completion.
    Preference,
}

impl TaskName {
    fn task(self) -> Task {
        match self {
            Self::Gsm8k => Task::Gsm8k,
            Self::Gsm8kPot => Task::Gsm8kPot,
            Self::Math => Task::Math,
            Self::Preference => Task::Preference,
        }
    }
}

impl CompareArgs {
    /// Compares the evaluations, prints the table, and writes `comparison.json` and the page.
    ///
    /// # Errors
    /// One of the two is not an evaluation, they answer different problems, or a file cannot be written.
    pub fn run(&self) -> Result<()> {
        let default = || PathBuf::from("evaluation/comparison");
        let folder = self.output.clone().unwrap_or_else(default);
        check_output(&folder, &[&self.first, &self.second], self.overwrite)?;
        let a = self.read_side(&self.first)?;
        let b = self.read_side(&self.second)?;
        let task = a.task;
        if task != b.task {
            let (first, second) = (self.first.display(), self.second.display());
            let (a, b) = (task.name(), b.task.name());
            let problem = format!("{first} is of {a}, {second} of {b}");
            let remedy = "compare evaluations of one task";
            return Err(Error::invalid("compare", problem, remedy));
        }
        let names = [&self.first, &self.second].map(|path| path.display().to_string());
        let names = [names[0].as_str(), names[1].as_str()];
        let compared = compare(&a.judged, &b.judged, names)?;
        let shown = self.shown(&compared, task)?;
        let differences = setting_differences(&a.settings, &b.settings);
        let _lock = Lock::folder(&folder)?;
        let file = folder.join("comparison.json");
        write_comparison(&file, &compared, names, &differences)?;
        let page = folder.join("index.html");
        let sides = Sides {
            names,
            judged: [&a.judged, &b.judged],
            settings: [&a.settings, &b.settings],
            differences: &differences,
        };
        write_evaluation_page(&page, &comparison_page(&compared, shown, &sides, task))?;
        print_line(&comparison_table(&compared, shown, names, &differences))?;
        print_line(&format!("\nThe changed answers, side by side: {}", page.display()))
    }

    /// Returns the comparison by `--scorer`, or else by the task's main rule. Its changed answers are listed.
    ///
    /// # Errors
    /// There is no comparison by `--scorer`.
    fn shown<'a>(
        &self,
        compared: &'a [ScorerComparison],
        task: Task,
    ) -> Result<&'a ScorerComparison> {
        let named = |name: &str| compared.iter().find(|one| one.scorer == name);
        let shown = match &self.scorer {
            Some(name) => named(name),
            None => named(task.main_rule()).or(compared.first()),
        };
        shown.ok_or_else(|| {
            let there: Vec<&str> = compared.iter().map(|one| one.scorer.as_str()).collect();
            let problem = format!("is none of {}", there.join(", "));
            Error::invalid("--scorer", problem, "name one of them")
        })
    }

    /// Reads one of the two evaluations from its folder, or from a predictions file. Answers that are judged by their text
    /// are judged again, so that both sides are judged by the rules of this version.
    ///
    /// # Errors
    /// There is no evaluation at `path`, or its task is unknown.
    fn read_side(&self, path: &Path) -> Result<EvaluatedSide> {
        if !path.exists() {
            let problem = "there is no such folder or file";
            let remedy =
                "name the folder that evaluate wrote (its --output), or a predictions file";
            return Err(Error::file(path, problem, remedy));
        }
        let given = self.task.map(TaskName::task);
        if !path.is_dir() {
            return self.predictions(path, given, Settings::default());
        }
        let folder = Folder(path.to_path_buf());
        let (verdicts, predictions) = (folder.file("verdicts.jsonl"), folder.predictions());
        if !verdicts.is_file() && !predictions.is_file() {
            let problem =
                "holds no evaluation: neither verdicts.jsonl nor predictions.json is there";
            let remedy = "name the folder that evaluate wrote (its --output)";
            return Err(Error::file(path, problem, remedy));
        }
        let task = folder.task()?.or(given);
        let settings = folder.settings()?.unwrap_or_default();
        let in_words = task.is_some_and(judges_texts);
        if verdicts.is_file() && !(in_words && predictions.is_file()) {
            let task = task.ok_or_else(|| unknown(path))?;
            let judged = read_judged(&verdicts)?;
            return Ok(EvaluatedSide { judged, task, settings });
        }
        self.predictions(&predictions, task, settings)
    }

    /// Reads and judges the predictions in `file`.
    ///
    /// # Errors
    /// The task is unknown, or predictions alone are not enough to judge it.
    fn predictions(
        &self,
        file: &Path,
        task: Option<Task>,
        settings: Settings,
    ) -> Result<EvaluatedSide> {
        let task = task.ok_or_else(|| unknown(file))?;
        if !judges_texts(task) {
            let problem = "holds no verdicts.jsonl, and a predictions file alone has no verdicts";
            let remedy = "evaluate it first, then compare the folders";
            return Err(Error::file(file, problem, remedy));
        }
        let foreign = foreign_prompt(file, &self.template, task)?;
        Ok(EvaluatedSide {
            judged: judge_all(&read_predictions(file, &foreign)?, None, task.scorers()),
            task,
            settings,
        })
    }
}

/// Checks that the comparison may be written to `folder`.
///
/// # Errors
/// A file there belongs to one of the `sides`, to an earlier comparison while `overwrite` is not set, or to something else.
fn check_output(folder: &Path, sides: &[&Path], overwrite: bool) -> Result<()> {
    let files = ["comparison.json", "index.html"].map(|name| folder.join(name));
    refuse_inputs_among(&files, sides.iter().copied())?;
    let text = input_file::read_to_string(&files[0]).unwrap_or_default();
    let old: Value = serde_json::from_str(&text).unwrap_or_default();
    let ours = old["scorers"].is_object() && old["first"].is_string();
    match files.iter().find(|file| file.exists()) {
        // A killed process may have left the first file alone.
        Some(file) if ours && !overwrite && files[1].exists() => Err(check::exists_error(file)),
        Some(file) if !ours => Err(Error::file(
            file,
            "is there, and no comparison of this program is known to have written it",
            "give another --output",
        )),
        _ => Ok(()),
    }
}

/// One of the two evaluations.
struct EvaluatedSide {
    judged: Vec<Judged>,
    task: Task,
    /// How the answers were made; empty if unknown.
    settings: Settings,
}

/// Returns whether answers of the task are judged by their text alone, without running a program or a model.
fn judges_texts(task: Task) -> bool {
    matches!(task, Task::Gsm8k | Task::Math)
}

/// Returns the error for an evaluation whose task is unknown.
fn unknown(path: &Path) -> Error {
    let problem = "does not say of which task it is";
    let remedy = "name the task: arithmo compare A B --task gsm8k";
    Error::file(path, problem, remedy)
}
