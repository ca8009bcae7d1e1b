//! Experts: their order, their number, one of them alone, and the zero start.

use burn::tensor::Tensor;
use molora_kernels::random::{Seed, uniform};
use molora_models::{AdapterSpec, Composition, ExpertCount};
use molora_routing::expert_labels;
use molora_testkit::{FORWARD, GRADIENT, assert_close};
use molora_train::recipe;
use proptest::prelude::*;

use super::small::{
    Rows, Shape, base, copy_experts, device, fresh, has_equal_experts, is_mixture, random, recipes,
    reordered, set_experts, shapes, spec, starts_from_weight, take,
};

/// The specification with the same number of experts in every layer.
fn level(spec: AdapterSpec, experts: usize) -> AdapterSpec {
    let mut spec = spec;
    if let ExpertCount::ByLayer(_) = spec.experts {
        spec.experts = ExpertCount::Same;
    }
    set_experts(&mut spec, experts);
    spec
}

/// Weights over experts for every row, as an instruction's score gives them.
fn preferences(shape: Shape) -> Tensor<2> {
    let seed = Seed::new(shape.seed).child("preferences");
    uniform([shape.batch, shape.experts], 2.0, seed, &device())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn without_up_projections_the_base_is_unchanged(name in recipes(), shape in shapes()) {
        prop_assume!(!starts_from_weight(name));
        let rows = Rows::new(shape);
        let (expected, _) = rows.forward(&base(shape.seed));
        let spec = spec(name, shape);
        let (found, _) = rows.forward(&fresh(&spec, shape.seed));
        // Weights of whole feed-forward parts add up to 1 but for rounding.
        let tolerance = match spec.composition {
            Composition::FeedForward => FORWARD,
            _ => 0.0,
        };
        assert_close(rows.real(&found), rows.real(&expected), tolerance, name);
    }

    #[test]
    fn the_order_of_experts_does_not_matter(
        name in recipes().prop_filter("experts of equal size", |name| has_equal_experts(name)),
        shape in shapes(),
        shift in 1_usize..4,
    ) {
        // A general expert is not routed and stays the last one.
        let order = |experts: usize| -> Vec<usize> {
            let routed = experts.min(shape.experts);
            let turned = (0..routed).map(|i| (i + shift) % routed);
            turned.chain(routed..experts).collect()
        };
        let spec = level(spec(name, shape), if is_mixture(name) { shape.experts } else { 1 });
        let model = random(&spec, shape.seed);
        let mut rows = Rows::new(shape);
        let mut turned = random(&reordered(&spec, &order(shape.experts)), shape.seed);
        copy_experts(&model, &mut turned, order);
        if spec.router.is_some() {
            rows.guidance.bias = Some(preferences(shape));
        }
        let (expected, routes) = rows.forward(&model);
        if spec.router.is_some() {
            rows.guidance.bias = Some(take(preferences(shape), 1, &order(shape.experts)));
        }
        let (found, turned_routes) = rows.forward(&turned);
        assert_close(rows.real(&found), rows.real(&expected), GRADIENT, name);
        prop_assert_eq!(routes.len(), turned_routes.len());
        for (found, expected) in turned_routes.iter().zip(routes) {
            let sum = |trace: &molora_models::RouteTrace| {
                trace.routed.sum_counted(trace.routed.weights.clone())
            };
            let expected = take(sum(&expected), 0, &order(shape.experts));
            assert_close(sum(found), expected, GRADIENT, name);
        }
    }

    /// Without a list of layers: with one, experts differ from layer to layer.
    #[test]
    fn lists_of_layers_may_be_turned_too(shape in shapes()) {
        let order = |experts: usize| (0..experts).rev().collect();
        let spec = spec("mosld", shape);
        let model = random(&spec, shape.seed);
        let mut turned = random(&spec, shape.seed);
        copy_experts(&model, &mut turned, order);
        let rows = Rows::new(shape);
        let (expected, found) = (rows.forward(&model).0, rows.forward(&turned).0);
        assert_close(rows.real(&found), rows.real(&expected), GRADIENT, "hidden");
    }

    /// Groups and blends are left out: a barred expert gives its weight to all others, a missing one to
    /// its group, or to the others of each router that is blended. So are AdaMoLE, whose largest
    /// threshold is one over the number of experts, and MoCLE for its universal expert.
    #[test]
    fn an_expert_that_is_never_routed_to_changes_nothing(
        name in recipes().prop_filter("routers without groups", |name| {
            let is_left_out = ["at-moe", "hmora", "adamole", "mocle"].contains(name);
            is_mixture(name) && !starts_from_weight(name) && !is_left_out
        }),
        shape in shapes(),
    ) {
        let more = Shape { experts: shape.experts + 1, ..shape };
        let larger = level(spec(name, shape), more.experts);
        let larger_model = random(&larger, shape.seed);
        let mut model = random(&level(larger, shape.experts), shape.seed);
        copy_experts(&larger_model, &mut model, |_| (0..shape.experts).collect());
        let mut rows = Rows::new(shape);
        let (expected, routes) = rows.forward(&model);
        let free = Tensor::zeros([shape.batch, shape.experts], &device());
        let barred = Tensor::full([shape.batch, 1], f32::NEG_INFINITY, &device());
        rows.guidance.bias = Some(Tensor::cat(vec![free, barred], 1));
        let (found, larger_routes) = rows.forward(&larger_model);
        assert_close(rows.real(&found), rows.real(&expected), GRADIENT, name);
        for (found, expected) in larger_routes.iter().zip(routes) {
            let weights = found.routed.weights.clone().narrow(2, 0, shape.experts);
            let sum = found.routed.sum_counted(weights);
            let expected = expected.routed.sum_counted(expected.routed.weights.clone());
            assert_close(sum, expected, GRADIENT, name);
        }
    }

    #[test]
    fn routing_to_one_expert_alone_is_that_lora(
        name in recipes().prop_filter("routers", |name| is_mixture(name)),
        shape in shapes(),
        expert in 0_usize..4,
    ) {
        let expert = expert % shape.experts;
        let mut spec = level(spec(name, shape), shape.experts);
        spec.general = None;
        let model = random(&spec, shape.seed);
        let mut single = spec.clone();
        (single.router, single.bank.num_experts) = (None, 1);
        let mut alone = random(&single, shape.seed);
        copy_experts(&model, &mut alone, |_| vec![expert]);
        let mut rows = Rows::new(shape);
        let (expected, _) = rows.forward(&alone);
        let labels = vec![Some(expert); shape.batch];
        let labels = expert_labels(&labels, shape.experts, &device()).expect("in range");
        rows.guidance.labels = Some(labels);
        let (found, _) = rows.forward(&model);
        assert_close(rows.real(&found), rows.real(&expected), GRADIENT, name);
    }
}

#[test]
fn every_recipe_is_tried() {
    let names: Vec<_> = recipe::names().collect();
    for name in [
        "lora",
        "hydralora",
        "samora",
        "mosld",
        "at-moe",
        "moa",
        "phatgoose",
        "glider",
    ] {
        assert!(names.contains(&name), "{name}");
    }
}
