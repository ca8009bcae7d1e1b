//! Models against golden vectors, files and properties: one binary, which links burn once.

mod decoder;
mod golden_decoder;
mod golden_encoder;
mod golden_peft;
mod golden_t5;
mod own_model;
mod parity;
mod peft;
mod saved;
