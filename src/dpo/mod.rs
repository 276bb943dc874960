//! Direct Preference Optimization (arXiv 2305.18290): log-probabilities of completions, the reference model, the loss and
//! the metrics.

pub mod log_probs;
pub mod loss;
pub mod metrics;
pub mod reference;
pub mod score;
