//! Encoder-decoders: a text is read in both directions, then another is generated.

mod config;
mod load;
mod model;
mod modules;
mod sites;

pub use config::T5Config;
pub use model::{Encoded, T5};
