//! From raw rows to encoded pairs. No tensors except in the batcher.

pub mod arithmetic;
pub mod batch;
pub mod encode;
pub mod example;
pub mod html;
pub mod lengths;
pub mod pair;
pub mod preference;
pub mod prepare;
pub mod prompt;
pub mod sample;
pub mod stack_exchange;
pub mod tokenizer;
