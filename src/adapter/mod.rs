//! Adapters: LoRA (arXiv 2106.09685) with its settings and initializations, PEFT's adapter files, and merging.

pub mod config;
pub mod linear;
pub mod loftq;
pub mod merge;
pub mod peft;
pub mod residual;

pub use config::{LoraConfig, TargetModules};
