//! Adapters in the files of Hugging Face's PEFT, both ways.
//!
//! [`PeftAdapter`] reads a folder, [`PeftAdapter::resolve`] finds the modules of a model that its
//! tensors belong to, and the [`ResolvedAdapter`] is merged into the weights ([`merge_into`]) or
//! attached beside them ([`attach`]).

mod adapter;
mod apply;
mod config;
mod key;
mod pattern;
mod resolve;

pub use adapter::PeftAdapter;
pub(crate) use apply::column_norms;
pub use apply::{attach, attach_experts, merge_into};
pub use config::PeftConfig;
pub use pattern::{Pattern, Targets};
pub use resolve::{FullTensor, FullValue, ModuleLora, ResolvedAdapter};
