//! Files: base weights, adapters and heads.

mod adapter;
mod fields;
mod heads;
mod tensors;
mod weights;

pub use adapter::{AdapterFiles, load_adapter, load_routers, save_adapter, save_routers};
pub use heads::{load_heads, save_heads};
pub use weights::Weights;
