//! Language models that write: chat templates and whole answers.

mod chat;
mod stop;
mod writer;

pub use chat::{ChatError, ChatTemplate, Message};
pub(crate) use stop::stop_tokens;
pub use writer::{WriteOptions, Writer, Written};
