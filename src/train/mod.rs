//! Training: one step, one loop; schedule, optimizer, checkpoints, logs.

pub mod logger;
pub mod tensorboard;
