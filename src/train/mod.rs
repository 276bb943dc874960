//! Training: one step, one loop; schedule, optimizer, checkpoints, logs.

pub mod checkpoint;
mod dpo;
pub mod folder;
pub mod gradient;
pub mod learner;
pub mod logger;
pub mod manifest;
pub mod method;
pub mod optimizer;
pub mod parameters;
pub mod pass;
pub mod result;
pub mod run;
pub mod sampler;
pub mod schedule;
pub mod setup;
pub mod sft;
pub mod tensorboard;
pub mod trainer;
