//! Consumer GPUs through Vulkan, or Metal on macOS.

use std::panic::AssertUnwindSafe;

use ::wgpu::{Adapter, Backends, DeviceType, Instance, InstanceDescriptor};
use burn::tensor::{DType, Tensor, backend::Backend, try_read_sync};
use burn_wgpu::graphics::{AutoGraphicsApi, GraphicsApi};
use burn_wgpu::{Wgpu, WgpuDevice, WgpuRuntime};
use cubecl::Runtime;

use crate::cubecl::{
    compute_once, operations::cube_operations, pools, queue::CubeGpu, reserved_bytes, without_panic,
};
use crate::devices::dtypes_of;
use crate::{Allocation, BackendKind, BufferLimits, DeviceClass, DeviceInfo, TrainBackend};

/// Training on a GPU through wgpu. Weights are f32, or f16 where the adapter computes in it.
pub type Gpu = Wgpu<f32>;

impl CubeGpu for Gpu {
    type Runtime = WgpuRuntime;
}

impl TrainBackend for Gpu {
    cube_operations!();

    fn device_name(device: &Self::Device) -> Option<String> {
        let adapter = adapter_of(device)?;
        Some(adapter.get_info().name)
    }

    fn allocation(device: &Self::Device) -> Allocation {
        pools::<WgpuRuntime>(device)
    }

    fn peak_memory_bytes(device: &Self::Device) -> Option<u64> {
        reserved_bytes::<WgpuRuntime>(device)
    }

    /// The binding's is that of the device CubeCL started, which may be more than the adapter promises by itself.
    fn buffer_limits(device: &Self::Device) -> Option<BufferLimits> {
        let client = WgpuRuntime::client(device);
        let buffer = adapter_of(device)?.limits().max_buffer_size;
        Some(BufferLimits { binding: client.properties().memory.max_page_size.min(buffer), buffer })
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
    match list().as_slice() {
        [] => Adapters::None,
        all if all.iter().all(|adapter| class(adapter) == DeviceClass::Software) => {
            Adapters::Software
        }
        _ => Adapters::Gpu,
    }
}

/// Every adapter, in the drivers' order, which gives their indices.
fn list() -> Vec<Adapter> {
    // Not `WgpuRuntime::enumerate_all_devices`, which starts OpenGL as well.
    let adapters = without_panic(|| {
        let backends = Backends::from(AutoGraphicsApi::backend());
        let instance = Instance::new(InstanceDescriptor {
            backends,
            ..InstanceDescriptor::new_without_display_handle()
        });
        try_read_sync(instance.enumerate_adapters(backends)).unwrap_or_default()
    });
    adapters.unwrap_or_default()
}

/// Names of all adapters.
pub(crate) fn names() -> Vec<String> {
    let name = |adapter: &Adapter| adapter.get_info().name;
    list().iter().map(name).collect()
}

/// All adapters; each is started, to see what it computes in.
pub(crate) fn devices() -> Vec<DeviceInfo> {
    let adapters = list();
    let classes: Vec<DeviceClass> = adapters.iter().map(class).collect();
    let default = default_of(&classes);
    let described = adapters.iter().enumerate().map(|(index, adapter)| {
        let device = numbered(&classes, index);
        let started = without_panic(AssertUnwindSafe(|| {
            (dtypes_of::<Gpu>(&device), Gpu::buffer_limits(&device))
        }));
        let (dtypes, limits) = started.unwrap_or_default();
        DeviceInfo {
            backend: BackendKind::Wgpu,
            index,
            name: adapter.get_info().name,
            class: classes[index],
            memory: None,
            dtypes,
            limits,
            is_default: default == Some(index),
        }
    });
    described.collect()
}

/// The adapter with this index as Burn names it. Burn counts each kind by itself; it takes the first software driver
/// alone.
pub fn device(index: usize) -> WgpuDevice {
    let classes: Vec<DeviceClass> = list().iter().map(class).collect();
    numbered(&classes, index)
}

fn numbered(classes: &[DeviceClass], index: usize) -> WgpuDevice {
    let Some(class) = classes.get(index) else {
        return WgpuDevice::DefaultDevice;
    };
    let before = classes[..index].iter().filter(|other| *other == class);
    let number = before.count();
    match class {
        DeviceClass::Discrete => WgpuDevice::DiscreteGpu(number),
        DeviceClass::Integrated => WgpuDevice::IntegratedGpu(number),
        DeviceClass::Virtual => WgpuDevice::VirtualGpu(number),
        DeviceClass::Software => WgpuDevice::Cpu,
        DeviceClass::Cpu | DeviceClass::Other => WgpuDevice::DefaultDevice,
    }
}

/// The adapter that Burn's device stands for.
fn adapter_of(device: &WgpuDevice) -> Option<Adapter> {
    let mut adapters = list();
    let classes: Vec<DeviceClass> = adapters.iter().map(class).collect();
    let same = (0..classes.len()).find(|index| numbered(&classes, *index) == *device);
    let index = same.or_else(|| default_of(&classes))?;
    Some(adapters.swap_remove(index))
}

/// What wgpu takes if it may choose: the fastest kind, the first of it.
fn default_of(classes: &[DeviceClass]) -> Option<usize> {
    let order = |class: &DeviceClass| match class {
        DeviceClass::Discrete => 0,
        DeviceClass::Integrated => 1,
        DeviceClass::Other | DeviceClass::Cpu => 2,
        DeviceClass::Virtual => 3,
        DeviceClass::Software => 4,
    };
    (0..classes.len()).min_by_key(|index| order(&classes[*index]))
}

fn class(adapter: &Adapter) -> DeviceClass {
    match adapter.get_info().device_type {
        DeviceType::DiscreteGpu => DeviceClass::Discrete,
        DeviceType::IntegratedGpu => DeviceClass::Integrated,
        DeviceType::VirtualGpu => DeviceClass::Virtual,
        DeviceType::Cpu => DeviceClass::Software,
        DeviceType::Other => DeviceClass::Other,
    }
}

/// Starts a device: see [`BackendKind::start_device`](crate::BackendKind::start_device).
pub(crate) fn start(index: Option<usize>) -> Result<(), String> {
    match adapters() {
        Adapters::None => Err("finds no Vulkan (on macOS: Metal) driver".to_string()),
        Adapters::Software | Adapters::Gpu => {
            compute_once::<Gpu>(&index.map(device).unwrap_or_default())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use DeviceClass::{Discrete, Integrated, Other, Software};

    #[test]
    fn burn_counts_each_kind_by_itself() {
        let classes = [Integrated, Discrete, Software, Discrete, Software, Other];
        let numbered: Vec<_> = (0..7).map(|index| numbered(&classes, index)).collect();
        let expected = [
            WgpuDevice::IntegratedGpu(0),
            WgpuDevice::DiscreteGpu(0),
            WgpuDevice::Cpu,
            WgpuDevice::DiscreteGpu(1),
            WgpuDevice::Cpu,
            WgpuDevice::DefaultDevice,
            WgpuDevice::DefaultDevice,
        ];
        assert_eq!(numbered, expected);
    }

    #[test]
    fn the_default_is_the_first_of_the_fastest_kind() {
        assert_eq!(default_of(&[Software, Integrated, Discrete, Discrete]), Some(2));
        assert_eq!(default_of(&[Software, Integrated]), Some(1));
        assert_eq!(default_of(&[Software]), Some(0));
        assert_eq!(default_of(&[]), None);
    }
}
