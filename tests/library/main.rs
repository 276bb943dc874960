//! Compares the library with other libraries and with formulas: files, tokens, adapters, quantization.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]
#![allow(clippy::too_many_lines, reason = "a test is one sequence of steps")]

mod alarms;
mod chat;
mod checkpoint;
mod encode;
mod html;
mod hub;
mod loftq;
mod lora;
mod losses;
mod merge;
mod not_finite;
mod optimizer;
mod peft_forms;
mod quantize;
mod real_model;
mod reference;
mod sft;
#[path = "../suite/signal.rs"]
mod signal;
#[path = "../suite/mod.rs"]
mod suite;
mod tokenizer;
mod weights;

use suite::plan::tiny;
use suite::support;
