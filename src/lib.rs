//! `arithmo`: from voted answers to an aligned, measured model. Preference pairs, LoRA, DPO, on any Burn backend.
//!
//! # Where to start
//!
//! Half an hour, in this order:
//!
//! 1. [`data::preference`] and [`data::prepare`]: voted answers become pairs of a chosen and a rejected completion.
//! 2. [`dpo::loss`], then [`dpo::log_probs`]: what is minimised, and the log-probabilities it is a function of.
//! 3. [`model::linear`] and [`lora::linear`]: a frozen projection with a low-rank branch, `y = x W^T + s (x A^T) B^T`.
//! 4. [`model::mistral`]: the model, with Hugging Face's field names.
//! 5. [`train::learner`]: one step, from a batch to changed adapter weights; [`train::trainer`] is the loop around it.
//! 6. [`arithmo_backends`]: the one trait a backend implements.
//!
//! Data flows one way: raw rows -> [`data::pair::PreferencePair`] (text) -> [`data::encode::EncodedPair`] (token ids) ->
//! [`data::batch::PreferenceBatch`] -> log-probabilities -> loss and rewards -> gradients of the adapter alone -> a folder
//! that PEFT opens. [`demo`] goes the whole way in one short file.
//!
//! # Notation
//!
//! | | |
//! |---|---|
//! | `B` | sequences in a batch; of `N` pairs, the chosen ones first: `B = 2N` (as a type parameter: the backend) |
//! | `S` | tokens of a sequence, padding included |
//! | `T` | tokens in all, or completion tokens in all, where a tensor has no sequence axis |
//! | `V` | tokens in the vocabulary |
//! | `D` | width of the model, `hidden_size` |
//! | `H`, `H_kv` | heads of queries, and of keys and values; `H / H_kv` queries share one |
//! | `Dh` | width of a head, `head_dim` |
//! | `r` | rank of the adapter; its scaling is `s = lora_alpha / r` |
//!
//! Weights are `[out, in]`, as stored. Policy and reference are the same weights, with and without the adapter: before the
//! first update they are the same function, so the loss is ln 2 and every reward 0, which each run checks.

pub mod bench;
pub mod cli;
pub mod config;
pub mod data;
pub mod demo;
pub mod doctor;
pub mod dpo;
pub mod error;
pub mod eval;
pub mod generate;
pub mod interrupt;
pub mod iterate;
pub mod lora;
pub mod model;
pub mod output;
pub mod plan;
pub mod process;
pub mod progress;
mod read_at;
pub mod report;
pub mod train;

pub use error::{Error, Result};
