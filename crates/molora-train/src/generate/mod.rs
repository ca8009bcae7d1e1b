//! Language models that write: whole answers to prompts, and instructions of tasks.

mod describe;
mod writer;

pub use describe::describe;
pub use writer::{WriteOptions, Writer, Written};
