//! Program of thought (arXiv 2211.12588): the model writes a Python program, and what the program prints is the answer.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc;
use std::thread;

use num_traits::ToPrimitive;
use serde::Serialize;

use super::answers::{Scorer, Verdict, completion_of, final_number, gsm8k_answer, until};
use super::judged::Judged;
use super::predictions::{Prediction, write_json};
use super::sandbox::{Outcome, Sandbox};
use crate::error::{Error, Result};
use crate::interrupt;
use crate::progress::{Progress, ProgressMode};

/// The scorers of a program's output. A program that fails is wrong whatever it printed before.
pub const POT_SCORERS: [Scorer; 2] = [
    Scorer::new(
        "arithmo",
        "the first printed line as a float, fractions divided; letters or spaces in it are wrong (Arithmo's published rule)",
        arithmo,
    ),
    Scorer::new(
        "numeric",
        "the number in the last printed line, by value, within a millionth: programs compute in floats",
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

/// `27/3` and `9.0` are 9; what has letters or spaces is no number.
fn printed_float(line: &str) -> Option<f64> {
    if line.contains(|c: char| c.is_alphabetic() || c == ' ') {
        return None;
    }
    match line.split_once('/') {
        Some((above, below)) => {
            let below: f64 = below.parse().ok().filter(|below| *below != 0.0)?;
            Some(above.parse::<f64>().ok()? / below)
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

/// The program in a completion: in its first code block if there is one, up to a next question.
///
/// ```
/// use arithmo::eval::pot::program;
/// assert_eq!(program("\n```python\nprint(4)\n```\nDone."), "print(4)\n");
/// assert_eq!(program(" x = 4\nprint(x)\n\nQuestion: 1 + 1?"), "x = 4\nprint(x)");
/// ```
pub fn program(completion: &str) -> &str {
    let text = until(completion, &["Question:"]);
    let Some((_, block)) = text.split_once("```") else {
        return text.trim();
    };
    // The rest of the line names the language.
    let block = block.split_once('\n').map_or("", |(_, program)| program);
    until(block, &["```"])
}

/// Runs the program of each prediction in `sandbox`, as many at a time as there are cores, and judges what they print.
///
/// # Errors
/// A process cannot be started; or the user interrupts.
pub fn run_programs(
    sandbox: &Sandbox,
    predictions: &[Prediction],
    mode: ProgressMode,
) -> Result<(Vec<Judged>, Vec<Outcome>)> {
    let progress = Progress::new("programs", Some(predictions.len() as u64), "programs", mode);
    let programs: Vec<&str> = predictions
        .iter()
        .map(|one| program(completion_of(&one.question, &one.prediction)))
        .collect();
    let mut all: Vec<Option<(Judged, Outcome)>> = vec![None; programs.len()];
    let (mut done, mut correct) = (0, 0);
    run_each(sandbox, &programs, |index, outcome| {
        let judged = judge(&predictions[index], programs[index], &outcome);
        done += 1;
        correct += usize::from(judged.verdicts["numeric"].correct);
        all[index] = Some((judged, outcome));
        progress.set_message(format!(
            "numeric {:.1} %",
            100.0 * f64::from(correct as u32) / f64::from(done)
        ));
        progress.inc(1);
    })?;
    progress.finish();
    Ok(all.into_iter().flatten().unzip())
}

fn run_each(
    sandbox: &Sandbox,
    programs: &[&str],
    mut finished: impl FnMut(usize, Outcome),
) -> Result<()> {
    let workers = thread::available_parallelism().map_or(1, |cores| cores.get());
    let next = AtomicUsize::new(0);
    let (sender, results) = mpsc::channel();
    thread::scope(|scope| {
        for _ in 0..workers {
            let (sender, next) = (sender.clone(), &next);
            scope.spawn(move || {
                while let Some((index, program)) = {
                    let index = next.fetch_add(1, Ordering::Relaxed);
                    programs.get(index).map(|program| (index, program))
                } {
                    let outcome = match interrupt::requested() {
                        true => Err(Error::Interrupted {
                            note: "programs were stopped; the same command goes on".into(),
                        }),
                        false => sandbox.run(program),
                    };
                    // The receiver is gone once one has failed.
                    if sender.send((index, outcome)).is_err() {
                        return;
                    }
                }
            });
        }
        drop(sender);
        // Taken over, so that an error lets go of the workers.
        let results = results;
        for (index, outcome) in &results {
            finished(index, outcome?);
        }
        Ok(())
    })
}

fn judge(prediction: &Prediction, program: &str, outcome: &Outcome) -> Judged {
    let verdict = |scorer: &Scorer| {
        let verdict = match outcome.output() {
            Some(output) => scorer.judge(&prediction.ground_truth, output),
            None => Verdict { answer: None, correct: false },
        };
        (scorer.name.to_string(), verdict)
    };
    let ending = match outcome {
        Outcome::Printed { output } => format!("printed: {}", output.trim_end()),
        Outcome::Failed { reason } => format!("failed: {reason}"),
    };
    Judged {
        question: prediction.question.clone(),
        ground_truth: prediction.ground_truth.clone(),
        completion: format!("{}\n\n# {ending}", program.trim_end()),
        subject: None,
        level: None,
        verdicts: POT_SCORERS.iter().map(verdict).collect::<BTreeMap<_, _>>(),
    }
}

/// Writes `programs.json`: each program with what became of it.
///
/// # Errors
/// The disk is full.
pub fn write_programs(path: &Path, predictions: &[Prediction], outcomes: &[Outcome]) -> Result<()> {
    #[derive(Serialize)]
    struct Ran<'a> {
        question: &'a str,
        program: &'a str,
        #[serde(flatten)]
        outcome: &'a Outcome,
    }
    let ran = predictions.iter().zip(outcomes).map(|(one, outcome)| Ran {
        question: &one.question,
        program: program(completion_of(&one.question, &one.prediction)),
        outcome,
    });
    write_json(path, &ran.collect::<Vec<_>>())
}
