//! Models against golden vectors, files and properties: one binary, which links burn once.

mod decoder;
mod encoder;
mod family;
mod golden_decoder;
mod golden_encoder;
mod golden_encoder_decoder;
mod golden_peft;
mod own_model;
mod parity;
mod peft;
mod saved;
