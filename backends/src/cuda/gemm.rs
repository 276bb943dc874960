//! GEMMs by cuBLASLt, where it is installed, passes its self-test and supports the operands; by CubeCL's kernels
//! otherwise.

use std::collections::HashMap;
use std::io::Write;
use std::panic::AssertUnwindSafe;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use burn::tensor::DType;
use burn_cubecl::{CubeRuntime, tensor::CubeTensor};
use burn_cuda::CudaDevice;
use cubecl::cuda::CudaRuntime;

use super::library::{self, MAX_PLANS, Memory};
use super::problem::{Matrix, Problem};
use super::{Gpu, self_test};
use crate::MatmulProvider;
use crate::cubecl::catch_panic;
use crate::cubecl::runtime::Gemm;

/// The environment variable that switches the library off when it is `0`.
const SWITCH_VARIABLE: &str = "ARITHMO_CUBLASLT";

/// Whether CubeCL's kernels compute every GEMM for now: see [`without_library`].
static LIBRARY_DISABLED: AtomicBool = AtomicBool::new(false);

/// The state of the library on one GPU.
#[derive(Default)]
struct LibraryState {
    library: OnceLock<Library>,
    /// For each kind of GEMM so far, whether the library computes it.
    supported_kinds: Mutex<HashMap<Problem, bool>>,
    /// Whether the library has failed at a GEMM of a kind that had succeeded before.
    failed: AtomicBool,
}

/// Whether the library is used on a GPU.
enum Library {
    /// Its name and version, and the dtypes of factors that passed the self-test.
    Usable(String, Vec<DType>),
    /// The reason why it is not used.
    Unusable(String),
}

/// Returns what multiplies matrices on `device`.
pub(super) fn provider(device: &CudaDevice) -> MatmulProvider {
    let state = state_of(device);
    match state.library(device) {
        Library::Unusable(reason) => MatmulProvider::Fallback(reason.clone()),
        Library::Usable(..) if state.failed.load(Ordering::Relaxed) => {
            MatmulProvider::Fallback("cuBLASLt failed".to_string())
        }
        Library::Usable(version, _) => MatmulProvider::Library(version.clone()),
    }
}

/// Returns whether the library multiplies matrices on `device`. This is called before every GEMM.
pub(super) fn has_library(device: &CudaDevice) -> bool {
    let state = state_of(device);
    let usable = matches!(state.library(device), Library::Usable(..));
    usable && !state.failed.load(Ordering::Relaxed)
}

/// Returns whether the library was looked for and cannot be used. This looks for nothing, so that the library's own
/// self-test may ask.
pub(super) fn lacks_library(device: &CudaDevice) -> bool {
    matches!(state_of(device).library.get(), Some(Library::Unusable(_)))
}

/// Computes a GEMM with the library and returns `true`, or returns `false` if CubeCL must compute it.
pub(super) fn multiply(gemm: &Gemm<'_, CudaRuntime>) -> bool {
    if LIBRARY_DISABLED.load(Ordering::Relaxed) {
        return false;
    }
    let device = &gemm.left.device;
    let state = state_of(device);
    match state.library(device) {
        Library::Usable(_, dtypes) if dtypes.contains(&gemm.left.dtype) => {}
        _ => return false,
    }
    let Some(problem) = problem(gemm) else {
        return false;
    };
    let result = state.multiply(device, problem, gemm);
    // After an earlier failure CubeCL computes this product too. A sum that this GEMM is about to change must not be added to twice.
    result.is_ok_and(|()| gemm.addend.is_some() || !state.failed.load(Ordering::Relaxed))
}

/// Runs `compute` while CubeCL's kernels compute every GEMM, in all threads, and returns its result.
pub(super) fn without_library<T>(device: &CudaDevice, compute: impl FnOnce() -> T) -> T {
    /// Restores the library, even after a panic.
    struct Restore<'a>(&'a CudaDevice);
    impl Drop for Restore<'_> {
        fn drop(&mut self) {
            synchronize(self.0);
            LIBRARY_DISABLED.store(false, Ordering::Relaxed);
        }
    }
    synchronize(device);
    LIBRARY_DISABLED.store(true, Ordering::Relaxed);
    let _restore = Restore(device);
    compute()
}

/// Waits until all recorded operations have run. An error is not lost: it is reported to the next caller that reads a
/// result.
fn synchronize(device: &CudaDevice) {
    let _ = <Gpu as burn::tensor::backend::Backend>::sync(device);
}

/// Returns the state of the library on `device`.
fn state_of(device: &CudaDevice) -> Arc<LibraryState> {
    static ALL: Mutex<Vec<(usize, Arc<LibraryState>)>> = Mutex::new(Vec::new());
    let mut all = ALL.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some((_, state)) = all.iter().find(|(index, _)| *index == device.index) {
        return Arc::clone(state);
    }
    let state = Arc::<LibraryState>::default();
    all.push((device.index, Arc::clone(&state)));
    state
}

impl LibraryState {
    /// Returns whether the library is used. The first call loads and tests it.
    fn library(self: &Arc<Self>, device: &CudaDevice) -> &Library {
        self.library.get_or_init(|| {
            if is_switched_off(std::env::var(SWITCH_VARIABLE).ok().as_deref()) {
                return Library::Unusable(format!("{SWITCH_VARIABLE} is 0"));
            }
            let started = catch_panic(AssertUnwindSafe(|| self.start(device)));
            match started.and_then(|started| started) {
                Ok((version, dtypes)) => Library::Usable(version, dtypes),
                Err(reason) => {
                    let reason = shortened(&reason);
                    warn(&reason);
                    Library::Unusable(reason)
                }
            }
        })
    }

    /// Loads and tests the library. Returns its name and version and the dtypes that it may be used for.
    fn start(self: &Arc<Self>, device: &CudaDevice) -> Result<(String, Vec<DType>), String> {
        let version = library::version();
        library::start(device)?;
        let mut dtypes = crate::device_info::dtypes_of::<Gpu>(device);
        dtypes.sort_by_key(|dtype| dtype.size());
        for dtype in &dtypes {
            self_test::check::<CudaRuntime>(device, *dtype, self_test::SLOW_STEPS, &|gemm| {
                let problem =
                    problem(gemm).ok_or("its self-test uses operands that it does not support")?;
                self.multiply(device, problem, gemm)
            })?;
        }
        if self.failed.load(Ordering::Relaxed) {
            Err("its self-test failed".to_string())
        } else {
            Ok((version, dtypes))
        }
    }

    /// Enqueues the GEMM on the stream. The first GEMM of a kind is enqueued before this returns, to learn whether the
    /// library supports that kind; later ones are queued without waiting, and are filled with NaN if they fail.
    ///
    /// # Errors
    /// Returns why the library cannot compute the GEMM; CubeCL's kernels must do so then.
    fn multiply(
        self: &Arc<Self>,
        device: &CudaDevice,
        problem: Problem,
        gemm: &Gemm<'_, CudaRuntime>,
    ) -> Result<(), String> {
        if self.failed.load(Ordering::Relaxed) {
            return Err("it has failed before".to_string());
        }
        let Gemm { left, right, factor, addend, product } = *gemm;
        let tensors = [left, right, addend.unwrap_or(product), product];
        let memory: Memory = tensors.map(|tensor| tensor.handle.clone().binding());
        match self.supports(&problem) {
            Some(false) => Err("it has no kernel for these operands".to_string()),
            Some(true) => {
                let state = Arc::clone(self);
                library::queue_multiply(device, problem, factor, memory, move |reason| {
                    if !state.failed.swap(true, Ordering::Relaxed) {
                        warn(&format!("{reason}; a result was filled with NaN"));
                    }
                });
                Ok(())
            }
            None => {
                let result = library::multiply_first(device, problem, factor, memory);
                self.record(problem, result.is_ok());
                result
            }
        }
    }

    /// Returns whether the library supports a kind of GEMM; `None` if it has not been tried.
    fn supports(&self, problem: &Problem) -> Option<bool> {
        let supported_kinds = self.supported_kinds.lock().unwrap_or_else(PoisonError::into_inner);
        supported_kinds.get(problem).copied()
    }

    /// Records whether the library supports a kind of GEMM.
    fn record(&self, problem: Problem, supported: bool) {
        let mut supported_kinds =
            self.supported_kinds.lock().unwrap_or_else(PoisonError::into_inner);
        if supported_kinds.len() >= MAX_PLANS {
            supported_kinds.clear();
        }
        supported_kinds.insert(problem, supported);
    }
}

/// Returns whether a GEMM would be left to the library where it is installed and has a kernel for it.
#[cfg(feature = "dry-cuda")]
pub(crate) fn library_accepts<R: CubeRuntime>(gemm: &Gemm<'_, R>) -> bool {
    problem(gemm).is_some()
}

/// Describes a GEMM to the library. Returns `None` if the library is not to compute it.
fn problem<R: CubeRuntime>(gemm: &Gemm<'_, R>) -> Option<Problem> {
    let addend = match gemm.addend {
        Some(addend) => Some(matrix(addend)?),
        None => None,
    };
    Problem::new(matrix(gemm.left)?, matrix(gemm.right)?, addend, matrix(gemm.product)?)
}

/// Returns the layout of a tensor of two dimensions.
fn matrix<R: CubeRuntime>(tensor: &CubeTensor<R>) -> Option<Matrix> {
    let (&[rows, columns], &[row_stride, column_stride]) =
        (tensor.meta.shape().as_slice(), &tensor.meta.strides()[..])
    else {
        return None;
    };
    Some(Matrix {
        rows,
        columns,
        strides: [row_stride, column_stride],
        dtype: tensor.dtype,
        offset: tensor.handle.offset_start.unwrap_or(0),
    })
}

/// Returns whether the value of [`SWITCH_VARIABLE`] switches the library off.
fn is_switched_off(value: Option<&str>) -> bool {
    value == Some("0")
}

/// Shortens an error to one line, without the list of library names that were tried and without a backtrace.
fn shortened(reason: &str) -> String {
    let line = reason.lines().next().unwrap_or_default();
    let line = line.split(" - ").next().unwrap_or_default();
    let line = line.split(" backtrace:").next().unwrap_or_default();
    line.trim_end_matches([' ', ',', '{']).to_string()
}

/// Warns, once per GPU, that the slower kernels compute its GEMMs from now on.
fn warn(reason: &str) {
    let warning = "warning: cuda multiplies matrices with CubeCL's kernels instead of cuBLASLt";
    // A warning that cannot be written must not end a run.
    let _ = writeln!(
        std::io::stderr(),
        "{warning}: {reason}\n  help: install it with CUDA 13 or by `pip install nvidia-cublas`, or put its folder on LD_LIBRARY_PATH"
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn zero_switches_the_library_off() {
        assert!(is_switched_off(Some("0")));
        for other in [None, Some(""), Some("1"), Some("off")] {
            assert!(!is_switched_off(other));
        }
    }

    /// Runs without a driver. On a machine without the library the reason must be one short line.
    #[test]
    fn a_missing_library_is_reported_in_one_line() {
        match catch_panic(library::version) {
            Ok(version) => assert!(version.starts_with("cuBLASLt "), "{version}"),
            Err(reason) => {
                let reason = shortened(&reason);
                assert!(reason.contains("cublasLt"), "{reason}");
                assert!(reason.len() < 120, "{reason}");
            }
        }
    }

    #[test]
    fn reasons_are_shortened_to_one_line() {
        let long = "cannot load \"x\" - searched for a, b, c\nand more";
        assert_eq!(shortened(long), "cannot load \"x\"");
        let error = "stopped: Generic { reason: \"no\", backtrace: BackTrace { .. } }";
        assert_eq!(shortened(error), "stopped: Generic { reason: \"no\"");
    }
}
