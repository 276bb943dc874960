//! Conversations: chat templates, rendered as transformers renders them, and the texts of conversational data.
//!
//! [`ChatTemplate`] compiles a model's template with minijinja. What Python's Jinja has beyond it is added here: methods and
//! printed forms of Python's values (`methods`, `texts`, `python`), filters and functions (`filters`, `functions`), and syntax
//! (`rewrite`). `source` finds the template in a model's folder, `conversation` makes the texts of a row.

mod arguments;
mod conversation;
mod filters;
mod functions;
mod message;
mod methods;
mod python;
mod rewrite;
mod source;
mod template;
mod texts;

pub use conversation::RenderedRow;
pub(crate) use conversation::{Conversation, extract_prompt};
pub use functions::Clock;
pub use message::Message;
pub(crate) use source::find;
pub use source::{TOOL_USE, TOOL_USE_FILE};
pub use template::{ChatTemplate, RenderOptions, Rendered};
