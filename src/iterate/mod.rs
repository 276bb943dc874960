//! Learning from the model's own answers: sampling, checking against known answers, pairing right with wrong ones,
//! training, and so on (iterative DPO, arXiv 2404.19733, with the checker in place of a reward model).

mod config;
pub mod measure;
mod pairing;
pub mod rounds;
pub mod sample;
mod stats;

pub use pairing::{CheckedAnswer, PairingConfig, pair_up};
pub use stats::{SampleSettings, SampleStats};
