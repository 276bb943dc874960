//! Text generation: the decode loop, and how a token is chosen.

pub mod config;
pub mod decode;
pub mod sampling;
pub mod text;

pub use config::{FinishReason, GenerateConfig, Generated, stop_ids};
pub use decode::{GenerateProgress, generate};
pub use text::{Completion, complete, read_prompts};
