//! A linear layer with an adapter, made as a user's is: from a model folder and a specification.

use std::collections::BTreeMap;
use std::path::Path;

use burn::module::Param;
use burn::tensor::{Device, Tensor, TensorData};
use molora_kernels::random::Seed;
use molora_models::{Adaptable, AdapterSpec, Bert, MoLoraLinear};
use safetensors::tensor::{Dtype, TensorView, serialize_to_file};

/// The layer of the model below that has the shape of a case.
pub(crate) const TARGET: &str = "intermediate.dense";

/// A layer with the frozen weight `[O, D]`, a bias `[O]` (zero if `None`), and an adapter by `spec`,
/// whose target is set to [`TARGET`].
///
/// It is the feed-forward layer of a BERT of one layer with width D and inner width O.
pub(crate) fn adapted(
    weight: Tensor<2>,
    bias: Option<Tensor<1>>,
    spec: &AdapterSpec,
    num_tasks: usize,
    device: &Device,
) -> MoLoraLinear {
    let spec = AdapterSpec {
        targets: vec![TARGET.into()],
        ..spec.clone()
    };
    let model = adapted_layers(&[(weight, bias)], &spec, num_tasks, device);
    let linears = model.linears();
    let found = linears.into_iter().find(|(path, _)| path.ends_with(TARGET));
    found.expect("every layer has one").1.clone()
}

/// A BERT of as many layers as there are frozen weights `[O, D]` with biases `[O]`, with adapters by
/// `spec`.
pub(crate) fn adapted_layers(
    layers: &[(Tensor<2>, Option<Tensor<1>>)],
    spec: &AdapterSpec,
    num_tasks: usize,
    device: &Device,
) -> Bert {
    let folder = tempfile::tempdir().expect("a temporary folder");
    write_model(folder.path(), layers);
    let mut model = Bert::from_folder(folder.path(), device).expect("a whole model");
    model
        .attach(spec, num_tasks, Seed::new(0), device)
        .expect("a valid specification");
    model
}

fn write_model(folder: &Path, layers: &[(Tensor<2>, Option<Tensor<1>>)]) {
    let [d_output, d_input] = layers[0].0.dims();
    let config = serde_json::json!({
        "model_type": "bert", "vocab_size": 1, "hidden_size": d_input, "num_hidden_layers": layers.len(),
        "num_attention_heads": 1, "intermediate_size": d_output, "hidden_act": "gelu",
        "layer_norm_eps": 1e-12, "max_position_embeddings": 1, "type_vocab_size": 1,
    });
    std::fs::write(folder.join("config.json"), config.to_string()).expect("writable");

    let zeros = |shape: &[usize]| (shape.to_vec(), vec![0.0; shape.iter().product()]);
    let mut tensors = BTreeMap::new();
    for table in ["word", "position", "token_type"] {
        tensors.insert(
            format!("embeddings.{table}_embeddings.weight"),
            zeros(&[1, d_input]),
        );
    }
    let norm = "embeddings.LayerNorm";
    tensors.insert(format!("{norm}.weight"), zeros(&[d_input]));
    tensors.insert(format!("{norm}.bias"), zeros(&[d_input]));
    for (number, (weight, bias)) in layers.iter().enumerate() {
        write_layer(number, weight, bias.as_ref(), &mut tensors);
    }
    write_tensors(&folder.join("model.safetensors"), &tensors);
}

/// The tensors of one layer.
fn write_layer(
    number: usize,
    weight: &Tensor<2>,
    bias: Option<&Tensor<1>>,
    tensors: &mut BTreeMap<String, (Vec<usize>, Vec<f32>)>,
) {
    let [d_output, d_input] = weight.dims();
    let zeros = |shape: &[usize]| (shape.to_vec(), vec![0.0; shape.iter().product()]);
    let layer = |part: &str| format!("encoder.layer.{number}.{part}");
    let attention = ["self.query", "self.key", "self.value", "output.dense"];
    let mut linears: Vec<_> = attention
        .map(|part| (layer(&format!("attention.{part}")), d_input, d_input))
        .into();
    linears.push((layer(TARGET), d_output, d_input));
    linears.push((layer("output.dense"), d_input, d_output));
    for (path, rows, columns) in linears {
        tensors.insert(format!("{path}.weight"), zeros(&[rows, columns]));
        tensors.insert(format!("{path}.bias"), zeros(&[rows]));
    }
    let norms = [layer("attention.output"), layer("output")];
    for path in norms {
        tensors.insert(format!("{path}.LayerNorm.weight"), zeros(&[d_input]));
        tensors.insert(format!("{path}.LayerNorm.bias"), zeros(&[d_input]));
    }
    let host = |data: TensorData| data.try_to_vec::<f32>().expect("f32");
    let weight = (vec![d_output, d_input], host(weight.to_data()));
    tensors.insert(layer(TARGET) + ".weight", weight);
    if let Some(bias) = bias {
        tensors.insert(
            layer(TARGET) + ".bias",
            (vec![d_output], host(bias.to_data())),
        );
    }
}

/// Writes a file of named tensors with their shapes.
pub(crate) fn write_tensors(path: &Path, tensors: &BTreeMap<String, (Vec<usize>, Vec<f32>)>) {
    let bytes: Vec<Vec<u8>> = tensors
        .values()
        .map(|(_, values)| {
            values
                .iter()
                .flat_map(|value| value.to_le_bytes())
                .collect()
        })
        .collect();
    let views = tensors
        .iter()
        .zip(&bytes)
        .map(|((name, (shape, _)), bytes)| {
            (
                name,
                TensorView::new(Dtype::F32, shape.clone(), bytes).expect("as long as its shape"),
            )
        });
    serialize_to_file(views, None, path).expect("writable");
}

/// Up-projections `[E, O, R]` of a case as the bank's `[E * R, O]`.
pub(crate) fn stacked(b_eor: Tensor<3>) -> Tensor<2> {
    let [experts, d_output, rank] = b_eor.dims();
    b_eor.swap_dims(1, 2).reshape([experts * rank, d_output])
}

/// A parameter with the values of `tensor`, through the host: parameters are leaves of the graph.
pub(crate) fn leaf<const D: usize>(tensor: Tensor<D>) -> Param<Tensor<D>> {
    Param::from_data(tensor.to_data(), &tensor.device())
}
