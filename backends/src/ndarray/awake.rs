//! Keeps the threads awake while a model decodes.
//!
//! A step of decoding consists of dozens of GEMMs that take tens of microseconds each, with a
//! little single-threaded work between them. A thread that falls asleep in between takes as long to
//! wake as a GEMM lasts.

use std::hint::spin_loop;
use std::sync::LazyLock;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Instant;

/// Microseconds for which a thread looks for work after the last GEMM.
const SPIN_MICROSECONDS: u64 = 300;

/// Returns the microseconds since the first call.
fn now() -> u64 {
    static START: LazyLock<Instant> = LazyLock::new(Instant::now);
    START.elapsed().as_micros() as u64
}

/// Makes the other threads of the pool look for work without sleeping for a while.
pub(super) fn keep_awake() {
    static UNTIL: AtomicU64 = AtomicU64::new(0);
    // Number of spinning threads; no new ones are started before all have stopped.
    static SPINNING: AtomicUsize = AtomicUsize::new(0);
    UNTIL.store(now() + SPIN_MICROSECONDS, Ordering::Relaxed);
    let caller = rayon::current_thread_index();
    let others = rayon::current_num_threads() - usize::from(caller.is_some());
    let claimed = SPINNING.compare_exchange(0, others, Ordering::Relaxed, Ordering::Relaxed);
    if others == 0 || claimed.is_err() {
        return;
    }
    rayon::spawn_broadcast(move |thread| {
        if Some(thread.index()) == caller {
            return;
        }
        while now() < UNTIL.load(Ordering::Relaxed) {
            if rayon::yield_now() != Some(rayon::Yield::Executed) {
                spin_loop();
            }
        }
        SPINNING.fetch_sub(1, Ordering::Relaxed);
    });
}
