//! Files: base weights, adapters and heads.

mod adapter;
mod config_file;
mod heads;
mod names;
mod narrow;
mod pairs;
mod shards;
mod tensors;
mod weights;

pub use adapter::{
    AdapterFiles, load_adapter, load_routers, save_adapter, save_routers, shortest_names,
};
pub(crate) use config_file::ConfigFile;
pub use heads::{load_heads, save_heads};
pub(crate) use names::{current_name, old_name};
pub(crate) use narrow::narrowed;
pub(crate) use pairs::Pairs;
pub use shards::ModelWeights;
pub(crate) use tensors::write_tensors;
pub use weights::Weights;
pub(crate) use weights::check_finite;
