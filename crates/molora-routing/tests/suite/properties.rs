//! What holds for every scorer and selection, whatever the values.

use burn::module::Param;
use burn::tensor::activation::softmax;
use burn::tensor::{Device, Int, Tensor};
use molora_kernels::random::{Seed, uniform};
use molora_routing::scorer::{
    CosineScorer, GroupedConfig, LinearScorer, PrototypeConfig, PrototypeScorer, WithinGroup,
    WithinScorer,
};
use molora_routing::{
    Granularity, Guidance, Pooling, RouteInput, Router, RouterConfig, Scorer, ScorerConfig,
    Selection, text_cosines,
};
use molora_testkit::{FORWARD, assert_close, device};
use proptest::prelude::*;

const WIDTH: usize = 5;

#[derive(Debug, Clone, Copy)]
enum Kind {
    Linear,
    Cosine,
    Prototype,
    Grouped(WithinGroup),
}

fn kind() -> impl Strategy<Value = Kind> {
    prop_oneof![
        Just(Kind::Linear),
        Just(Kind::Cosine),
        Just(Kind::Prototype),
        Just(Kind::Grouped(WithinGroup::Static)),
        Just(Kind::Grouped(WithinGroup::Token)),
    ]
}

fn selection() -> impl Strategy<Value = Selection> {
    prop_oneof![
        Just(Selection::Dense),
        (1_usize..4).prop_map(Selection::TopK),
        (0.0..1.0).prop_map(Selection::TopP),
        Just(Selection::Argmax),
        Just(Selection::StraightThrough),
    ]
}

/// A number of experts in an order.
fn order() -> impl Strategy<Value = Vec<usize>> {
    (2_usize..7).prop_flat_map(|experts| Just((0..experts).collect::<Vec<_>>()).prop_shuffle())
}

fn take<const D: usize>(tensor: Tensor<D>, dim: usize, order: &[usize]) -> Tensor<D> {
    let order: Vec<i64> = order.iter().map(|&index| index as i64).collect();
    let order = Tensor::<1, Int>::from_data(order.as_slice(), &tensor.device());
    tensor.select(dim, order)
}

/// A router whose expert `i` is number `order[i]` of a family of experts drawn from `seed`, of
/// which those with even numbers form one group and those with odd ones the other.
fn router(kind: Kind, config: RouterConfig, order: &[usize], seed: u64, device: &Device) -> Router {
    let experts = order.len();
    let all = |name| uniform([8, WIDTH], 1.0, Seed::new(seed).child(name), device);
    let rows = |name| Param::from_tensor(take(all(name), 0, order));
    let numbers = |name| take(all(name), 0, order).narrow(1, 0, 1).squeeze_dim(1);
    let scorer = match kind {
        Kind::Grouped(within) => ScorerConfig::Grouped(GroupedConfig {
            groups: groups(order),
            within,
            group_temperature: 0.8,
            within_temperature: 1.3,
            ..GroupedConfig::default()
        }),
        _ => PrototypeConfig.into(),
    };
    let config = RouterConfig { scorer, ..config };
    let mut router = config.init(WIDTH, experts, 0, Seed::new(0), device);
    match (kind, &mut router.scorer) {
        (Kind::Grouped(within), Scorer::Grouped(scorer)) => {
            scorer.group = Param::from_tensor(all("group").narrow(0, 0, scorer.groups().len()));
            scorer.within = match within {
                WithinGroup::Static => WithinScorer::Static(Param::from_tensor(numbers("within"))),
                WithinGroup::Token => WithinScorer::Token(rows("within")),
            };
        }
        (Kind::Linear, scorer) => {
            let bias = Some(Param::from_tensor(numbers("bias")));
            let weight = rows("weight");
            *scorer = Scorer::Linear(LinearScorer { weight, bias });
        }
        (Kind::Cosine, scorer) => {
            let keys = rows("keys");
            *scorer = Scorer::Cosine(CosineScorer { keys });
        }
        (_, scorer) => {
            let prototypes = rows("prototypes");
            *scorer = Scorer::Prototype(PrototypeScorer { prototypes });
        }
    }
    router
}

fn groups(order: &[usize]) -> Vec<Vec<usize>> {
    let with_rest = |rest| {
        let members = order.iter().enumerate();
        let members = members.filter(move |(_, number)| **number % 2 == rest);
        members.map(|(expert, _)| expert).collect()
    };
    vec![with_rest(0), with_rest(1)]
}

fn input(seed: u64, device: &Device) -> RouteInput {
    RouteInput {
        features: uniform(
            [2, 4, WIDTH],
            1.5,
            Seed::new(seed).child("features"),
            device,
        ),
        mask: Tensor::ones([2, 4], device),
        tasks: None,
        columns: None,
    }
}

fn with(selection: Selection) -> RouterConfig {
    RouterConfig {
        selection,
        ..RouterConfig::default()
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn weights_sum_to_one(
        kind in kind(), selection in selection(), order in order(), seed: u64,
    ) {
        let device = device();
        let routed = router(kind, with(selection), &order, seed, &device).route(&input(seed, &device));
        let ones = Tensor::<3>::ones([2, 4, 1], &device);
        assert_close(routed.weights.sum_dim(2), ones, FORWARD, "sums");
    }

    #[test]
    fn permuting_experts_permutes_weights(
        kind in kind(), selection in selection(), order in order(), seed: u64,
    ) {
        let device = device();
        let sorted: Vec<usize> = (0..order.len()).collect();
        let input = input(seed, &device);
        let weights = |order: &[usize]| {
            router(kind, with(selection), order, seed, &device).route(&input).weights
        };
        let expected = take(weights(&sorted), 2, &order);
        assert_close(weights(&order), expected, FORWARD, "weights");
    }

    #[test]
    fn keeping_all_experts_is_dense(kind in kind(), order in order(), seed: u64) {
        let device = device();
        let input = input(seed, &device);
        let weights = |selection| {
            router(kind, with(selection), &order, seed, &device).route(&input).weights
        };
        let dense = weights(Selection::Dense);
        for selection in [Selection::TopK(order.len()), Selection::TopP(1.0)] {
            assert_close(weights(selection), dense.clone(), 0.0, "all");
        }
        assert_close(weights(Selection::TopP(1.0 - 1e-6)), dense, FORWARD, "nearly all");
    }

    #[test]
    fn a_bias_of_zero_changes_nothing(
        kind in kind(), selection in selection(), order in order(), seed: u64,
    ) {
        let device = device();
        let router = router(kind, with(selection), &order, seed, &device);
        let input = input(seed, &device);
        let seed = Seed::new(seed);
        let queries = uniform([2, 3], 1.0, seed.child("queries"), &device);
        let texts = uniform([order.len(), 3], 1.0, seed.child("texts"), &device);
        let bias = Some(text_cosines(queries, texts).mul_scalar(0.0));
        let guided = router.route_guided(&input, &Guidance { bias, ..Guidance::default() });
        assert_close(guided.weights, router.route(&input).weights, 0.0, "weights");
    }

    #[test]
    fn a_barred_expert_is_as_good_as_none(
        selection in selection(), order in order(), seed: u64,
    ) {
        let device = device();
        let (input, experts) = (input(seed, &device), order.len());
        // Selections of more experts than are left differ between the two by design.
        let selection = match selection {
            Selection::TopK(_) => Selection::TopK(1),
            other => other,
        };
        let weights = |order: &[usize], bias| {
            let router = router(Kind::Prototype, with(selection), order, seed, &device);
            router.route_guided(&input, &Guidance { bias, ..Guidance::default() }).weights
        };
        let barred = Tensor::full([2, 1], f32::NEG_INFINITY, &device);
        let bias = Tensor::cat(vec![Tensor::zeros([2, experts - 1], &device), barred], 1);
        let found = weights(&order, Some(bias));
        let without = weights(&order[..experts - 1], None);
        assert_close(found.clone().narrow(2, 0, experts - 1), without, FORWARD, "others");
        let none = Tensor::<3>::zeros([2, 4, 1], &device);
        assert_close(found.narrow(2, experts - 1, 1), none, 0.0, "barred");
    }

    /// Both readings of the inner level; the static one has `w_g = 1` then.
    #[test]
    fn one_group_of_all_experts_is_flat(order in order(), seed: u64, by_token: bool) {
        let device = device();
        let within = if by_token { WithinGroup::Token } else { WithinGroup::Static };
        let all = vec![(0..order.len()).collect()];
        let routed = grouped(all, within, seed, &device).route(&input(seed, &device));
        let numbers = |name| uniform([order.len(), WIDTH], 1.0, Seed::new(seed).child(name), &device);
        let weight: Tensor<2> = numbers("within");
        let logits = match within {
            WithinGroup::Token => flat(input(seed, &device).features, weight),
            WithinGroup::Static => {
                let scores = weight.narrow(1, 0, 1).reshape([1, 1, order.len()]);
                scores.expand([2, 4, order.len()])
            }
        };
        let expected = softmax(logits.div_scalar(1.3), 2);
        assert_close(routed.weights, expected, FORWARD, "weights");
    }

    #[test]
    fn groups_of_one_are_a_softmax_over_groups(order in order(), seed: u64, by_token: bool) {
        let device = device();
        let within = if by_token { WithinGroup::Token } else { WithinGroup::Static };
        let alone: Vec<_> = order.iter().map(|&expert| vec![expert]).collect();
        let routed = grouped(alone, within, seed, &device).route(&input(seed, &device));
        let seed_of_groups = Seed::new(seed).child("group");
        let weight = uniform([order.len(), WIDTH], 1.0, seed_of_groups, &device);
        let logits = flat(input(seed, &device).features, weight).div_scalar(0.8);
        // Group g holds expert `order[g]` alone.
        let weights = take(routed.weights, 2, &order);
        assert_close(weights, softmax(logits, 2), FORWARD, "weights");
    }

    #[test]
    fn padding_changes_nothing(
        kind in kind(), last: bool, left in 0_usize..3, right in 0_usize..3, seed: u64,
    ) {
        let device = device();
        let config = RouterConfig {
            granularity: Granularity::Sequence,
            pooling: if last { Pooling::Last } else { Pooling::Mean },
            ..RouterConfig::default()
        };
        let router = router(kind, config, &[0, 1, 2], seed, &device);
        let input = input(seed, &device);
        let padded = RouteInput {
            features: padded(input.features.clone(), left, right, f32::NAN),
            mask: padded(input.mask.clone().unsqueeze_dim(2), left, right, 0.0).squeeze_dim(2),
            tasks: None,
            columns: None,
        };
        let (found, expected) = (router.route(&padded), router.route(&input));
        assert_close(found.weights, expected.weights, FORWARD, "weights");
        assert_close(found.counted, expected.counted, 0.0, "counted");
    }
}

/// A router over these groups with scores drawn from `seed`.
fn grouped(groups: Vec<Vec<usize>>, within: WithinGroup, seed: u64, device: &Device) -> Router {
    let experts = groups.iter().map(Vec::len).sum();
    let config = RouterConfig {
        scorer: ScorerConfig::Grouped(GroupedConfig {
            groups: groups.clone(),
            within,
            group_temperature: 0.8,
            within_temperature: 1.3,
            ..GroupedConfig::default()
        }),
        ..RouterConfig::default()
    };
    let mut router = config.init(WIDTH, experts, 0, Seed::new(0), device);
    let draw = |rows, name| uniform([rows, WIDTH], 1.0, Seed::new(seed).child(name), device);
    let Scorer::Grouped(scorer) = &mut router.scorer else {
        panic!("a grouped scorer");
    };
    scorer.group = Param::from_tensor(draw(groups.len(), "group"));
    let weight: Tensor<2> = draw(experts, "within");
    scorer.within = match within {
        WithinGroup::Token => WithinScorer::Token(Param::from_tensor(weight)),
        WithinGroup::Static => {
            let scores = weight.narrow(1, 0, 1).squeeze_dim(1);
            WithinScorer::Static(Param::from_tensor(scores))
        }
    };
    router
}

/// Features `[B, T, F]` times the rows of `[E, F]`.
fn flat(features: Tensor<3>, weight: Tensor<2>) -> Tensor<3> {
    features.matmul(weight.transpose().unsqueeze())
}

/// `[B, T, F]` with `left` and `right` more tokens that hold `value`.
fn padded(tensor: Tensor<3>, left: usize, right: usize, value: f32) -> Tensor<3> {
    let [batch, _, width] = tensor.dims();
    let device = tensor.device();
    let more = |tokens| Tensor::full([batch, tokens, width], value, &device);
    let left = (left > 0).then(|| more(left));
    let right = (right > 0).then(|| more(right));
    Tensor::cat(left.into_iter().chain([tensor]).chain(right).collect(), 1)
}
