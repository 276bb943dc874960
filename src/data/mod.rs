//! From raw rows to encoded pairs. No tensors except in the batcher.

pub mod batch;
pub mod encode;
pub mod pair;
pub mod prompt;
pub mod tokenizer;
