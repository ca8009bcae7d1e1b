//! Experts that start as segments of the frozen weight's singular values, against GOAT's equations in
//! float64. Singular vectors have no sign: products are compared.

use burn::module::Param;
use burn::tensor::Tensor;
use molora_adapters::{SegmentStart, Start};
use molora_models::AdapterSpec;
use molora_regularize::{LoadBalance, Reduction};
use molora_routing::Selection;
use molora_testkit::{FORWARD, GRADIENT, autodiff_device};
use serde_json::Value;

use crate::cases::cases;
use crate::golden_layer::{Layer, Variant, spec};
use crate::golden_mixtures::{router, term};

fn goat(variant: &Variant<'_>, experts: usize) -> AdapterSpec {
    let rank = variant.number("rank_per_expert") as usize;
    let mut spec = spec(variant, "goat", experts, rank);
    spec.bank.start = Start::Segments(SegmentStart {
        shrink: variant.number("rho"),
        last: variant.hyper("segment_end").and_then(Value::as_bool) == Some(true),
        full_residual: variant.number("residual_coefficient") == 1.0 && experts > 1,
    });
    router(&mut spec).selection = Selection::TopK(variant.number("top_k") as usize);
    spec
}

#[test]
fn golden_methods_goat() {
    let device = autodiff_device();
    for case in cases("goat_init") {
        let (document, expected) = (case.json("case.json").expect("read"), case.tensors());
        let experts = expected.shape("param.router")[0];
        for variant in Variant::all(&document, &expected) {
            let spec = goat(&variant, experts);
            let names = [("router", "router.weight")];
            let layer = Layer::new(&expected, &spec, &names, 0, &device);
            let weight = variant.number("balance_coefficient");
            let balance = term(LoadBalance, weight, Reduction::Sum);
            layer.check(&variant, &[("balance", balance)]);
            check_start(&variant, &layer);
            check_gradients(&variant, &layer);
        }
    }
}

/// Norms of the rows of `[E, R, N]`, `[E, R]`.
fn norms(rows: Tensor<3>) -> Tensor<2> {
    rows.powi_scalar(2).sum_dim(2).sqrt().squeeze_dim(2)
}

/// The experts and what the layer lost.
fn check_start(variant: &Variant<'_>, layer: &Layer<'_>) {
    let bank = &layer.linear.adapter.as_ref().expect("attached").bank;
    let (a_edr, b_ero) = (bank.a_by_expert(), bank.b_by_expert());
    let products = a_edr.clone().matmul(b_ero.clone()).swap_dims(1, 2);
    variant.check("output.products", products);
    variant.check("output.a_norms", norms(a_edr.swap_dims(1, 2)));
    variant.check("output.b_norms", norms(b_ero));
    let (lost_a, lost_b) = bank.lost().expect("a residual");
    let lost = lost_a.matmul(lost_b).mul_scalar(bank.factor());
    let residual = layer.linear.weight.wide() + lost;
    variant.check("output.residual", residual.transpose());
    let found = Tensor::<1>::from_data([bank.factor() as f32], &bank.b.device());
    variant
        .expected
        .assert_close(&variant.key("output.scaling"), found, FORWARD);
}

/// Gradients of `A` and `B` through the other factor, and their norms.
fn check_gradients(variant: &Variant<'_>, layer: &Layer<'_>) {
    let device = autodiff_device();
    let x = variant.expected.tensor::<3>("input.x", &device);
    let (y, _) = layer.forward(x, false);
    let cotangent = variant.expected.tensor::<3>("input.cotangent", &device);
    let gradients = (y * cotangent).sum().backward();
    let bank = &layer.linear.adapter.as_ref().expect("attached").bank;
    let experts = bank.num_experts();
    let of = |param: &Param<Tensor<2>>| param.val().grad(&gradients).expect("reached");
    let (a, b) = (of(&bank.a), of(&bank.b));
    let ([d_input, width], [_, d_output]) = (a.dims(), b.dims());
    let a_erd = a
        .reshape([d_input, experts, width / experts])
        .permute([1, 2, 0]);
    let b_ero = b.reshape([experts, width / experts, d_output]);
    let own_a = bank.a_by_expert().inner().swap_dims(1, 2);
    let own_b = bank.b_by_expert().inner();
    let b_grad_a = own_b.swap_dims(1, 2).matmul(a_erd.clone());
    let grad_b_a = b_ero.clone().swap_dims(1, 2).matmul(own_a);
    let check = |name: &str, found: Tensor<3>| {
        let name = variant.key(&format!("output.{name}"));
        variant.expected.assert_close(&name, found, GRADIENT);
    };
    check("b_grad_a", b_grad_a);
    check("grad_b_a", grad_b_a);
    for (name, rows) in [("grad_a_norms", a_erd), ("grad_b_norms", b_ero)] {
        let name = variant.key(&format!("output.{name}"));
        variant.expected.assert_close(&name, norms(rows), GRADIENT);
    }
}
