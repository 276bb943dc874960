//! How the process is set up to compute on the CPU: its memory and its threads.

/// To be called by the main thread, before it computes anything or starts a thread.
pub fn set_up() {
    keep_freed_memory();
    // This thread is one of those that compute: what it shares out it begins with itself, without waking another. Should
    // the pool exist already, it stays as it is.
    let _ = rayon::ThreadPoolBuilder::new().use_current_thread().build_global();
}

/// Has the C library keep what is freed instead of handing it back to the system, which would give it out again page by
/// page: activations of the same size come and go thousands of times in a run.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
#[allow(
    unsafe_code,
    reason = "a call of the C library that only sets two numbers, before any other thread is there"
)]
fn keep_freed_memory() {
    unsafe {
        libc::mallopt(libc::M_MMAP_THRESHOLD, 1 << 30);
        libc::mallopt(libc::M_TRIM_THRESHOLD, i32::MAX);
    }
}

#[cfg(not(all(target_os = "linux", target_env = "gnu")))]
fn keep_freed_memory() {}
