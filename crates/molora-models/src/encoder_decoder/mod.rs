//! Encoder-decoders: a text is read in both directions, then another is generated.
//!
//! They are built from the decoder's attention, feed-forward part and generation. A family is a
//! function from its `config.json` to an [`EncoderDecoderConfig`], and a [`Names`](config::Names) map.

mod config;
mod family;
mod layer;
mod load;
mod model;
mod modules;
mod sites;

pub use config::{EncoderDecoderConfig, ForcedTokens, StackConfig, TokenPositions};
pub(crate) use family::FAMILIES;
pub use model::{Encoded, EncoderDecoder};

/// An encoder-decoder, by the name of the first family.
pub type T5 = EncoderDecoder;

/// Its configuration.
pub type T5Config = EncoderDecoderConfig;
