//! PEFT files: what is refused, and what is written is read again.

mod banks;
pub(crate) mod poly;
mod read;
pub(crate) mod world;
mod write;
