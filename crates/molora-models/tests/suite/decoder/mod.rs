//! Decoders on small random models, written as folders in Hugging Face layout.

mod adapters;
mod base_dtype;
mod config;
mod families;
mod family_config;
mod files;
mod generate;
mod properties;
mod rows;
mod world;
