//! NVIDIA GPUs.

#[cfg(unix)]
mod find_libraries;
mod gemm;
mod library;
mod problem;
mod self_test;
mod stream;

#[cfg(feature = "dry-cuda")]
pub(crate) use gemm::library_accepts;

use burn::tensor::{DType, Tensor};
use burn_cuda::{Cuda, CudaDevice};
use cubecl::Runtime;
use cubecl::cuda::CudaRuntime;
use cudarc::driver::{CudaContext, result as driver};

use crate::cubecl::{
    autotune_setting, catch_panic, compute_once,
    operations::cubecl_operations,
    pool_allocation,
    queue::CubeGpu,
    reserved_bytes,
    runtime::{Gemm, GpuRuntime},
};
use crate::{
    Allocation, BackendKind, DeviceClass, DeviceInfo, DeviceMemory, MatmulProvider, TrainBackend,
    lost_work,
};

/// The CUDA backend. Its default float type is f32; base weights and activations may be bf16 or f16.
pub type Gpu = Cuda<f32>;

impl GpuRuntime for CudaRuntime {
    fn has_library(device: &CudaDevice) -> bool {
        gemm::has_library(device)
    }

    fn multiply_by_library(gemm: &Gemm<'_, Self>) -> bool {
        gemm::multiply(gemm)
    }

    /// By default only where cuBLASLt is known to be missing: beside it few products are left to kernels, and timing one
    /// compiles some twenty.
    fn autotunes(device: &CudaDevice) -> bool {
        autotune_setting().unwrap_or_else(|| gemm::lacks_library(device))
    }
}

impl CubeGpu for Gpu {
    type Runtime = CudaRuntime;
}

impl TrainBackend for Gpu {
    cubecl_operations!();

    fn device_name(device: &Self::Device) -> Option<String> {
        name(device.index)
    }

    fn allocation(device: &Self::Device) -> Allocation {
        pool_allocation::<CudaRuntime>(device)
    }

    fn peak_memory_bytes(device: &Self::Device) -> Option<u64> {
        reserved_bytes::<CudaRuntime>(device)
    }

    fn available_memory_bytes(device: &Self::Device) -> Option<u64> {
        memory(device.index).map(|memory| memory.free)
    }

    fn matmul_provider(device: &Self::Device) -> MatmulProvider {
        gemm::provider(device)
    }

    fn without_library<T>(device: &Self::Device, compute: impl FnOnce() -> T) -> T {
        gemm::without_library(device, compute)
    }
}

/// Starts a device: see [`BackendKind::start_device`](crate::BackendKind::start_device).
pub(crate) fn start(index: Option<usize>) -> Result<(), String> {
    lost_work::notice();
    #[cfg(unix)]
    find_libraries::open_from_wheels();
    stream::use_single_stream();
    // The driver is queried first, in this thread: without a driver, starting the runtime would panic in a thread of
    // its own.
    match catch_panic(|| CudaRuntime::enumerate_devices(0, &()).len()) {
        Err(reason) => {
            // The rest of the message lists every library name that was tried.
            let reason = reason.split(" - ").next().unwrap_or_default();
            Err(format!("finds no NVIDIA driver ({reason})"))
        }
        Ok(0) => Err("finds no NVIDIA GPU".to_string()),
        Ok(_) => compute_once::<Gpu>(&device(index.unwrap_or(0))),
    }
}

/// Returns Burn's device for the GPU with this index.
pub fn device(index: usize) -> CudaDevice {
    CudaDevice::new(index)
}

/// Returns the names of all GPUs that the driver shows to this process.
pub(crate) fn names() -> Vec<String> {
    let count = catch_panic(|| CudaRuntime::enumerate_devices(0, &()).len()).unwrap_or(0);
    (0..count).map(|index| name(index).unwrap_or_else(|| format!("NVIDIA GPU {index}"))).collect()
}

/// Describes all GPUs as the driver reports them. Nothing is computed.
pub(crate) fn devices() -> Vec<DeviceInfo> {
    let described = names().into_iter().enumerate().map(|(index, name)| {
        DeviceInfo {
            backend: BackendKind::Cuda,
            index,
            name,
            class: DeviceClass::Discrete,
            // The query creates the device's primary context, which CubeCL computes in as well.
            memory: memory(index),
            dtypes: capability(index).map(dtypes).unwrap_or_default(),
            limits: None,
            is_default: index == 0,
        }
    });
    described.collect()
}

/// Returns the compute capability of the GPU with this index, major and minor; `None` if the GPU cannot be used.
fn capability(index: usize) -> Option<(i32, i32)> {
    let answer = catch_panic(|| CudaContext::new(index)?.compute_capability());
    answer.ok()?.ok()
}

/// Returns the types that GPUs of a compute capability have instructions for (CUDA C++ Programming Guide, "Arithmetic
/// Instructions").
pub(crate) fn dtypes(capability: (i32, i32)) -> Vec<DType> {
    let first_capability = [(DType::F32, (0, 0)), (DType::BF16, (8, 0)), (DType::F16, (5, 3))];
    let supported = first_capability.into_iter().filter(|(_, first)| capability >= *first);
    supported.map(|(dtype, _)| dtype).collect()
}

/// Returns the memory of the GPU with this index as the driver reports it; `None` without such a GPU or without a
/// driver.
fn memory(index: usize) -> Option<DeviceMemory> {
    // The first call loads the driver and panics if there is none. The context is the one that CubeCL computes in.
    let answer = catch_panic(|| CudaContext::new(index)?.mem_get_info());
    let (free, total) = answer.ok()?.ok()?;
    Some(DeviceMemory { total: total as u64, free: free as u64 })
}

/// Returns the model of the GPU with this index as the driver reports it; `None` without such a GPU or without a driver.
fn name(index: usize) -> Option<String> {
    let answer = catch_panic(|| {
        driver::init()?;
        driver::device::get_name(driver::device::get(index as i32)?)
    });
    answer.ok()?.ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dtypes_follow_from_the_compute_capability() {
        let (f32, bf16, f16) = (DType::F32, DType::BF16, DType::F16);
        assert_eq!(dtypes((5, 2)), [f32]);
        assert_eq!(dtypes((7, 5)), [f32, f16]);
        assert_eq!(dtypes((8, 0)), [f32, bf16, f16]);
        assert_eq!(dtypes((12, 0)), [f32, bf16, f16]);
    }

    /// Runs with or without a driver.
    #[test]
    fn memory_is_reported_for_existing_gpus() {
        for index in 0..names().len() {
            let memory = memory(index).unwrap();
            assert!(memory.free > 0 && memory.free <= memory.total, "{memory:?}");
        }
        assert_eq!(memory(names().len()), None);
    }
}
