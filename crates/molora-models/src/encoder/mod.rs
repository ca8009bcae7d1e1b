//! Encoders: text to one hidden state per token.

mod bert;
mod config;
mod load;
mod modules;

pub use bert::{Bert, EncoderInput, EncoderOutput, masked_mean};
pub use config::BertConfig;
