//! Decoders on small random models, written as folders in Hugging Face layout.

mod adapters;
mod base_dtype;
mod config;
mod families;
mod files;
mod generate;
mod properties;
mod rows;
mod world;
