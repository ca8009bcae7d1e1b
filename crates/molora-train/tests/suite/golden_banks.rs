//! Banks that make their matrices or combine their experts in another way, against their equations in
//! float64.

use burn::tensor::{Device, Tensor, activation::silu};
use molora_adapters::combine::{
    FactorsConfig, OrthogonalConfig, OutputGroupsConfig, RankGroupsConfig,
};
use molora_adapters::core::{OutputGateConfig, ReluConfig};
use molora_adapters::down::{FactoredConfig, FrozenSparseConfig};
use molora_adapters::{DownConfig, Scaling, task_selector};
use molora_models::{AdapterSpec, Composition};
use molora_regularize::{
    LoadBalance, MassVariation, Reduction, Spectral, SpectralForm, TermConfig,
};
use molora_routing::normaliser::CellsConfig;
use molora_routing::scorer::{CountTarget, MagnitudeConfig};
use molora_routing::{RouterOutput, Scorer, Selection};
use molora_testkit::autodiff_device;
use molora_testkit::golden::Tensors;
use molora_train::recipe;

use crate::cases::cases;
use crate::golden_layer::{LINEAR, Layer, Variant, spec};
use crate::golden_mixtures::{router, term};

#[test]
fn golden_methods_malora() {
    let device = autodiff_device();
    for case in cases("malora") {
        let (document, expected) = (case.json("case.json").expect("read"), case.tensors());
        let [experts, rank, subspace] = expected.shape("param.P")[..] else {
            panic!("[E, R, d]");
        };
        for variant in Variant::all(&document, &expected) {
            let mut spec = spec(&variant, "malora", experts, rank);
            spec.bank.down = FactoredConfig { subspace }.into();
            router(&mut spec).selection = Selection::TopK(variant.number("top_k") as usize);
            let names = [
                ("S", "experts.shared_A"),
                ("P", "experts.coefficients"),
                ("B", "experts.lora_B"),
                ("router", "router.weight"),
            ];
            let balance = term(LoadBalance, variant.number("beta"), Reduction::Sum);
            let layer = Layer::new(&expected, &spec, &names, 0, &device);
            layer.check(&variant, &[("balance", balance)]);
        }
    }
}

/// Alternatives `[G, m, O, p]` are experts of rank G p.
#[test]
fn golden_methods_mode() {
    let device = autodiff_device();
    for name in ["mode", "mode_rank2"] {
        for case in cases(name) {
            let (document, expected) = (case.json("case.json").expect("read"), case.tensors());
            let [groups, experts, _, ranks] = expected.shape("param.B")[..] else {
                panic!("[G, m, O, p]");
            };
            for variant in Variant::all(&document, &expected) {
                let mut spec = spec(&variant, "mode", experts, groups * ranks);
                spec.bank.combine = RankGroupsConfig { ranks }.into();
                let names = [("A", "experts.lora_A"), ("router", "router.weight")];
                let layer = Layer::new(&expected, &spec, &names, 0, &device);
                let layer = layer.turned("B", "experts.lora_B", &[1, 2, 0, 3]);
                layer.check(&variant, &[]);
            }
        }
    }
}

#[test]
fn golden_methods_mtlora_grouped() {
    let device = autodiff_device();
    for case in cases("mtlora_grouped") {
        let (document, expected) = (case.json("case.json").expect("read"), case.tensors());
        let [experts, _, rank] = expected.shape("param.B")[..] else {
            panic!("[E, O, R]");
        };
        for variant in Variant::all(&document, &expected) {
            let (spec, names) = mtlora(&variant, experts, rank);
            let layer = Layer::new(&expected, &spec, &names, 0, &device);
            check_mtlora(&layer, &variant, &expected, &device);
        }
    }
}

/// The adapter beside a whole gated feed-forward part, in three styles.
#[test]
fn golden_methods_mtlora_block() {
    let device = autodiff_device();
    for case in cases("mtlora_block") {
        let (document, expected) = (case.json("case.json").expect("read"), case.tensors());
        let [experts, width, rank] = expected.shape("param.B")[..] else {
            panic!("[E, O, R]");
        };
        for variant in Variant::all(&document, &expected) {
            let (mut spec, mut names) = mtlora(&variant, experts, rank);
            let expert_scale = match variant.text("style").expect("a style") {
                "lowrank" => None,
                "bottleneck" => Some(false),
                "adaptformer" => {
                    names.push(("expert_scale", "experts.scale"));
                    // The learned factors are all the scaling that there is.
                    spec.bank.scaling = Scaling::Unit;
                    Some(true)
                }
                style => panic!("{style}: expected lowrank, bottleneck or adaptformer"),
            };
            if let Some(expert_scale) = expert_scale {
                spec.bank.core = ReluConfig { expert_scale }.into();
            }
            let [gate, up, down] = ["gate", "up", "down"].map(|name| {
                let weight: Tensor<2> = expected.tensor(&format!("param.{name}.W0"), &device);
                weight.transpose().unsqueeze::<3>()
            });
            let part = move |x: Tensor<3>| {
                let inner = silu(x.clone().matmul(gate.clone())) * x.matmul(up.clone());
                inner.matmul(down.clone())
            };
            let part = Box::new(part);
            let layer = Layer::beside(&expected, width, &spec, &names, &device, part);
            check_mtlora(&layer, &variant, &expected, &device);
        }
    }
}

/// A variant's specification at a layer of its own, and which of its tensors are which.
fn mtlora<'a>(
    variant: &'a Variant<'_>,
    experts: usize,
    rank: usize,
) -> (AdapterSpec, Vec<(&'a str, &'a str)>) {
    let mut spec = spec(variant, "mtlora", experts, rank);
    spec.composition = Composition::Site;
    let groups = variant.number("groups") as usize;
    spec.bank.combine = OutputGroupsConfig { groups }.into();
    let names = vec![
        ("A", "experts.lora_A"),
        ("B", "experts.lora_B"),
        (variant.text("router").unwrap_or("router"), "router.weight"),
    ];
    (spec, names)
}

/// Output, terms, gradients and the weights of every group.
fn check_mtlora(layer: &Layer<'_>, variant: &Variant<'_>, expected: &Tensors, device: &Device) {
    let weight = variant.number("balance_coefficient");
    let mut terms = vec![("balance", term(MassVariation, weight, Reduction::Mean))];
    terms.extend(spectral(variant));
    layer.check(variant, &terms);
    let x = expected.tensor::<3>("input.x", device);
    let weights = layer.forward(x, false).1.expect("routed").routed.weights;
    layer.check_grouped(&variant.key("output.group_router"), weights);
}

/// The spectral term of a variant, if it has one.
fn spectral(variant: &Variant<'_>) -> Option<(&'static str, TermConfig)> {
    let forms = [
        ("spectral", SpectralForm::Within),
        ("spectral_pairs", SpectralForm::Pairs),
    ];
    forms.into_iter().find_map(|(name, form)| {
        variant.hyper(&format!("{name}_coefficient"))?;
        let weight = variant.number(&format!("{name}_coefficient"));
        let numbers = Spectral { form, every: 1 };
        Some((name, term(numbers, weight, Reduction::Mean)))
    })
}

/// Cell (i, j) of the grid is the row `i r2 + j` of the router.
#[test]
fn golden_methods_mor1e_grid() {
    let device = autodiff_device();
    for case in cases("mor1e_grid") {
        let (document, expected) = (case.json("case.json").expect("read"), case.tensors());
        let (rank, ups) = (expected.shape("param.A")[0], expected.shape("param.B")[1]);
        for variant in Variant::all(&document, &expected) {
            let mut spec = recipe::find("mor1e").expect("listed").adapter;
            (spec.bank.num_experts, spec.bank.rank) = (ups, rank);
            let sharpness = variant.number("sharpness");
            spec.bank.core = OutputGateConfig { sharpness }.into();
            router(&mut spec).normaliser = CellsConfig {
                token_scale: variant.number("token_scale"),
                prior_scale: variant.number("prior_scale"),
                sharpness,
            }
            .into();
            let names = [
                ("A", "experts.lora_A"),
                ("router", "router.weight"),
                ("omega_raw", "router.blend"),
                ("beta", "experts.output_gate"),
            ];
            let layer = Layer::new(&expected, &spec, &names, 0, &device);
            let mut layer = layer.turned("B", "experts.lora_B", &[1, 0]);
            let centroids = expected.tensor::<2>("param.centroids", &device);
            let texts = expected.tensor::<2>("input.embedding", &device);
            layer.context.guidance.similarities = Some(texts.matmul(centroids.transpose()));
            layer.check(&variant, &[]);
            let x = expected.tensor::<3>("input.x", &device);
            let weights = layer.forward(x, false).1.expect("routed").routed.weights;
            let [batch, decisions, _] = weights.dims();
            let gate = weights.reshape([batch, decisions / rank, rank * ups]);
            variant.check_tokens("output.gate", gate);
        }
    }
}

/// The chosen ranks, their counts and what the biases become, whatever the reading.
#[test]
fn golden_methods_flylora() {
    let device = autodiff_device();
    for case in cases("flylora") {
        let (document, expected) = (case.json("case.json").expect("read"), case.tensors());
        let ranks = expected.shape("param.A")[0];
        for variant in Variant::all(&document, &expected) {
            let mut spec = spec(&variant, "flylora", ranks, 1);
            spec.bank.scaling = Scaling::AlphaOverRank(variant.number("scaling"));
            let DownConfig::FrozenSparse(sparse) = &spec.bank.down else {
                panic!("a frozen A");
            };
            spec.bank.down = FrozenSparseConfig {
                detached: variant.hyper("no_gradient_through_A").is_some(),
                ..*sparse
            }
            .into();
            let share = variant
                .text("update")
                .is_some_and(|update| update.contains("k/r"));
            let scorer = MagnitudeConfig {
                rate: variant.number("bias_rate"),
                signed: variant.text("score") == Some("A x + d"),
                target: if share {
                    CountTarget::Share
                } else {
                    CountTarget::Mean
                },
            };
            router(&mut spec).scorer = scorer.into();
            router(&mut spec).selection = Selection::TopK(variant.number("top_k") as usize);
            let names = [("A", "experts.lora_A"), ("d", "router.bias")];
            let layer = Layer::new(&expected, &spec, &names, 0, &device);
            let layer = layer.turned("B", "experts.lora_B", &[1, 0]);
            layer.check(&variant, &[]);

            let x = expected.tensor::<3>("input.x", &device);
            let routed = layer.forward(x, false).1.expect("routed").routed;
            let selected = routed.selected.clone().expect("a selection").float();
            variant.check_tokens("output.selected", selected);
            variant.check("output.counts", routed.selection_counts());
            let adapter = layer.linear.adapter.as_ref().expect("attached");
            variant.check("output.bias_next", balanced(adapter, &routed));
        }
    }
}

/// The biases of a magnitude scorer after a step.
fn balanced(adapter: &molora_models::Adapter, routed: &RouterOutput) -> Tensor<1> {
    let mut scorer = adapter.router.as_ref().expect("a router").scorer.clone();
    scorer.balance(routed.selection_counts(), routed.num_decisions());
    match scorer {
        Scorer::Magnitude(scorer) => scorer.bias.val(),
        other => panic!("another scorer: {other:?}"),
    }
}

#[test]
fn golden_methods_omoe() {
    let device = autodiff_device();
    for case in cases("omoe") {
        let (document, expected) = (case.json("case.json").expect("read"), case.tensors());
        let [experts, rank, _] = expected.shape("param.A")[..] else {
            panic!("[E, R, D]");
        };
        for variant in Variant::all(&document, &expected) {
            let mut spec = spec(&variant, "omoe", experts, rank);
            let selected = variant.number("top_k") as usize;
            let norms = variant.hyper("norms").and_then(serde_json::Value::as_bool);
            spec.bank.combine = OrthogonalConfig {
                selected,
                norms: norms.expect("with norms or without"),
            }
            .into();
            router(&mut spec).selection = Selection::TopK(selected);
            Layer::new(&expected, &spec, &LINEAR, 0, &device).check(&variant, &[]);
        }
    }
}

/// Skills mixed as matrices; the draws of a training pass come as a bias on the logits.
#[test]
fn golden_methods_poly() {
    let device = autodiff_device();
    for case in cases("poly") {
        let (document, expected) = (case.json("case.json").expect("read"), case.tensors());
        for variant in Variant::all(&document, &expected) {
            let splits = variant.number("splits") as usize;
            let names = match splits {
                1 => ["A", "B", "logits", "input.noise"],
                _ => ["A2", "B2", "logits2", "input.noise2"],
            };
            let [_, skills, rank, _] = expected.shape(&format!("param.{}", names[0]))[..] else {
                panic!("[splits, skills, R, D / splits]");
            };
            let mut spec = spec(&variant, "poly", skills, rank);
            spec.bank.combine = FactorsConfig { splits }.into();
            let tasks = expected.shape(&format!("param.{}", names[2]))[0];
            let of_router = [(names[2], "router.table")];
            let layer = Layer::new(&expected, &spec, &of_router, tasks, &device);
            let layer = layer.turned(names[0], "experts.lora_A", &[1, 2, 0, 3]);
            let mut layer = layer.turned(names[1], "experts.lora_B", &[1, 0, 2, 3]);
            let unknown = variant
                .hyper("unknown_rows")
                .and_then(|rows| rows.as_array());
            let is_known = |row: usize| {
                let mut rows = unknown.into_iter().flatten();
                !rows.any(|unknown| unknown.as_u64() == Some(row as u64))
            };
            let rows = expected.ints("input.task").into_iter().enumerate();
            let rows: Vec<_> = rows
                .map(|(row, task)| is_known(row).then_some(task as usize))
                .collect();
            let rows = task_selector(&rows, tasks, &device).expect("in range");
            layer.context.tasks = Some(rows);
            if variant.key("").contains("train") {
                let noise = expected.tensor::<3>(names[3], &device);
                let [batch, _, _] = noise.dims();
                let odds = noise.clone().log() - (noise.neg() + 1.0).log();
                layer.context.guidance.bias = Some(odds.reshape([batch, splits * skills]));
            }
            layer.check(&variant, &[]);
            let x = expected.tensor::<3>("input.x", &device);
            let weights = layer.forward(x, false).1.expect("routed").routed.weights;
            variant.check("output.mixing", weights);
        }
    }
}
