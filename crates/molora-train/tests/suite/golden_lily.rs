//! Experts that layers share, against the case `lily`: four layers that read the same input.

use std::collections::BTreeMap;
use std::convert::Infallible;

use burn::tensor::{Device, Tensor, TensorData};
use molora_adapters::Scaling;
use molora_models::{
    Adaptable, AdapterSpec, Bert, Composition, ForwardContext, ModelPart, PoolConfig, PoolWeights,
};
use molora_testkit::{FORWARD, GRADIENT, assert_close, autodiff_device};
use molora_train::recipe;

use crate::cases::cases;
use crate::common::{TARGET, adapted_layers};
use crate::golden_layer::Variant;

#[test]
fn golden_methods_lily() {
    let device = autodiff_device();
    for case in cases("lily") {
        let (document, expected) = (case.json("case.json").expect("found by it"), case.tensors());
        for variant in Variant::all(&document, &expected) {
            check(&variant, &device);
        }
    }
}

/// What a variant's numbers make of the recipe.
fn spec(variant: &Variant) -> AdapterSpec {
    let mut spec = recipe::find("lily").expect("listed").adapter;
    let [experts, _, rank] = variant.expected.shape("param.B")[..] else {
        panic!("experts, outputs and rank");
    };
    (spec.bank.num_experts, spec.bank.rank) = (experts, rank);
    spec.bank.scaling = Scaling::AlphaOverRank(variant.number("scaling") * rank as f64);
    spec.targets = vec![TARGET.into()];
    let weights = match variant.text("average") {
        Some("batch") => PoolWeights::Released,
        Some(_) => PoolWeights::SummedLogits,
        None => PoolWeights::PerToken,
    };
    spec.composition = Composition::Pool(PoolConfig {
        stride: variant.number("stride_A") as usize,
        weights,
    });
    spec
}

/// What a case calls a tensor, and which layer or group of layers it is of.
fn place(path: &str, tensor: &str) -> (&'static str, usize) {
    let numbers = |path: &str| path.split('.').find_map(|part| part.parse::<usize>().ok());
    match tensor {
        "router.weight" => ("router", numbers(path).expect("a layer")),
        "experts.lora_B" => ("B", 0),
        _ => (
            "A",
            path.rsplit('.')
                .next()
                .and_then(|part| part.parse().ok())
                .unwrap_or(0),
        ),
    }
}

fn model(variant: &Variant, device: &Device) -> Bert {
    let expected = variant.expected;
    let layer = |layer: usize| {
        let name = |part: &str| format!("param.layers.{layer}.{part}");
        let bias = expected.tensor(&name("bias"), device);
        (expected.tensor(&name("W0"), device), Some(bias))
    };
    let layers = variant.number("layers") as usize;
    let layers: Vec<_> = (0..layers).map(layer).collect();
    let mut model = adapted_layers(&layers, &spec(variant), 0, device);
    let visited = model.visit_tensors(|path, mut tensor| {
        let (name, number) = place(path, tensor.name());
        let values = expected.floats(&format!("param.{name}"));
        let each: usize = tensor.shape().iter().product();
        tensor.set(&values[number * each..][..each]);
        Ok::<_, Infallible>(())
    });
    let Ok(()) = visited;
    model
}

fn check(variant: &Variant, device: &Device) {
    let expected = variant.expected;
    let mut model = model(variant, device);
    let x = expected.tensor::<3>("input.x", device).require_grad();
    let mask = expected.tensor::<2>("input.mask", device);
    let Some(ModelPart::Pool(pool)) = model.part() else {
        panic!("the layers share a pool");
    };
    let context = ForwardContext {
        pool: Some(pool.clone()),
        ..ForwardContext::new(mask.clone())
    };
    let (mut outputs, mut weights) = (Vec::new(), Vec::new());
    for (path, linear) in model.linears() {
        if path.ends_with(TARGET) && linear.pooled.is_some() {
            let (y, route) = linear.forward(x.clone(), &context, None);
            outputs.push(y.unsqueeze_dim::<4>(0));
            weights.push(route.expect("routed").routed.weights.unsqueeze_dim::<4>(0));
        }
    }
    let real = mask.unsqueeze_dim::<3>(2).unsqueeze_dim::<4>(0);
    let name = variant.key("output.y");
    let y = Tensor::cat(outputs, 0);
    let expected_y = expected.tensor::<4>(&name, device) * real.clone();
    assert_close(y.clone() * real.clone(), expected_y, FORWARD, &name);
    check_weights(variant, Tensor::cat(weights, 0), real, device);

    let cotangent = expected.tensor::<4>("input.cotangent", device);
    let objective = (y * cotangent).sum();
    variant.check("objective", objective.clone());
    let gradients = objective.backward();
    let mut found: BTreeMap<&str, BTreeMap<usize, Vec<f32>>> = BTreeMap::new();
    let visited = model.visit_tensors(|path, tensor| {
        let (name, number) = place(path, tensor.name());
        let gradient = tensor.gradient(&gradients).expect("reached");
        found.entry(name).or_default().insert(number, gradient);
        Ok::<_, Infallible>(())
    });
    let Ok(()) = visited;
    assert_eq!(
        found.keys().copied().collect::<Vec<_>>(),
        ["A", "B", "router"]
    );
    for (name, parts) in found {
        let name = variant.key(&format!("grad.{name}"));
        let values: Vec<f32> = parts.into_values().flatten().collect();
        let values = TensorData::new(values, expected.shape(&name));
        expected.assert_close(&name, values, GRADIENT);
    }
    let mask = expected.tensor::<2>("input.mask", &device.clone().inner());
    let to_x = x.grad(&gradients).expect("reached") * mask.unsqueeze_dim(2);
    variant.check_gradient("grad.x", to_x);
}

/// Weights of every layer: of each token, of each row, or of the batch.
fn check_weights(variant: &Variant, found: Tensor<4>, real: Tensor<4>, device: &Device) {
    let [layers, batch, tokens, experts] = found.dims();
    let has = |name: &str| variant.expected.has(&variant.key(name));
    if has("output.combined") {
        let first = found.narrow(1, 0, 1).narrow(2, 0, 1);
        variant.check("output.combined", first.reshape([layers, experts]));
    } else if has("output.combined_rows") {
        let first = found.narrow(2, 0, 1);
        variant.check(
            "output.combined_rows",
            first.reshape([layers, batch, experts]),
        );
    } else {
        let name = variant.key("output.layer_router");
        let expected = variant.expected.tensor::<4>(&name, device);
        let real = real.expand([layers, batch, tokens, experts]);
        assert_close(found * real.clone(), expected * real, FORWARD, &name);
    }
}
