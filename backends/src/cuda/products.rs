//! Products of matrices by cuBLASLt, where it is there, passes its test and takes them; by CubeCL's kernels elsewhere.

use std::collections::HashMap;
use std::panic::AssertUnwindSafe;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use burn::tensor::DType;
use burn_cubecl::tensor::CubeTensor;
use burn_cuda::CudaDevice;
use cubecl::cuda::CudaRuntime;

use super::library::{self, MOST_PLANS, Memory};
use super::problem::{Matrix, Problem};
use super::{Gpu, self_test};
use crate::ProductsBy;
use crate::cubecl::without_panic;

/// `0` switches the library off.
const SWITCH: &str = "ARITHMO_CUBLASLT";

type Tensor = CubeTensor<CudaRuntime>;

/// Whether CubeCL's kernels compute all for now: see [`without_library`].
static KERNELS_ALONE: AtomicBool = AtomicBool::new(false);

/// What is known of a GPU.
#[derive(Default)]
struct Products {
    by: OnceLock<Library>,
    /// Whether the library takes products of a kind that came before.
    kinds: Mutex<HashMap<Problem, bool>>,
    /// Whether it has failed at one that it should have taken.
    broken: AtomicBool,
}

/// Of one GPU: whether it is used.
enum Library {
    /// By version, and the types of factors it passed its test with.
    Takes(String, Vec<DType>),
    Refused(String),
}

/// What multiplies on `device`.
pub(super) fn by(device: &CudaDevice) -> ProductsBy {
    let products = of(device);
    match products.library(device) {
        Library::Refused(reason) => ProductsBy::KernelsFor(reason.clone()),
        Library::Takes(..) if products.broken.load(Ordering::Relaxed) => {
            ProductsBy::KernelsFor("cuBLASLt failed".to_string())
        }
        Library::Takes(version, _) => ProductsBy::Library(version.clone()),
    }
}

/// Whether the library multiplies on `device`: asked before every product.
pub(super) fn has_library(device: &CudaDevice) -> bool {
    let products = of(device);
    let takes = matches!(products.library(device), Library::Takes(..));
    takes && !products.broken.load(Ordering::Relaxed)
}

/// Computes `left right` into `product`, unless it is left to CubeCL: then `false`.
pub(crate) fn multiply(left: &Tensor, right: &Tensor, product: &Tensor) -> bool {
    if KERNELS_ALONE.load(Ordering::Relaxed) {
        return false;
    }
    let device = &left.device;
    let products = of(device);
    match products.library(device) {
        Library::Takes(_, dtypes) if dtypes.contains(&left.dtype) => {}
        _ => return false,
    }
    let Some(problem) = problem(left, right, product) else {
        return false;
    };
    let result = products.multiply(device, problem, [left, right, product]);
    result.is_ok_and(|()| !products.broken.load(Ordering::Relaxed))
}

/// Computes with CubeCL's kernels alone, in all threads.
pub(super) fn without_library<T>(device: &CudaDevice, compute: impl FnOnce() -> T) -> T {
    /// Also after a panic.
    struct Back<'a>(&'a CudaDevice);
    impl Drop for Back<'_> {
        fn drop(&mut self) {
            settle(self.0);
            KERNELS_ALONE.store(false, Ordering::Relaxed);
        }
    }
    settle(device);
    KERNELS_ALONE.store(true, Ordering::Relaxed);
    let _back = Back(device);
    compute()
}

/// Waits for what is recorded and not run. An error stays, and whoever asks for a result is told.
fn settle(device: &CudaDevice) {
    let _ = <Gpu as burn::tensor::backend::Backend>::sync(device);
}

fn of(device: &CudaDevice) -> Arc<Products> {
    static ALL: Mutex<Vec<(usize, Arc<Products>)>> = Mutex::new(Vec::new());
    let mut all = ALL.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some((_, products)) = all.iter().find(|(index, _)| *index == device.index) {
        return Arc::clone(products);
    }
    let products = Arc::<Products>::default();
    all.push((device.index, Arc::clone(&products)));
    products
}

impl Products {
    /// Starts and tests the library the first time.
    fn library(self: &Arc<Self>, device: &CudaDevice) -> &Library {
        self.by.get_or_init(|| {
            if switched_off(std::env::var(SWITCH).ok().as_deref()) {
                return Library::Refused(format!("{SWITCH} is 0"));
            }
            let started = without_panic(AssertUnwindSafe(|| self.start(device)));
            match started.and_then(|started| started) {
                Ok((version, dtypes)) => Library::Takes(version, dtypes),
                Err(reason) => {
                    let reason = shortened(&reason);
                    warn(&reason);
                    Library::Refused(reason)
                }
            }
        })
    }

    fn start(self: &Arc<Self>, device: &CudaDevice) -> Result<(String, Vec<DType>), String> {
        let version = library::version();
        library::start(device)?;
        let mut dtypes = crate::devices::dtypes_of::<Gpu>(device);
        dtypes.sort_by_key(|dtype| dtype.size());
        for dtype in &dtypes {
            self_test::check::<CudaRuntime>(device, *dtype, self_test::SLOW, &|l, r, p| {
                let problem =
                    problem(l, r, p).ok_or("its self-test asks for what it is not for")?;
                self.multiply(device, problem, [l, r, p])
            })?;
        }
        match self.broken.load(Ordering::Relaxed) {
            true => Err("its self-test failed".to_string()),
            false => Ok((version, dtypes)),
        }
    }

    /// Computes the product now, or soon, if the library takes those of its kind.
    fn multiply(
        self: &Arc<Self>,
        device: &CudaDevice,
        problem: Problem,
        tensors: [&Tensor; 3],
    ) -> Result<(), String> {
        if self.broken.load(Ordering::Relaxed) {
            return Err("it failed before".to_string());
        }
        let memory: Memory = tensors.map(|tensor| tensor.handle.clone().binding());
        match self.kind(&problem) {
            Some(false) => Err("it has no kernel for these".to_string()),
            Some(true) => {
                let products = Arc::clone(self);
                library::queue(device, problem, memory, move |reason| {
                    if !products.broken.swap(true, Ordering::Relaxed) {
                        warn(&format!("{reason}; a result has been made NaN"));
                    }
                });
                Ok(())
            }
            None => {
                let result = library::first(device, problem, memory);
                self.remember(problem, result.is_ok());
                result
            }
        }
    }

    fn kind(&self, problem: &Problem) -> Option<bool> {
        let kinds = self.kinds.lock().unwrap_or_else(PoisonError::into_inner);
        kinds.get(problem).copied()
    }

    fn remember(&self, problem: Problem, taken: bool) {
        let mut kinds = self.kinds.lock().unwrap_or_else(PoisonError::into_inner);
        if kinds.len() >= MOST_PLANS {
            kinds.clear();
        }
        kinds.insert(problem, taken);
    }
}

/// What the library would be asked for; `None`: nothing.
fn problem(left: &Tensor, right: &Tensor, product: &Tensor) -> Option<Problem> {
    Problem::of(matrix(left)?, matrix(right)?, matrix(product)?)
}

fn matrix(tensor: &Tensor) -> Option<Matrix> {
    let (&[rows, columns], &[of_rows, of_columns]) =
        (tensor.meta.shape().as_slice(), &tensor.meta.strides()[..])
    else {
        return None;
    };
    Some(Matrix {
        rows,
        columns,
        strides: [of_rows, of_columns],
        dtype: tensor.dtype,
        offset: tensor.handle.offset_start.unwrap_or(0),
    })
}

fn switched_off(value: Option<&str>) -> bool {
    value == Some("0")
}

/// Without what is of no use to who reads it: all names that a library was looked for under, and an error's backtrace.
fn shortened(reason: &str) -> String {
    let line = reason.lines().next().unwrap_or_default();
    let line = line.split(" - ").next().unwrap_or_default();
    let line = line.split(" backtrace:").next().unwrap_or_default();
    line.trim_end_matches([' ', ',', '{']).to_string()
}

/// Said once a GPU: its products are computed by the slower kernels from here on.
fn warn(reason: &str) {
    eprintln!("warning: cuda multiplies matrices by CubeCL's kernels, not by cuBLASLt: {reason}");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn zero_switches_the_library_off() {
        assert!(switched_off(Some("0")));
        for other in [None, Some(""), Some("1"), Some("off")] {
            assert!(!switched_off(other));
        }
    }

    /// No driver is needed to look for it, and a machine without it is told so in one line.
    #[test]
    fn a_library_that_is_not_there_is_a_reason() {
        match without_panic(library::version) {
            Ok(version) => assert!(version.starts_with("cuBLASLt "), "{version}"),
            Err(reason) => {
                let reason = shortened(&reason);
                assert!(reason.contains("cublasLt"), "{reason}");
                assert!(reason.len() < 120, "{reason}");
            }
        }
    }

    #[test]
    fn reasons_are_one_line() {
        let long = "cannot load \"x\" - searched for a, b, c\nand more";
        assert_eq!(shortened(long), "cannot load \"x\"");
        let error = "stopped: Generic { reason: \"no\", backtrace: BackTrace { .. } }";
        assert_eq!(shortened(error), "stopped: Generic { reason: \"no\"");
    }
}
