//! Training: the learners, the training loop, learning-rate schedules, the optimizer, checkpoints and logs.

pub mod checkpoint;
pub mod folder;
pub mod gradient;
pub mod logger;
pub mod manifest;
pub mod optimizer;
pub mod parameters;
pub mod result;
mod resume;
pub mod run;
pub mod sampler;
pub mod schedule;
pub mod setup;
pub mod step;
pub mod steps;
pub mod tensorboard;
pub mod trainer;
pub mod unsaved;
