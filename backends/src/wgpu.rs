//! Consumer GPUs through Vulkan, or Metal on macOS.

use burn_wgpu::graphics::{AutoGraphicsApi, GraphicsApi};
use burn_wgpu::{Wgpu, WgpuDevice, WgpuRuntime};
use cubecl::Runtime;
use cubecl::device::Device;

use crate::TrainBackend;
use crate::cubecl::{compute_once, reserved_bytes, without_panic};

/// Training on a GPU through wgpu. The default float is f32; base weights may be f16 where the adapter has it.
pub type Gpu = Wgpu<f32>;

impl TrainBackend for Gpu {
    fn peak_memory_bytes(device: &Self::Device) -> Option<u64> {
        reserved_bytes::<WgpuRuntime>(device)
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

/// Asks the drivers, without starting a device.
pub(crate) fn adapters() -> Adapters {
    let found = without_panic(|| {
        let ids = WgpuRuntime::enumerate_all_devices(&AutoGraphicsApi::backend());
        ids.into_iter().map(WgpuDevice::from_id).collect::<Vec<_>>()
    });
    match found.unwrap_or_default().as_slice() {
        [] => Adapters::None,
        found if found.iter().all(|device| *device == WgpuDevice::Cpu) => Adapters::Software,
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
