//! What preference training optimizes (Direct Preference Optimization, arXiv 2305.18290, and its relatives):
//! log-probabilities of completions, the reference model, the losses and the metrics.

pub mod f_divergence;
pub mod log_probs;
pub mod losses;
pub mod metrics;
pub mod preference;
pub mod reference;
pub mod score;
