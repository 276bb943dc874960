//! Text generation: prompts decoded together, and how a token is chosen.

mod batch;
pub mod config;
pub mod decode;
pub mod listener;
pub mod sampling;
pub mod stream;
pub mod text;

pub use config::{FinishReason, GenerateConfig, Generated, stop_ids};
pub use decode::{generate, generate_each, generate_with};
pub use listener::{Flow, GenerateEvent, GenerateProgress, Listener};
pub use text::{Completion, CompletionEvent, complete, complete_each, read_prompts};
