//! Files: base weights, adapters and heads.

mod adapter;
mod weights;

pub use adapter::{AdapterFiles, load_adapter, load_heads, save_adapter, save_heads};
pub use weights::Weights;
