//! A site of the recipe `mosld`: the worked example, R 2, D 4, O 3, E 4, top-2, alpha / R = 2, and
//! what must hold for any numbers.

use crate::common::{leaf, stacked};
use burn::module::Param;
use burn::tensor::{Device, Tensor};
use molora_adapters::{BankConfig, Scaling};
use molora_kernels::random::{Seed, uniform};
use molora_models::ExpertCount;
use molora_models::{Adapter, AdapterSpec, ForwardContext, MoLoraLinear, RouteTrace};
use molora_regularize::{Reduction, balance_literal, balance_mass, load_balance};
use molora_routing::scorer::LinearScorer;
use molora_routing::{Scorer, Selection};
use molora_testkit::{FORWARD, assert_close, device};
use molora_train::recipe;
use proptest::prelude::*;

const A: [[f32; 4]; 2] = [[1.0, 0.0, 2.0, -1.0], [0.0, 1.0, 1.0, 1.0]];
const KEEP: [[f32; 4]; 2] = [[1.0, 1.0, 0.0, 1.0], [1.0, 0.0, 1.0, 1.0]];
const B: [[[f32; 2]; 3]; 4] = [
    [[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]],
    [[0.0, 1.0], [1.0, 0.0], [-1.0, 1.0]],
    [[2.0, 0.0], [0.0, -1.0], [1.0, 0.0]],
    [[1.0, 1.0], [1.0, -1.0], [0.0, 2.0]],
];
const ROUTER: [[f32; 4]; 4] = [
    [0.5, 0.0, 0.0, 0.0],
    [0.0, 0.5, 0.0, 0.0],
    [0.0, 0.0, 0.5, 0.0],
    [0.25, 0.25, 0.25, 0.25],
];
const X: [[f32; 4]; 3] = [
    [1.0, 2.0, 0.5, -1.0],
    [0.2, -0.4, 1.0, 0.6],
    [2.0, 0.0, -1.0, 0.5],
];

/// The recipe's specification for one site of `num_experts`.
fn spec(num_experts: usize, rank: usize) -> AdapterSpec {
    let mut spec = recipe::find("mosld").expect("listed").adapter;
    (spec.bank.num_experts, spec.bank.rank) = (num_experts, rank);
    spec.bank.scaling = Scaling::AlphaOverRank(2.0 * rank as f64);
    spec.experts = ExpertCount::Same;
    let top_k = num_experts.min(2);
    spec.router.as_mut().expect("a router").selection = Selection::TopK(top_k);
    spec
}

fn adapter(linear: &mut MoLoraLinear) -> &mut Adapter {
    linear.adapter.as_mut().expect("attached")
}

/// The worked example on a base of zeros, with the experts in the given order.
fn site(experts: [usize; 4], device: &Device) -> MoLoraLinear {
    let base = Tensor::zeros([3, 4], device);
    let mut linear = crate::common::adapted(base, None, &spec(4, 2), 0, device);
    let adapter = adapter(&mut linear);
    adapter.bank.a = leaf(Tensor::<2>::from_data(A, device).transpose());
    adapter.bank.b = leaf(stacked(Tensor::from_data(experts.map(|e| B[e]), device)));
    let weight = Param::from_data(experts.map(|e| ROUTER[e]), device);
    adapter.router.as_mut().expect("a router").scorer =
        Scorer::Linear(LinearScorer { weight, bias: None });
    linear
}

fn context(tokens: usize, dropout: Option<Seed>) -> ForwardContext {
    ForwardContext {
        dropout,
        ..ForwardContext::new(Tensor::ones([1, tokens], &device()))
    }
}

fn x() -> Tensor<3> {
    Tensor::<2>::from_data(X, &device()).unsqueeze()
}

fn forward(linear: &MoLoraLinear) -> (Tensor<3>, RouteTrace) {
    let (y, route) = linear.forward(x(), &context(3, None), None);
    (y, route.expect("routed"))
}

#[test]
fn values_of_the_worked_example() {
    let (y, route) = forward(&site([0, 1, 2, 3], &device()));
    let weights = [[
        [0.0, 0.592667, 0.0, 0.407333],
        [0.0, 0.0, 0.53743, 0.46257],
        [0.651355, 0.0, 0.0, 0.348645],
    ]];
    assert_close(route.routed.weights.clone(), weights, FORWARD, "weights");
    let expected = [[
        [5.444, 4.778, 0.666001],
        [6.029944, -0.919776, 3.940112],
        [-1.348645, -0.651355, -2.0],
    ]];
    assert_close(y, expected, FORWARD, "delta");
    let routed = &route.routed;
    let (mass, sum) = (balance_mass(routed, Reduction::Sum), Reduction::Sum);
    assert_close(mass, [4.568968], FORWARD, "mass");
    assert_close(balance_literal(routed, sum), [4.696422], FORWARD, "literal");
    let switch = load_balance(routed, Reduction::Mean);
    assert_close(switch, [1.015326], FORWARD, "switch");
}

#[test]
fn values_of_the_worked_example_with_dropped_weights() {
    let linear = site([0, 1, 2, 3], &device());
    let adapter = linear.adapter.as_ref().expect("attached");
    let keep = Tensor::<2>::from_data(KEEP, &device()).transpose();
    let factors = keep.div_scalar(1.0 - adapter.bank.weight_dropout());
    let low = adapter.bank.down_masked(x(), factors);
    let (delta, _) = adapter.mix(low, x(), &context(3, None), None);
    let expected = [[
        [0.69926, 4.897037, -4.197778],
        [0.27809, -3.966729, 2.811672],
        [2.94595, 0.825806, 0.672688],
    ]];
    assert_close(delta, expected, FORWARD, "delta");
}

#[test]
fn the_order_of_experts_does_not_matter() {
    let (expected, _) = forward(&site([0, 1, 2, 3], &device()));
    let (found, _) = forward(&site([3, 0, 2, 1], &device()));
    assert_close(found, expected, FORWARD, "delta");
}

/// A random site of `spec` with its up-projections away from zero.
fn random_site(spec: &AdapterSpec, seed: u64) -> MoLoraLinear {
    let (device, seed) = (device(), Seed::new(seed));
    let base = uniform([6, 5], 1.0, seed.child("base"), &device);
    let mut linear = crate::common::adapted(base, None, spec, 0, &device);
    let bank = &mut adapter(&mut linear).bank;
    bank.a = leaf(uniform(bank.a.dims(), 1.0, seed.child("a"), &device));
    bank.b = leaf(uniform(bank.b.dims(), 1.0, seed.child("b"), &device));
    linear
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(12))]

    /// One expert without weight dropout is a LoRA with the same `alpha / R`.
    #[test]
    fn one_expert_is_lora(seed: u64, rank in 1usize..5) {
        let mosld = spec(1, rank);
        let scaling = mosld.bank.scaling;
        let bank = BankConfig { weight_dropout: 0.0, ..mosld.bank.clone() };
        let mosld = AdapterSpec { bank, ..mosld };
        let mut lora = recipe::find("lora").expect("listed").adapter;
        (lora.bank.rank, lora.bank.scaling, lora.bank.dropout) = (rank, scaling, 0.0);
        let x = uniform([1, 4, 5], 2.0, Seed::new(seed).child("x"), &device());
        // In training too: nothing is dropped.
        let context = context(4, Some(Seed::new(seed)));
        let (expected, _) = random_site(&lora, seed).forward(x.clone(), &context, None);
        let (found, route) = random_site(&mosld, seed).forward(x, &context, None);
        assert_close(found, expected, FORWARD, "y");
        let weights = route.expect("routed").routed.weights;
        assert_close(weights, Tensor::<3>::ones([1, 4, 1], &device()), 0.0, "weight of one");
    }

    /// At p = 0 training equals evaluation; at p > 0 it does not, and evaluation drops nothing.
    #[test]
    fn weight_dropout_of_zero_is_none(seed: u64, experts in 2usize..6) {
        let dropping = spec(experts, 4);
        let mut keeping = dropping.clone();
        keeping.bank.weight_dropout = 0.0;
        let x = uniform([1, 4, 5], 2.0, Seed::new(seed).child("x"), &device());
        let y = |spec: &AdapterSpec, dropout| {
            random_site(spec, seed).forward(x.clone(), &context(4, dropout), None).0
        };
        let step = Some(Seed::new(seed).index(1));
        assert_close(y(&keeping, step), y(&keeping, None), 0.0, "p = 0");
        assert_close(y(&dropping, None), y(&keeping, None), 0.0, "evaluation");
        let gap = (y(&dropping, step) - y(&keeping, step)).abs().max();
        // Kept entries are scaled by 1 / 0.9, so that even a mask of ones shows.
        prop_assert!(gap.into_scalar::<f32>() > 1e-4);
    }
}
