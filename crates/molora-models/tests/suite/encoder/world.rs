//! The bundled model of every family, and a batch for it.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::path::{Path, PathBuf};

use burn::tensor::{Bool, Device, Int, Tensor, TensorData};
use molora_kernels::random::{Seed, uniform};
use molora_models::{Adaptable, AdapterSpec, Encoder, EncoderInput, ForwardContext, Weights};
use safetensors::Dtype;
use safetensors::tensor::{TensorView, serialize};
use serde_json::Value;
use tempfile::TempDir;

/// Folders of all families.
pub(super) const CASES: [&str; 9] = [
    "bert",
    "roberta",
    "xlm_roberta",
    "distilbert",
    "electra",
    "mpnet",
    "modernbert",
    "deberta_v2",
    "deberta_v2_conv",
];

/// Tensors of a file by name.
pub(super) type Tensors = BTreeMap<String, (Vec<usize>, Vec<f32>)>;

pub(super) fn folder(case: &str) -> PathBuf {
    let golden = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden"));
    golden.join(case)
}

pub(super) fn model(case: &str, device: &Device) -> Encoder {
    Encoder::from_folder(&folder(case), device).unwrap_or_else(|error| panic!("{case}: {error}"))
}

/// Two rows of which the second is shorter.
pub(super) fn input(device: &Device) -> EncoderInput {
    let (rows, tokens) = (2, 9);
    let ids = (0..rows * tokens).map(|place| (place * 7 % 40 + 5) as i64);
    let ids = TensorData::new(ids.collect::<Vec<_>>(), [rows, tokens]);
    let ids = Tensor::<2, Int>::from_data(ids, device);
    let mask = (0..rows * tokens).map(|place| place < tokens + 6);
    let mask = TensorData::new(mask.collect::<Vec<_>>(), [rows, tokens]);
    EncoderInput {
        type_ids: ids.zeros_like(),
        ids,
        mask: Tensor::from_data(mask, device),
    }
}

pub(super) fn context(mask: &Tensor<2, Bool>) -> ForwardContext {
    ForwardContext {
        tasks: Some(Tensor::from_data([[1.0, 0.0], [0.0, 1.0]], &mask.device())),
        ..ForwardContext::new(mask.clone().float())
    }
}

/// Hidden states, zero at padded positions.
pub(super) fn hidden(model: &Encoder, input: &EncoderInput) -> Tensor<3> {
    let hidden = model.forward(input, &context(&input.mask)).hidden;
    let padding = input.mask.clone().bool_not().unsqueeze_dim::<3>(2);
    let padding = padding.expand(hidden.dims());
    hidden.mask_fill(padding, 0.0)
}

/// A model whose adapters act: fresh ones are zero.
pub(super) fn adapted(case: &str, spec: &AdapterSpec, device: &Device) -> Encoder {
    let (mut model, seed) = (model(case, device), Seed::new(2));
    model
        .attach(spec, 2, seed, device)
        .unwrap_or_else(|error| panic!("{case}: {error}"));
    let visited = model.visit_tensors(|path, mut tensor| {
        if tensor.name() == "experts.lora_B" {
            let count = tensor.shape().iter().product();
            let value: Tensor<1> = uniform([count], 0.3, seed.child(path), device);
            tensor.set(&value.into_data().try_to_vec::<f32>().expect("f32"));
        }
        Ok::<_, Infallible>(())
    });
    let Ok(()) = visited;
    model
}

/// The tensors of a case's file.
pub(super) fn tensors(case: &str) -> Tensors {
    let weights = Weights::open(&folder(case).join("model.safetensors")).expect("bundled");
    let read = |name: &String| {
        let shape = weights.shape(name).expect("named").to_vec();
        let values = weights.values(name, &shape).expect("f32");
        (name.clone(), (shape, values))
    };
    weights.names().iter().map(read).collect()
}

/// A folder with the configuration of a case, changed, and these tensors.
pub(super) fn written(case: &str, tensors: &Tensors, changes: &Value) -> TempDir {
    let out = tempfile::tempdir().expect("a folder");
    let text = std::fs::read_to_string(folder(case).join("config.json")).expect("bundled");
    let mut config: Value = serde_json::from_str(&text).expect("JSON");
    for (field, value) in changes.as_object().into_iter().flatten() {
        config[field] = value.clone();
    }
    std::fs::write(out.path().join("config.json"), config.to_string()).expect("writable");
    let bytes: Vec<Vec<u8>> = tensors
        .values()
        .map(|(_, values)| values.iter().flat_map(|v| v.to_le_bytes()).collect())
        .collect();
    let views = tensors
        .iter()
        .zip(&bytes)
        .map(|((name, (shape, _)), bytes)| {
            let view = TensorView::new(Dtype::F32, shape.clone(), bytes).expect("whole");
            (name, view)
        });
    let file = serialize(views, None).expect("valid");
    std::fs::write(out.path().join("model.safetensors"), file).expect("writable");
    out
}
