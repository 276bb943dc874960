//! What wgpu and cuda share through CubeCL, the language their kernels are written in.

pub(crate) mod adapted_linear;
pub(crate) mod attention;
mod branch;
pub(crate) mod launch;
pub(crate) mod log_probs;
pub(crate) mod operations;
pub(crate) mod packed;
#[cfg(all(test, feature = "wgpu"))]
pub(crate) mod pitched;
pub(crate) mod queue;
pub(crate) mod rms_norm;
pub(crate) mod rope;
pub(crate) mod swiglu;
mod weight;

use std::panic::{self, AssertUnwindSafe};
use std::sync::{Arc, Mutex, PoisonError};

use burn::tensor::{Tensor, backend::Backend};
use cubecl::Runtime;

use crate::Allocation;

/// Bytes the runtime has taken from the device for the calling thread's tensors, weights and pools alike.
///
/// That is the peak: pools grow page by page and give nothing back unless a memory clean-up is asked for, which this
/// project never does. Every thread has pools of its own, so ask from the thread that computes.
pub(crate) fn reserved_bytes<R: Runtime>(device: &R::Device) -> Option<u64> {
    R::client(device).memory_usage().ok().map(|usage| usage.bytes_reserved)
}

/// How the runtime takes memory.
pub(crate) fn pools<R: Runtime>(device: &R::Device) -> Allocation {
    let client = R::client(device);
    let memory = &client.properties().memory;
    Allocation::Pools { page: memory.max_page_size, alignment: memory.alignment }
}

/// Computes one addition on `device`.
///
/// # Errors
/// What went wrong, in the runtime's words.
pub(crate) fn compute_once<B: Backend>(device: &B::Device) -> Result<(), String> {
    let sum = without_panic(AssertUnwindSafe(|| {
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

/// Runs `probe`; a panic, in whatever thread, becomes an error and prints nothing.
///
/// The runtimes panic where a driver or a library is absent, most of them in a thread of their own: the first message
/// is the cause, later ones are its echo.
pub(crate) fn without_panic<T>(probe: impl FnOnce() -> T + panic::UnwindSafe) -> Result<T, String> {
    // What happens at a panic is set for the whole process: one at a time.
    static ONE: Mutex<()> = Mutex::new(());
    let _one = ONE.lock().unwrap_or_else(PoisonError::into_inner);
    let first = Arc::new(Mutex::new(None::<String>));
    let hook = panic::take_hook();
    let seen = Arc::clone(&first);
    panic::set_hook(Box::new(move |info| {
        let message = info.payload_as_str().unwrap_or("an unknown error");
        let mut first = seen.lock().unwrap_or_else(PoisonError::into_inner);
        first.get_or_insert_with(|| message.lines().next().unwrap_or(message).to_string());
    }));
    let result = panic::catch_unwind(probe);
    panic::set_hook(hook);
    let first = first.lock().unwrap_or_else(PoisonError::into_inner).take();
    result.map_err(|_| first.unwrap_or_else(|| "stopped without a word".to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_panic_is_the_reason() {
        let value = without_panic(|| {
            let cause = std::thread::spawn(|| panic!("no driver\nbacktrace"));
            cause.join().map_err(|_| ()).expect("the channel is closed")
        });
        assert_eq!(value, Err("no driver".to_string()));
        assert_eq!(without_panic(|| 7), Ok(7));
    }
}
