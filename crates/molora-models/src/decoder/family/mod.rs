//! Families: from `config.json` to a decoder's configuration, and names of tensors.

pub(super) mod gpt2;
pub(super) mod llama;

use crate::ModelError;
use crate::checkpoint::ConfigFile;
use crate::layers::Activation;

/// The activation that a field names, if it is one of `supported`.
fn activation(
    file: &ConfigFile,
    field: &str,
    supported: &[(&str, Activation)],
) -> Result<Activation, ModelError> {
    let found = file.text(field)?;
    let known = supported.iter().find(|(name, _)| Some(*name) == found);
    known.map(|(_, activation)| *activation).ok_or_else(|| {
        let names: Vec<&str> = supported.iter().map(|(name, _)| *name).collect();
        file.unsupported(field, &names.join(" or "))
    })
}
