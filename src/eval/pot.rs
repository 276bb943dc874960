//! Program-of-thought evaluation (arXiv 2211.12588): runs the Python programs that a model wrote and scores their output.

use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc;
use std::thread;

use num_traits::ToPrimitive;
use serde::Serialize;
use sha2::{Digest, Sha256};

use super::answers::{Scorer, Verdict, final_number, gsm8k_answer, until};
use super::judged::Judged;
use super::predictions::{Prediction, write_json};
use super::sandbox::{Outcome, Sandbox, cut};
use crate::error::{Error, Result};
use crate::input_file;
use crate::model::identity::hex;
use crate::output::{open_to_append, remove, write_whole};
use crate::progress::{Progress, ProgressMode};

/// The scorers of a program's output. A program that fails is wrong, whatever it printed before it failed.
pub const POT_SCORERS: [Scorer; 2] = [
    Scorer::new(
        "arithmo",
        "the first printed line as a float or a fraction of floats; a line with letters or spaces is wrong (Arithmo's published rule)",
        arithmo,
    ),
    Scorer::new(
        "numeric",
        "the number in the last printed line, by value, within a millionth because programs compute in floats",
        numeric,
    ),
];

fn arithmo(ground_truth: &str, output: &str) -> Verdict {
    let line = output.trim().lines().next().unwrap_or_default().trim();
    let value = printed_float(line);
    let known = gsm8k_answer(ground_truth).parse::<f64>().ok();
    Verdict {
        answer: (!line.is_empty()).then(|| line.to_string()),
        correct: value.is_some() && value == known,
    }
}

/// Parses a float or a fraction of floats: `27/3` and `9.0` are 9. Returns `None` for a line with letters or spaces.
fn printed_float(line: &str) -> Option<f64> {
    if line.contains(|c: char| c.is_alphabetic() || c == ' ') {
        return None;
    }
    match line.split_once('/') {
        Some((numerator, denominator)) => {
            let denominator: f64 = denominator.parse().ok().filter(|value| *value != 0.0)?;
            Some(numerator.parse::<f64>().ok()? / denominator)
        }
        None => line.parse().ok(),
    }
}

fn numeric(ground_truth: &str, output: &str) -> Verdict {
    let line = output.trim().lines().next_back().unwrap_or_default();
    let number = |text| final_number(text).and_then(|number| number.to_f64());
    let (value, known) = (number(line), number(ground_truth));
    let near = |value: f64, known: f64| (value - known).abs() <= 1e-6 * known.abs().max(1.0);
    Verdict {
        answer: value.map(|value| value.to_string()),
        correct: value.zip(known).is_some_and(|(value, known)| near(value, known)),
    }
}

/// Returns the program in a completion: its first code block, or all of it if there is none, up to the next question.
///
/// ```
/// use arithmo::eval::pot::program;
/// assert_eq!(program("\n```python\nprint(4)\n```\nDone."), "print(4)\n");
/// assert_eq!(program(" x = 4\nprint(x)\n\nQuestion: 1 + 1?"), "x = 4\nprint(x)");
/// assert_eq!(program("Question: 2 + 2?\n```\nprint(4)\n```"), "print(4)\n");
/// ```
pub fn program(completion: &str) -> &str {
    let text = before_next_question(completion);
    let Some((_, block)) = text.split_once("```") else {
        return text.trim();
    };
    // The rest of the line names the language.
    let block = block.split_once('\n').map_or("", |(_, program)| program);
    until(block, &["```"])
}

/// Returns the completion up to the next `Question:`. A restated question at its beginning does not end it.
fn before_next_question(completion: &str) -> &str {
    const MARK: &str = "Question:";
    let beginning = completion.len() - completion.trim_start().len();
    let restated = completion[beginning..].starts_with(MARK);
    let from = beginning + if restated { MARK.len() } else { 0 };
    let end = completion[from..].find(MARK).map(|end| from + end);
    &completion[..end.unwrap_or(completion.len())]
}

/// Runs the program of each prediction in `sandbox`, one per core at a time, and judges their output.
///
/// Each outcome is written to the file `partial` at once, so that the same call continues after an interruption: a program
/// with an outcome in it, under the same limits and interpreter, is not run again. The file is removed at the end.
///
/// # Errors
/// A process cannot be started, the disk is full, or the user interrupts.
pub fn run_programs(
    sandbox: &Sandbox,
    predictions: &[Prediction],
    partial: &Path,
    mode: ProgressMode,
) -> Result<(Vec<Judged>, Vec<Outcome>)> {
    let progress = Progress::new("programs", Some(predictions.len() as u64), "programs", mode);
    let programs: Vec<&str> = predictions.iter().map(|one| program(&one.completion)).collect();
    let mut store = OutcomeStore::open(partial, sandbox)?;
    let mut all: Vec<Option<(Judged, Outcome)>> = vec![None; programs.len()];
    let (mut done, mut correct) = (0, 0);
    let mut finished = |index: usize, outcome: Outcome| {
        let judged = judge(&predictions[index], programs[index], &outcome);
        done += 1;
        correct += usize::from(judged.verdicts["numeric"].correct);
        all[index] = Some((judged, outcome));
        progress.set_message(format!(
            "numeric {:.1} %",
            100.0 * f64::from(correct as u32) / f64::from(done)
        ));
        progress.inc(1);
    };
    let mut waiting = Vec::new();
    for (index, program) in programs.iter().enumerate() {
        match store.outcome(program) {
            Some(outcome) => finished(index, outcome),
            None => waiting.push((index, *program)),
        }
    }
    let ended = run_each(sandbox, &waiting, |index, outcome| {
        store.put(programs[index], &outcome)?;
        finished(index, outcome);
        Ok(())
    });
    if let Err(Error::Interrupted { .. }) = ended {
        let total = programs.len();
        return Err(Error::Interrupted {
            note: format!(
                "the outcomes of {done} of {total} programs are kept; run the same command again to continue"
            ),
        });
    }
    ended?;
    progress.finish();
    store.remove()?;
    Ok(all.into_iter().flatten().unzip())
}

/// A file of outcomes by the hash of their program, for continuing an interrupted call. Its first line is the conditions
/// under which the programs ran; each further line is one outcome.
struct OutcomeStore {
    path: PathBuf,
    file: File,
    outcomes: HashMap<String, Outcome>,
}

impl OutcomeStore {
    /// Opens the file at `path` and reads its outcomes. Outcomes under other conditions and damaged lines are dropped, so
    /// that their programs run again.
    ///
    /// This is not a [`Store`](super::store::Store), because outcomes are found by program, not by index: if some answers
    /// change between two calls, the programs of the others do not run again.
    fn open(path: &Path, sandbox: &Sandbox) -> Result<Self> {
        let conditions = serde_json::Value::from(sandbox.conditions()).to_string();
        let bytes = match input_file::read(path) {
            Ok(bytes) => bytes,
            Err(e) if e.kind() == io::ErrorKind::NotFound => Vec::new(),
            Err(e) => return Err(Error::io(path, "read", e)),
        };
        let text = String::from_utf8_lossy(&bytes);
        let mut lines = text.lines();
        let head = lines.next().unwrap_or_default();
        if !head.is_empty() && !head.starts_with('"') {
            let problem = "is not a file of programs' outcomes";
            return Err(Error::file(path, problem, "move it elsewhere, or give another --output"));
        }
        let outcomes: HashMap<String, Outcome> = lines
            .filter(|_| head == conditions)
            .filter_map(|line| serde_json::from_str::<(String, Outcome)>(line).ok())
            .collect();
        let mut whole = format!("{conditions}\n");
        for outcome in &outcomes {
            whole += &format!("{}\n", serde_json::json!(outcome));
        }
        write_whole(path, whole.as_bytes())?;
        let file = open_to_append(path)?;
        Ok(Self { path: path.to_path_buf(), file, outcomes })
    }

    fn outcome(&self, program: &str) -> Option<Outcome> {
        self.outcomes.get(&hash(program)).cloned()
    }

    fn put(&mut self, program: &str, outcome: &Outcome) -> Result<()> {
        let line = serde_json::json!((hash(program), outcome));
        let written = self.file.write_all(format!("{line}\n").as_bytes());
        written.map_err(|e| Error::io(&self.path, "write", e))
    }

    fn remove(self) -> Result<()> {
        remove(&self.path)
    }
}

fn hash(program: &str) -> String {
    hex(Sha256::digest(program.as_bytes()))
}

/// Runs each of `programs`, which are numbered, and calls `finished` with the number and the outcome. After an error, no new
/// program starts, but outcomes of programs that already run are still passed on.
fn run_each(
    sandbox: &Sandbox,
    programs: &[(usize, &str)],
    mut finished: impl FnMut(usize, Outcome) -> Result<()>,
) -> Result<()> {
    let workers = thread::available_parallelism().map_or(1, |cores| cores.get());
    let next = AtomicUsize::new(0);
    let (sender, results) = mpsc::channel();
    thread::scope(|scope| {
        for _ in 0..workers.min(programs.len()) {
            let (sender, next) = (sender.clone(), &next);
            scope.spawn(move || {
                while let Some((index, program)) =
                    programs.get(next.fetch_add(1, Ordering::Relaxed))
                {
                    // A program that starts after Ctrl-C is killed at once.
                    if sender.send((*index, sandbox.run(program))).is_err() {
                        return;
                    }
                }
            });
        }
        drop(sender);
        let mut ended = Ok(());
        for (index, outcome) in results {
            let counted = outcome.and_then(|outcome| finished(index, outcome));
            if counted.is_err() {
                next.store(programs.len(), Ordering::Relaxed);
                ended = ended.and(counted);
            }
        }
        ended
    })
}

/// Number of characters of an output that a page shows. `programs.json` has the whole output.
const MAX_SHOWN_CHARS: usize = 1000;

fn judge(prediction: &Prediction, program: &str, outcome: &Outcome) -> Judged {
    let verdict = |scorer: &Scorer| {
        let verdict = match outcome.output() {
            Some(output) => scorer.judge(&prediction.ground_truth, output),
            None => Verdict { answer: None, correct: false },
        };
        (scorer.name.to_string(), verdict)
    };
    let ending = match outcome {
        Outcome::Printed { output } => {
            format!("printed: {}", cut(output.trim_end(), MAX_SHOWN_CHARS))
        }
        Outcome::Failed { reason } => format!("failed: {reason}"),
    };
    Judged {
        question: prediction.question.clone(),
        ground_truth: prediction.ground_truth.clone(),
        completion: format!("{}\n\n# {ending}", program.trim_end()),
        finish_reason: prediction.finish_reason,
        subject: None,
        level: None,
        verdicts: POT_SCORERS.iter().map(verdict).collect::<BTreeMap<_, _>>(),
    }
}

/// Writes `programs.json`: each program with its outcome.
///
/// # Errors
/// The file cannot be written.
pub fn write_programs(path: &Path, predictions: &[Prediction], outcomes: &[Outcome]) -> Result<()> {
    #[derive(Serialize)]
    struct Row<'a> {
        question: &'a str,
        program: &'a str,
        #[serde(flatten)]
        outcome: &'a Outcome,
    }
    let rows = predictions.iter().zip(outcomes).map(|(one, outcome)| Row {
        question: &one.question,
        program: program(&one.completion),
        outcome,
    });
    write_json(path, &rows.collect::<Vec<_>>())
}
