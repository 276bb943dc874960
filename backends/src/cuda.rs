//! NVIDIA GPUs.

use burn_cuda::Cuda;
use cubecl::cuda::CudaRuntime;

use crate::TrainBackend;

/// Training on CUDA. The default float is f32; base weights and activations may be bf16 or f16.
pub type Gpu = Cuda<f32>;

impl TrainBackend for Gpu {
    fn peak_memory_bytes(device: &Self::Device) -> Option<u64> {
        crate::cubecl::reserved_bytes::<CudaRuntime>(device)
    }
}
