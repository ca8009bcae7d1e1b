//! Files for PEFT and transformers, experts from PEFT, and generation, through the program.

mod assemble;
mod chat;
mod combine;
pub(crate) mod decoder;
mod distill;
mod dtype;
mod generate;
mod gguf;
mod lora;
mod method;
pub(crate) mod parity;
mod refusal;
mod transformers;
mod unequal;
