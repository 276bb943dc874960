//! GPUs of any vendor through Vulkan, or through Metal on macOS.

use std::sync::{Mutex, PoisonError};

use ::wgpu::{
    Adapter, Backends, DeviceType, DownlevelFlags, Features, Instance, InstanceDescriptor, Limits,
};
use burn::tensor::{DType, Tensor, backend::Backend, try_read_sync};
use burn_wgpu::graphics::{AutoGraphicsApi, GraphicsApi};
use burn_wgpu::{Wgpu, WgpuDevice, WgpuRuntime};
use cubecl::Runtime;

use crate::cubecl::launch::{MAX_BUFFERS, MAX_SHARED_BYTES, THREADS};
use crate::cubecl::{
    autotune_setting, catch_panic, compute_once, operations::cubecl_operations, pool_allocation,
    queue::CubeGpu, reserved_bytes, runtime::GpuRuntime,
};
use crate::{
    Allocation, BackendKind, BufferLimits, DeviceClass, DeviceInfo, TrainBackend, lost_work,
};

/// The wgpu backend. Weights are f32, or f16 where the adapter computes in it.
pub type Gpu = Wgpu<f32>;

impl GpuRuntime for WgpuRuntime {
    fn autotunes(device: &WgpuDevice) -> bool {
        autotunes(device)
    }
}

impl CubeGpu for Gpu {
    type Runtime = WgpuRuntime;
}

impl TrainBackend for Gpu {
    cubecl_operations!();

    fn device_name(device: &Self::Device) -> Option<String> {
        let adapter = adapter_of(device)?;
        Some(adapter.get_info().name)
    }

    fn allocation(device: &Self::Device) -> Allocation {
        pool_allocation::<WgpuRuntime>(device)
    }

    fn peak_memory_bytes(device: &Self::Device) -> Option<u64> {
        reserved_bytes::<WgpuRuntime>(device)
    }

    /// Returns the adapter's limits. The binding's limit is that of the device CubeCL started, which may exceed the
    /// adapter's default.
    fn buffer_limits(device: &Self::Device) -> Option<BufferLimits> {
        let client = WgpuRuntime::client(device);
        let buffer = adapter_of(device)?.limits().max_buffer_size;
        Some(BufferLimits { binding: client.properties().memory.max_page_size.min(buffer), buffer })
    }

    /// Returns whether `dtype` is f32, or f16 on an adapter that computes in it. An adapter may store bf16 but not
    /// compute in it.
    fn computes_in(device: &Self::Device, dtype: DType) -> bool {
        dtype == DType::F32 || (dtype == DType::F16 && Self::supports_dtype(device, dtype))
    }
}

/// The kinds of adapters that this machine's graphics drivers offer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Adapters {
    /// No driver, or no driver that finds an adapter.
    None,
    /// Only drivers that compute on the CPU.
    Software,
    /// At least one GPU, which is then the default device.
    Gpu,
}

/// Asks the drivers of the graphics API that CubeCL uses for their adapters, without starting a device.
pub(crate) fn adapters() -> Adapters {
    match list().as_slice() {
        [] => Adapters::None,
        all if all.iter().all(|adapter| class(adapter) == DeviceClass::Software) => {
            Adapters::Software
        }
        _ => Adapters::Gpu,
    }
}

/// Returns every adapter in the drivers' order, which defines the indices.
fn list() -> Vec<Adapter> {
    catch_panic(enumerate).unwrap_or_default()
}

/// Returns every adapter, as [`list`] does, but may panic if there is no driver.
fn enumerate() -> Vec<Adapter> {
    // `WgpuRuntime::enumerate_all_devices` would start OpenGL as well.
    let backends = Backends::from(AutoGraphicsApi::backend());
    let instance = Instance::new(InstanceDescriptor {
        backends,
        ..InstanceDescriptor::new_without_display_handle()
    });
    try_read_sync(instance.enumerate_adapters(backends)).unwrap_or_default()
}

/// Returns whether matmul kernels are timed on `device` at first use so that the fastest one is kept. By default this
/// is so on GPUs but not on software drivers, where it takes minutes and gains nothing. The environment variable
/// `ARITHMO_AUTOTUNE` overrides the default.
fn autotunes(device: &WgpuDevice) -> bool {
    static CACHE: Mutex<Vec<(WgpuDevice, bool)>> = Mutex::new(Vec::new());
    let mut cache = CACHE.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some((_, autotunes)) = cache.iter().find(|(other, _)| other == device) {
        return *autotunes;
    }
    // The device is running, so its driver exists and `enumerate` does not panic.
    let autotunes = autotune_setting().unwrap_or_else(|| {
        adapter_among(enumerate(), device)
            .is_none_or(|adapter| class(&adapter) != DeviceClass::Software)
    });
    cache.push((device.clone(), autotunes));
    autotunes
}

/// Returns the names of all adapters.
pub(crate) fn names() -> Vec<String> {
    let name = |adapter: &Adapter| adapter.get_info().name;
    list().iter().map(name).collect()
}

/// Describes all adapters as their drivers report them. None is started.
pub(crate) fn devices() -> Vec<DeviceInfo> {
    let adapters = list();
    let classes: Vec<DeviceClass> = adapters.iter().map(class).collect();
    let default = default_index(&classes);
    let described = adapters.iter().enumerate().map(|(index, adapter)| {
        let flags = adapter.get_downlevel_capabilities().flags;
        let limits = adapter.limits();
        DeviceInfo {
            backend: BackendKind::Wgpu,
            index,
            name: adapter.get_info().name,
            class: classes[index],
            memory: None,
            dtypes: dtypes(flags, adapter.features()),
            limits: Some(BufferLimits {
                binding: limits.max_storage_buffer_binding_size.min(limits.max_buffer_size),
                buffer: limits.max_buffer_size,
            }),
            is_default: default == Some(index),
        }
    });
    described.collect()
}

/// Returns the types that CubeCL computes in on an adapter with these abilities: those for which [`Gpu::computes_in`]
/// is true once the adapter has started. Without compute shaders there are none.
fn dtypes(flags: DownlevelFlags, features: Features) -> Vec<DType> {
    if !flags.contains(DownlevelFlags::COMPUTE_SHADERS) {
        return Vec::new();
    }
    let mut dtypes = vec![DType::F32];
    if features.contains(Features::SHADER_F16) {
        dtypes.push(DType::F16);
    }
    dtypes
}

/// Returns Burn's device for the adapter with this index. Burn counts each kind of adapter separately, and knows only
/// the first software driver.
pub fn device(index: usize) -> WgpuDevice {
    let classes: Vec<DeviceClass> = list().iter().map(class).collect();
    burn_device(&classes, index)
}

/// Returns Burn's device for the adapter `index` among adapters of these classes.
fn burn_device(classes: &[DeviceClass], index: usize) -> WgpuDevice {
    let Some(class) = classes.get(index) else {
        return WgpuDevice::DefaultDevice;
    };
    let number = classes[..index].iter().filter(|other| *other == class).count();
    match class {
        DeviceClass::Discrete => WgpuDevice::DiscreteGpu(number),
        DeviceClass::Integrated => WgpuDevice::IntegratedGpu(number),
        DeviceClass::Virtual => WgpuDevice::VirtualGpu(number),
        DeviceClass::Software => WgpuDevice::Cpu,
        DeviceClass::Cpu | DeviceClass::Other => WgpuDevice::DefaultDevice,
    }
}

/// Returns the adapter of a Burn device.
fn adapter_of(device: &WgpuDevice) -> Option<Adapter> {
    adapter_among(list(), device)
}

/// Returns the adapter of a Burn device from `adapters`.
fn adapter_among(mut adapters: Vec<Adapter>, device: &WgpuDevice) -> Option<Adapter> {
    let classes: Vec<DeviceClass> = adapters.iter().map(class).collect();
    let same = (0..classes.len()).find(|index| burn_device(&classes, *index) == *device);
    let index = same.or_else(|| default_index(&classes))?;
    Some(adapters.swap_remove(index))
}

/// Returns the index of the adapter that wgpu picks by default: the first one of the fastest kind.
fn default_index(classes: &[DeviceClass]) -> Option<usize> {
    let rank = |class: &DeviceClass| match class {
        DeviceClass::Discrete => 0,
        DeviceClass::Integrated => 1,
        DeviceClass::Other | DeviceClass::Cpu => 2,
        DeviceClass::Virtual => 3,
        DeviceClass::Software => 4,
    };
    (0..classes.len()).min_by_key(|index| rank(&classes[*index]))
}

/// Returns the class of an adapter.
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
    lost_work::notice();
    match adapters() {
        Adapters::None => Err("finds no Vulkan (on macOS: Metal) driver".to_string()),
        Adapters::Software | Adapters::Gpu => {
            let device = index.map(device).unwrap_or_default();
            if let Some(adapter) = adapter_of(&device) {
                check_limits(&adapter.get_info().name, &adapter.limits())?;
            }
            compute_once::<Gpu>(&device)
        }
    }
}

/// Checks that the kernels fit an adapter. They fit every GPU of a computer or a newer phone; the least that the WebGPU standard
/// asks for is less.
///
/// # Errors
/// Returns what the adapter lacks.
fn check_limits(name: &str, limits: &Limits) -> Result<(), String> {
    let needs = [
        ("buffers", limits.max_storage_buffers_per_shader_stage, MAX_BUFFERS),
        ("bytes of shared memory", limits.max_compute_workgroup_storage_size, MAX_SHARED_BYTES),
        ("threads per block", limits.max_compute_invocations_per_workgroup, THREADS),
    ];
    for (what, has, needed) in needs {
        if (has as usize) < needed {
            return Err(format!(
                "cannot compute on {name}: a kernel may use {has} {what} there, and {needed} are needed"
            ));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use DeviceClass::{Discrete, Integrated, Other, Software};

    #[test]
    fn burn_counts_each_kind_separately() {
        let classes = [Integrated, Discrete, Software, Discrete, Software, Other];
        let devices: Vec<_> = (0..7).map(|index| burn_device(&classes, index)).collect();
        let expected = [
            WgpuDevice::IntegratedGpu(0),
            WgpuDevice::DiscreteGpu(0),
            WgpuDevice::Cpu,
            WgpuDevice::DiscreteGpu(1),
            WgpuDevice::Cpu,
            WgpuDevice::DefaultDevice,
            WgpuDevice::DefaultDevice,
        ];
        assert_eq!(devices, expected);
    }

    #[test]
    fn adapters_that_kernels_do_not_fit_are_refused() {
        let fits = Limits {
            max_storage_buffers_per_shader_stage: MAX_BUFFERS as u32,
            max_compute_workgroup_storage_size: MAX_SHARED_BYTES as u32,
            max_compute_invocations_per_workgroup: THREADS as u32,
            ..Limits::default()
        };
        assert_eq!(check_limits("GPU", &fits), Ok(()));
        let few = Limits { max_storage_buffers_per_shader_stage: 8, ..fits.clone() };
        let error = check_limits("GPU", &few).unwrap_err();
        assert!(error.starts_with("cannot compute on GPU: a kernel may use 8 buffers"), "{error}");
        let small = Limits { max_compute_workgroup_storage_size: 16 << 10, ..fits };
        let error = check_limits("GPU", &small).unwrap_err();
        assert!(error.contains("16384 bytes of shared memory"), "{error}");
    }

    #[test]
    fn dtypes_follow_from_the_reported_features() {
        let computes = DownlevelFlags::COMPUTE_SHADERS;
        let (none, f16) = (Features::empty(), Features::SHADER_F16);
        assert_eq!(dtypes(computes, none), [DType::F32]);
        assert_eq!(dtypes(computes, f16), [DType::F32, DType::F16]);
        assert_eq!(dtypes(DownlevelFlags::empty(), f16), []);
    }

    /// Compares nothing without a driver.
    #[test]
    fn described_dtypes_are_those_the_device_computes_in() {
        for described in devices() {
            let device = device(described.index);
            let types = [DType::F32, DType::BF16, DType::F16];
            let computes = types.map(|dtype| Gpu::computes_in(&device, dtype));
            let reported = types.map(|dtype| described.dtypes.contains(&dtype));
            assert_eq!(reported, computes, "{described:?}");
        }
    }

    #[test]
    fn the_default_is_the_first_of_the_fastest_kind() {
        assert_eq!(default_index(&[Software, Integrated, Discrete, Discrete]), Some(2));
        assert_eq!(default_index(&[Software, Integrated]), Some(1));
        assert_eq!(default_index(&[Software]), Some(0));
        assert_eq!(default_index(&[]), None);
    }
}
