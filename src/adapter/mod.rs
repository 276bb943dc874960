//! Adapters: LoRA (arXiv 2106.09685) with its settings and initializations, PEFT's adapter files, and merging.

pub mod biases;
pub mod config;
pub mod loftq;
pub mod lora;
pub mod merge;
pub mod merged;
pub mod modules;
pub mod parameters;
pub mod peft;
pub mod residual;
pub mod saved;
mod vllm;

pub use config::LoraConfig;
pub use modules::TargetModules;
