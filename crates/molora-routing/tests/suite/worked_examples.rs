//! Whole routers on examples that were worked out by hand.

use burn::module::Param;
use burn::tensor::activation::{log_softmax, softmax};
use burn::tensor::{Device, Tensor};
use molora_kernels::random::Seed;
use molora_routing::scorer::{
    LinearConfig, LinearScorer, PrototypeConfig, PrototypeScorer, WithinGroup,
};
use molora_routing::{
    Granularity, Guidance, Pooling, RouteInput, Router, RouterConfig, Scorer, ScorerConfig,
    Selection, expert_labels, text_cosines,
};
use molora_testkit::{FORWARD, GRADIENT, assert_close, autodiff_device, device};

/// PHATGOOSE's router over four experts and one token.
fn phatgoose(device: &Device) -> (Router, RouteInput) {
    let config = RouterConfig {
        scorer: PrototypeConfig.into(),
        selection: Selection::TopK(2),
        ..RouterConfig::default()
    };
    let mut router = config.init(4, 4, 0, Seed::new(0), device);
    let prototypes = [
        [0.2, -0.1, 0.4, 0.3],
        [-0.5, 0.1, 0.0, 0.6],
        [0.3, 0.3, -0.2, -0.4],
        [0.1, -0.6, 0.2, 0.9],
    ];
    router.scorer = Scorer::Prototype(PrototypeScorer {
        prototypes: Param::from_data(prototypes, device),
    });
    let input = RouteInput {
        features: Tensor::from_data([[[1.0, -2.0, 0.5, 3.0]]], device),
        mask: Tensor::ones([1, 1], device),
        tasks: None,
        columns: None,
    };
    (router, input)
}

#[test]
fn phatgoose_takes_the_two_closest_experts() {
    let (router, input) = phatgoose(&device());
    let routed = router.route(&input);
    let probs = [[[0.322909, 0.145163, 0.016771, 0.515156]]];
    assert_close(routed.probs, probs, FORWARD, "probs");
    // The source divides by the kept mass plus 1e-6.
    let weights = [[[0.385303, 0.0, 0.0, 0.614696]]];
    assert_close(routed.weights, weights, FORWARD, "weights");
}

#[test]
fn glider_adds_the_cosines_of_texts() {
    let device = device();
    let (router, input) = phatgoose(&device);
    let experts = [
        [1.0, 0.0, 0.0],
        [0.6, 0.8, 0.0],
        [0.0, 0.0, 1.0],
        [0.0, 1.0, 0.0],
    ];
    let queries = Tensor::from_data([[0.3, 0.9, 0.1]], &device);
    let cosines = text_cosines(queries, Tensor::from_data(experts, &device));
    let guided = |alpha: f64| Guidance {
        bias: Some(cosines.clone().mul_scalar(alpha)),
        labels: None,
        ..Guidance::default()
    };
    let routed = router.route_guided(&input, &guided(3.0));
    let logits = [[[2.443885, 3.531286, -1.142807, 4.797896]]];
    assert_close(routed.logits, logits, FORWARD, "logits");
    // Experts 1 and 3 have the same cosine: only the local score parts them, at any weight.
    for alpha in [3.0, 100.0] {
        let routed = router.route_guided(&input, &guided(alpha));
        let weights = [[[0.0, 0.219838, 0.0, 0.780161]]];
        assert_close(routed.weights, weights, FORWARD, "weights");
    }
}

/// Mixture-of-LoRAs' router over three experts and a prompt of two tokens.
fn mixture_of_loras(pooling: Pooling, device: &Device) -> (Router, RouteInput) {
    let config = RouterConfig {
        scorer: LinearConfig { bias: true }.into(),
        granularity: Granularity::Sequence,
        pooling,
        selection: Selection::Argmax,
        ..RouterConfig::default()
    };
    let mut router = config.init(3, 3, 0, Seed::new(0), device);
    let weight = [[0.2, 0.4, -0.1], [-0.3, 0.1, 0.5], [0.0, -0.2, 0.3]];
    router.scorer = Scorer::Linear(LinearScorer {
        weight: Param::from_data(weight, device),
        bias: Some(Param::from_data([0.05, 0.0, -0.05], device)),
    });
    let features = [[[0.5, 1.0, -1.0], [1.5, 0.0, 2.0], [9.0; 3]]];
    let input = RouteInput {
        features: Tensor::from_data(features, device),
        mask: Tensor::from_data([[1.0, 1.0, 0.0]], device),
        tasks: None,
        columns: None,
    };
    (router, input)
}

#[test]
fn mixture_of_loras_decides_by_the_last_token_or_the_mean() {
    let (router, input) = mixture_of_loras(Pooling::Last, &device());
    // The last token's two best logits are equal but for rounding.
    let logits = router.route(&input).logits;
    assert_close(logits, [[[0.15, 0.55, 0.55]]], FORWARD, "last");

    let (router, input) = mixture_of_loras(Pooling::Mean, &device());
    let routed = router.route(&input);
    assert_close(routed.logits, [[[0.4, 0.0, 0.0]]], FORWARD, "mean");
    assert_close(routed.weights, [[[1.0, 0.0, 0.0]]], 0.0, "weights");
}

#[test]
fn the_domain_cross_entropy_teaches_the_router_and_the_forced_expert_does_not() {
    let device = autodiff_device();
    let (router, input) = mixture_of_loras(Pooling::Last, &device);
    let labels = expert_labels(&[Some(1)], 3, &device).expect("in range");
    let guidance = Guidance {
        bias: None,
        labels: Some(labels),
        ..Guidance::default()
    };
    let routed = router.route_guided(&input, &guidance);
    assert_close(routed.weights, [[[0.0, 1.0, 0.0]]], 0.0, "weights");
    let ce = log_softmax(routed.logits, 2).narrow(2, 1, 1).sum().neg();
    assert_close(ce.clone(), [0.982198], FORWARD, "cross-entropy");
    let gradients = ce.backward();
    let Scorer::Linear(scorer) = &router.scorer else {
        panic!("a linear scorer");
    };
    let expected = [
        [0.376539, 0.0, 0.502052],
        [-0.938270, 0.0, -1.251026],
        [0.561730, 0.0, 0.748974],
    ];
    let found = scorer.weight.val().grad(&gradients).expect("tracked");
    assert_close(found, expected, GRADIENT, "gradient");
}

#[test]
fn labels_replace_the_selection_row_by_row() {
    let device = device();
    let config = RouterConfig {
        selection: Selection::Argmax,
        ..RouterConfig::default()
    };
    let router = config.init(2, 3, 0, Seed::new(3), &device);
    let input = RouteInput {
        features: Tensor::ones([3, 2, 2], &device),
        mask: Tensor::ones([3, 2], &device),
        tasks: None,
        columns: None,
    };
    let own = router.route(&input).weights;
    let labels = expert_labels(&[Some(2), None, Some(0)], 3, &device).expect("in range");
    let guidance = Guidance {
        bias: None,
        labels: Some(labels),
        ..Guidance::default()
    };
    let routed = router.route_guided(&input, &guidance);
    let weights = routed.weights.clone();
    let row = |expert: usize| {
        let mut row = [0.0; 3];
        row[expert] = 1.0;
        [[row; 2]]
    };
    assert_close(weights.clone().narrow(0, 0, 1), row(2), 0.0, "labelled");
    let free = own.narrow(0, 1, 1);
    assert_close(weights.clone().narrow(0, 1, 1), free, 0.0, "not labelled");
    assert_close(weights.clone().narrow(0, 2, 1), row(0), 0.0, "labelled");
    let selected = routed.selected.expect("a selection").float();
    assert_close(selected, weights, 0.0, "selected");
}

#[test]
fn a_dense_router_without_labels_stays_dense() {
    let device = device();
    let router = RouterConfig::default().init(2, 3, 0, Seed::new(3), &device);
    let input = RouteInput {
        features: Tensor::ones([2, 1, 2], &device),
        mask: Tensor::ones([2, 1], &device),
        tasks: None,
        columns: None,
    };
    let labels = expert_labels(&[None, Some(1)], 3, &device).expect("in range");
    let guidance = Guidance {
        bias: None,
        labels: Some(labels),
        ..Guidance::default()
    };
    let routed = router.route_guided(&input, &guidance);
    let dense = softmax(routed.logits, 2).narrow(0, 0, 1);
    assert_close(routed.weights.narrow(0, 0, 1), dense, FORWARD, "dense");
    let counts = routed.selected.expect("labels").float().sum_dim(0);
    assert_close(counts, [[[1.0, 2.0, 1.0]]], 0.0, "selected");
}

#[test]
fn configurations_of_before_still_read_and_new_ones_do() {
    let read = |text: &str| toml::from_str::<RouterConfig>(text);
    let before = read("granularity = \"sequence\"\nselection = { top_k = 2 }").expect("as before");
    assert_eq!(before.granularity, Granularity::Sequence);
    assert_eq!(before.pooling, Pooling::Mean);

    let text = "pooling = \"last\"\nselection = { top_p = 0.5 }\n\
                [scorer.grouped]\ngroups = [[0, 1], [2]]\nwithin = \"static\"";
    let config = read(text).expect("valid");
    assert_eq!(config.pooling, Pooling::Last);
    assert_eq!(config.selection, Selection::TopP(0.5));
    let ScorerConfig::Grouped(grouped) = &config.scorer else {
        panic!("a grouped scorer");
    };
    assert_eq!(grouped.within, WithinGroup::Static);
    assert_eq!(grouped.group_temperature, 1.0);
    config.validate(3).expect("a partition");
    assert!(config.validate(4).is_err(), "expert 3 has no group");

    let text = "selection = \"argmax\"\nscorer = \"prototype\"";
    assert_eq!(read(text).expect("valid").scorer, PrototypeConfig.into());
    assert!(read("[scorer.grouped]\ngroups = []\ntau = 1.0").is_err());
}
