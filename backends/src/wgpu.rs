//! Consumer GPUs through Vulkan, or Metal on macOS.

use ::wgpu::{Backends, DeviceType, Instance, InstanceDescriptor};
use burn::tensor::{DType, Tensor, backend::Backend, try_read_sync};
use burn_wgpu::graphics::{AutoGraphicsApi, GraphicsApi};
use burn_wgpu::{Wgpu, WgpuRuntime};

use crate::TrainBackend;
use crate::cubecl::{
    compute_once, operations::cube_operations, queue::CubeGpu, reserved_bytes, without_panic,
};

/// Training on a GPU through wgpu. Weights are f32, or f16 where the adapter computes in it.
pub type Gpu = Wgpu<f32>;

impl CubeGpu for Gpu {
    type Runtime = WgpuRuntime;
}

impl TrainBackend for Gpu {
    cube_operations!();

    fn peak_memory_bytes(device: &Self::Device) -> Option<u64> {
        reserved_bytes::<WgpuRuntime>(device)
    }

    /// f32, and f16 where the adapter computes in it. bf16 it may hold, not compute in.
    fn computes_in(device: &Self::Device, dtype: DType) -> bool {
        dtype == DType::F32 || (dtype == DType::F16 && Self::supports_dtype(device, dtype))
    }
}

/// What the graphics drivers of this machine offer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Adapters {
    /// No driver, or none that finds anything.
    None,
    /// Only drivers that compute on the CPU.
    Software,
    /// At least one GPU: the default device is then a GPU.
    Gpu,
}

/// Asks the drivers of the graphics API that CubeCL takes, without starting a device.
pub(crate) fn adapters() -> Adapters {
    // Not `WgpuRuntime::enumerate_all_devices`, which starts OpenGL as well.
    let types = without_panic(|| {
        let backends = Backends::from(AutoGraphicsApi::backend());
        let instance = Instance::new(InstanceDescriptor {
            backends,
            ..InstanceDescriptor::new_without_display_handle()
        });
        let adapters = try_read_sync(instance.enumerate_adapters(backends));
        let types = adapters.unwrap_or_default().into_iter();
        types
            .map(|adapter| adapter.get_info().device_type)
            .collect::<Vec<_>>()
    });
    match types.unwrap_or_default().as_slice() {
        [] => Adapters::None,
        types if types.iter().all(|kind| *kind == DeviceType::Cpu) => Adapters::Software,
        _ => Adapters::Gpu,
    }
}

/// Starts the default device: see [`BackendKind::start`](crate::BackendKind::start).
pub(crate) fn start() -> Result<(), String> {
    match adapters() {
        Adapters::None => Err("finds no Vulkan (on macOS: Metal) driver".to_string()),
        Adapters::Software | Adapters::Gpu => compute_once::<Gpu>(),
    }
}
