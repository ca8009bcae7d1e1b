//! Decoders: one hidden state per token from the tokens up to it, and generation.
//!
//! There is one attention, one feed-forward part and one decoder. A family is a function from its
//! `config.json` to a [`DecoderConfig`], and a [`Names`](names::Names) map; see
//! `docs/adding-a-model.md`.

mod attention;
mod beam;
mod cache;
mod config;
mod decoders;
mod experts;
mod family;
mod feed_forward;
mod generate;
mod group;
mod input;
mod layer;
mod load;
mod model;
mod modules;
mod names;
mod pass;
mod rope;
mod rows;
mod sample;
mod scaling;
mod sites;

pub(crate) use attention::{Attention, Qkv};
pub use beam::BeamOptions;
pub use cache::KvCache;
pub(crate) use cache::LayerCache;
pub(crate) use config::any_of;
pub use config::{DecoderConfig, ExpertsConfig, LayerConfig, NormKind, NormPlace, QkNorm, QkvForm};
pub use decoders::{Decoders, DecodersCache};
pub(crate) use family::FAMILIES;
pub(crate) use feed_forward::FeedForward;
pub use generate::{Finish, GenerateError, GenerateOptions, Generated, Watcher, last_real};
pub(crate) use generate::{check_prompts, one_token_rows, with_mask, write_on};
pub use input::DecoderInput;
pub(crate) use model::embedded;
pub use model::{Decoder, DecoderOutput};
pub(crate) use pass::Pass;
pub(crate) use rope::Rotation;
pub use rope::{Rope, RopeScaling};
pub use sample::{Penalties, Sampling, choose, likeliest, log_sum_exp};
