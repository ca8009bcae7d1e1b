//! Files for PEFT and transformers, experts from PEFT, and generation, through the program.

mod assemble;
mod combine;
mod decoder;
mod distill;
mod generate;
mod lora;
mod method;
mod parity;
mod refusal;
mod unequal;
