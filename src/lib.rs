//! `arithmo`: from voted answers to an aligned, measured model. Preference pairs, LoRA and DPO on any Burn backend.
//!
//! # Where to start
//!
//! Read for half an hour, in this order:
//!
//! 1. [`data::preference`] and [`data::prepare`]: turn voted answers into pairs of a chosen and a rejected
//!    completion.
//! 2. [`objective::losses`], then [`objective::log_probs`]: the loss, and the log-probabilities it is a function of.
//! 3. [`model::linear`] and [`adapter::lora`]: a frozen projection with a low-rank branch, `y = x W^T + s (x A^T) B^T`.
//! 4. [`model::decoder`]: the model, with Hugging Face's field names.
//! 5. [`train::step`]: one step, from a batch to changed adapter weights; [`train::trainer`] is the loop around
//!    it.
//! 6. [`arithmo_backends`]: the trait that each backend implements.
//!
//! `docs/architecture.md` shows how data moves through these modules and which module may import which. [`demo`] goes the
//! whole way, from rows to a measured adapter, in one short file.
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
//! Weights are `[out, in]`, as stored. Policy and reference share their weights, with and without the adapter. Before
//! the first update they are the same function, so the loss is ln 2 and every reward is 0, which each run checks.

// `eprintln!` panics if stderr cannot be written; `say!` does not.
#![warn(clippy::print_stderr)]

#[macro_use]
pub mod message;

pub mod adapter;
pub mod alarms;
pub mod bench;
pub mod cli;
pub mod config;
pub mod data;
pub mod demo;
pub mod dispatch;
pub mod doctor;
pub mod error;
pub mod eval;
pub mod generate;
pub mod input_file;
pub mod inspect;
pub mod interrupt;
pub mod iterate;
pub mod model;
pub mod objective;
pub mod output;
pub mod plan;
pub mod process;
pub mod progress;
mod read_at;
pub mod report;
pub mod train;

pub use error::{Error, Result};
