//! Training: one step, one loop; schedule, optimizer, checkpoints, logs.

pub mod checkpoint;
pub mod manifest;
pub mod optimizer;
pub mod schedule;
