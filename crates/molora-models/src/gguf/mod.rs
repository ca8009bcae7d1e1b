//! Files for llama.cpp and the programs on top of it, such as Ollama.
//!
//! [`write_adapter`] writes a LoRA, [`write_model`] a whole model with its [`Vocabulary`]. Only families and
//! tokenizers are written of which it has been checked that llama.cpp computes the same; all else is refused
//! by name.

mod adapter;
mod architecture;
mod container;
mod model;
mod vocabulary;

use std::path::Path;

use crate::ModelError;

pub use adapter::write_adapter;
pub use model::write_model;
pub use vocabulary::{SpecialToken, Vocabulary};

/// Refuses the model of a folder if it cannot be written, as far as its configuration says.
///
/// # Errors
/// A family, or a choice of the configuration, that llama.cpp is not known to compute the same.
pub fn check_family(folder: &Path) -> Result<(), ModelError> {
    architecture::Architecture::of(folder).map(|_| ())
}
