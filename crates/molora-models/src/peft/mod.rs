//! Adapters in the files of Hugging Face's PEFT, both ways.
//!
//! [`PeftAdapter`] reads a folder, [`PeftAdapter::resolve`] finds the modules of a model that its
//! tensors belong to, and the [`ResolvedAdapter`] is merged into the weights ([`merge_into`]) or
//! attached beside them ([`attach`]).

mod adapter;
mod apply;
mod combine;
mod config;
mod key;
mod merged;
mod mixture;
mod parameters;
mod pattern;
mod poly;
mod read;
mod resolve;
mod write;

pub use adapter::PeftAdapter;
pub(crate) use apply::column_norms;
pub use apply::{attach, attach_experts, merge_into};
pub use combine::combine;
pub use config::PeftConfig;
pub use merged::{MergedDtype, save_merged};
pub use mixture::{detach, expert, mixture, static_mixture};
pub use pattern::{Pattern, Targets};
pub use poly::open_poly;
pub use resolve::{FullTensor, FullValue, ModuleLora, ResolvedAdapter};
pub use write::{PeftAbout, write_adapter};
