//! Shows the progress of long jobs on stderr: a bar with rate and remaining time on a terminal, plain lines
//! otherwise.

mod clock;

use std::cell::{Cell, RefCell};
use std::fmt::Write;
use std::io::{IsTerminal, stderr};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressState, ProgressStyle};

pub use clock::TokenWork;
use clock::{Clock, rate};

/// Interval between plain lines if stderr is not a terminal.
const LINE_EVERY: Duration = Duration::from_secs(10);

/// How progress is shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ProgressMode {
    /// A bar that is redrawn in place.
    Bar,
    /// A line every ten seconds.
    Lines,
    /// Nothing.
    Quiet,
}

impl ProgressMode {
    /// Returns a bar on a terminal, lines otherwise, and nothing if `quiet` is set.
    pub fn detect(quiet: bool) -> Self {
        match (quiet, stderr().is_terminal()) {
            (true, _) => Self::Quiet,
            (false, true) => Self::Bar,
            (false, false) => Self::Lines,
        }
    }
}

/// A counter of completed work, shown to the user.
#[derive(Debug)]
pub struct Progress {
    bar: ProgressBar,
    mode: ProgressMode,
    label: String,
    unit: &'static str,
    clock: Arc<Mutex<Clock>>,
    last_line: Cell<Instant>,
    /// Position and message of the last plain line.
    printed: RefCell<Option<(u64, String)>>,
}

impl Progress {
    /// Starts counting up to `total` (`None` if unknown) under the name `label`; `unit` names what is counted, such
    /// as `"rows"`.
    pub fn new(label: &str, total: Option<u64>, unit: &'static str, mode: ProgressMode) -> Self {
        let bar = match mode {
            ProgressMode::Bar => ProgressBar::new(total.unwrap_or(0)),
            _ => ProgressBar::with_draw_target(total, ProgressDrawTarget::hidden()),
        };
        let clock = Arc::new(Mutex::new(Clock::start()));
        let template = match total {
            Some(_) => "{prefix} {wide_bar} {pos}/{len} {rate}{left} {msg}",
            None => "{prefix} {spinner} {pos} {rate} {elapsed} {msg}",
        };
        if let Ok(style) = ProgressStyle::with_template(template) {
            let (for_rate, for_left) = (Arc::clone(&clock), Arc::clone(&clock));
            let style = style
                .with_key("rate", move |state: &ProgressState, out: &mut dyn Write| {
                    let text = with_clock(&for_rate, |clock| clock.rate(state.pos()));
                    let _ = out.write_str(&rate(text, unit));
                })
                .with_key("left", move |state: &ProgressState, out: &mut dyn Write| {
                    let left = with_clock(&for_left, |clock| clock.left(state.pos(), state.len()));
                    let _ = out.write_str(&time_left_text(left));
                });
            bar.set_style(style);
        }
        bar.set_prefix(label.to_string());
        Self {
            bar,
            mode,
            label: label.to_string(),
            unit,
            clock,
            last_line: Cell::new(Instant::now()),
            printed: RefCell::new(None),
        }
    }

    /// Adds `n` to the count.
    pub fn inc(&self, n: u64) {
        self.bar.inc(n);
        self.line_if_due();
    }

    /// Sets the count, for example after resuming; the work counted so far took no time.
    pub fn set_position(&self, position: u64) {
        with_clock(&self.clock, |clock| clock.begin_at(position));
        self.bar.set_position(position);
    }

    /// Sets the fraction of the work that is done, from 0 to 1, if the counted units are too few and too large to
    /// show it. The remaining time is computed from it.
    pub fn set_share(&self, share: f64) {
        with_clock(&self.clock, |clock| clock.set_share(share));
        self.line_if_due();
    }

    /// Runs `job`, whose time does not count as work.
    pub fn pause<T>(&self, job: impl FnOnce() -> T) -> T {
        let started = Instant::now();
        let result = job();
        with_clock(&self.clock, |clock| clock.exclude(started.elapsed()));
        result
    }

    /// Shows `message` behind the bar, such as `loss 0.69 acc 0.5`.
    pub fn set_message(&self, message: String) {
        self.bar.set_message(message);
    }

    /// Prints a separate line without breaking the bar.
    pub fn println(&self, line: &str) {
        match self.mode {
            ProgressMode::Bar => self.bar.println(line),
            ProgressMode::Lines => say!("{line}"),
            ProgressMode::Quiet => {}
        }
    }

    /// Ends the bar; in lines mode, prints the final state unless a line showed it already.
    pub fn finish(self) {
        self.finish_with(&[]);
    }

    /// Ends the bar like [`Self::finish`] and prints `lines`, such as a table, below.
    pub fn finish_with(self, lines: &[String]) {
        let state = (self.bar.position(), self.bar.message());
        if self.mode == ProgressMode::Lines && *self.printed.borrow() != Some(state) {
            self.line();
        }
        self.bar.finish_and_clear();
        for line in lines {
            self.println(line);
        }
    }

    /// Prints a line if the last one is old enough.
    fn line_if_due(&self) {
        if self.mode == ProgressMode::Lines && self.last_line.get().elapsed() >= LINE_EVERY {
            self.line();
        }
    }

    /// Prints the current state as a plain line.
    fn line(&self) {
        self.last_line.set(Instant::now());
        let length = self.bar.length();
        let total = length.map(|total| format!("/{total}")).unwrap_or_default();
        let (done, message) = (self.bar.position(), self.bar.message());
        let (per_second, left) =
            with_clock(&self.clock, |clock| (clock.rate(done), clock.left(done, length)));
        let (label, unit, rate, left) =
            (&self.label, self.unit, rate(per_second, self.unit), time_left_text(left));
        let comma = if rate.is_empty() { "" } else { ", " };
        say!("{label}: {done}{total} {unit}{comma}{rate}{left} {message}");
        *self.printed.borrow_mut() = Some((done, message));
    }
}

/// Calls `job` with the clock. A panic in another thread leaves the clock usable, because it only holds times.
fn with_clock<T>(clock: &Mutex<Clock>, job: impl FnOnce(&mut Clock) -> T) -> T {
    let mut clock = clock.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    job(&mut clock)
}

/// Formats the remaining time as `, 12 s left`; empty if it is unknown.
fn time_left_text(left: Option<Duration>) -> String {
    left.map_or(String::new(), |left| format!(", {} s left", left.as_secs()))
}
