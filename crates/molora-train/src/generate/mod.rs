//! Language models that write: whole answers to prompts, and instructions of tasks.

mod asked;
mod describe;
mod writer;

pub use crate::data::{Prompt, parse_prompts};
pub use describe::describe;
pub use writer::{TextWatcher, WriteOptions, Writer, Written};
