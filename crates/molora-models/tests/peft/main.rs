//! PEFT files: what is refused, and what is written is read again.

mod read;
mod world;
mod write;
