//! Encoders: text to one hidden state per token.
//!
//! There is one attention, one layer and one encoder. A family is a function from its `config.json` to
//! an [`EncoderConfig`], and a [`Names`](config::Names) map; see `docs/adding-a-model.md`.

mod attention;
mod config;
mod convolution;
mod embeddings;
mod family;
mod layer;
mod load;
mod model;
mod modules;
mod relative;
mod sites;

pub(crate) use attention::Surroundings;
pub use config::{
    ConvolutionConfig, EncoderConfig, LocalAttention, Positions, Projection, RelativeClasses,
};
pub(crate) use family::{FAMILIES, activation};
pub use model::{Encoder, EncoderInput, EncoderOutput, masked_mean};
pub use relative::Disentangled;

/// An encoder, by the name of the first family.
pub type Bert = Encoder;

/// Its configuration.
pub type BertConfig = EncoderConfig;
