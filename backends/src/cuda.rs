//! NVIDIA GPUs.

mod library;
mod problem;
pub(crate) mod products;
mod self_test;
mod stream;

use burn::tensor::Tensor;
use burn_cuda::{Cuda, CudaDevice};
use cubecl::Runtime;
use cubecl::cuda::CudaRuntime;
use cudarc::driver::CudaContext;

use crate::cubecl::{
    compute_once, operations::cube_operations, pools, queue::CubeGpu, reserved_bytes, without_panic,
};
use crate::devices::dtypes_of;
use crate::{
    Allocation, BackendKind, DeviceClass, DeviceInfo, DeviceMemory, ProductsBy, TrainBackend,
};

/// Training on CUDA. The default float is f32; base weights and activations may be bf16 or f16.
pub type Gpu = Cuda<f32>;

impl CubeGpu for Gpu {
    type Runtime = CudaRuntime;

    fn has_library(device: &Self::Device) -> bool {
        products::has_library(device)
    }
}

impl TrainBackend for Gpu {
    cube_operations!();

    fn device_name(_device: &Self::Device) -> Option<String> {
        only_model()
    }

    fn allocation(device: &Self::Device) -> Allocation {
        pools::<CudaRuntime>(device)
    }

    fn peak_memory_bytes(device: &Self::Device) -> Option<u64> {
        reserved_bytes::<CudaRuntime>(device)
    }

    fn available_memory_bytes(device: &Self::Device) -> Option<u64> {
        memory(device.index).map(|memory| memory.free)
    }

    fn products_by(device: &Self::Device) -> ProductsBy {
        products::by(device)
    }

    fn without_library<T>(device: &Self::Device, compute: impl FnOnce() -> T) -> T {
        products::without_library(device, compute)
    }
}

/// Starts a device: see [`BackendKind::start_device`](crate::BackendKind::start_device).
pub(crate) fn start(index: Option<usize>) -> Result<(), String> {
    stream::one();
    // The driver is asked first, in this thread: starting the runtime without one would end a thread of its own.
    match without_panic(|| CudaRuntime::enumerate_devices(0, &()).len()) {
        Err(reason) => {
            // The rest lists every name that was tried.
            let reason = reason.split(" - ").next().unwrap_or_default();
            Err(format!("finds no NVIDIA driver ({reason})"))
        }
        Ok(0) => Err("finds no NVIDIA GPU".to_string()),
        Ok(_) => compute_once::<Gpu>(&device(index.unwrap_or(0))),
    }
}

/// The GPU with this index as Burn names it.
pub fn device(index: usize) -> CudaDevice {
    CudaDevice::new(index)
}

/// Names of all GPUs that the driver lets this process see.
pub(crate) fn names() -> Vec<String> {
    let count = without_panic(|| CudaRuntime::enumerate_devices(0, &()).len()).unwrap_or(0);
    let model = only_model();
    let name = |index: usize| model.clone().unwrap_or_else(|| format!("NVIDIA GPU {index}"));
    (0..count).map(name).collect()
}

/// All GPUs; each is started, to see what it computes in.
pub(crate) fn devices() -> Vec<DeviceInfo> {
    stream::one();
    let described = names().into_iter().enumerate().map(|(index, name)| {
        let dtypes = without_panic(|| dtypes_of::<Gpu>(&device(index)));
        DeviceInfo {
            backend: BackendKind::Cuda,
            index,
            name,
            class: DeviceClass::Discrete,
            // Once it is started: its context is not free then.
            memory: memory(index),
            dtypes: dtypes.unwrap_or_default(),
            limits: None,
            is_default: index == 0,
        }
    });
    described.collect()
}

/// The memory of the GPU with this index, as the driver tells; `None` where there is no such GPU, or no driver.
fn memory(index: usize) -> Option<DeviceMemory> {
    // The driver is loaded at the first call, which panics where there is none. The context is the one CubeCL computes in.
    let asked = without_panic(|| CudaContext::new(index)?.mem_get_info());
    let (free, total) = asked.ok()?.ok()?;
    Some(DeviceMemory { total: total as u64, free: free as u64 })
}

/// The model of the GPUs in this machine, if they are all of one, as the Linux driver lists them.
fn only_model() -> Option<String> {
    let gpus = std::fs::read_dir("/proc/driver/nvidia/gpus").ok()?;
    let mut models = gpus.filter_map(|gpu| {
        let text = std::fs::read_to_string(gpu.ok()?.path().join("information")).ok()?;
        let model = text.lines().find_map(|line| line.strip_prefix("Model:"))?;
        Some(model.trim().to_string())
    });
    let first = models.next()?;
    models.all(|model| model == first).then_some(first)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// With a driver or without one.
    #[test]
    fn memory_is_told_of_gpus_that_are_there() {
        for index in 0..names().len() {
            let memory = memory(index).unwrap();
            assert!(memory.free > 0 && memory.free <= memory.total, "{memory:?}");
        }
        assert_eq!(memory(names().len()), None);
    }
}
