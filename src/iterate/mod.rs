//! Learning from the model's own answers: sampled, checked against known ones, paired right with wrong, trained on, again
//! (iterative DPO, arXiv 2404.19733, with the checker in the place of a reward model).

pub mod measure;
mod pairing;
pub mod rounds;
pub mod sample;

pub use pairing::{Checked, PairingConfig, pair_up};
