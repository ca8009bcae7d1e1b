//! Language models that write: chat templates and whole answers.

mod chat;
mod writer;

pub use chat::{ChatError, ChatTemplate, Message};
pub use writer::Writer;
pub(crate) use writer::stop_tokens;
