//! Measures the time of a job: its rate and the remaining time.

use std::time::{Duration, Instant};

/// The start of a job and the time since then that does not count.
#[derive(Clone, Copy, Debug)]
pub(super) struct Clock {
    started: Instant,
    excluded: Duration,
    /// Units that were done before the start.
    first: u64,
    /// Fraction of the work that is done, if the units do not show it.
    share: Option<f64>,
}

impl Clock {
    pub(super) fn start() -> Self {
        Self { started: Instant::now(), excluded: Duration::ZERO, first: 0, share: None }
    }

    /// Restarts the clock with `position` units done.
    pub(super) fn begin_at(&mut self, position: u64) {
        *self = Self { first: position, ..Self::start() };
    }

    /// Sets the fraction of the work that is done.
    pub(super) fn set_share(&mut self, share: f64) {
        self.share = Some(share.clamp(0.0, 1.0));
    }

    /// Excludes a time from the job's time.
    pub(super) fn exclude(&mut self, time: Duration) {
        self.excluded += time;
    }

    /// Returns the time since the start without the excluded times.
    fn elapsed(&self) -> Duration {
        self.started.elapsed().saturating_sub(self.excluded)
    }

    /// Returns the units per second, or `None` before the first unit.
    pub(super) fn rate(&self, position: u64) -> Option<f64> {
        compute_rate(position.saturating_sub(self.first), self.elapsed())
    }

    /// Returns the time until `total` units are done, or `None` if it is unknown.
    pub(super) fn left(&self, position: u64, total: Option<u64>) -> Option<Duration> {
        let total = total?;
        if position >= total {
            return Some(Duration::ZERO);
        }
        let share = match self.share {
            Some(share) => share,
            None => {
                let done = position.saturating_sub(self.first) as f64;
                done / total.saturating_sub(self.first).max(1) as f64
            }
        };
        time_left(share, self.elapsed())
    }
}

/// Returns the units per second, or `None` before the first unit.
fn compute_rate(done: u64, elapsed: Duration) -> Option<f64> {
    (done > 0).then(|| done as f64 / elapsed.as_secs_f64().max(1e-9))
}

/// Returns the remaining time of a job of which the fraction `share` took `elapsed`.
fn time_left(share: f64, elapsed: Duration) -> Option<Duration> {
    let seconds = elapsed.as_secs_f64() * (1.0 - share) / share;
    (share > 0.0).then(|| Duration::try_from_secs_f64(seconds).ok()).flatten()
}

/// Formats a rate as `2.5 steps/s`, or `40.0 s/step` if a unit takes longer than a second; empty before the first
/// unit.
pub(super) fn rate(per_second: Option<f64>, unit: &str) -> String {
    match per_second {
        None => String::new(),
        Some(rate) if rate < 1.0 => {
            let one = unit.strip_suffix('s').unwrap_or(unit);
            format!("{:.1} s/{one}", 1.0 / rate)
        }
        Some(rate) => format!("{rate:.1} {unit}/s"),
    }
}

/// Progress of completing prompts, counted in tokens: prompts are decoded together, and the first may take long to
/// complete.
#[derive(Clone, Copy, Debug)]
pub struct TokenWork {
    prompts: usize,
    max_tokens: usize,
    tokens: usize,
    finished: usize,
    finished_tokens: usize,
}

impl TokenWork {
    /// Starts counting the work of `prompts` completions of at most `max_tokens` tokens each.
    pub fn new(prompts: usize, max_tokens: usize) -> Self {
        Self { prompts, max_tokens, tokens: 0, finished: 0, finished_tokens: 0 }
    }

    /// Counts new tokens of any completion.
    pub fn generated(&mut self, tokens: usize) {
        self.tokens += tokens;
    }

    /// Counts a completion that ended with `tokens` tokens, each of which is or will be counted by
    /// [`Self::generated`].
    pub fn finished(&mut self, tokens: usize) {
        self.finished += 1;
        self.finished_tokens += tokens;
    }

    /// Returns the fraction of the work that is done, from 0 to 1. The remaining completions are expected to be as
    /// long as the mean of the finished ones and one of full length, because short ones end first.
    pub fn share(&self) -> f64 {
        let expected = (self.finished_tokens + self.max_tokens) as f64 / (self.finished + 1) as f64;
        let open = self.prompts.saturating_sub(self.finished) as f64;
        let under_way = self.tokens.saturating_sub(self.finished_tokens) as f64;
        let left = (open * expected - under_way).max(if open > 0.0 { 1.0 } else { 0.0 });
        let done = self.tokens as f64;
        if done + left > 0.0 { done / (done + left) } else { 1.0 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slow_rates_are_seconds_per_unit() {
        assert_eq!(rate(Some(2.5), "steps"), "2.5 steps/s");
        assert_eq!(rate(Some(0.025), "steps"), "40.0 s/step");
        assert_eq!(rate(Some(0.5), "kB"), "2.0 s/kB");
        assert_eq!(rate(None, "prompts"), "");
        assert_eq!(compute_rate(0, Duration::from_secs(9)), None);
        assert_eq!(compute_rate(3, Duration::from_secs(6)), Some(0.5));
    }

    #[test]
    fn time_left_follows_from_the_share_that_is_done() {
        let seconds = Duration::from_secs;
        assert_eq!(time_left(0.25, seconds(10)), Some(seconds(30)));
        assert_eq!(time_left(1.0, seconds(10)), Some(seconds(0)));
        assert_eq!(time_left(0.0, seconds(10)), None);
        assert_eq!(time_left(1e-300, seconds(u64::from(u32::MAX))), None);
        let mut clock = Clock::start();
        assert_eq!(clock.left(0, Some(5)), None, "nothing is known before the first unit");
        assert_eq!(clock.left(5, Some(5)), Some(seconds(0)));
        assert_eq!(clock.left(1, None), None);
        clock.begin_at(3);
        assert_eq!(clock.rate(3), None, "what was done before took no time");
        assert!(clock.rate(4).is_some());
        // A unit is not done, but half of the work is.
        clock.set_share(0.5);
        assert!(clock.left(3, Some(4)).is_some());
    }

    #[test]
    fn excluded_time_does_not_count() {
        let mut clock = Clock::start();
        clock.exclude(Duration::from_secs(3600));
        assert_eq!(clock.elapsed(), Duration::ZERO);
    }

    #[test]
    fn completions_are_counted_in_tokens() {
        let mut work = TokenWork::new(4, 100);
        assert_eq!(work.share(), 0.0);
        // All four have 25 tokens each: a quarter of the maximum.
        work.generated(100);
        assert_eq!(work.share(), 0.25);
        // One ends with these 25: (25 + 100) / 2 are expected of the three others, which have 75 tokens already.
        work.finished(25);
        assert_eq!(work.share(), 100.0 / (100.0 + 3.0 * 62.5 - 75.0));
        for _ in 0..3 {
            work.finished(25);
        }
        assert_eq!(work.share(), 1.0);
        assert_eq!(TokenWork::new(0, 5).share(), 1.0);
    }
}
