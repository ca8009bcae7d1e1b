//! A site of independent experts from a case, and comparisons with the case's variants.

use std::path::Path;

use burn::module::Param;
use burn::tensor::{Device, Gradients, Tensor};
use molora_adapters::{BankConfig, ExpertBank, Scaling, SiteDims};
use molora_kernels::random::Seed;
use molora_routing::{RouteInput, RouterOutput};
use molora_testkit::golden::{self, Case, Tensors};
use molora_testkit::{FORWARD, GRADIENT, assert_close};
use serde_json::Value;

pub(crate) fn cases(name: &str) -> Vec<Case> {
    let bundled = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden-methods"));
    let cases = golden::cases(bundled, golden::MOLORA_GOLDEN_METHODS);
    golden::of_kind(cases, name, |case| {
        case.json("case.json")
            .is_some_and(|document| document["case"] == name)
    })
}

/// A parameter with the values of `tensor`, through the host: parameters are leaves of the graph.
pub(crate) fn leaf<const D: usize>(tensor: Tensor<D>) -> Param<Tensor<D>> {
    Param::from_data(tensor.to_data(), &tensor.device())
}

/// Experts from the case's `[E, R, D]` and `[E, O, R]`, multiplied by `scaling`.
pub(crate) fn bank(a_erd: Tensor<3>, b_eor: Tensor<3>, scaling: f64) -> ExpertBank {
    let [num_experts, rank, d_input] = a_erd.dims();
    let d_output = b_eor.dims()[1];
    let config = BankConfig {
        num_experts,
        rank,
        scaling: Scaling::AlphaOverRank(scaling * rank as f64),
        ..BankConfig::default()
    };
    let dims = SiteDims { d_input, d_output };
    let mut bank = config.init(dims, Seed::new(0), &a_erd.device());
    let a = a_erd.permute([2, 0, 1]);
    bank.a = leaf(a.reshape([d_input, num_experts * rank]));
    let b = b_eor.swap_dims(1, 2);
    bank.b = leaf(b.reshape([num_experts * rank, d_output]));
    bank
}

/// The gradients of a bank in the case's layout, `[E, R, D]` and `[E, O, R]`; zeros where the
/// objective does not reach it.
pub(crate) fn bank_gradients(bank: &ExpertBank, gradients: &Gradients) -> (Tensor<3>, Tensor<3>) {
    let (a, b) = (bank.a.val(), bank.b.val());
    let ([d_input, _], [_, d_output]) = (a.dims(), b.dims());
    let (experts, rank) = (bank.num_experts(), bank.rank());
    let a = gradient_or_zero(&a, gradients).reshape([d_input, experts, rank]);
    let b = gradient_or_zero(&b, gradients).reshape([experts, rank, d_output]);
    (a.permute([1, 2, 0]), b.swap_dims(1, 2))
}

pub(crate) fn gradient_or_zero<const D: usize>(
    tensor: &Tensor<D>,
    gradients: &Gradients,
) -> Tensor<D> {
    let zero = || Tensor::zeros(tensor.dims(), &tensor.device().inner());
    tensor.grad(gradients).unwrap_or_else(zero)
}

/// A frozen layer with its input, and the experts beside it.
pub(crate) struct Site {
    weight: Tensor<2>,
    bias: Tensor<1>,
    pub(crate) x: Tensor<3>,
    pub(crate) mask: Tensor<2>,
    pub(crate) bank: ExpertBank,
}

impl Site {
    pub(crate) fn new(expected: &Tensors, scaling: f64, device: &Device) -> Self {
        let a = expected.tensor("param.A", device);
        Self {
            weight: expected.tensor("param.W0", device),
            bias: expected.tensor("param.bias", device),
            x: expected.tensor::<3>("input.x", device).require_grad(),
            mask: expected.tensor("input.mask", device),
            bank: bank(a, expected.tensor("param.B", device), scaling),
        }
    }

    pub(crate) fn route_input(&self) -> RouteInput {
        RouteInput {
            features: self.x.clone(),
            mask: self.mask.clone(),
            tasks: None,
        }
    }

    /// `W0 x + b`.
    pub(crate) fn base(&self) -> Tensor<3> {
        base(self.x.clone(), &self.weight, &self.bias)
    }

    /// The mixture of the experts by `weights`.
    pub(crate) fn mixture(&self, weights: Tensor<3>) -> Tensor<3> {
        let low = self.bank.down(self.x.clone(), None);
        self.bank.up(low, Some(weights))
    }
}

pub(crate) fn base(x: Tensor<3>, weight: &Tensor<2>, bias: &Tensor<1>) -> Tensor<3> {
    x.matmul(weight.clone().transpose().unsqueeze()) + bias.clone().unsqueeze()
}

/// One variant of a case.
pub(crate) struct Variant<'a> {
    name: String,
    case: &'a Value,
    pub(crate) expected: &'a Tensors,
}

impl<'a> Variant<'a> {
    /// All variants that `document`, the case's `case.json`, names.
    pub(crate) fn all(document: &'a Value, expected: &'a Tensors) -> Vec<Self> {
        let names = document["variants"].as_object().expect("variants").keys();
        names
            .map(|name| Self {
                name: name.clone(),
                case: document,
                expected,
            })
            .collect()
    }

    /// The value `key` of the variant.
    pub(crate) fn hyper(&self, key: &str) -> Option<&Value> {
        self.case["variants"][&self.name]["hyper"].get(key)
    }

    /// The number `key` of the variant or, if it has none, of the case.
    pub(crate) fn number(&self, key: &str) -> f64 {
        let value = self.hyper(key).unwrap_or(&self.case["hyper"][key]);
        let number = value.as_f64();
        number.unwrap_or_else(|| panic!("{}: no number {key}", self.name))
    }

    pub(crate) fn text(&self, key: &str) -> Option<&str> {
        self.hyper(key).and_then(Value::as_str)
    }

    pub(crate) fn key(&self, tensor: &str) -> String {
        format!("{}.{tensor}", self.name)
    }

    /// Whether the variant has gradients of this kind, `grad` or `aux_grad`.
    pub(crate) fn has_gradients(&self, kind: &str) -> bool {
        self.expected.has(&self.key(&format!("{kind}.x")))
    }

    /// Compares a value that has no padding.
    #[track_caller]
    pub(crate) fn check<const D: usize>(&self, name: &str, actual: Tensor<D>) {
        let name = self.key(name);
        self.expected.assert_close(&name, actual, FORWARD);
    }

    /// Compares a value `[B, T, _]`, or `[B, 1, _]` for all tokens, at real tokens.
    #[track_caller]
    pub(crate) fn check_tokens(&self, name: &str, actual: Tensor<3>) {
        let name = self.key(name);
        let device = actual.device();
        let expected = self.expected.tensor::<3>(&name, &device);
        let mask = self.expected.tensor::<2>("input.mask", &device);
        let mask = mask.unsqueeze_dim::<3>(2);
        let actual = actual.expand(expected.dims()) * mask.clone();
        assert_close(actual, expected * mask, FORWARD, &name);
    }

    /// Compares what the variant has of a router's decisions.
    #[track_caller]
    pub(crate) fn check_routed(&self, routed: &RouterOutput) {
        self.check_tokens("output.weights", routed.weights.clone());
        let rest = [
            ("output.score", &routed.logits),
            ("output.logits", &routed.logits),
            ("output.probs", &routed.probs),
        ];
        for (name, found) in rest {
            if self.expected.has(&self.key(name)) {
                self.check_tokens(name, found.clone());
            }
        }
    }

    #[track_caller]
    pub(crate) fn check_gradient<const D: usize>(&self, name: &str, found: Tensor<D>) {
        let name = self.key(name);
        self.expected.assert_close(&name, found, GRADIENT);
    }

    /// Checks the output of a site and, where the variant has gradients, those of its bank and
    /// input; returns them for the rest.
    #[track_caller]
    pub(crate) fn check_site(&self, site: &Site, y: Tensor<3>) -> Option<Gradients> {
        self.check_tokens("output.y", y.clone());
        if !self.has_gradients("grad") {
            return None;
        }
        let cotangent = self.expected.tensor::<3>("input.cotangent", &y.device());
        let gradients = (y * cotangent).sum().backward();
        let (a, b) = bank_gradients(&site.bank, &gradients);
        self.check_gradient("grad.A", a);
        self.check_gradient("grad.B", b);
        self.check_gradient("grad.x", site.x.grad(&gradients).expect("tracked"));
        Some(gradients)
    }
}
