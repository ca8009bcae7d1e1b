//! Hugging Face models on burn, with sites for mixtures of LoRA experts.
//!
//! A model is read from a folder in Hugging Face layout: an encoder ([`Bert::from_folder`]), a decoder
//! ([`Decoder::from_folder`]) or both ([`T5::from_folder`]). Each of its linear
//! layers is a [`MoLoraLinear`]: the frozen weight and, once [`AdapterSpec`] has been attached, an
//! [`Adapter`] of experts, router and gate. Forward is pure: routing decisions are returned, never
//! kept in the model.
//!
//! ```no_run
//! use burn::tensor::Device;
//! use molora_kernels::random::Seed;
//! use molora_models::{Adaptable, AdapterSpec, Bert};
//!
//! # fn main() -> Result<(), molora_models::ModelError> {
//! let device = Device::default();
//! let mut model = Bert::from_folder("all-MiniLM-L6-v2".as_ref(), &device)?;
//! let spec = AdapterSpec { targets: vec!["query".into(), "value".into()], ..Default::default() };
//! let sites = model.attach(&spec, 1, Seed::new(0), &device)?;
//! println!("{} adapted layers", sites.len());
//! # Ok(())
//! # }
//! ```

mod adaptable;
mod adapter;
mod attach;
mod backbone;
mod base_dtype;
mod blocks;
mod checkpoint;
mod decoder;
mod encoder;
mod encoder_decoder;
mod error;
mod family;
mod feed_forward;
mod first_pass;
pub mod gguf;
mod ids;
mod layers;
mod linear;
mod modules;
mod noise;
mod observe;
mod part;
pub mod peft;
mod pool;
mod reader;
mod relative_bias;
mod saved;
mod scope;
mod site;
mod spec;
mod table;
mod task_model;
pub mod transformers;

pub use adaptable::Adaptable;
pub use adapter::Adapter;
pub use backbone::Backbone;
pub use base_dtype::{BaseDtype, BaseWeight};
pub use blocks::BlockState;
pub use checkpoint::{
    AdapterFiles, ModelWeights, Weights, load_adapter, load_heads, load_routers, save_adapter,
    save_heads, save_routers, shortest_names,
};
pub use decoder::{
    BeamOptions, Decoder, DecoderConfig, DecoderInput, DecoderOutput, Decoders, DecodersCache,
    ExpertsConfig, Finish, GenerateError, GenerateOptions, Generated, KvCache, LayerConfig,
    NormKind, NormPlace, Penalties, QkNorm, QkvForm, Rope, RopeScaling, Sampling, Watcher, choose,
    last_real, likeliest, log_sum_exp,
};
pub use encoder::{
    Bert, BertConfig, ConvolutionConfig, Disentangled, Encoder, EncoderConfig, EncoderInput,
    EncoderOutput, LocalAttention, Positions, Projection, RelativeClasses, masked_mean,
};
pub use encoder_decoder::{
    Encoded, EncoderDecoder, EncoderDecoderConfig, ForcedTokens, StackConfig, T5, T5Config,
    TokenPositions,
};
pub use error::ModelError;
pub use family::{About, ConfigField, Family, FamilyKind, Sizes};
pub use first_pass::{FirstPass, FirstPassConfig, FirstPassStates, Hidden};
pub use ids::with_stable_ids;
pub use layers::{Activation, LayerNorm, RmsNorm};
pub use linear::{ForwardContext, MoLoraLinear, RouteTrace};
pub use modules::{BaseModel, Layout, ModuleMut, PartMut, TableMut};
pub use molora_parts::ParameterKind;
pub use noise::EmbeddingNoise;
pub use observe::Observation;
pub use part::ModelPart;
pub use pool::{Pool, PoolConfig, PoolWeights, PooledBank, PooledSite};
pub use saved::{SavedModule, SavedTables};
pub use scope::LayerRouter;
pub use site::{SitePattern, select_sites};
pub use spec::{AdapterSpec, Composition, ExpertCount, Growth, RouterScope};
pub use table::TokenTable;
pub use task_model::{TaskHead, TaskModel, TextInput, TextOutput};

/// Compiles the example of the README.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
pub struct Readme;
