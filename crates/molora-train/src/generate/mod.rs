//! Text generation with a language model or a run of one: answers to prompts, conversations, and
//! instructions of tasks.

mod conversation;
mod describe;
mod engine;
mod mixture;
mod request;
mod templates;
mod writer;

pub use crate::data::{Prompt, parse_prompts};
pub use conversation::{Conversation, Reply};
pub use describe::describe;
pub use engine::{
    EncodedPrompt, Engine, EngineOptions, EngineState, Event, Listener, Request, TokenScore,
    Variant,
};
pub use writer::{TextWatcher, WriteOptions, Writer, Written};
