//! Keeps the threads awake while a model decodes.
//!
//! A step of decoding is some dozens of products of a few ten microseconds each, with a little work of one thread between
//! them. A thread that falls asleep there takes as long to wake as a product lasts.

use std::hint::spin_loop;
use std::sync::LazyLock;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Instant;

/// Microseconds a thread looks for work after the last product.
const PATIENCE: u64 = 300;

/// Microseconds since the first use.
fn now() -> u64 {
    static START: LazyLock<Instant> = LazyLock::new(Instant::now);
    START.elapsed().as_micros() as u64
}

/// Has the pool's other threads look for work without sleeping, for a while from now.
pub(super) fn keep_awake() {
    static UNTIL: AtomicU64 = AtomicU64::new(0);
    // Threads that watch; nobody is asked again before all have stopped.
    static WATCHING: AtomicUsize = AtomicUsize::new(0);
    UNTIL.store(now() + PATIENCE, Ordering::Relaxed);
    let caller = rayon::current_thread_index();
    let others = rayon::current_num_threads() - usize::from(caller.is_some());
    let asked = WATCHING.compare_exchange(0, others, Ordering::Relaxed, Ordering::Relaxed);
    if others == 0 || asked.is_err() {
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
        WATCHING.fetch_sub(1, Ordering::Relaxed);
    });
}
