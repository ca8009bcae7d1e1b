//! Mixture-of-LoRAs: four layers, one expert per sequence.

use burn::tensor::activation::log_softmax;
use burn::tensor::{Device, Tensor};
use molora_adapters::ExpertBank;
use molora_kernels::random::Seed;
use molora_routing::{
    Granularity, Guidance, LayerRule, LinearScorer, Pooling, RouteInput, Router, RouterConfig,
    Scorer, ScorerConfig, Selection, count_votes, expert_labels,
};
use molora_testkit::autodiff_device;
use molora_testkit::golden::Tensors;

use crate::site::{Variant, bank, bank_gradients, base, cases, gradient_or_zero, leaf};

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
        let per_layer = pass.domain_ce(rows);
        variant.check("output.ce_per_layer", per_layer.clone());
        let loss = match variant.text("ce_reduction") {
            Some("sum") => per_layer.sum(),
            _ => per_layer.mean(),
        };
        variant.check("aux.domain_ce", loss.clone());
        let total = loss.mul_scalar(variant.number("eta"));
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

/// One layer: `tanh(W0 h + b + s B_d A_d h)` and its router.
struct Layer {
    weight: Tensor<2>,
    bias: Tensor<1>,
    bank: ExpertBank,
    router: Router,
}

struct Stack {
    layers: Vec<Layer>,
    x: Tensor<3>,
    prompt_mask: Tensor<2>,
}

/// What a forward pass gives: output, logits `[B, L, E]` and one-hot choices `[B, L, E]`.
struct Pass {
    y: Tensor<3>,
    logits: Tensor<3>,
    chosen: Tensor<3>,
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
        self.layers[0].bank.num_experts()
    }

    /// A pass in which `labels` may force a layer's experts, given the logits of those before.
    fn forward(&self, labels: impl Fn(usize, &[Tensor<3>]) -> Option<Tensor<2>>) -> Pass {
        let (mut logits, mut chosen) = (Vec::new(), Vec::new());
        let mut h = self.x.clone();
        for (index, layer) in self.layers.iter().enumerate() {
            let guidance = Guidance {
                bias: None,
                labels: labels(index, &logits),
            };
            let routed = layer.router.route_guided(&self.input(h.clone()), &guidance);
            let delta = layer.bank.up(
                layer.bank.down(h.clone(), None),
                Some(routed.weights.clone()),
            );
            h = (base(h, &layer.weight, &layer.bias) + delta).tanh();
            logits.push(routed.logits);
            chosen.push(routed.weights);
        }
        Pass {
            y: h,
            logits: Tensor::cat(logits, 1),
            chosen: Tensor::cat(chosen, 1),
        }
    }

    /// The routers' logits `[B, L, E]` on the states of the base model.
    fn logits_without_adapters(&self) -> Tensor<3> {
        let mut h = self.x.clone();
        let mut logits = Vec::new();
        for layer in &self.layers {
            logits.push(layer.router.route(&self.input(h.clone())).logits);
            h = base(h, &layer.weight, &layer.bias).tanh();
        }
        Tensor::cat(logits, 1)
    }

    fn input(&self, features: Tensor<3>) -> RouteInput {
        RouteInput {
            features,
            mask: self.prompt_mask.clone(),
            tasks: None,
        }
    }

    fn check_gradients(&self, variant: &Variant, kind: &str, objective: Tensor<1>) {
        let gradients = objective.backward();
        let banks = self.layers.iter().map(|layer| &layer.bank);
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
        let config = RouterConfig {
            scorer: ScorerConfig::Linear { bias: true },
            granularity: Granularity::Sequence,
            pooling: match variant.text("pool") {
                Some("last") => Pooling::Last,
                _ => Pooling::Mean,
            },
            selection: Selection::Argmax,
            ..RouterConfig::default()
        };
        let weight = matrix("param.router");
        let [num_experts, width] = weight.dims();
        let mut router = config.init(width, num_experts, 0, Seed::new(0), device);
        router.scorer = Scorer::Linear(LinearScorer {
            weight: leaf(weight),
            bias: Some(leaf(vector("param.router_bias"))),
        });
        let scaling = variant.number("scaling");
        Self {
            weight: matrix("param.W0"),
            bias: vector("param.bias"),
            bank: bank(experts("param.A"), experts("param.B"), scaling),
            router,
        }
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
        variant.check("output.router_logits", self.logits.clone());
        let experts = self.chosen.dims()[2];
        let rows = self.chosen.to_data().try_to_vec::<f32>().expect("f32");
        let expert = |row: &[f32]| row.iter().position(|&w| w == 1.0).expect("one-hot") as i64;
        let chosen: Vec<i64> = rows.chunks(experts).map(expert).collect();
        let name = variant.key("output.choice");
        assert_eq!(chosen, variant.expected.ints(&name), "{name}");
    }

    /// Mean cross-entropy of the labelled rows in each layer, `[L]`.
    fn domain_ce(&self, labels: Tensor<2>) -> Tensor<1> {
        let labelled = labels.clone().sum();
        let picked = log_softmax(self.logits.clone(), 2) * labels.unsqueeze_dim::<3>(1);
        let layers = picked.dims()[1];
        let sums = picked.sum_dim(2).sum_dim(0).reshape([layers]);
        sums.neg() / labelled
    }
}
