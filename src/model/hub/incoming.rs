//! Reads a response body such that neither silence nor a trickle keeps the user waiting, and that Ctrl-C stops it.

use std::io::{self, Read};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant};

use ureq::Body;

use crate::interrupt;

/// Minimum rate of a response body, in bytes per second; a slower one is given up.
pub(super) const MIN_RATE: u64 = 1000;

/// Interval at which waiting functions check for Ctrl-C.
const POLL_INTERVAL: Duration = Duration::from_millis(50);

/// The reason why a response body ended early.
#[derive(Debug)]
pub(super) enum BodyError {
    /// The connection broke, or nothing arrived in time.
    Broken(String),
    /// The body arrived too slowly.
    TooSlow(String),
    /// The user asked to stop.
    Interrupted,
}

/// Runs `work` in another thread and returns its result, or `None` if the user asks to stop; the thread is then left
/// behind.
pub(super) fn unless_interrupted<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> Option<T> {
    let (sender, result) = mpsc::sync_channel(1);
    thread::spawn(move || sender.send(work()));
    loop {
        match result.recv_timeout(POLL_INTERVAL) {
            Ok(value) => return Some(value),
            Err(RecvTimeoutError::Timeout) if !interrupt::requested() => {}
            Err(_) => return None,
        }
    }
}

/// Waits for `time`; returns `false` if the user asks to stop earlier.
pub(super) fn pause(time: Duration) -> bool {
    let end = Instant::now() + time;
    while Instant::now() < end && !interrupt::requested() {
        thread::sleep(POLL_INTERVAL.min(time));
    }
    !interrupt::requested()
}

/// A response body that arrives in blocks.
pub(super) struct Incoming {
    blocks: Receiver<io::Result<Vec<u8>>>,
    timeout: Duration,
    pace: Pace,
}

impl Incoming {
    /// Starts reading. `timeout` is both the longest silence and the window over which the rate is measured.
    pub(super) fn start(body: Body, timeout: Duration) -> Self {
        Self::read(body.into_reader(), timeout)
    }

    /// Starts the thread that reads `body`.
    fn read(mut body: impl Read + Send + 'static, timeout: Duration) -> Self {
        // The channel is short, so that no more is fetched than can be written.
        let (sender, blocks) = mpsc::sync_channel(4);
        thread::spawn(move || {
            loop {
                let mut block = vec![0; 1 << 16];
                let read = match body.read(&mut block) {
                    Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
                    read => read.map(|bytes| {
                        block.truncate(bytes);
                        block
                    }),
                };
                let last = read.as_ref().map_or(true, Vec::is_empty);
                // The receiver is gone, or the body has ended.
                if sender.send(read).is_err() || last {
                    return;
                }
            }
        });
        Self { blocks, timeout, pace: Pace::new(timeout, Instant::now()) }
    }

    /// Returns the next bytes; empty at the end of the body.
    ///
    /// # Errors
    /// The connection breaks, is silent or too slow, or the user asks to stop.
    pub(super) fn next(&mut self) -> Result<Vec<u8>, BodyError> {
        let begin = Instant::now();
        loop {
            if interrupt::requested() {
                return Err(BodyError::Interrupted);
            }
            match self.blocks.recv_timeout(POLL_INTERVAL) {
                Ok(Ok(block)) => {
                    if block.is_empty() || self.pace.is_fast_enough(block.len(), Instant::now()) {
                        return Ok(block);
                    }
                    let seconds = self.timeout.as_secs_f64();
                    return Err(BodyError::TooSlow(format!(
                        "fewer than {MIN_RATE} bytes per second arrived within {seconds} s"
                    )));
                }
                Ok(Err(e)) => return Err(BodyError::Broken(e.to_string())),
                Err(RecvTimeoutError::Disconnected) => {
                    return Err(BodyError::Broken("the connection ended".into()));
                }
                Err(RecvTimeoutError::Timeout) if begin.elapsed() >= self.timeout => {
                    let seconds = self.timeout.as_secs_f64();
                    return Err(BodyError::Broken(format!("nothing came for {seconds} s")));
                }
                Err(RecvTimeoutError::Timeout) => {}
            }
        }
    }
}

/// Checks that bytes arrive at [`MIN_RATE`] or faster, measured over consecutive windows of time.
#[derive(Debug)]
struct Pace {
    window: Duration,
    begin: Instant,
    bytes: u64,
}

impl Pace {
    fn new(window: Duration, now: Instant) -> Self {
        Self { window, begin: now, bytes: 0 }
    }

    /// Counts bytes that arrived at `now`; returns `false` if the window that ends with them had too few.
    fn is_fast_enough(&mut self, bytes: usize, now: Instant) -> bool {
        self.bytes += bytes as u64;
        let elapsed = now.duration_since(self.begin);
        if elapsed < self.window {
            return true;
        }
        let enough = self.bytes as f64 >= MIN_RATE as f64 * self.window.as_secs_f64();
        (self.begin, self.bytes) = (now, 0);
        enough
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_trickle_does_not_keep_up() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut pace = Pace::new(Duration::from_secs(60), start);
        // One byte per second is noticed after one window.
        assert!((1..60).all(|second| pace.is_fast_enough(1, at(second))));
        assert!(!pace.is_fast_enough(1, at(60)));
        // Bursts count by their average.
        let mut pace = Pace::new(Duration::from_secs(60), start);
        assert!(pace.is_fast_enough(59_999, at(1)));
        assert!(pace.is_fast_enough(1, at(60)));
        assert!(pace.is_fast_enough(1, at(61)));
        assert!(!pace.is_fast_enough(59_998, at(120)));
    }

    #[test]
    fn blocks_come_in_order_up_to_the_end() {
        let bytes: Vec<u8> = (0..200_000_u32).map(|i| (i % 251) as u8).collect();
        let mut incoming = Incoming::read(io::Cursor::new(bytes.clone()), Duration::from_secs(60));
        let mut all = Vec::new();
        loop {
            let block = incoming.next().unwrap();
            if block.is_empty() {
                break;
            }
            all.extend(block);
        }
        assert_eq!(all, bytes);
    }

    #[test]
    fn silence_ends_in_an_error() {
        struct Silent;
        impl Read for Silent {
            fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
                thread::sleep(Duration::from_secs(20));
                Ok(0)
            }
        }
        let mut incoming = Incoming::read(Silent, Duration::from_millis(200));
        let error = incoming.next().unwrap_err();
        assert!(
            matches!(&error, BodyError::Broken(said) if said == "nothing came for 0.2 s"),
            "{error:?}"
        );
    }
}
