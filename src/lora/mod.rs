//! LoRA (arXiv 2106.09685): what the low-rank branch is, where it sits, its PEFT files, merging it away.

pub mod adapter;
pub mod config;
pub mod linear;
pub mod loftq;
pub mod merge;

pub use config::{LoraConfig, TargetModules};
