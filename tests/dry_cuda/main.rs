//! The CUDA backend without a card: what a training step would launch, and whether CUDA's compiler accepts it
//! (docs/gpu-testing.md). With autotuning, kernels would be chosen by their time, which has no meaning here.
#![cfg(all(feature = "dry-cuda", not(feature = "autotune")))]

mod compiled;
mod golden;
mod launches;
mod learner;
