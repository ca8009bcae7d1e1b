//! Methods that differ in how experts are chosen and weighed, against their equations in float64: every
//! variant of their cases, on a layer that is made from the recipe.

use burn::tensor::{Device, Tensor, TensorData};
use molora_adapters::core::ScaleConfig;
use molora_adapters::{GateGradient, GeneralExpert, Scaling, Slices};
use molora_models::AdapterSpec;
use molora_regularize::{
    Divergence, LoadBalance, Reduction, SequenceGini, TaskInformation, TermConfig, TokenGini,
    divergence,
};
use molora_routing::normaliser::{SoftmaxConfig, SoftmaxTwiceConfig, ThresholdConfig};
use molora_routing::scorer::{BlendConfig, ClusterConfig, LinearConfig};
use molora_routing::{Granularity, RouterConfig, RouterOutput, Selection};
use molora_testkit::{FORWARD, assert_close, autodiff_device};
use molora_train::recipe;

use crate::cases::cases;
use crate::golden_layer::{LINEAR, Layer, Variant, spec};

/// Runs a check on every variant of every case of a name.
fn each(name: &str, check: impl Fn(&Variant, &Device)) {
    let device = autodiff_device();
    for case in cases(name) {
        let (document, expected) = (case.json("case.json").expect("found by it"), case.tensors());
        let variants = Variant::all(&document, &expected);
        assert!(!variants.is_empty(), "{}: no variants", case.name);
        variants.iter().for_each(|variant| check(variant, &device));
    }
}

/// The recipe's specification with the variant's scaling, number of experts and rank.
fn spec_of(variant: &Variant, recipe: &str) -> AdapterSpec {
    let number = |name| variant.number(name) as usize;
    spec(variant, recipe, number("experts"), number("rank"))
}

fn router(spec: &mut AdapterSpec) -> &mut RouterConfig {
    spec.router.as_mut().expect("a router")
}

/// A term of the recipe with the weight of a case.
fn term_of(recipe: &str, index: usize, weight: f64) -> TermConfig {
    let objective = recipe::find(recipe).expect("listed").objective;
    TermConfig {
        weight,
        ..objective.terms[index].clone()
    }
}

/// The mean of a term over a site, with a weight.
fn mean_of(term: impl Into<molora_regularize::Term>, weight: f64) -> TermConfig {
    TermConfig {
        term: term.into(),
        weight,
        within_site: Reduction::Mean,
        over_sites: Reduction::Mean,
    }
}

/// The decisions of a layer on the case's input.
fn routed(layer: &Layer<'_>, variant: &Variant, device: &Device) -> RouterOutput {
    let x = variant.expected.tensor::<3>("input.x", device);
    layer.forward(x, false).1.expect("routed").routed
}

/// Compares which experts were selected at real tokens with a tensor of numbers.
fn check_selected(variant: &Variant, routed: &RouterOutput, name: &str) {
    let name = variant.key(name);
    let selected = routed.selected.clone().expect("a selection").float();
    let [batch, tokens, experts] = selected.dims();
    let mask = routed.counted.clone().unsqueeze_dim::<3>(2);
    let found = (selected * mask).into_data();
    let values = variant.expected.ints(&name).into_iter();
    let values: Vec<f32> = values.map(|value| value as f32).collect();
    let expected = TensorData::new(values, [batch, tokens, experts]);
    assert_close(found, expected, 0.0, &name);
}

#[test]
fn golden_methods_top_p() {
    each("top_p", |variant, device| {
        let mut spec = spec_of(variant, "top-p");
        router(&mut spec).selection = Selection::TopP(variant.number("top_p"));
        let layer = Layer::new(variant.expected, &spec, &LINEAR, 0, device);
        let balance = term_of("top-p", 0, variant.number("balance_coefficient"));
        let entropy = term_of("top-p", 1, variant.number("entropy_coefficient"));
        layer.check(variant, &[("balance", balance), ("entropy", entropy)]);

        let routed = routed(&layer, variant, device);
        let selected = routed.selected.expect("a selection").float();
        let counts = selected.sum_dim(2).squeeze_dim::<2>(2) * routed.counted;
        let counts: Vec<i64> = counts.into_data().iter::<i64>().collect();
        let name = variant.key("output.experts_per_token");
        assert_eq!(counts, variant.expected.ints(&name), "{name}");
    });
}

#[test]
fn golden_methods_adamole() {
    each("adamole", |variant, device| {
        let mut spec = spec_of(variant, "adamole");
        let theta_max = Some(variant.number("theta_max"));
        router(&mut spec).normaliser = ThresholdConfig { theta_max }.into();
        let threshold = [
            ("threshold", "router.threshold.weight"),
            ("threshold_bias", "router.threshold.bias"),
        ];
        let names = [&LINEAR[..], &threshold].concat();
        let layer = Layer::new(variant.expected, &spec, &names, 0, device);
        let balance = term_of("adamole", 0, variant.number("beta"));
        layer.check(variant, &[("balance", balance)]);

        let routed = routed(&layer, variant, device);
        let theta = routed.learned.clone().expect("a threshold");
        variant.check_tokens("output.threshold", theta);
        check_selected(variant, &routed, "output.selected");
    });
}

#[test]
fn golden_methods_mod_squad() {
    each("mod_squad", |variant, device| {
        let mut spec = spec_of(variant, "mod-squad");
        router(&mut spec).selection = Selection::TopK(variant.number("top_k") as usize);
        let tasks = variant.number("tasks") as usize;
        let layer = Layer::new(variant.expected, &spec, &LINEAR, tasks, device);
        let layer = layer.with_tasks(tasks);
        let name = variant.text("loss").expect("which loss").to_owned();
        let mut information = term_of("mod-squad", 0, variant.number("mi_coefficient"));
        if name == "mutual_info" {
            let molora_regularize::Term::TaskInformation(numbers) = information.term else {
                panic!("the recipe's term")
            };
            information.term = TaskInformation {
                epsilon: 0.0,
                ..numbers
            }
            .into();
        }
        layer.check(variant, &[(&name, information)]);
    });
}

/// The factor of every expert, which a bank does not have, as a scale of its code.
fn scale_experts(spec: &mut AdapterSpec) {
    spec.bank.core = ScaleConfig.into();
    spec.bank.scaling = Scaling::Unit;
}

/// The scale of every coordinate of every expert's code.
fn scales(variant: &Variant) -> Vec<f32> {
    let rank = variant.number("rank") as usize;
    let scaling = variant.expected.floats("input.scaling");
    scaling.iter().flat_map(|&s| vec![s; rank]).collect()
}

#[test]
fn golden_methods_straight_through_top1() {
    each("straight_through_top1", |variant, device| {
        let mut spec = spec_of_unscaled(variant, "mosld");
        scale_experts(&mut spec);
        router(&mut spec).selection = match variant.is("dense") {
            true => Selection::StraightThroughDense,
            false => Selection::StraightThrough,
        };
        let mut layer = Layer::new(variant.expected, &spec, &LINEAR, 0, device);
        layer.set("experts.rank_scale", &scales(variant));
        let weight = variant.number("coefficient");
        let terms = match variant.text("loss") {
            None => vec![],
            Some("balance") => vec![("balance", mean_of(LoadBalance, weight))],
            Some("token_gini") => vec![("token_gini", mean_of(TokenGini, weight))],
            Some("sequence_gini") => vec![("sequence_gini", mean_of(SequenceGini, weight))],
            Some(other) => panic!("no loss is known as {other}"),
        };
        layer.check(variant, &terms);

        let routed = routed(&layer, variant, device);
        variant.check_tokens("output.probs", routed.probs.clone());
        check_selected(variant, &routed, "output.selected");
    });
}

/// A specification of independent experts without dropout, whose scaling a case does not name.
fn spec_of_unscaled(variant: &Variant, recipe: &str) -> AdapterSpec {
    let mut spec = recipe::find(recipe).expect("listed").adapter;
    spec.experts = Default::default();
    spec.bank.slices = Slices::Independent;
    spec.bank.num_experts = variant.number("experts") as usize;
    spec.bank.rank = variant.number("rank") as usize;
    spec
}

#[test]
fn golden_methods_sqrt_gate() {
    each("sqrt_gate", |variant, device| {
        let mut spec = spec_of_unscaled(variant, "mosld");
        let rank = spec.bank.rank as f64;
        spec.bank.scaling = Scaling::AlphaOverRank(variant.number("scaling") * rank);
        router(&mut spec).selection = Selection::TopK(variant.number("top_k") as usize);
        let is_rescaled = variant
            .hyper("rescaled")
            .and_then(serde_json::Value::as_bool);
        if is_rescaled.expect("whether gradients are rescaled") {
            spec.bank.gate_gradient = GateGradient::SquareRoot;
        }
        let layer = Layer::new(variant.expected, &spec, &LINEAR, 0, device);
        layer.check(variant, &[]);
    });
}

#[test]
fn golden_methods_arrow() {
    each("arrow", |variant, device| {
        let mut spec = spec_of_unscaled(variant, "arrow");
        scale_experts(&mut spec);
        let tau = variant.number("tau");
        router(&mut spec).temperature = tau;
        router(&mut spec).selection = match variant.number("top_k") {
            all if all < 0.0 => Selection::Dense,
            k => Selection::TopK(k as usize),
        };
        let mut layer = Layer::new(variant.expected, &spec, &LINEAR[..2], 0, device);
        layer.set("experts.rank_scale", &scales(variant));
        let adapter = layer.linear.adapter.as_mut().expect("attached");
        let directions = adapter.bank.directions();
        if let Some(of_case) = prototypes(variant, device) {
            // A singular vector has no sign.
            let products = (directions.clone() * of_case.clone()).sum_dim(1);
            assert_close(
                directions.clone() * products.sign(),
                of_case,
                FORWARD,
                "prototypes",
            );
        }
        adapter
            .router
            .as_mut()
            .expect("a router")
            .set_rows(directions);
        layer.check(variant, &[]);

        let routed = routed(&layer, variant, device);
        variant.check_tokens("output.scores", routed.logits.mul_scalar(tau));
    });
}

/// The prototypes of an Arrow case, which one of its variants has.
fn prototypes(variant: &Variant, device: &Device) -> Option<Tensor<2>> {
    let name = variant.key("output.prototypes");
    let expected = variant.expected;
    expected.has(&name).then(|| expected.tensor(&name, device))
}

/// The rows of a case pick a vector each: as many tasks as rows.
fn one_task_per_row(rows: usize, device: &Device) -> Tensor<2> {
    Tensor::<2>::eye(rows, device)
}

/// Compares the decisions of a blend one by one, and the divergence of each.
fn check_parts(
    variant: &Variant,
    routed: &RouterOutput,
    source: &str,
    divergence_of: Option<Divergence>,
) {
    let of_whole = [(routed.probs.clone(), routed.counted.clone())];
    let parts: Vec<_> = match &routed.parts[..] {
        [] => of_whole.to_vec(),
        parts => parts
            .iter()
            .map(|part| (part.probs.clone(), part.counted.clone()))
            .collect(),
    };
    let names = match source {
        "token" => vec!["token"],
        "task" => vec!["task"],
        _ => vec!["token", "task"],
    };
    for (name, (probs, counted)) in names.into_iter().zip(parts) {
        if let Some(config) = divergence_of {
            let value = divergence(&probs, &counted, config);
            variant.check(&format!("aux.{name}_divergence"), value);
        }
        let output = format!("output.{name}_router");
        match name {
            "task" => variant.check(&output, probs.squeeze_dim::<2>(1)),
            _ => variant.check_tokens(&output, probs),
        }
    }
}

#[test]
fn golden_methods_hmora() {
    each("hmora", |variant, device| {
        let mut spec = spec_of(variant, "hmora");
        let is_shared = variant.hyper("shared_A") != Some(&serde_json::Value::Bool(false));
        spec.bank.slices = match is_shared {
            true => Slices::Shared,
            false => Slices::Independent,
        };
        spec.bank.scaling = {
            let root = (spec.bank.rank as f64).sqrt();
            Scaling::RankStabilized(variant.number("scaling") * root)
        };
        let task_width = variant.number("task_width") as usize;
        let source = variant.text("source").unwrap_or("both");
        let config = router(&mut spec);
        let top_k = variant.hyper("top_k").and_then(serde_json::Value::as_u64);
        config.selection = top_k.map_or(Selection::Dense, |k| Selection::TopK(k as usize));
        config.normaliser = match variant.is("top_k_renormalised") {
            true => SoftmaxConfig.into(),
            false => SoftmaxTwiceConfig.into(),
        };
        let linear = LinearConfig { bias: true };
        let (names, vectors): (&[(&str, &str)], _) = match source {
            "token" => {
                config.scorer = linear.into();
                (
                    &[
                        ("token_router", "router.weight"),
                        ("token_bias", "router.bias"),
                    ],
                    None,
                )
            }
            "task" => {
                config.scorer = linear.into();
                (config.granularity, config.task_width) = (Granularity::Task, task_width);
                let names = &[
                    ("task_router", "router.weight"),
                    ("task_bias", "router.bias"),
                ];
                (names, Some("router.task_embedding"))
            }
            _ => {
                config.scorer = BlendConfig {
                    task_width,
                    ..BlendConfig::default()
                }
                .into();
                let names = &[
                    ("token_router", "router.by_features.weight"),
                    ("token_bias", "router.by_features.bias"),
                    ("task_router", "router.by_task.weight"),
                    ("task_bias", "router.by_task.bias"),
                    ("alpha", "router.alpha"),
                ];
                (names, Some("router.by_task.embedding"))
            }
        };
        let a = if is_shared { "A_shared" } else { "A" };
        let bank = [(a, "experts.lora_A"), ("B", "experts.lora_B")];
        let names = [&bank[..], names].concat();
        let rows = variant.expected.shape("input.task")[0];
        let mut layer = Layer::new(variant.expected, &spec, &names, rows, device);
        if let Some(vectors) = vectors {
            layer.set(vectors, &variant.expected.floats("input.task"));
        }
        layer.context.tasks = Some(one_task_per_row(rows, device));

        let weight = variant.number("lambda_auxiliary");
        let config = Divergence {
            certain: variant.number("gamma_certain"),
            balanced: variant.number("gamma_balance"),
        };
        let is_balance = variant.text("loss") == Some("load_balance");
        let terms = match is_balance {
            true => [("load_balance", mean_of(LoadBalance, weight))],
            // The sum of what is compared one by one below.
            false => [("", mean_of(config, weight))],
        };
        layer.check(variant, &terms);

        let of = (!is_balance).then_some(config);
        check_parts(variant, &routed(&layer, variant, device), source, of);
    });
}

#[test]
fn golden_methods_mocle() {
    each("mocle", |variant, device| {
        let [experts, rank] = ["experts", "rank"].map(|name| variant.number(name) as usize);
        let mut spec = spec(variant, "mocle", experts, rank);
        spec.general = Some(match variant.text("weight") {
            Some("w^2") => GeneralExpert::RestOfSquared,
            _ => GeneralExpert::Rest,
        });
        let tau = variant.number("tau");
        let [clusters, width] = variant.expected.shape("param.cluster_embedding")[..] else {
            panic!("clusters and width")
        };
        router(&mut spec).temperature = tau;
        router(&mut spec).scorer = ClusterConfig { clusters, width }.into();
        let names = [
            ("cluster_embedding", "router.cluster_embedding"),
            ("gate", "router.weight"),
            ("gate_bias", "router.bias"),
        ];
        let mut layer = Layer::new(variant.expected, &spec, &names, 0, device);
        // The universal expert is the last one of its bank.
        for (matrix, name) in [("A", "experts.lora_A"), ("B", "experts.lora_B")] {
            let routed = variant.expected.floats(&format!("param.{matrix}"));
            let universal = variant
                .expected
                .floats(&format!("param.{matrix}_universal"));
            layer.set(name, &[routed, universal].concat());
        }
        let ids = variant.expected.ints("input.cluster");
        let mut rows = vec![0.0_f32; ids.len() * clusters];
        for (row, &id) in ids.iter().enumerate() {
            rows[row * clusters + id as usize] = 1.0;
        }
        let rows = TensorData::new(rows, [ids.len(), clusters]);
        layer.context.guidance.clusters = Some(Tensor::from_data(rows, device));
        if variant.hyper("noise").is_some() {
            // Added before the temperature, where a bias comes behind it.
            let noise = variant.expected.tensor::<2>("input.noise", device);
            layer.context.guidance.bias = Some(noise.div_scalar(tau));
        }
        layer.check(variant, &[]);
        check_universal(variant, &layer, device);

        let routed = routed(&layer, variant, device);
        variant.check("output.probs", routed.probs.clone().squeeze_dim::<2>(1));
        let weight = routed.weights.clone().sum_dim(2).reshape([ids.len()]);
        variant.check("output.weight", weight);
        let chosen = routed.weights.argmax(2).into_data();
        let chosen: Vec<i64> = chosen.iter::<i64>().collect();
        assert_eq!(chosen, variant.expected.ints(&variant.key("output.expert")));
    });
}

/// The gradients of the experts, of which the case has the universal one apart.
fn check_universal(variant: &Variant, layer: &Layer<'_>, device: &Device) {
    let x = variant.expected.tensor::<3>("input.x", device);
    let (y, _) = layer.forward(x, false);
    let cotangent = variant.expected.tensor::<3>("input.cotangent", device);
    let gradients = (y * cotangent).sum().backward();
    let mut adapter = layer.linear.adapter.clone().expect("attached");
    for tensor in adapter.tensors() {
        let matrix = match tensor.name() {
            "experts.lora_A" => "A",
            "experts.lora_B" => "B",
            _ => continue,
        };
        let found = tensor.gradient(&gradients).expect("reached");
        let routed = variant.key(&format!("grad.{matrix}"));
        let shape = variant.expected.shape(&routed);
        let (first, last) = found.split_at(shape.iter().product());
        let first = TensorData::new(first.to_vec(), shape);
        variant
            .expected
            .assert_close(&routed, first, molora_testkit::GRADIENT);
        let universal = variant.key(&format!("grad.{matrix}_universal"));
        let shape = variant.expected.shape(&universal);
        let last = TensorData::new(last.to_vec(), shape);
        variant
            .expected
            .assert_close(&universal, last, molora_testkit::GRADIENT);
    }
}
