//! Training: one step, one loop; schedule, optimizer, checkpoints, logs.

pub mod gradient;
pub mod schedule;
