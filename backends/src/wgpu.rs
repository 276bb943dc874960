//! Consumer GPUs through Vulkan, Metal or DirectX 12.

use burn_wgpu::Wgpu;

use crate::TrainBackend;

/// Training on a GPU through wgpu. The default float is f32; base weights may be f16 where the adapter has it.
pub type Gpu = Wgpu<f32>;

impl TrainBackend for Gpu {}
