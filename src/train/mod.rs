//! Training: one step, one loop; schedule, optimizer, checkpoints, logs.

pub mod gradient;
pub mod learner;
pub mod logger;
pub mod optimizer;

pub mod sampler;
pub mod schedule;
pub mod setup;
pub mod tensorboard;
