//! A LoRA as llama.cpp loads it beside a model.

use std::path::Path;

use safetensors::Dtype;

use super::architecture::Architecture;
use super::container::{Tensor, Value, write};
use crate::ModelError;
use crate::peft::{MergedDtype, ModuleLora, ResolvedAdapter};

/// Writes a LoRA of the model in the folder `base` as a GGUF adapter: `name.lora_a` `[R, D]` and
/// `name.lora_b` `[O, R]`, of which llama.cpp adds `alpha / R` times the product.
///
/// `alpha` is `scale * R` of the first module. Where it is another one elsewhere, as with ranks that differ
/// between modules, the difference is multiplied into `lora_b`.
///
/// # Errors
/// A family that llama.cpp is not known to compute the same; an adapter with magnitudes (DoRA), parameters
/// that it holds whole, or one that changes the table of embeddings or the head; a number that the type
/// cannot hold; a file that cannot be written. `source` is what errors name as the adapter.
pub fn write_adapter(
    path: &Path,
    base: &Path,
    source: &Path,
    adapter: &ResolvedAdapter,
    name: &str,
    dtype: MergedDtype,
) -> Result<(), ModelError> {
    let architecture = Architecture::of(base)?;
    check(source, &architecture, adapter)?;
    let alpha = adapter.loras.first().map_or(1.0, own_alpha);
    let text = |key: &str, text: &str| (key.to_owned(), Value::Text(text.into()));
    let values = [
        text("general.architecture", architecture.name),
        text("general.type", "adapter"),
        text("general.name", name),
        text("adapter.type", "lora"),
        ("adapter.lora.alpha".to_owned(), Value::Number(alpha as f32)),
    ];
    let dtype = dtype.of(None);
    let loras = adapter.loras.iter();
    let tensors = loras.flat_map(|lora| factors(&architecture, lora, alpha as f32, dtype));
    let tensors: Vec<Tensor<'_>> = tensors.collect();
    write(path, source, &values, &tensors)
}

/// The number that makes a module's scale of its rank.
fn own_alpha(lora: &ModuleLora) -> f64 {
    lora.scale * lora.a.dims()[1] as f64
}

/// Refuses what an adapter of llama.cpp cannot hold.
fn check(
    source: &Path,
    architecture: &Architecture,
    adapter: &ResolvedAdapter,
) -> Result<(), ModelError> {
    let refuse = |path: &str, what: &str| {
        let problem = format!(
            "{what} {path}, which a LoRA of llama.cpp cannot: write a merged model instead (molora merge, \
             then export)"
        );
        Err(ModelError::file(source, problem))
    };
    if let Some(full) = adapter.full.first() {
        return refuse(&full.path, "holds a whole parameter of");
    }
    for lora in &adapter.loras {
        let name = architecture.module(&lora.path);
        let is_layer = name.is_some_and(|name| name.starts_with("blk."));
        if !is_layer {
            return refuse(&lora.path, "changes");
        }
        if lora.magnitude.is_some() {
            return refuse(&lora.path, "has a magnitude (DoRA) of");
        }
    }
    Ok(())
}

fn factors<'a>(
    architecture: &'a Architecture,
    lora: &'a ModuleLora,
    alpha: f32,
    dtype: Dtype,
) -> [Tensor<'a>; 2] {
    let ([d_input, rank], [_, d_output]) = (lora.a.dims(), lora.b.dims());
    let module = architecture.module(&lora.path);
    let module = module.expect("the adapter was checked");
    let tensor = |side: &str, shape: [usize; 2], values: Box<dyn Fn() -> Vec<f32> + 'a>| Tensor {
        name: format!("{module}.weight.lora_{side}"),
        shape: shape.into(),
        dtype,
        values,
    };
    let values = |matrix: &burn::tensor::Tensor<2>| -> Vec<f32> {
        let data = matrix.clone().transpose().into_data();
        data.try_into_vec().expect("factors are f32")
    };
    // Exactly 1 where the scale is the common one.
    let factor = own_alpha(lora) as f32 / alpha;
    let b = move || {
        let rows = architecture.rows(&lora.path, values(&lora.b), d_output);
        rows.into_iter().map(|value| value * factor).collect()
    };
    [
        tensor("a", [rank, d_input], Box::new(move || values(&lora.a))),
        tensor("b", [d_output, rank], Box::new(b)),
    ]
}
