//! `arithmo`: from voted answers to an aligned, measured model. Preference pairs, LoRA, DPO, on any Burn backend.

pub mod cli;
pub mod config;
pub mod data;
pub mod demo;
pub mod dpo;
pub mod error;
pub mod generate;
pub mod interrupt;
pub mod lora;
pub mod model;
pub mod output;
pub mod progress;
pub mod report;
pub mod train;

pub use error::{Error, Result};
