//! Adapters in the files of Hugging Face's PEFT, both ways.
//!
//! [`PeftAdapter`] reads a folder, [`PeftAdapter::resolve`] finds the modules of a model that its
//! tensors belong to, and the [`ResolvedAdapter`] is merged into the weights ([`merge_into`]) or
//! attached beside them ([`attach`]).
//!
//! The other way, [`static_mixture`] is what is attached to a model as one exact LoRA,
//! [`write_adapter`] writes it, and [`save_merged`] writes a whole model.
//!
//! ```no_run
//! use burn::tensor::Device;
//! use molora_models::Decoder;
//! use molora_models::peft::{MergedDtype, PeftAdapter, merge_into, save_merged};
//!
//! # fn main() -> Result<(), molora_models::ModelError> {
//! let base = "SmolLM2-135M".as_ref();
//! let mut model = Decoder::from_folder(base, &Device::default())?;
//! let adapter = PeftAdapter::open("my-lora".as_ref())?.resolve(&model)?;
//! merge_into(&mut model, &adapter);
//! save_merged(&model, base, "merged".as_ref(), MergedDtype::AsSource)?;
//! # Ok(())
//! # }
//! ```

mod adapter;
mod apply;
mod arrow;
mod combine;
mod config;
mod deltas;
mod experts;
mod key;
mod kind;
mod lily;
mod merged;
mod mixture;
mod parameters;
mod pattern;
mod poly;
mod read;
mod resolve;
mod write;
mod xlora;

pub use adapter::PeftAdapter;
pub(crate) use apply::column_norms;
pub use apply::{attach, attach_experts, merge_into};
pub use arrow::{ArrowFolder, why_no_arrow, write_arrow};
pub use combine::combine;
pub use config::PeftConfig;
pub use deltas::{WeightDeltas, add_deltas, merged_deltas, tables};
pub use experts::GivenExperts;
pub use kind::PeftKind;
pub use lily::{Lily, why_no_lily, write_lily};
pub(crate) use merged::copy_small_files;
pub use merged::{MergedDtype, save_merged};
pub use mixture::{detach, expert, mixture, mixture_for, static_mixture};
pub(crate) use parameters::{Parameter, parameters};
pub(crate) use pattern::ends_with;
pub use pattern::{Pattern, Targets};
pub use poly::{Poly, is_poly, open_poly, write_poly};
pub use resolve::{FullTensor, FullValue, ModuleLora, ResolvedAdapter};
pub use write::{PeftAbout, adapter_folder, write_adapter};
pub use xlora::{XLora, why_no_xlora, write_xlora};
