//! The shared suite on CUDA. Skipped without an NVIDIA GPU.
#![cfg(feature = "cuda")]

#[macro_use]
mod suite;

backend_suite!(
    arithmo_backends::cuda::Gpu,
    arithmo_backends::BackendKind::Cuda,
    skip: [first_steps: "golden_runs replays all steps"]
);
