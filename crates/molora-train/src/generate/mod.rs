//! Text generation with a language model or a run of one: answers to prompts, conversations, and
//! instructions of tasks.

mod asked;
mod conversation;
mod describe;
mod engine;
mod mixture;
mod request;
mod writer;

pub use crate::data::{Prompt, parse_prompts};
pub use conversation::{Conversation, Reply};
pub use describe::describe;
pub use engine::{
    Asked, Engine, EngineOptions, EngineState, Event, Listener, Request, TokenScore, Variant,
};
pub use writer::{TextWatcher, WriteOptions, Writer, Written};
