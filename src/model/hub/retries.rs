//! Decides when a broken download is retried and when it is given up.

use std::time::{Duration, Instant};

/// Maximum number of connections per file, whatever progress they make.
const MAX_CONNECTIONS: u32 = 1000;
/// Number of bytes that count as progress: this, or a 64th of a smaller file.
const STEP: u64 = 1 << 20;
/// Number of timeouts without progress after which a download is given up.
const PATIENCE: u32 = 2;

/// The history of one file's download. A server that sends the same part again and again makes no progress: only
/// bytes beyond the longest part so far count.
#[derive(Debug)]
pub(super) struct Retries {
    /// Maximum number of consecutive connections without progress.
    allowed: u32,
    patience: Duration,
    step: u64,
    /// Length at the last progress, and its time.
    reached: u64,
    since: Instant,
    without_progress: u32,
    connections: u32,
}

impl Retries {
    /// Starts the history of a download at `length`, of a file of `size` bytes if that is known.
    pub(super) fn new(
        allowed: u32,
        timeout: Duration,
        size: Option<u64>,
        length: u64,
        now: Instant,
    ) -> Self {
        Self {
            allowed,
            patience: timeout * PATIENCE,
            step: size.map_or(STEP, |size| (size / 64).clamp(1, STEP)),
            reached: length,
            since: now,
            without_progress: 0,
            connections: 0,
        }
    }

    /// Counts a connection that broke when the file was `length` bytes long and whose last bytes arrived at `last`.
    /// Returns how long to wait before the next one, or `None` if the download is to be given up.
    pub(super) fn again(&mut self, length: u64, last: Instant, now: Instant) -> Option<Duration> {
        self.connections += 1;
        if length >= self.reached.saturating_add(self.step) {
            (self.reached, self.since) = (length, last);
            self.without_progress = 0;
        } else {
            self.without_progress += 1;
        }
        let retry = self.allowed > 0
            && self.without_progress < self.allowed
            && self.connections < MAX_CONNECTIONS
            && now.duration_since(self.since) < self.patience;
        retry.then(|| Duration::from_millis(200 << self.without_progress.min(5)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TIMEOUT: Duration = Duration::from_secs(60);

    /// Returns the number of connections, one per second, to a server that breaks off at these lengths.
    fn connections(size: Option<u64>, lengths: impl Iterator<Item = u64>) -> usize {
        let now = Instant::now();
        let mut retries = Retries::new(5, TIMEOUT, size, 0, now);
        let mut seconds = (1..).map(Duration::from_secs);
        lengths
            .take_while(|length| {
                let now = now + seconds.next().unwrap_or_default();
                retries.again(*length, now, now).is_some()
            })
            .count()
            + 1
    }

    #[test]
    fn a_download_that_gets_nowhere_ends() {
        let size = Some(560_488);
        assert_eq!(connections(size, std::iter::repeat(0)), 5);
        // Alternating lengths, without ranges.
        assert_eq!(connections(size, [150, 200, 250, 100].into_iter().cycle()), 5);
        // One byte per connection.
        assert_eq!(connections(size, 1..), 5);
        assert_eq!(connections(None, 1..), 5);
        // The longest part counts once: the same 100,000 bytes are progress only the first time.
        assert_eq!(connections(size, std::iter::repeat(100_000)), 6);
    }

    #[test]
    fn a_download_that_gets_farther_goes_on() {
        let size = Some(1 << 40);
        let lengths = (1..).map(|connection| connection << 20);
        assert_eq!(connections(size, lengths), 1000);
        let size = Some(300_001);
        assert_eq!(connections(size, [150_000, 225_000, 262_500].into_iter()), 4);
    }

    #[test]
    fn waiting_ends_after_two_time_outs() {
        let now = Instant::now();
        let mut retries = Retries::new(5, TIMEOUT, None, 0, now);
        assert!(retries.again(0, now, now + TIMEOUT).is_some());
        assert!(retries.again(0, now, now + 2 * TIMEOUT).is_none());
        // The time without progress starts with the last bytes, not with the end of the silence after them.
        let mut retries = Retries::new(5, TIMEOUT, None, 0, now);
        assert!(retries.again(1 << 30, now, now + TIMEOUT).is_some());
        assert!(retries.again(1 << 30, now, now + 2 * TIMEOUT).is_none());
    }

    #[test]
    fn no_retry_is_made_where_none_is_allowed() {
        let now = Instant::now();
        assert!(Retries::new(0, TIMEOUT, None, 0, now).again(1 << 30, now, now).is_none());
    }
}
