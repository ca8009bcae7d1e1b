//! Head files.

use std::collections::BTreeMap;
use std::path::Path;

use super::tensors::{refuse_unknown, write_tensors};
use crate::{ModelError, TaskHead, Weights};

/// Writes the heads of tasks that have one, by task name, in PyTorch's layout: `<task>.weight` `[classes, D]`,
/// `<task>.bias` `[classes]`.
///
/// # Errors
/// [`ModelError::Io`] if the file cannot be written.
pub fn save_heads(
    path: &Path,
    tasks: &[String],
    heads: &[Option<TaskHead>],
) -> Result<(), ModelError> {
    let mut tensors = BTreeMap::new();
    for (task, head) in tasks.iter().zip(heads) {
        let Some(mut head) = head.clone() else {
            continue;
        };
        for tensor in head.tensors() {
            let name = format!("{task}.{}", tensor.name());
            tensors.insert(name, (tensor.shape(), tensor.values()));
        }
    }
    write_tensors(path, &tensors)
}

/// Reads heads that [`save_heads`] wrote.
///
/// # Errors
/// As [`load_adapter`](crate::load_adapter).
pub fn load_heads(
    path: &Path,
    tasks: &[String],
    heads: &mut [Option<TaskHead>],
) -> Result<(), ModelError> {
    let weights = Weights::open(path)?;
    let mut read = Vec::new();
    for (task, head) in tasks.iter().zip(heads) {
        for mut tensor in head.iter_mut().flat_map(TaskHead::tensors) {
            let name = format!("{task}.{}", tensor.name());
            tensor.set(&weights.values(&name, &tensor.shape())?);
            read.push(name);
        }
    }
    refuse_unknown(&weights, &read)
}
