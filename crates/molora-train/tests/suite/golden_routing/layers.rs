//! Mixture-of-LoRAs: four layers, one expert per sequence.

use burn::tensor::{Device, Tensor};
use molora_adapters::ExpertBank;
use molora_kernels::random::Seed;
use molora_models::{ForwardContext, MoLoraLinear};
use molora_regularize::{
    LossBreakdown, ObjectiveConfig, Reduction, SiteView, domain_cross_entropy,
};
use molora_routing::scorer::LinearScorer;
use molora_routing::{
    Guidance, LayerRule, Pooling, RouteInput, Router, RouterOutput, Scorer, count_votes,
    expert_labels,
};
use molora_testkit::autodiff_device;
use molora_testkit::golden::Tensors;
use molora_train::recipe;

use super::site::{Variant, bank_gradients, fill, gradient_or_zero, spec};
use crate::cases::cases;
use crate::common;
use crate::common::leaf;

#[test]
fn golden_methods_moa() {
    let device = autodiff_device();
    for case in cases("moa") {
        let (document, expected) = (case.json("case.json").expect("found by it"), case.tensors());
        for variant in Variant::all(&document, &expected) {
            match variant.text("rule") {
                Some(rule) => inference(&variant, rule, &device),
                None => training(&variant, &device),
            }
        }
    }
}

fn inference(variant: &Variant, rule: &str, device: &Device) {
    let stack = Stack::new(variant, device);
    let pass = match rule {
        "PerLayer" => stack.forward(|_, _| None),
        "First" => stack.forward(|_, logits| {
            let first = logits.first()?.clone();
            Some(LayerRule::First.decide(first).squeeze_dim(1))
        }),
        "Vote" => {
            let logits = stack.logits_without_adapters();
            let votes = count_votes(logits.clone());
            let votes_of_case = variant
                .expected
                .tensor::<2>(&variant.key("output.votes"), device);
            molora_testkit::assert_close(votes, votes_of_case, 0.0, "votes");
            let decided = LayerRule::Vote.decide(logits);
            stack.forward(|layer, _| Some(decided.clone().narrow(1, layer, 1).squeeze_dim(1)))
        }
        other => panic!("an unknown rule {other}"),
    };
    pass.check(variant);
}

/// Experts forced by labels; the routers learn from the cross-entropy alone.
fn training(variant: &Variant, device: &Device) {
    let name = format!("input.{}", variant.text("label").expect("a label"));
    let labels = variant.expected.ints(&name);
    let labels: Vec<_> = labels
        .iter()
        .map(|&label| usize::try_from(label).ok())
        .collect();
    // One graph per backward pass: a pass uses its graph up.
    for kind in ["grad", "aux_grad"] {
        let stack = Stack::new(variant, device);
        let rows = expert_labels(&labels, stack.num_experts(), device).expect("in range");
        let pass = stack.forward(|_, _| Some(rows.clone()));
        pass.check(variant);
        let of_layer = |routed| domain_cross_entropy(routed, rows.clone(), Reduction::Mean);
        let per_layer = pass.routed.iter().map(of_layer).collect();
        variant.check("output.ce_per_layer", Tensor::cat(per_layer, 0));
        let losses = stack.evaluate(&objective(variant), &pass, &rows);
        variant.check("aux.domain_ce", losses.terms[0].1.clone());
        let total = losses.total.expect("one term");
        variant.check("aux.total", total.clone());
        if !variant.has_gradients(kind) {
            continue;
        }
        let main = pass.y * variant.expected.tensor::<3>("input.cotangent", device);
        let objective = match kind {
            "grad" => main.sum() + total,
            _ => total,
        };
        stack.check_gradients(variant, kind, objective);
    }
}

/// The recipe's terms with the weight and reduction of a variant.
fn objective(variant: &Variant) -> ObjectiveConfig {
    let mut objective = recipe::find("moa").expect("listed").objective;
    let [domain] = &mut objective.terms[..] else {
        panic!("the cross-entropy alone");
    };
    domain.weight = variant.number("eta");
    domain.over_sites = match variant.text("ce_reduction") {
        Some("sum") => Reduction::Sum,
        _ => Reduction::Mean,
    };
    objective
}

/// One layer: `tanh(W0 h + b + s B_d A_d h)` and its router.
struct Layer {
    linear: MoLoraLinear,
    router: Router,
}

struct Stack {
    layers: Vec<Layer>,
    x: Tensor<3>,
    prompt_mask: Tensor<2>,
}

/// What a forward pass gives: the output and every layer's decisions.
struct Pass {
    y: Tensor<3>,
    routed: Vec<RouterOutput>,
}

impl Stack {
    fn new(variant: &Variant, device: &Device) -> Self {
        let expected = variant.expected;
        let num_layers = expected.shape("param.W0")[0];
        Self {
            layers: (0..num_layers)
                .map(|layer| Layer::new(variant, layer, device))
                .collect(),
            x: expected.tensor::<3>("input.x", device).require_grad(),
            prompt_mask: expected.tensor("input.prompt_mask", device),
        }
    }

    fn num_experts(&self) -> usize {
        self.layers[0].bank().num_experts()
    }

    /// A pass in which `labels` may force a layer's experts, given the logits of those before.
    fn forward(&self, labels: impl Fn(usize, &[Tensor<3>]) -> Option<Tensor<2>>) -> Pass {
        let (mut routed, mut logits) = (Vec::new(), Vec::new());
        let mut h = self.x.clone();
        for (index, layer) in self.layers.iter().enumerate() {
            let guidance = Guidance {
                bias: None,
                labels: labels(index, &logits),
                ..Guidance::default()
            };
            let decisions = layer.router.route_guided(&self.input(h.clone()), &guidance);
            let context = ForwardContext::new(self.prompt_mask.clone());
            h = layer.linear.forward(h, &context, Some(&decisions)).0.tanh();
            logits.push(decisions.logits.clone());
            routed.push(decisions);
        }
        Pass { y: h, routed }
    }

    fn evaluate(
        &self,
        objective: &ObjectiveConfig,
        pass: &Pass,
        labels: &Tensor<2>,
    ) -> LossBreakdown {
        let site = |(layer, routed)| SiteView {
            routed: Some(routed),
            labels: Some(labels.clone()),
            ..SiteView::of_weights(Layer::bank(layer))
        };
        let sites: Vec<_> = self.layers.iter().zip(&pass.routed).map(site).collect();
        objective.evaluate(&sites)
    }

    /// The routers' logits `[B, L, E]` on the states of the base model.
    fn logits_without_adapters(&self) -> Tensor<3> {
        let mut h = self.x.clone();
        let mut logits = Vec::new();
        for layer in &self.layers {
            logits.push(layer.router.route(&self.input(h.clone())).logits);
            h = layer.linear.base(h).tanh();
        }
        Tensor::cat(logits, 1)
    }

    fn input(&self, features: Tensor<3>) -> RouteInput {
        RouteInput {
            features,
            mask: self.prompt_mask.clone(),
            tasks: None,
            columns: None,
        }
    }

    fn check_gradients(&self, variant: &Variant, kind: &str, objective: Tensor<1>) {
        let gradients = objective.backward();
        let banks = self.layers.iter().map(Layer::bank);
        let (a, b): (Vec<_>, Vec<_>) = banks.map(|bank| bank_gradients(bank, &gradients)).unzip();
        let routers = self.layers.iter().map(|layer| {
            let (weight, bias) = layer.scorer();
            let weight = gradient_or_zero(&weight, &gradients);
            (weight, gradient_or_zero(&bias, &gradients))
        });
        let (weight, bias): (Vec<_>, Vec<_>) = routers.unzip();
        let name = |parameter: &str| format!("{kind}.{parameter}");
        variant.check_gradient(&name("A"), Tensor::stack::<4>(a, 0));
        variant.check_gradient(&name("B"), Tensor::stack::<4>(b, 0));
        variant.check_gradient(&name("router"), Tensor::stack::<3>(weight, 0));
        variant.check_gradient(&name("router_bias"), Tensor::stack::<2>(bias, 0));
        variant.check_gradient(&name("x"), gradient_or_zero(&self.x, &gradients));
    }
}

impl Layer {
    fn new(variant: &Variant, layer: usize, device: &Device) -> Self {
        let expected = variant.expected;
        let matrix = |name: &str| part::<3, 2>(expected, name, layer, device);
        let vector = |name: &str| part::<2, 1>(expected, name, layer, device);
        let experts = |name: &str| part::<4, 3>(expected, name, layer, device);
        let shape = &expected.shape("param.A")[1..];
        let spec = spec("moa", shape, variant.number("scaling"));
        let (weight, bias) = (matrix("param.W0"), Some(vector("param.bias")));
        let mut linear = common::adapted(weight, bias, &spec, 0, device);
        let bank = &mut linear.adapter.as_mut().expect("attached").bank;
        fill(bank, experts("param.A"), experts("param.B"));
        let mut config = spec.router.clone().expect("a router");
        config.pooling = match variant.text("pool") {
            Some("last") => Pooling::Last,
            _ => Pooling::Mean,
        };
        let weight = matrix("param.router");
        let [num_experts, width] = weight.dims();
        let mut router = config.init(width, num_experts, 0, Seed::new(0), device);
        router.scorer = Scorer::Linear(LinearScorer {
            weight: leaf(weight),
            bias: Some(leaf(vector("param.router_bias"))),
        });
        Self { linear, router }
    }

    fn bank(&self) -> &ExpertBank {
        &self.linear.adapter.as_ref().expect("attached").bank
    }

    fn scorer(&self) -> (Tensor<2>, Tensor<1>) {
        let Scorer::Linear(scorer) = &self.router.scorer else {
            panic!("a linear scorer");
        };
        let bias = scorer.bias.as_ref().expect("a bias");
        (scorer.weight.val(), bias.val())
    }
}

/// The slice of `layer` of a tensor that has one more axis, for layers.
fn part<const D: usize, const P: usize>(
    expected: &Tensors,
    name: &str,
    layer: usize,
    device: &Device,
) -> Tensor<P> {
    let all = expected.tensor::<D>(name, device);
    all.narrow(0, layer, 1).squeeze_dim(0)
}

impl Pass {
    fn check(&self, variant: &Variant) {
        variant.check_tokens("output.y", self.y.clone());
        let of_layers = |part: fn(&RouterOutput) -> &Tensor<3>| {
            Tensor::cat(self.routed.iter().map(part).cloned().collect(), 1)
        };
        variant.check("output.router_logits", of_layers(|routed| &routed.logits));
        let chosen = of_layers(|routed| &routed.weights);
        let experts = chosen.dims()[2];
        let rows = chosen.into_data().try_to_vec::<f32>().expect("f32");
        let expert = |row: &[f32]| row.iter().position(|&w| w == 1.0).expect("one-hot") as i64;
        let chosen: Vec<i64> = rows.chunks(experts).map(expert).collect();
        let name = variant.key("output.choice");
        assert_eq!(chosen, variant.expected.ints(&name), "{name}");
    }
}
