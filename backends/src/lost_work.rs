//! Notices work that a GPU runtime lost without returning an error, so that no step passes whose kernels did not run.
//!
//! CubeCL runs a device's work in a thread of its own. If a task panics there (memory that cannot be allocated, for
//! example), that thread only logs a warning and goes on with the next task; whoever waits for the result gets what the
//! memory held before.

use std::sync::Once;
use std::sync::atomic::{AtomicBool, Ordering};

use log::{Level, LevelFilter, Log, Metadata, Record};

/// The start of CubeCL's warning (cubecl-common 0.10, device/handle/channel.rs).
const WARNING: &str = "Task failed";

static LOST: AtomicBool = AtomicBool::new(false);

/// Starts to notice. Later calls do nothing, and so does the first one if the process has a logger already.
pub(crate) fn notice() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        if log::set_logger(&Listener).is_ok() {
            log::set_max_level(LevelFilter::Warn);
        }
    });
}

/// Returns whether a GPU runtime has lost work since the program started. What was computed after it may be wrong. The
/// panic's own message stands on stderr.
pub fn lost_work() -> bool {
    LOST.load(Ordering::Relaxed)
}

/// Runs a probe whose caller handles its failure: work that it loses does not count.
pub(crate) fn forgive<T>(probe: impl FnOnce() -> T) -> T {
    let before = lost_work();
    let result = probe();
    LOST.store(before, Ordering::Relaxed);
    result
}

/// A logger that looks for [`WARNING`] and prints nothing.
struct Listener;

impl Log for Listener {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.level() <= Level::Warn && metadata.target().starts_with("cubecl_common::device")
    }

    fn log(&self, record: &Record<'_>) {
        if self.enabled(record.metadata()) && record.args().to_string().starts_with(WARNING) {
            LOST.store(true, Ordering::Relaxed);
        }
    }

    fn flush(&self) {}
}

#[cfg(all(test, feature = "wgpu"))]
mod tests {
    use cubecl::Runtime;
    use cubecl::device::Device;
    use cubecl::device_handle::DeviceHandle;
    use cubecl::wgpu::WgpuRuntime;

    use super::*;

    /// The one test of its kind: what is lost stays lost for the process.
    #[test]
    fn a_panic_in_the_devices_thread_is_noticed() {
        notice();
        let device = Default::default();
        let _ = WgpuRuntime::client(&device);
        assert!(!lost_work());
        let server = DeviceHandle::<<WgpuRuntime as Runtime>::Server>::new(Device::to_id(&device));
        let lose = || {
            server.submit(|_| panic!("no memory"));
            let _ = server.submit_blocking(|_| ());
        };
        forgive(lose);
        assert!(!lost_work());
        lose();
        assert!(lost_work());
    }
}
