//! Training: one step, one loop; schedule, optimizer, checkpoints, logs.
