//! Writing tensors, and refusing ones that are not read.

use std::collections::BTreeMap;
use std::path::Path;

use safetensors::Dtype;
use safetensors::tensor::{TensorView, serialize};

use super::check_finite;
use crate::{ModelError, Weights};

/// Refuses a file with tensors that were not read.
pub(super) fn refuse_unknown(weights: &Weights, read: &[String]) -> Result<(), ModelError> {
    let unknown: Vec<String> = weights
        .names()
        .iter()
        .filter(|name| !read.contains(name))
        .cloned()
        .collect();
    if unknown.is_empty() {
        return Ok(());
    }
    Err(ModelError::UnknownTensors {
        path: weights.path().into(),
        names: unknown,
    })
}

/// Writes f32 tensors by name; refuses NaN and infinities, which could not be read again.
pub(crate) fn write_tensors(
    path: &Path,
    tensors: &BTreeMap<String, (Vec<usize>, Vec<f32>)>,
) -> Result<(), ModelError> {
    for (name, (_, values)) in tensors {
        check_finite(path, name, values)?;
    }
    let bytes: BTreeMap<&String, Vec<u8>> = tensors
        .iter()
        .map(|(name, (_, values))| (name, values.iter().flat_map(|v| v.to_le_bytes()).collect()))
        .collect();
    let views = tensors.iter().map(|(name, (shape, _))| {
        let view = TensorView::new(Dtype::F32, shape.clone(), &bytes[name]);
        (name, view.expect("as many values as the shape says"))
    });
    let metadata = [("format".to_owned(), "pt".to_owned())]
        .into_iter()
        .collect();
    let file = serialize(views, Some(metadata)).expect("valid views");
    std::fs::write(path, file).map_err(|source| ModelError::Io {
        path: path.into(),
        source,
    })
}
