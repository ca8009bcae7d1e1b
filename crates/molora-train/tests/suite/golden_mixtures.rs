//! Mixtures that recombine known parts, against their equations in float64: sites of the recipes.

use burn::tensor::Tensor;
use molora_adapters::core::TaskConfig;
use molora_adapters::task_selector;
use molora_models::AdapterSpec;
use molora_regularize::ObjectiveConfig;
use molora_regularize::{
    BalanceWeights, Contrast, Density, InfoNce, LoadBalance, Reduction, RouterZLoss, Sparsity,
    Spread, Term, TermConfig, TypedBalance,
};
use molora_routing::normaliser::SparsegenConfig;
use molora_routing::{RouterConfig, Selection};
use molora_testkit::{FORWARD, assert_close, autodiff_device};

use crate::cases::cases;
use crate::golden_layer::{LINEAR, Layer, Variant, spec};

/// A term over one site.
pub(crate) fn term(term: impl Into<Term>, weight: f64, within_site: Reduction) -> TermConfig {
    TermConfig {
        term: term.into(),
        weight,
        within_site,
        over_sites: Reduction::Sum,
    }
}

pub(crate) fn router(spec: &mut AdapterSpec) -> &mut RouterConfig {
    spec.router.as_mut().expect("a router")
}

#[test]
fn golden_methods_moe_lora_topk() {
    let device = autodiff_device();
    for case in cases("moe_lora_topk") {
        let (document, expected) = (case.json("case.json").expect("read"), case.tensors());
        let [experts, rank, _] = expected.shape("param.A")[..] else {
            panic!("[E, R, D]");
        };
        for variant in Variant::all(&document, &expected) {
            let mut spec = spec(&variant, "mole-topk", experts, rank);
            let top_k = variant.number("top_k") as usize;
            router(&mut spec).selection = Selection::TopK(top_k.min(experts));
            let (balance, reduction) = match variant.text("balance") {
                Some("normalised") => ("balance_normalised", Reduction::Mean),
                _ => ("balance_mixtral", Reduction::Sum),
            };
            let terms = [
                (
                    balance,
                    term(
                        LoadBalance,
                        variant.number("balance_coefficient"),
                        reduction,
                    ),
                ),
                (
                    "z_loss",
                    term(
                        RouterZLoss,
                        variant.number("z_coefficient"),
                        Reduction::Mean,
                    ),
                ),
            ];
            Layer::new(&expected, &spec, &LINEAR, 0, &device).check(&variant, &terms);
        }
    }
}

#[test]
fn golden_methods_mtl_lora() {
    let device = autodiff_device();
    for case in cases("mtl_lora") {
        let (document, expected) = (case.json("case.json").expect("read"), case.tensors());
        let [ups, _, rank] = expected.shape("param.B")[..] else {
            panic!("[E, O, R]");
        };
        for variant in Variant::all(&document, &expected) {
            let mut spec = spec(&variant, "mtl-lora", ups, rank);
            router(&mut spec).temperature = variant.number("tau");
            let diagonal = variant.text("lambda") == Some("diagonal");
            spec.bank.core = TaskConfig { diagonal }.into();
            let names = [
                ("A", "experts.lora_A"),
                ("B", "experts.lora_B"),
                (
                    if diagonal { "core_diagonal" } else { "core" },
                    "experts.task_core",
                ),
                ("task_logits", "router.table"),
            ];
            let tasks = expected.shape("param.task_logits")[0];
            let layer = Layer::new(&expected, &spec, &names, tasks, &device);
            layer.with_tasks(tasks).check(&variant, &[]);
        }
    }
}

#[test]
fn golden_methods_loramoe() {
    let device = autodiff_device();
    for case in cases("loramoe") {
        let (document, expected) = (case.json("case.json").expect("read"), case.tensors());
        let [experts, rank, _] = expected.shape("param.A")[..] else {
            panic!("[E, R, D]");
        };
        for variant in Variant::all(&document, &expected) {
            let spec = spec(&variant, "loramoe", experts, rank);
            let (name, spread) = match variant.text("loss") {
                Some("typed_paper") => ("typed_paper", Spread::VarianceOverMean),
                _ => ("typed_cv2", Spread::SquaredVariation),
            };
            let balance = TypedBalance {
                delta: variant.number("delta"),
                spread,
                rows: vec![1],
                ..TypedBalance::default()
            };
            let terms = [(name, term(balance, variant.number("beta"), Reduction::Mean))];
            let mut layer = Layer::new(&expected, &spec, &LINEAR, 0, &device);
            // Two tasks, of which the second asks for knowledge.
            let types = expected.ints("input.sample_type").into_iter();
            let rows: Vec<_> = types.map(|kind| usize::try_from(kind).ok()).collect();
            layer.context.tasks = Some(task_selector(&rows, 2, &device).expect("0 or 1"));
            layer.check(&variant, &terms);
        }
    }
}

#[test]
fn golden_methods_moelora_contrastive() {
    let device = autodiff_device();
    for case in cases("moelora_contrastive") {
        let (document, expected) = (case.json("case.json").expect("read"), case.tensors());
        let [experts, rank, _] = expected.shape("param.A")[..] else {
            panic!("[E, R, D]");
        };
        for variant in Variant::all(&document, &expected) {
            let mut spec = spec(&variant, "moelora", experts, rank);
            router(&mut spec).selection = Selection::TopK(variant.number("top_k") as usize);
            let (contrast, weight) = match variant.text("contrast") {
                Some("selected_vs_unselected") => {
                    (Contrast::SelectedAgainstOthers, "comoe_coefficient")
                }
                _ => (Contrast::SameExpert, "contrast_coefficient"),
            };
            let contrast = InfoNce {
                contrast,
                temperature: variant.number("tau"),
                tokens: 0,
            };
            let balance = variant.number("balance_coefficient");
            let terms = [
                (
                    "contrast",
                    term(contrast, variant.number(weight), Reduction::Mean),
                ),
                ("balance", term(LoadBalance, balance, Reduction::Sum)),
            ];
            Layer::new(&expected, &spec, &LINEAR, 0, &device).check(&variant, &terms);
        }
    }
}

/// Layers with experts of their own number, all of which read the same input.
#[test]
fn golden_methods_mola() {
    let device = autodiff_device();
    for case in cases("mola") {
        let (document, expected) = (case.json("case.json").expect("read"), case.tensors());
        let cotangent = expected.tensor::<4>("input.cotangent", &device);
        for variant in Variant::all(&document, &expected) {
            let layers = cotangent.dims()[0];
            let names: Vec<_> = (0..layers).map(names_of_layer).collect();
            let layer = |index: usize| {
                let shape = expected.shape(&format!("param.layers.{index}.A"));
                let mut spec = spec(&variant, "mola", shape[0], shape[1]);
                spec.experts = Default::default();
                let top_k = variant.number("top_k") as usize;
                router(&mut spec).selection = Selection::TopK(top_k.min(shape[0]));
                let names: Vec<_> = names[index]
                    .iter()
                    .zip(LINEAR)
                    .map(|(of_case, (_, name))| (of_case.as_str(), name))
                    .collect();
                let prefix = format!("param.layers.{index}");
                Layer::below(&expected, &prefix, &spec, &names, 0, &device)
            };
            let balance = term(LoadBalance, variant.number("beta"), Reduction::Sum);
            let objective = ObjectiveConfig {
                terms: vec![balance],
            };
            for kind in ["aux_grad", "grad"] {
                let x = expected.tensor::<3>("input.x", &device).require_grad();
                let (mut sum, mut total) =
                    (Tensor::zeros([1], &device), Tensor::zeros([1], &device));
                let all: Vec<_> = (0..layers).map(layer).collect();
                for (index, layer) in all.iter().enumerate() {
                    let (y, route) = layer.forward(x.clone(), false);
                    let routed = &route.as_ref().expect("routed").routed;
                    let name = format!("output.layers.{index}.weights");
                    variant.check_tokens(&name, routed.weights.clone());
                    let own = |values: Tensor<4>| values.narrow(0, index, 1).squeeze_dim::<3>(0);
                    let expected_y = own(expected.tensor(&variant.key("output.y"), &device));
                    let mask = layer.context.mask.clone().unsqueeze_dim::<3>(2);
                    assert_close(y.clone() * mask, expected_y, FORWARD, "output.y");
                    sum = sum + (y * own(cotangent.clone())).sum();
                    let names = [variant.key(&format!("aux.balance_{index}"))];
                    let found = layer.total(&objective, route.as_ref(), &names);
                    total = total + found.expect("more than one expert");
                }
                variant.check("aux.total", total.clone());
                let of = match kind {
                    "grad" => sum + total,
                    _ => total,
                };
                let gradients = of.backward();
                for layer in &all {
                    layer.check_gradients(&variant, kind, &x, &gradients);
                }
            }
        }
    }
}

/// What a case calls the parameters of a layer, in the order of [`LINEAR`].
fn names_of_layer(index: usize) -> [String; 3] {
    LINEAR.map(|(name, _)| format!("layers.{index}.{name}"))
}

/// The router's parameters in LD-MoLE's case.
const LD_MOLE: [(&str, &str); 7] = [
    LINEAR[0],
    LINEAR[1],
    LINEAR[2],
    ("lambda_w1", "router.lambda.hidden.weight"),
    ("lambda_b1", "router.lambda.hidden.bias"),
    ("lambda_w2", "router.lambda.output.weight"),
    ("lambda_b2", "router.lambda.output.bias"),
];

#[test]
fn golden_methods_ld_mole() {
    let device = autodiff_device();
    for case in cases("ld_mole") {
        let (document, expected) = (case.json("case.json").expect("read"), case.tensors());
        let [experts, rank, _] = expected.shape("param.A")[..] else {
            panic!("[E, R, D]");
        };
        for variant in Variant::all(&document, &expected) {
            let mut spec = spec(&variant, "ld-mole", experts, rank);
            let hidden = variant.number("hidden") as usize;
            router(&mut spec).normaliser = SparsegenConfig { hidden }.into();
            let mut layer = Layer::new(&expected, &spec, &LD_MOLE, 0, &device);
            let shift = variant.number("lambda_bias_shift") as f32;
            let bias = expected.floats("param.lambda_b2")[0] + shift;
            layer.set("router.lambda.output.bias", &[bias]);
            if variant.text("mode") == Some("train") {
                let keep = expected.tensor::<3>("input.keep", &device);
                layer.kept = Some(keep.div_scalar(1.0 - variant.number("p_drop")));
            }
            let experts = variant.number("sparsity_k") as usize;
            let known: [(&str, &str, Term); 4] = [
                ("balance", "balance", BalanceWeights.into()),
                ("sparsity", "sparsity", Sparsity { experts }.into()),
                ("lambda_mean", "lambda_mean", Density.into()),
                ("z_loss", "z_loss", RouterZLoss.into()),
            ];
            let weighted = known.into_iter().filter_map(|(weight, name, of)| {
                let weight = variant.hyper(weight)?.as_f64()?;
                Some((name, term(of, weight, Reduction::Mean)))
            });
            layer.check(&variant, &weighted.collect::<Vec<_>>());
        }
    }
}
