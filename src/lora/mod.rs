//! LoRA (arXiv 2106.09685): settings and initialization of the low-rank branch, PEFT's adapter files, and merging.

pub mod adapter;
pub mod config;
pub mod linear;
pub mod loftq;
pub mod merge;

pub use config::{LoraConfig, TargetModules};
