//! NVIDIA GPUs.

use burn_cuda::Cuda;

use crate::TrainBackend;

/// Training on CUDA. The default float is f32; base weights and activations may be bf16 or f16.
pub type Gpu = Cuda<f32>;

impl TrainBackend for Gpu {}
