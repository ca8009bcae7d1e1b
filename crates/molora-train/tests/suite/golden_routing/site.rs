//! A site of independent experts from a case, and comparisons with the case's variants.

use burn::tensor::{Device, Gradients, Tensor};
use molora_adapters::{ExpertBank, Scaling};
use molora_models::{AdapterSpec, ForwardContext, MoLoraLinear};
use molora_routing::{Guidance, Router, RouterOutput, Scorer};
use molora_testkit::golden::Tensors;
use molora_testkit::{FORWARD, GRADIENT, assert_close};
use molora_train::recipe;
use serde_json::Value;

use crate::common;
use crate::common::{leaf, stacked};

/// Puts the case's `[E, R, D]` and `[E, O, R]` into a bank of as many experts.
pub(crate) fn fill(bank: &mut ExpertBank, a_erd: Tensor<3>, b_eor: Tensor<3>) {
    let [experts, rank, d_input] = a_erd.dims();
    let a_der = a_erd.permute([2, 0, 1]);
    bank.a = leaf(a_der.reshape([d_input, experts * rank]));
    bank.b = leaf(stacked(b_eor));
}

/// The recipe's specification with the numbers of a case's `A`, and experts multiplied by `scaling`.
pub(crate) fn spec(recipe: &str, a_shape: &[usize], scaling: f64) -> AdapterSpec {
    let [num_experts, rank, _] = *a_shape else {
        panic!("experts, rank and width: {a_shape:?}");
    };
    let mut spec = recipe::find(recipe).expect("listed").adapter;
    (spec.bank.num_experts, spec.bank.rank) = (num_experts, rank);
    spec.bank.scaling = Scaling::AlphaOverRank(scaling * rank as f64);
    spec
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

/// A frozen layer with its adapter and input.
pub(crate) struct Site {
    pub(crate) linear: MoLoraLinear,
    pub(crate) x: Tensor<3>,
    mask: Tensor<2>,
}

impl Site {
    /// The site of a case with an adapter by `spec`, whose experts are `a_erd` and `b_eor`.
    pub(crate) fn new(
        expected: &Tensors,
        spec: &AdapterSpec,
        (a_erd, b_eor): (Tensor<3>, Tensor<3>),
        device: &Device,
    ) -> Self {
        let (weight, bias) = ("param.W0", "param.bias");
        let weight = expected.tensor(weight, device);
        let bias = Some(expected.tensor(bias, device));
        let mut linear = common::adapted(weight, bias, spec, 0, device);
        fill(
            &mut linear.adapter.as_mut().expect("attached").bank,
            a_erd,
            b_eor,
        );
        Self {
            linear,
            x: expected.tensor::<3>("input.x", device).require_grad(),
            mask: expected.tensor("input.mask", device),
        }
    }

    pub(crate) fn bank(&self) -> &ExpertBank {
        &self.linear.adapter.as_ref().expect("attached").bank
    }

    pub(crate) fn router(&self) -> &Router {
        let adapter = self.linear.adapter.as_ref().expect("attached");
        adapter.router.as_ref().expect("a router")
    }

    pub(crate) fn scorer_mut(&mut self) -> &mut Scorer {
        let adapter = self.linear.adapter.as_mut().expect("attached");
        &mut adapter.router.as_mut().expect("a router").scorer
    }

    /// The output and the decisions of the site's router.
    pub(crate) fn forward(&self, guidance: Guidance) -> (Tensor<3>, RouterOutput) {
        let context = ForwardContext {
            guidance,
            ..ForwardContext::new(self.mask.clone())
        };
        let (y, route) = self.linear.forward(self.x.clone(), &context, None);
        (y, route.expect("routed").routed)
    }
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

    /// The numbers `key` of the variant or, if it has none, of the case.
    pub(crate) fn list(&self, key: &str) -> Vec<f64> {
        let value = self.hyper(key).unwrap_or(&self.case["hyper"][key]);
        let numbers = value.as_array().into_iter().flatten();
        numbers.filter_map(Value::as_f64).collect()
    }

    /// Whether the variant has this name.
    pub(crate) fn is(&self, name: &str) -> bool {
        self.name == name
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

    /// Checks the output of a site and, where the variant has gradients, that of its input; returns
    /// them all for the rest.
    #[track_caller]
    pub(crate) fn check_site(&self, site: &Site, y: Tensor<3>) -> Option<Gradients> {
        self.check_tokens("output.y", y.clone());
        if !self.has_gradients("grad") {
            return None;
        }
        let cotangent = self.expected.tensor::<3>("input.cotangent", &y.device());
        let gradients = (y * cotangent).sum().backward();
        self.check_gradient("grad.x", site.x.grad(&gradients).expect("tracked"));
        Some(gradients)
    }
}
