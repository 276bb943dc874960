//! Progress of long jobs on stderr: a bar with rate and time left on a terminal, plain lines otherwise.

use std::cell::Cell;
use std::io::{IsTerminal, stderr};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

/// How often plain lines are printed when stderr is not a terminal.
const LINE_EVERY: Duration = Duration::from_secs(10);

/// Where progress goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ProgressMode {
    /// A bar, redrawn in place.
    Bar,
    /// A line every ten seconds.
    Lines,
    /// Nothing.
    Quiet,
}

impl ProgressMode {
    /// A bar on a terminal, lines otherwise, nothing when `quiet`.
    pub fn detect(quiet: bool) -> Self {
        match (quiet, stderr().is_terminal()) {
            (true, _) => Self::Quiet,
            (false, true) => Self::Bar,
            (false, false) => Self::Lines,
        }
    }
}

/// A counter of work done, shown to the user.
#[derive(Debug)]
pub struct Progress {
    bar: ProgressBar,
    mode: ProgressMode,
    label: String,
    unit: &'static str,
    last_line: Cell<Instant>,
}

impl Progress {
    /// Starts counting `total` units of `label` (`None`: unknown); `unit` as in `"rows"`.
    pub fn new(label: &str, total: Option<u64>, unit: &'static str, mode: ProgressMode) -> Self {
        let bar = match mode {
            ProgressMode::Bar => ProgressBar::new(total.unwrap_or(0)),
            _ => ProgressBar::with_draw_target(total, ProgressDrawTarget::hidden()),
        };
        let template = match total {
            Some(_) => "{prefix} {wide_bar} {pos}/{len} {per_sec} eta {eta} {msg}",
            None => "{prefix} {spinner} {pos} {per_sec} {elapsed} {msg}",
        };
        if let Ok(style) = ProgressStyle::with_template(template) {
            bar.set_style(style);
        }
        bar.set_prefix(label.to_string());
        Self { bar, mode, label: label.to_string(), unit, last_line: Cell::new(Instant::now()) }
    }

    /// Counts `n` more units.
    pub fn inc(&self, n: u64) {
        self.bar.inc(n);
        if self.mode == ProgressMode::Lines && self.last_line.get().elapsed() >= LINE_EVERY {
            self.line();
        }
    }

    /// Sets the count, as after resuming.
    pub fn set_position(&self, position: u64) {
        self.bar.set_position(position);
        self.bar.reset_eta();
    }

    /// Shows `message` behind the bar, as `loss 0.69 acc 0.5`.
    pub fn set_message(&self, message: String) {
        self.bar.set_message(message);
    }

    /// Prints a line of its own without tearing the bar.
    pub fn println(&self, line: &str) {
        match self.mode {
            ProgressMode::Bar => self.bar.println(line),
            ProgressMode::Lines => eprintln!("{line}"),
            ProgressMode::Quiet => {}
        }
    }

    /// Ends the bar; in lines mode prints the last state.
    pub fn finish(self) {
        if self.mode == ProgressMode::Lines {
            self.line();
        }
        self.bar.finish_and_clear();
    }

    fn line(&self) {
        self.last_line.set(Instant::now());
        let total = self.bar.length().map(|total| format!("/{total}")).unwrap_or_default();
        let (done, message) = (self.bar.position(), self.bar.message());
        let (label, unit, rate) = (&self.label, self.unit, self.bar.per_sec());
        let left = match self.bar.length() {
            Some(_) => format!(", {} s left", self.bar.eta().as_secs()),
            None => String::new(),
        };
        eprintln!("{label}: {done}{total} {unit}, {rate:.1} {unit}/s{left} {message}");
    }
}
