//! Language models that write: chat templates and whole answers.

mod chat;
mod writer;

pub use chat::{ChatError, ChatTemplate, Message};
pub(crate) use writer::stop_tokens;
pub use writer::{WriteOptions, Writer, Written};
