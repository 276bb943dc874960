//! GEMMs by cuBLASLt on CubeCL's stream. CubeCL's own server thread enqueues them between its kernels, so nothing
//! waits for them.
//!
//! The library's state lives in that thread, one for each GPU, and is never freed.

#![allow(unsafe_code, reason = "calls of cuBLASLt and of the driver")]

use std::cell::RefCell;
use std::collections::{HashMap, hash_map::Entry};
use std::ffi::c_void;

use burn::tensor::DType;
use burn_cuda::CudaDevice;
use cubecl::Runtime;
use cubecl::cuda::CudaRuntime;
use cubecl::device::Device;
use cubecl::device_handle::DeviceHandle;
use cubecl::server::{Binding, ComputeServer};
use cubecl::stream_id::StreamId;
use cudarc::cublaslt::result::{self as lt, CublasError};
use cudarc::cublaslt::sys::{
    self, cublasComputeType_t::CUBLAS_COMPUTE_32F, cublasLtMatmulDescAttributes_t as Attribute,
    cublasLtMatmulPreferenceAttributes_t as Preference, cudaDataType,
};
use cudarc::driver::sys::CUstream;

use super::problem::{ColumnMajor, Problem};
use super::stream;

/// Bytes of workspace for the library: NVIDIA's recommendation for Hopper GPUs.
const WORKSPACE: usize = 32 << 20;

/// The largest number of plans that are kept; one more clears them all. A run repeats a few hundred shapes, but
/// packed rows differ in length.
pub(super) const MAX_PLANS: usize = 4096;

type Server = <CudaRuntime as Runtime>::Server;

thread_local! {
    /// The library's state in a server's thread.
    static LIBRARY: RefCell<Option<Library>> = const { RefCell::new(None) };
}

/// The memory of both factors, of the addend and of the product. CubeCL does not reuse it while these bindings exist. Without an
/// addend, the product's memory stands in its place and is not read.
pub(super) type Memory = [Binding; 4];

/// Returns the library's name and version. The first call loads it.
///
/// # Panics
/// If the library is not found; the bindings report that by a panic.
pub(super) fn version() -> String {
    // SAFETY: the call has no preconditions.
    let version = unsafe { sys::cublasLtGetVersion() };
    let (major, minor, patch) = (version / 10_000, version / 100 % 100, version % 100);
    format!("cuBLASLt {major}.{minor}.{patch}")
}

/// Initializes the library in the server thread of `device`.
pub(super) fn start(device: &CudaDevice) -> Result<(), String> {
    let workspace = CudaRuntime::client(device).empty(WORKSPACE).binding();
    run_on_server(device, move |server| {
        let library = Library::new(server, workspace)?;
        LIBRARY.set(Some(library));
        Ok(())
    })
}

/// Queues the first GEMM of its kind and waits until it is on the stream, so that the caller can compute it otherwise
/// if that fails.
pub(super) fn multiply_first(
    device: &CudaDevice,
    problem: Problem,
    factor: f32,
    memory: Memory,
) -> Result<(), String> {
    run_on_server(device, move |server| multiply(server, &problem, factor, &memory))
}

/// Queues a GEMM of a kind that has succeeded before, without waiting. If it fails nevertheless, its result is filled
/// with NaN, which shows in every loss, and `on_failure` is called with the reason.
pub(super) fn queue_multiply(
    device: &CudaDevice,
    problem: Problem,
    factor: f32,
    memory: Memory,
    on_failure: impl FnOnce(String) + Send + 'static,
) {
    DeviceHandle::<Server>::new(device.to_id()).submit(move |server: &mut Server| {
        // The bindings keep the memory until the GEMM is on the stream; later uses of it come after the GEMM there.
        if let Err(reason) = multiply(server, &problem, factor, &memory) {
            let filled = fill_with_nan(server, &memory[3], problem.product_bytes());
            on_failure(filled.err().unwrap_or(reason));
        }
    });
}

/// Runs `task` in the server's thread and waits for it to return, not for the GPU.
fn run_on_server<T: Send>(
    device: &CudaDevice,
    task: impl FnOnce(&mut Server) -> Result<T, String> + Send,
) -> Result<T, String> {
    let server = DeviceHandle::<Server>::new(device.to_id());
    let result = server.submit_blocking(task);
    result.unwrap_or_else(|_| Err("CubeCL's thread stopped within a call".to_string()))
}

/// Enqueues a GEMM on the stream; called in the server's thread.
fn multiply(
    server: &mut Server,
    problem: &Problem,
    factor: f32,
    memory: &Memory,
) -> Result<(), String> {
    let mut addresses = [0; 4];
    for (address, memory) in addresses.iter_mut().zip(memory) {
        *address = address_of(server, memory)?;
    }
    LIBRARY.with_borrow_mut(|library| {
        let library = library.as_mut().ok_or("cuBLASLt was not started")?;
        library.multiply(problem, factor, addresses)
    })
}

/// Returns the device address of `memory`, once the stream may use it. Afterwards the server's thread has the
/// device's context.
fn address_of(server: &mut Server, memory: &Binding) -> Result<u64, String> {
    let resource = server.get_resource(memory.clone(), StreamId::current());
    let address = resource.map(|resource| resource.resource().ptr);
    address.map_err(|error| format!("a tensor has no memory: {error:?}"))
}

/// Fills the product's memory with NaN, whatever its float type.
fn fill_with_nan(server: &mut Server, product: &Binding, bytes: usize) -> Result<(), String> {
    let address = address_of(server, product)?;
    LIBRARY.with_borrow(|library| {
        let library = library.as_ref().ok_or("cuBLASLt was not started")?;
        // SAFETY: the product has that many bytes from its address on and is used on this stream.
        let filled = unsafe {
            cudarc::driver::result::memset_d8_async(address, 0xff, bytes, library.stream)
        };
        filled.map_err(|error| format!("the GPU stopped: {error}"))
    })
}

/// The library's state in the server's thread.
struct Library {
    handle: sys::cublasLtHandle_t,
    stream: CUstream,
    workspace: u64,
    /// Keeps the workspace allocated.
    _memory: Binding,
    plans: HashMap<Problem, Plan>,
}

impl Library {
    fn new(server: &mut Server, memory: Binding) -> Result<Self, String> {
        let workspace = address_of(server, &memory)?;
        let stream = stream::server_stream(server)?;
        Ok(Self {
            handle: lt::create_handle().map_err(library_error("does not start"))?,
            stream,
            workspace,
            _memory: memory,
            plans: HashMap::new(),
        })
    }

    /// Enqueues `factor left right + addend` on the stream; the matrices that are multiplied, the addend and the product are at these addresses.
    fn multiply(
        &mut self,
        problem: &Problem,
        factor: f32,
        addresses: [u64; 4],
    ) -> Result<(), String> {
        let aligned = |address: &u64| address.is_multiple_of(problem.alignment);
        if !addresses.iter().all(aligned) {
            return Err(format!("memory is not aligned to {} bytes", problem.alignment));
        }
        if self.plans.len() >= MAX_PLANS && !self.plans.contains_key(problem) {
            self.plans.clear();
        }
        let plan = match self.plans.entry(*problem) {
            Entry::Occupied(plan) => plan.into_mut(),
            Entry::Vacant(vacant) => {
                let plan =
                    Plan::new(self.handle, problem).map_err(library_error("has no kernel"))?;
                vacant.insert(plan)
            }
        };
        let [left, right, addend, product] = addresses.map(|address| address as *mut c_void);
        // With a factor of 0 the addend is not read.
        let addend_factor = if problem.adds() { 1f32 } else { 0f32 };
        let [right_layout, left_layout, addend_layout, product_layout] =
            plan.layouts.each_ref().map(|layout| layout.0);
        // SAFETY: the handle, the plan's objects and the stream are never freed while in use. The scalars are f32, as
        // the plan says. The addresses are memory of the sizes that the layouts state, aligned as the plan states,
        // and alive until the earlier work on the stream and this GEMM are done.
        let queued = unsafe {
            lt::matmul(
                self.handle,
                plan.description.0,
                (&raw const factor).cast(),
                (&raw const addend_factor).cast(),
                right,
                right_layout,
                left,
                left_layout,
                addend,
                addend_layout,
                product,
                product_layout,
                &plan.kernel,
                self.workspace as *mut c_void,
                WORKSPACE,
                self.stream.cast(),
            )
        };
        queued.map_err(library_error("does not multiply two matrices"))
    }
}

/// How GEMMs of one kind are computed.
struct Plan {
    description: MatmulDescription,
    /// In the order of [`Problem::column_major`].
    layouts: [MatrixLayout; 4],
    kernel: sys::cublasLtMatmulAlgo_t,
}

impl Plan {
    fn new(handle: sys::cublasLtHandle_t, problem: &Problem) -> Result<Self, CublasError> {
        let [right, left, addend, product] = problem.column_major();
        let description = MatmulDescription::new(right.transposed, left.transposed)?;
        let dtype = problem.dtype;
        let layouts = [
            MatrixLayout::new(right, dtype)?,
            MatrixLayout::new(left, dtype)?,
            MatrixLayout::new(addend, problem.product_dtype)?,
            MatrixLayout::new(product, problem.product_dtype)?,
        ];
        let preference = MatmulPreference::new(problem.alignment as u32)?;
        let [right, left, addend, product] = layouts.each_ref().map(|layout| layout.0);
        // SAFETY: all of them were created above and are not freed yet.
        let found = unsafe {
            let (description, preference) = (description.0, preference.0);
            lt::get_matmul_algo_heuristic(
                handle,
                description,
                right,
                left,
                addend,
                product,
                preference,
            )?
        };
        Ok(Self { description, layouts, kernel: found.algo })
    }
}

/// What is computed: f32 sums of f32 factors in full precision, not in TF32.
struct MatmulDescription(sys::cublasLtMatmulDesc_t);

impl MatmulDescription {
    fn new(first_transposed: bool, second_transposed: bool) -> Result<Self, CublasError> {
        let description =
            Self(lt::create_matmul_desc(CUBLAS_COMPUTE_32F, cudaDataType::CUDA_R_32F)?);
        for (attribute, transposed) in [
            (Attribute::CUBLASLT_MATMUL_DESC_TRANSA, first_transposed),
            (Attribute::CUBLASLT_MATMUL_DESC_TRANSB, second_transposed),
        ] {
            // 0 is `CUBLAS_OP_N`, 1 is `CUBLAS_OP_T`.
            let operation = i32::from(transposed);
            let (value, size) = ((&raw const operation).cast(), size_of_val(&operation));
            // SAFETY: the description is not freed, and the attribute is an `int32_t`.
            unsafe { lt::set_matmul_desc_attribute(description.0, attribute, value, size)? };
        }
        Ok(description)
    }
}

impl Drop for MatmulDescription {
    fn drop(&mut self) {
        // SAFETY: created by `new` and freed nowhere else.
        let _ = unsafe { lt::destroy_matmul_desc(self.0) };
    }
}

/// The layout of a matrix in memory.
struct MatrixLayout(sys::cublasLtMatrixLayout_t);

impl MatrixLayout {
    fn new(matrix: ColumnMajor, dtype: DType) -> Result<Self, CublasError> {
        let (rows, columns) = (matrix.rows as u64, matrix.columns as u64);
        let dtype = match dtype {
            DType::F16 => cudaDataType::CUDA_R_16F,
            DType::BF16 => cudaDataType::CUDA_R_16BF,
            _ => cudaDataType::CUDA_R_32F,
        };
        let layout = lt::create_matrix_layout(dtype, rows, columns, matrix.leading as i64)?;
        Ok(Self(layout))
    }
}

impl Drop for MatrixLayout {
    fn drop(&mut self) {
        // SAFETY: created by `new` and freed nowhere else.
        let _ = unsafe { lt::destroy_matrix_layout(self.0) };
    }
}

/// The alignment that a kernel may assume and the workspace that it may use.
struct MatmulPreference(sys::cublasLtMatmulPreference_t);

impl MatmulPreference {
    fn new(alignment: u32) -> Result<Self, CublasError> {
        let preference = Self(lt::create_matmul_pref()?);
        let workspace = WORKSPACE;
        let (value, size) = ((&raw const workspace).cast(), size_of_val(&workspace));
        let max_workspace = Preference::CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES;
        // SAFETY: the preference is not freed, and the attribute is a `size_t`.
        unsafe { lt::set_matmul_pref_attribute(preference.0, max_workspace, value, size)? };
        for attribute in [
            Preference::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES,
            Preference::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES,
            Preference::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES,
            Preference::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES,
        ] {
            let (value, size) = ((&raw const alignment).cast(), size_of_val(&alignment));
            // SAFETY: the preference is not freed, and the attributes are `uint32_t`.
            unsafe { lt::set_matmul_pref_attribute(preference.0, attribute, value, size)? };
        }
        Ok(preference)
    }
}

impl Drop for MatmulPreference {
    fn drop(&mut self) {
        // SAFETY: created by `new` and freed nowhere else.
        let _ = unsafe { lt::destroy_matmul_pref(self.0) };
    }
}

/// Returns a function that turns a library error into a message with the given predicate.
fn library_error(predicate: &str) -> impl Fn(CublasError) -> String {
    move |CublasError(status)| format!("cuBLASLt {predicate} ({status:?})")
}
