//! The CUDA backend without a card, for tests (`docs/gpu-testing.md`).
//!
//! Kernels are translated to the C++ that a card would be given, memory lies in pools and padded rows as on a card, and
//! every launch is counted and checked against the card's limits. Nothing is executed, and what is read from the device is
//! zero; or the C++ is executed on the CPU ([`emulator`]).

mod card;
pub mod emulator;
pub mod nvrtc;
mod product;
mod record;
mod server;
mod storage;

use std::sync::atomic::{AtomicU16, Ordering};

use burn::tensor::{DType, Tensor, backend::Backend};
use burn_backend::DeviceOps;
use burn_cubecl::CubeBackend;
use burn_fusion::Fusion;
use cubecl::Runtime;
use cubecl::client::ComputeClient;
use cubecl::cuda::{CudaCompiler, CudaRuntime};
use cubecl::device::{Device, DeviceId};
use cubecl::device_handle::DeviceHandle;
use cubecl::ir::TargetProperties;
use cubecl::zspace::{Shape, Strides};

pub use self::card::{CARDS, Card, MAX_GRID};
use self::product::{Matrix, Product};
pub use self::record::{KernelRecord, Record};
pub use self::server::DryServer;
pub use self::storage::{DryStorage, TensorBytes};
pub use crate::cubecl::launch::{MAX_BUFFERS, MAX_SHARED_BYTES};
use crate::cubecl::{
    operations::cubecl_operations,
    pool_allocation,
    queue::CubeGpu,
    reserved_bytes,
    runtime::{Gemm, GpuRuntime},
};
use crate::{Allocation, MatmulProvider, TrainBackend};

/// The backend: `Cuda<f32>` with [`DryRuntime`] in place of CubeCL's CUDA runtime.
pub type DryCuda = Fusion<CubeBackend<DryRuntime, f32, i32, u8>>;

/// CubeCL's translation to CUDA C++.
type DryCompiler = CudaCompiler;

/// A card that is not there.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DryDevice {
    /// Its place in [`CARDS`].
    card: u16,
    /// Tells devices with the same card apart.
    number: u16,
    /// Whether cuBLASLt multiplies matrices.
    with_library: bool,
    /// Whether kernels are executed on the CPU.
    executes: bool,
}

impl DryDevice {
    /// Creates a device with a card of its own, which nothing has used.
    pub fn new(card: &Card, with_library: bool) -> Self {
        static NUMBER: AtomicU16 = AtomicU16::new(1);
        let place = CARDS.iter().position(|known| known == card).unwrap_or(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        Self { card: place as u16, number, with_library, executes: false }
    }

    /// Creates a device that executes its kernels on the CPU.
    pub fn emulated(card: &Card, with_library: bool) -> Self {
        Self { executes: true, ..Self::new(card, with_library) }
    }

    /// Returns the card that it stands for.
    pub fn card(&self) -> Card {
        CARDS[usize::from(self.card)]
    }

    /// Returns what was recorded since the last call, once all recorded operations have been launched.
    ///
    /// # Panics
    /// If the server's thread has stopped.
    pub fn take(&self) -> Record {
        let synchronized = DryCuda::sync(self);
        let server = DeviceHandle::<DryServer>::new(self.to_id());
        let record = server.submit_blocking(DryServer::take);
        match (synchronized, record) {
            (Ok(()), Ok(record)) => record,
            (synchronized, record) => panic!("{synchronized:?} {record:?}"),
        }
    }
}

impl Device for DryDevice {
    fn from_id(id: DeviceId) -> Self {
        let (with_library, executes) = (id.type_id & 1 != 0, id.type_id & 2 != 0);
        Self { card: id.type_id >> 2, number: id.index_id, with_library, executes }
    }

    fn to_id(&self) -> DeviceId {
        let (library, executes) = (u16::from(self.with_library), u16::from(self.executes));
        DeviceId { type_id: self.card << 2 | executes << 1 | library, index_id: self.number }
    }
}

impl DeviceOps for DryDevice {}

/// CubeCL's runtime for [`DryDevice`].
#[derive(Clone, Debug)]
pub struct DryRuntime;

impl Runtime for DryRuntime {
    type Compiler = DryCompiler;
    type Server = DryServer;
    type Device = DryDevice;

    fn client(device: &DryDevice) -> ComputeClient<Self> {
        ComputeClient::load(device)
    }

    fn name(_client: &ComputeClient<Self>) -> &'static str {
        "cuda"
    }

    fn require_array_lengths() -> bool {
        CudaRuntime::require_array_lengths()
    }

    fn max_cube_count() -> (u32, u32, u32) {
        CudaRuntime::max_cube_count()
    }

    fn can_read_tensor(shape: &Shape, strides: &Strides) -> bool {
        CudaRuntime::can_read_tensor(shape, strides)
    }

    fn target_properties() -> TargetProperties {
        CudaRuntime::target_properties()
    }

    fn enumerate_devices(type_id: u16, _info: &()) -> Vec<DeviceId> {
        vec![DeviceId { type_id, index_id: 0 }]
    }
}

impl GpuRuntime for DryRuntime {
    fn has_library(device: &DryDevice) -> bool {
        device.with_library
    }

    /// Counts the product if cuBLASLt would be given it, and computes it where kernels are executed.
    fn multiply_by_library(gemm: &Gemm<'_, Self>) -> bool {
        let device = &gemm.left.device;
        if !device.with_library || !crate::cuda::library_accepts(gemm) {
            return false;
        }
        let Gemm { left, right, factor, addend, product } = *gemm;
        let [Some(left), Some(right), Some(product)] = [left, right, product].map(Matrix::new)
        else {
            return false;
        };
        let addend = addend.and_then(Matrix::new);
        let product = Product { left, right, factor, addend, product };
        let server = DeviceHandle::<DryServer>::new(device.to_id());
        server.submit(|server| server.multiply(product));
        true
    }
}

impl CubeGpu for DryCuda {
    type Runtime = DryRuntime;
}

impl TrainBackend for DryCuda {
    cubecl_operations!();

    fn device_name(device: &DryDevice) -> Option<String> {
        Some(device.card().name.to_string())
    }

    fn allocation(device: &DryDevice) -> Allocation {
        pool_allocation::<DryRuntime>(device)
    }

    fn peak_memory_bytes(device: &DryDevice) -> Option<u64> {
        reserved_bytes::<DryRuntime>(device)
    }

    fn available_memory_bytes(device: &DryDevice) -> Option<u64> {
        Some(device.card().memory)
    }

    fn computes_in(device: &DryDevice, dtype: DType) -> bool {
        let capability = device.card().capability as i32;
        crate::cuda::dtypes((capability / 10, capability % 10)).contains(&dtype)
    }

    fn matmul_provider(device: &DryDevice) -> MatmulProvider {
        if device.executes {
            MatmulProvider::Fallback("products are computed by the tests' own loop".to_string())
        } else if device.with_library {
            MatmulProvider::Library("cuBLASLt".to_string())
        } else {
            MatmulProvider::Fallback("the device has no library".to_string())
        }
    }
}
