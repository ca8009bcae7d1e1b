//! A site of the recipe `samora` on numbers small enough to follow by hand: R 2, D 4, O 3, E 3,
//! temperature 0.8, two tasks.

use crate::common::{leaf, stacked};
use burn::module::Param;
use burn::tensor::{Device, Tensor};
use molora_adapters::core::{Core, ScaleCore};
use molora_adapters::task_selector;
use molora_models::{Adapter, BaseWeight, ForwardContext, MoLoraLinear, RouteTrace};
use molora_routing::Scorer;
use molora_routing::scorer::CosineScorer;
use molora_testkit::{FORWARD, assert_close, device};
use molora_train::recipe;

const A: [[f32; 4]; 2] = [[1.0, 0.0, 2.0, -1.0], [0.0, 1.0, 1.0, 1.0]];
const B: [[[f32; 2]; 3]; 3] = [
    [[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]],
    [[0.0, 1.0], [1.0, 0.0], [-1.0, 1.0]],
    [[2.0, 0.0], [0.0, -1.0], [1.0, 0.0]],
];
const KEYS: [[f32; 2]; 3] = [[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]];
const SIGMA: [f32; 2] = [2.0, 0.5];
const TASKS: [[f32; 8]; 2] = [
    [0.1, -0.2, 0.3, 0.4, -0.5, 0.6, -0.7, 0.8],
    [1.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, -1.0],
];
const GATE: [[f32; 1]; 8] = [[0.5], [-0.5], [0.25], [0.25], [0.1], [0.2], [-0.3], [0.4]];
const X: [f32; 4] = [1.0, 2.0, 0.5, -1.0];

/// The site on a base of zeros, with the experts in the given order.
fn site(experts: [usize; 3], device: &Device) -> MoLoraLinear {
    let mut spec = recipe::find("samora").expect("listed").adapter;
    (spec.bank.num_experts, spec.bank.rank) = (3, 2);
    let base = Tensor::zeros([3, 4], device);
    let mut linear = crate::common::adapted(base, None, &spec, 2, device);
    let adapter = linear.adapter.as_mut().expect("attached");
    adapter.bank.a = leaf(Tensor::<2>::from_data(A, device).transpose());
    adapter.bank.b = leaf(stacked(Tensor::from_data(experts.map(|e| B[e]), device)));
    let sigma = Param::from_data(SIGMA, device);
    adapter.bank.core = Core::Scale(ScaleCore::new(sigma, adapter.bank.rank()));
    let keys = Param::from_data(experts.map(|e| KEYS[e]), device);
    adapter.router.as_mut().expect("a router").scorer = Scorer::Cosine(CosineScorer { keys });
    let gate = adapter.gate.as_mut().expect("a gate");
    gate.embedding = Param::from_data(TASKS, device);
    gate.weight = Param::from_data(GATE, device);
    linear
}

/// One row of one token for each of `tasks`.
fn forward(linear: &MoLoraLinear, x: [f32; 4], tasks: &[Option<usize>]) -> (Tensor<3>, RouteTrace) {
    let device = device();
    let rows = tasks.len();
    let x = Tensor::<1>::from_data(x, &device)
        .reshape([1, 1, 4])
        .expand([rows, 1, 4]);
    let context = ForwardContext {
        tasks: Some(task_selector(tasks, 2, &device).expect("in range")),
        ..ForwardContext::new(Tensor::ones([rows, 1], &device))
    };
    let (y, route) = linear.forward(x, &context, None);
    (y, route.expect("routed"))
}

fn adapter(linear: &mut MoLoraLinear) -> &mut Adapter {
    linear.adapter.as_mut().expect("attached")
}

#[test]
fn values_of_the_worked_example() {
    let linear = site([0, 1, 2], &device());
    let (y, route) = forward(&linear, X, &[Some(0), Some(1), None]);
    let weights = [[0.378509, 0.216421, 0.405070]];
    assert_close(route.routed.weights, [weights; 3], FORWARD, "router");
    let expected = [
        [[5.223093, 0.915556, 2.756222]],
        [[3.82931, 0.671240, 2.020724]],
        [[4.561746, 0.799628, 2.40723]],
    ];
    assert_close(
        y,
        expected,
        FORWARD,
        "delta of task 0, task 1 and an unknown task",
    );
}

#[test]
fn features_of_norm_zero_are_routed_uniformly() {
    let (y, route) = forward(&site([0, 1, 2], &device()), [0.0; 4], &[Some(0)]);
    assert_close(route.routed.weights, [[[1.0 / 3.0; 3]]], FORWARD, "router");
    assert_close(y, [[[0.0; 3]]], 0.0, "delta");
}

#[test]
fn the_order_of_experts_does_not_matter() {
    let tasks = [Some(1), None];
    let (expected, _) = forward(&site([0, 1, 2], &device()), X, &tasks);
    let (found, _) = forward(&site([2, 0, 1], &device()), X, &tasks);
    assert_close(found, expected, FORWARD, "delta");
}

#[test]
fn without_up_projections_the_base_is_unchanged() {
    let mut linear = site([0, 1, 2], &device());
    let bank = &mut adapter(&mut linear).bank;
    bank.b = leaf(bank.b.val().zeros_like());
    let other = [[0.1; 3], [-0.7; 3], [1.3; 3], [0.9; 3]];
    linear.weight = BaseWeight::of(Tensor::from_data(other, &device()));
    let (found, _) = forward(&linear, X, &[Some(0)]);
    linear.adapter = None;
    let context = ForwardContext::new(Tensor::ones([1, 1], &device()));
    let x = Tensor::<1>::from_data(X, &device()).reshape([1, 1, 4]);
    assert_close(found, linear.forward(x, &context, None).0, 0.0, "y");
}

/// With `sigma = 1` and equal experts: a LoRA without `alpha / R`, times the gate.
#[test]
fn equal_experts_are_a_gated_lora() {
    let mut linear = site([0, 0, 0], &device());
    let ones = Param::from_data([1.0, 1.0], &device());
    adapter(&mut linear).bank.core = Core::Scale(ScaleCore::new(ones, 2));
    let (found, _) = forward(&linear, X, &[Some(1)]);
    // They share the weight 1 whatever the router says. A x = [3, 1.5], then B_1, and the
    // gate of task 1 is sigmoid(0.1).
    let gate = 1.0 / (1.0 + (-0.1f32).exp());
    assert_close(
        found,
        [[[3.0 * gate, 1.5 * gate, 4.5 * gate]]],
        FORWARD,
        "delta",
    );
}
