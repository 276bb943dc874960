//! The kernels of wgpu against the reference bodies in f32 on the CPU, forward and backward: odd sizes, views, f16.
//! Without a Vulkan driver nothing is compared, which is said.
#![cfg(feature = "wgpu")]
#![allow(clippy::unwrap_used, reason = "a test may stop at the first surprise, in its helpers too")]

mod adapted_linear;
mod attention;
mod elementwise;
mod host;
mod log_probs;
mod packed;
mod split;
