//! The CUDA backend without a card: what a training step would launch, and whether CUDA's compiler accepts it
//! (docs/gpu-testing.md).
#![cfg(feature = "dry-cuda")]
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]
#![allow(
    clippy::print_stdout,
    reason = "the numbers that are not in the tables, for a reader with --nocapture"
)]

mod compiled;
mod executed;
mod golden;
mod launches;
mod learner;
#[path = "../suite/mod.rs"]
mod suite;

/// Returns whether nothing can be tested in this build: autotuning chooses kernels by their time, and nothing is
/// executed here.
fn is_autotuned() -> bool {
    let autotuned = cfg!(feature = "autotune");
    if autotuned {
        eprintln!("SKIPPED: build with --no-default-features --features ndarray,dry-cuda");
    }
    autotuned
}
