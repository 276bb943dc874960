//! Consumer GPUs through Vulkan, Metal or DirectX 12.

use burn_wgpu::{Wgpu, WgpuRuntime};

use crate::TrainBackend;

/// Training on a GPU through wgpu. The default float is f32; base weights may be f16 where the adapter has it.
pub type Gpu = Wgpu<f32>;

impl TrainBackend for Gpu {
    fn peak_memory_bytes(device: &Self::Device) -> Option<u64> {
        crate::cubecl::reserved_bytes::<WgpuRuntime>(device)
    }
}
