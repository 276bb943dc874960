//! Training: one step, one loop; schedule, optimizer, checkpoints, logs.

pub mod checkpoint;
pub mod folder;
pub mod gradient;
pub mod learner;
pub mod logger;
pub mod manifest;
pub mod optimizer;
pub mod pass;
pub mod run;
pub mod sampler;
pub mod schedule;
pub mod setup;
pub mod tensorboard;
pub mod trainer;
