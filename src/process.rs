//! Sets up the process to compute on the CPU: its memory and its threads.

/// Configures the allocator and the thread pool; the main thread must call it before it computes or starts a thread.
pub fn set_up() {
    keep_freed_memory();
    // The main thread becomes one of the pool's workers, so that it starts the work it distributes without waking
    // another thread. On one core it is the only worker. A thread that the main thread waits for must therefore not
    // use the pool: each would wait for the other. An existing pool stays as it is.
    let _ = rayon::ThreadPoolBuilder::new().use_current_thread().build_global();
}

/// Makes the C library keep freed memory instead of returning it to the system, which would hand it out again page by
/// page: activations of the same size are allocated and freed thousands of times in a run.
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
