//! Training: the learners, the training loop, learning-rate schedules, the optimizer, checkpoints and logs.

pub mod activations;
mod beforehand;
pub mod checkpoint;
pub mod data;
pub mod folder;
pub mod gradient;
pub mod learner;
pub mod logger;
pub mod manifest;
pub mod optimizer;
pub mod parameters;
pub mod policy;
pub mod result;
mod resume;
pub mod run;
pub mod sampler;
pub mod schedule;
pub mod step;
pub mod steps;
pub mod tensorboard;
pub mod trainer;
pub mod unsaved;
