//! Code shared by the wgpu and cuda backends. Its kernels are written in CubeCL.

pub(crate) mod adamw;
pub(crate) mod adapted_linear;
pub(crate) mod attention;
mod branch;
pub(crate) mod clip;
pub(crate) mod gated;
pub(crate) mod head_norm;
pub(crate) mod launch;
pub(crate) mod log_probs;
pub(crate) mod many;
pub(crate) mod matmul;
pub(crate) mod operations;
pub(crate) mod packed;
#[cfg(all(test, feature = "wgpu"))]
pub(crate) mod pitched;
pub(crate) mod queue;
pub(crate) mod rms_norm;
pub(crate) mod rope;
pub(crate) mod runtime;
mod weight;

use std::cell::Cell;
use std::panic::{self, AssertUnwindSafe};
use std::sync::{Arc, Mutex, PoisonError};

use burn::tensor::{Tensor, backend::Backend};
use cubecl::Runtime;

use crate::{Allocation, lost_work};

/// Returns the bytes that the CubeCL runtime has reserved on the device for the calling thread: tensors, weights and
/// memory pools together.
///
/// This is also the peak. Pools grow page by page and return memory only on an explicit clean-up, which this project
/// never requests. Every thread has its own pools, so call this from the thread that computes.
pub(crate) fn reserved_bytes<R: Runtime>(device: &R::Device) -> Option<u64> {
    R::client(device).memory_usage().ok().map(|usage| usage.bytes_reserved)
}

/// Describes how the CubeCL runtime allocates memory on `device`: in pools, with this page size and alignment.
pub(crate) fn pool_allocation<R: Runtime>(device: &R::Device) -> Allocation {
    let client = R::client(device);
    let memory = &client.properties().memory;
    Allocation::Pools { page: memory.max_page_size, alignment: memory.alignment }
}

/// Returns whether the environment variable `ARITHMO_AUTOTUNE` asks for kernels to be timed at first use (`1`) or not
/// (`0`); `None` leaves it to the backend.
pub(crate) fn autotune_setting() -> Option<bool> {
    match std::env::var("ARITHMO_AUTOTUNE").ok()?.as_str() {
        "1" => Some(true),
        "0" => Some(false),
        _ => None,
    }
}

/// Computes `1 + 1` on `device` and checks the result.
///
/// # Errors
/// Returns the runtime's own message if the computation fails, or the sum if it is wrong.
pub(crate) fn compute_once<B: Backend>(device: &B::Device) -> Result<(), String> {
    let sum = catch_panic(AssertUnwindSafe(|| {
        let one = Tensor::<B, 1>::ones([1], device);
        let data = (one.clone() + one).try_into_data();
        data.map(|data| data.iter::<f32>().next())
    }))?;
    match sum {
        Ok(Some(2.0)) => Ok(()),
        Ok(sum) => Err(format!("computes 1 + 1 = {sum:?}")),
        Err(error) => Err(format!("computes nothing: {error:?}")),
    }
}

/// The error text for a panic that carries no message.
const NO_MESSAGE: &str = "panicked without a message";

/// Runs `probe` and turns a panic into an error that holds the first line of its message. Nothing is printed.
///
/// The runtimes panic where a driver or a library is missing, mostly in a thread of their own. The first message,
/// from whichever thread, is the cause; later ones only follow from it. `probe` may call this function again: the
/// inner call takes no lock.
pub(crate) fn catch_panic<T>(probe: impl FnOnce() -> T + panic::UnwindSafe) -> Result<T, String> {
    // The panic hook belongs to the whole process, so only one thread may replace it at a time.
    static HOOK: Mutex<()> = Mutex::new(());
    thread_local! {
        static CATCHING: Cell<bool> = const { Cell::new(false) };
    }
    if CATCHING.get() {
        return panic::catch_unwind(probe).map_err(|panic| {
            let text = panic.downcast_ref::<String>().map(String::as_str);
            let text = text.or(panic.downcast_ref::<&str>().copied());
            text.and_then(|text| text.lines().next()).unwrap_or(NO_MESSAGE).to_string()
        });
    }
    let _hook_guard = HOOK.lock().unwrap_or_else(PoisonError::into_inner);
    CATCHING.set(true);
    let first = Arc::new(Mutex::new(None::<String>));
    let hook = panic::take_hook();
    let first_in_hook = Arc::clone(&first);
    panic::set_hook(Box::new(move |info| {
        let message = info.payload_as_str().unwrap_or("an unknown error");
        let mut first = first_in_hook.lock().unwrap_or_else(PoisonError::into_inner);
        first.get_or_insert_with(|| message.lines().next().unwrap_or(message).to_string());
    }));
    let result = lost_work::forgive(|| panic::catch_unwind(probe));
    panic::set_hook(hook);
    CATCHING.set(false);
    let first = first.lock().unwrap_or_else(PoisonError::into_inner).take();
    result.map_err(|_| first.unwrap_or_else(|| NO_MESSAGE.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_panic_message_is_the_error() {
        let value = catch_panic(|| {
            let cause = std::thread::spawn(|| panic!("no driver\nbacktrace"));
            cause.join().map_err(|_| ()).expect("the channel is closed")
        });
        assert_eq!(value, Err("no driver".to_string()));
        assert_eq!(catch_panic(|| 7), Ok(7));
    }

    #[test]
    fn nested_calls_do_not_deadlock() {
        let inner = catch_panic(|| catch_panic(|| 7));
        assert_eq!(inner, Ok(Ok(7)));
        let failed = catch_panic(|| catch_panic(|| -> u8 { panic!("no driver\nbacktrace") }));
        assert_eq!(failed, Ok(Err("no driver".to_string())));
        assert_eq!(catch_panic(|| 8), Ok(8));
    }
}
