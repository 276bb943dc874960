//! Text generation: decoding prompts in batches, and choosing tokens.

mod batch;
pub mod chat;
pub mod config;
pub mod decode;
pub mod listener;
mod lookup;
pub mod sampling;
pub mod stream;
pub mod text;

pub use chat::Conversation;
pub use config::{FinishReason, GenerateConfig, Generated, stop_ids};
pub use decode::{generate, generate_each, generate_with};
pub use listener::{Flow, GenerateEvent, GenerateProgress, Listener};
pub use text::{Completion, CompletionEvent, complete, complete_each, complete_ids, read_prompts};
