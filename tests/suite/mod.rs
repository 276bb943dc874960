//! Tests written once and run on every backend: each `suite_*.rs` names its backend and calls these.

#![allow(
    unreachable_pub,
    dead_code,
    clippy::unwrap_used,
    reason = "every test program uses a part of it, and a test fails by panicking"
)]

pub mod adapters;
pub mod forward;
pub mod generate;
pub mod golden;
pub mod ops;
pub mod packed;
#[cfg(feature = "wgpu")]
pub mod plan;
pub mod split;
pub mod step;
pub mod tiny;
pub mod traces;
