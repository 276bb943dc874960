//! Reads raw rows and turns them into encoded preference pairs. No file here uses tensors.

pub mod answers;
pub mod batch;
pub mod chat;
mod columnar;
pub mod encode;
pub mod example;
pub mod html;
pub(crate) mod json_lines;
pub mod labeled;
pub mod lengths;
pub mod pair;
pub mod preference;
pub mod prepare;
pub mod prompt;
pub mod prompt_format;
mod python_json;
pub mod row_limit;
pub mod sample;
pub mod stack_exchange;
pub mod template_text;
pub mod tokenizer;
