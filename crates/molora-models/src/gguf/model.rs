//! A whole model as llama.cpp loads it.

use std::path::Path;

use safetensors::Dtype;

use super::architecture::Architecture;
use super::container::{Tensor, Value, write};
use super::vocabulary::Vocabulary;
use crate::checkpoint::ModelWeights;
use crate::peft::{MergedDtype, Parameter, parameters};
use crate::{Backbone, ModelError};

/// Writes the model of a folder, which `model` was read from in f32, as a GGUF file: sizes, tokenizer and
/// weights. Matrices have the type that `dtype` says, vectors f32, as llama.cpp wants them.
///
/// # Errors
/// A family, tokenizer or choice of the configuration that llama.cpp is not known to compute the same; an
/// adapter that is still attached; a number that the type cannot hold; a file that cannot be written.
pub fn write_model(
    path: &Path,
    folder: &Path,
    model: &Backbone,
    vocabulary: &Vocabulary,
    name: &str,
    dtype: MergedDtype,
) -> Result<(), ModelError> {
    let architecture = Architecture::of(folder)?;
    let source = ModelWeights::open(folder)?;
    let mut model = model.clone();
    let parts = parameters(&mut model)?;
    let mut tensors = Vec::new();
    for part in &parts {
        tensors.push(tensor(&architecture, &source, part, dtype)?);
    }
    if let Some(factors) = architecture.frequency_factors() {
        tensors.push(Tensor {
            name: "rope_freqs.weight".into(),
            shape: vec![factors.len()],
            dtype: Dtype::F32,
            values: Box::new(move || factors.clone()),
        });
    }
    let largest = tensors
        .iter()
        .max_by_key(|tensor| tensor.shape.iter().product::<usize>());
    let kind = largest.map_or(Dtype::F32, |tensor| tensor.dtype);
    let text = |key: &str, text: &str| (key.to_owned(), Value::Text(text.into()));
    let mut values = vec![
        text("general.architecture", architecture.name),
        text("general.type", "model"),
        text("general.name", name),
        ("general.file_type".into(), Value::Integer(file_type(kind))),
        ("general.quantization_version".into(), Value::Integer(2)),
    ];
    values.extend(architecture.values());
    values.extend(vocabulary.values());
    write(path, source.path(), &values, &tensors)
}

/// The number that says of what type most tensors are.
fn file_type(dtype: Dtype) -> u32 {
    match dtype {
        Dtype::F16 => 1,
        Dtype::BF16 => 32,
        _ => 0,
    }
}

/// The type that a tensor has in the files, where the front of its name may be left out.
fn of_source(source: &ModelWeights, name: &str) -> Option<Dtype> {
    let short = || source.dtype(name.strip_prefix("model.")?);
    source.dtype(name).or_else(short)
}

fn tensor<'a>(
    architecture: &'a Architecture,
    source: &ModelWeights,
    part: &'a Parameter,
    dtype: MergedDtype,
) -> Result<Tensor<'a>, ModelError> {
    let unknown = || {
        let problem = format!("tensor `{}` has no name in llama.cpp", part.name);
        ModelError::file(source.path(), problem)
    };
    let (module, field) = part.name.rsplit_once('.').ok_or_else(unknown)?;
    let name = architecture.module(module).ok_or_else(unknown)?;
    let dtype = match part.shape.len() {
        1 => Dtype::F32,
        _ => dtype.of(of_source(source, &part.name)),
    };
    Ok(Tensor {
        name: format!("{name}.{field}"),
        shape: part.shape.clone(),
        dtype,
        values: Box::new(move || architecture.rows(module, part.values(), part.shape[0])),
    })
}
