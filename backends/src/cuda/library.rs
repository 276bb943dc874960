//! cuBLASLt on CubeCL's stream: products are put on it by CubeCL's own server thread, between its kernels, and nobody
//! waits for them.
//!
//! What the library needs lives in that thread, one of which there is for each GPU, and is never freed.

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

use super::problem::{Columns, Problem};
use super::stream;

/// Bytes the library may use for itself: what NVIDIA advises for Hopper GPUs.
const WORKSPACE: usize = 32 << 20;

/// Plans that are kept; with one more all are made anew. Some hundred shapes come again in a run, but packed rows
/// differ in length.
pub(super) const MOST_PLANS: usize = 4096;

type Server = <CudaRuntime as Runtime>::Server;

thread_local! {
    /// In a server's thread.
    static LIBRARY: RefCell<Option<Library>> = const { RefCell::new(None) };
}

/// The factors and the product, in memory of CubeCL's, which is not given to others while this is held.
pub(super) type Memory = [Binding; 3];

/// The library's version, once it is loaded.
///
/// # Panics
/// If it is not found, which the driver's bindings say by a panic.
pub(super) fn version() -> String {
    // SAFETY: the call has no conditions.
    let version = unsafe { sys::cublasLtGetVersion() };
    let (major, minor, patch) = (version / 10_000, version / 100 % 100, version % 100);
    format!("cuBLASLt {major}.{minor}.{patch}")
}

/// Makes the library ready in the server's thread of `device`.
pub(super) fn start(device: &CudaDevice) -> Result<(), String> {
    let workspace = CudaRuntime::client(device).empty(WORKSPACE).binding();
    wait(device, move |server| {
        let library = Library::new(server, workspace)?;
        LIBRARY.set(Some(library));
        Ok(())
    })
}

/// Computes the first product of its kind, and waits until it is on the stream: it may fail, and others compute it then.
pub(super) fn first(device: &CudaDevice, problem: Problem, memory: Memory) -> Result<(), String> {
    wait(device, move |server| multiply(server, &problem, &memory))
}

/// Queues a product of a kind that was computed before. Should it fail nevertheless, it is all NaN, which every loss
/// shows, and `failed` is told why.
pub(super) fn queue(
    device: &CudaDevice,
    problem: Problem,
    memory: Memory,
    failed: impl FnOnce(String) + Send + 'static,
) {
    DeviceHandle::<Server>::new(device.to_id()).submit(move |server: &mut Server| {
        // The memory is held until the product is on the stream; what others do with it comes after it there.
        if let Err(reason) = multiply(server, &problem, &memory) {
            let spoilt = spoil(server, &memory[2], problem.product_bytes());
            failed(spoilt.err().unwrap_or(reason));
        }
    });
}

/// Runs `task` in the server's thread and waits for its end, not for the GPU's.
fn wait<T: Send>(
    device: &CudaDevice,
    task: impl FnOnce(&mut Server) -> Result<T, String> + Send,
) -> Result<T, String> {
    let server = DeviceHandle::<Server>::new(device.to_id());
    let result = server.submit_blocking(task);
    result.unwrap_or_else(|_| Err("CubeCL's thread stopped within a call".to_string()))
}

fn multiply(server: &mut Server, problem: &Problem, memory: &Memory) -> Result<(), String> {
    let mut addresses = [0; 3];
    for (address, memory) in addresses.iter_mut().zip(memory) {
        *address = address_of(server, memory)?;
    }
    LIBRARY.with_borrow_mut(|library| {
        let library = library.as_mut().ok_or("cuBLASLt was not started")?;
        library.multiply(problem, addresses)
    })
}

/// Where `memory` is, once the stream may use it; the server's thread has the device's context then.
fn address_of(server: &mut Server, memory: &Binding) -> Result<u64, String> {
    let resource = server.get_resource(memory.clone(), StreamId::current());
    let address = resource.map(|resource| resource.resource().ptr);
    address.map_err(|error| format!("a tensor has no memory: {error:?}"))
}

/// Fills memory with NaN, whatever floats it holds.
fn spoil(server: &mut Server, product: &Binding, bytes: usize) -> Result<(), String> {
    let address = address_of(server, product)?;
    LIBRARY.with_borrow(|library| {
        let library = library.as_ref().ok_or("cuBLASLt was not started")?;
        // SAFETY: the product has that many bytes from its address on, and is on this stream.
        let filled = unsafe {
            cudarc::driver::result::memset_d8_async(address, 0xff, bytes, library.stream)
        };
        filled.map_err(|error| format!("the GPU stopped: {error}"))
    })
}

/// The library, in the server's thread.
struct Library {
    handle: sys::cublasLtHandle_t,
    stream: CUstream,
    workspace: u64,
    /// Keeps the workspace.
    _memory: Binding,
    plans: HashMap<Problem, Plan>,
}

impl Library {
    fn new(server: &mut Server, memory: Binding) -> Result<Self, String> {
        let workspace = address_of(server, &memory)?;
        let stream = stream::of(server)?;
        Ok(Self {
            handle: lt::create_handle().map_err(because("does not start"))?,
            stream,
            workspace,
            _memory: memory,
            plans: HashMap::new(),
        })
    }

    /// `left right`, both read and the product written at these addresses.
    fn multiply(&mut self, problem: &Problem, addresses: [u64; 3]) -> Result<(), String> {
        let aligned = |address: &u64| address.is_multiple_of(problem.alignment);
        if !addresses.iter().all(aligned) {
            return Err(format!("memory is not aligned to {} bytes", problem.alignment));
        }
        if self.plans.len() >= MOST_PLANS && !self.plans.contains_key(problem) {
            self.plans.clear();
        }
        let plan = match self.plans.entry(*problem) {
            Entry::Occupied(plan) => plan.into_mut(),
            Entry::Vacant(place) => {
                let plan = Plan::new(self.handle, problem).map_err(because("has no kernel"))?;
                place.insert(plan)
            }
        };
        let [left, right, product] = addresses.map(|address| address as *mut c_void);
        let (one, zero) = (1f32, 0f32);
        let [of_right, of_left, of_product] = plan.layouts.each_ref().map(|layout| layout.0);
        // SAFETY: the handle, what the plan made and the stream are not freed; the scalars are f32, as the plan says;
        // the addresses are memory of the sizes that the layouts say, alive until earlier and this work on the stream
        // are done, and aligned as the plan says.
        let queued = unsafe {
            lt::matmul(
                self.handle,
                plan.description.0,
                (&raw const one).cast(),
                (&raw const zero).cast(),
                right,
                of_right,
                left,
                of_left,
                product,
                of_product,
                product,
                of_product,
                &plan.kernel,
                self.workspace as *mut c_void,
                WORKSPACE,
                self.stream.cast(),
            )
        };
        queued.map_err(because("does not compute a product"))
    }
}

/// How products of one kind are computed.
struct Plan {
    description: Description,
    /// In the order of [`Problem::by_columns`].
    layouts: [Layout; 3],
    kernel: sys::cublasLtMatmulAlgo_t,
}

impl Plan {
    fn new(handle: sys::cublasLtHandle_t, problem: &Problem) -> Result<Self, CublasError> {
        let [right, left, product] = problem.by_columns();
        let description = Description::new(right.transposed, left.transposed)?;
        let dtype = problem.dtype;
        let layouts = [
            Layout::new(right, dtype)?,
            Layout::new(left, dtype)?,
            Layout::new(product, problem.product_dtype)?,
        ];
        let wanted = Wanted::new(problem.alignment as u32)?;
        let [right, left, product] = layouts.each_ref().map(|layout| layout.0);
        // SAFETY: all were made above and are not freed.
        let found = unsafe {
            let (description, wanted) = (description.0, wanted.0);
            lt::get_matmul_algo_heuristic(
                handle,
                description,
                right,
                left,
                product,
                product,
                wanted,
            )?
        };
        Ok(Self { description, layouts, kernel: found.algo })
    }
}

/// What is computed: sums in f32, of f32 factors in full, not in the TF32 of the GPU's matrix units.
struct Description(sys::cublasLtMatmulDesc_t);

impl Description {
    fn new(first_transposed: bool, second_transposed: bool) -> Result<Self, CublasError> {
        let description =
            Self(lt::create_matmul_desc(CUBLAS_COMPUTE_32F, cudaDataType::CUDA_R_32F)?);
        for (attribute, transposed) in [
            (Attribute::CUBLASLT_MATMUL_DESC_TRANSA, first_transposed),
            (Attribute::CUBLASLT_MATMUL_DESC_TRANSB, second_transposed),
        ] {
            // `CUBLAS_OP_N` or `CUBLAS_OP_T`.
            let operation = i32::from(transposed);
            let (value, size) = ((&raw const operation).cast(), size_of_val(&operation));
            // SAFETY: the description is not freed, and the attribute is an `int32_t`.
            unsafe { lt::set_matmul_desc_attribute(description.0, attribute, value, size)? };
        }
        Ok(description)
    }
}

impl Drop for Description {
    fn drop(&mut self) {
        // SAFETY: made by `new`, freed nowhere else.
        let _ = unsafe { lt::destroy_matmul_desc(self.0) };
    }
}

/// How a matrix lies in memory.
struct Layout(sys::cublasLtMatrixLayout_t);

impl Layout {
    fn new(matrix: Columns, dtype: DType) -> Result<Self, CublasError> {
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

impl Drop for Layout {
    fn drop(&mut self) {
        // SAFETY: made by `new`, freed nowhere else.
        let _ = unsafe { lt::destroy_matrix_layout(self.0) };
    }
}

/// What a kernel may assume and use.
struct Wanted(sys::cublasLtMatmulPreference_t);

impl Wanted {
    fn new(alignment: u32) -> Result<Self, CublasError> {
        let wanted = Self(lt::create_matmul_pref()?);
        let workspace = WORKSPACE;
        let (value, size) = ((&raw const workspace).cast(), size_of_val(&workspace));
        let most = Preference::CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES;
        // SAFETY: the preference is not freed, and the attribute is a `size_t`.
        unsafe { lt::set_matmul_pref_attribute(wanted.0, most, value, size)? };
        for attribute in [
            Preference::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES,
            Preference::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES,
            Preference::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES,
            Preference::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES,
        ] {
            let (value, size) = ((&raw const alignment).cast(), size_of_val(&alignment));
            // SAFETY: the preference is not freed, and the attributes are `uint32_t`.
            unsafe { lt::set_matmul_pref_attribute(wanted.0, attribute, value, size)? };
        }
        Ok(wanted)
    }
}

impl Drop for Wanted {
    fn drop(&mut self) {
        // SAFETY: made by `new`, freed nowhere else.
        let _ = unsafe { lt::destroy_matmul_pref(self.0) };
    }
}

/// An error in words.
fn because(what: &str) -> impl Fn(CublasError) -> String {
    move |CublasError(status)| format!("cuBLASLt {what} ({status:?})")
}
