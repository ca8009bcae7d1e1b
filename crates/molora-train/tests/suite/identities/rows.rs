//! Rows of a batch and padding: each row is routed for itself, and padding counts nowhere.

use burn::tensor::Tensor;
use molora_models::{Bert, RouteTrace};
use molora_regularize::{
    Reduction, balance_literal, balance_mass, domain_cross_entropy, load_balance, mass_variation,
    router_entropy, router_z_loss,
};
use molora_routing::{LayerRule, Pooling, RouterOutput, expert_labels};
use molora_testkit::{GRADIENT, assert_close};
use proptest::prelude::*;

use super::small::{Rows, Shape, device, random, recipes, shapes, spec};

fn assert_rows_alone(model: &Bert, rows: &Rows, what: &str) {
    let (together, _) = rows.forward(model);
    for index in 0..rows.batch() {
        let row = rows.row(index);
        let (alone, _) = row.forward(model);
        let found = together.clone().narrow(0, index, 1);
        assert_close(row.real(&found), row.real(&alone), GRADIENT, what);
    }
}

/// The value of every loss on routes, and the weight of every expert.
fn statistics(trace: &RouteTrace, rows: usize) -> Tensor<1> {
    let routed = &trace.routed;
    let labels: Vec<_> = (0..rows).map(|row| (row != 1).then_some(0)).collect();
    let labels = expert_labels(&labels, routed.num_experts(), &device()).expect("in range");
    let both: [fn(&RouterOutput, Reduction) -> Tensor<1>; 5] = [
        load_balance,
        balance_mass,
        balance_literal,
        router_z_loss,
        router_entropy,
    ];
    let mut values = vec![
        routed.sum_counted(routed.weights.clone()),
        routed.selection_counts(),
        mass_variation(routed),
    ];
    for reduction in [Reduction::Mean, Reduction::Sum] {
        values.extend(both.map(|loss| loss(routed, reduction)));
        values.push(domain_cross_entropy(routed, labels.clone(), reduction));
    }
    Tensor::cat(values, 0)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn a_batch_is_its_rows_one_by_one(name in recipes(), shape in shapes()) {
        let model = random(&spec(name, shape), shape.seed);
        assert_rows_alone(&model, &Rows::new(shape), name);
    }

    #[test]
    fn layer_rules_take_each_row_for_itself(
        shape in shapes(), rule in prop::sample::select(vec![
            LayerRule::PerLayer, LayerRule::First, LayerRule::Vote,
        ]), last: bool,
    ) {
        let shape = Shape { batch: 3, ..shape };
        let mut spec = spec("moa", shape);
        spec.layer_rule = rule;
        let router = spec.router.as_mut().expect("a router");
        router.pooling = if last { Pooling::Last } else { Pooling::Mean };
        let model = random(&spec, shape.seed);
        let rows = Rows::new(shape);
        assert_rows_alone(&model, &rows, "hidden");
        // A rule other than per layer makes one choice for all layers.
        let (_, routes) = rows.forward(&model);
        let choice = |trace: &RouteTrace| trace.routed.weights.clone();
        for trace in &routes {
            let sums = choice(trace).sum_dim(2);
            assert_close(sums.clone(), sums.ones_like(), 0.0, "one expert");
            if rule != LayerRule::PerLayer {
                assert_close(choice(trace), choice(&routes[0]), 0.0, "the same one");
            }
        }
    }

    #[test]
    fn padding_changes_neither_states_nor_statistics(
        name in recipes(), shape in shapes(), more in 1_usize..5,
    ) {
        let model = random(&spec(name, shape), shape.seed);
        let rows = Rows::new(shape);
        let (expected, routes) = rows.forward(&model);
        let (found, padded_routes) = rows.forward_padded(&model, more);
        assert_close(rows.real(&found), rows.real(&expected), GRADIENT, name);
        prop_assert_eq!(padded_routes.len(), routes.len());
        for (found, expected) in padded_routes.iter().zip(&routes) {
            let of = |trace| statistics(trace, rows.batch());
            assert_close(of(found), of(expected), GRADIENT, name);
        }
    }
}
