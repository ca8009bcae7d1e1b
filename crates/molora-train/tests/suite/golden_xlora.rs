//! X-LoRA's two passes, against the case `xlora`: two linear sites with a non-linearity between them,
//! which are no model, so that the passes are put together here from the parts of one.

use burn::tensor::activation::silu;
use burn::tensor::{Device, Gradients, Tensor, TensorData};
use molora_adapters::Scaling;
use molora_kernels::random::Seed;
use molora_models::{
    AdapterSpec, ExpertCount, FirstPass, FirstPassConfig, ForwardContext, MoLoraLinear, RouterScope,
};
use molora_routing::normaliser::ProbabilityConfig;
use molora_routing::{RouterOutput, Selection};
use molora_testkit::{FORWARD, GRADIENT, assert_close, autodiff_device};
use molora_train::recipe;

use crate::cases::cases;
use crate::common::{self, leaf, stacked};
use crate::golden_layer::Variant;
use crate::golden_routing::site::{bank_gradients, gradient_or_zero};

#[test]
fn golden_methods_xlora() {
    let device = autodiff_device();
    for case in cases("xlora") {
        let (document, expected) = (case.json("case.json").expect("found by it"), case.tensors());
        for variant in Variant::all(&document, &expected) {
            Model::new(&variant, &device).check();
        }
    }
}

/// What a variant's numbers make of the recipe.
fn spec(variant: &Variant) -> AdapterSpec {
    let mut spec = recipe::find("x-lora").expect("listed").adapter;
    let number = |key: &str| variant.hyper(key).and_then(|value| value.as_f64());
    let flag = |key: &str| variant.hyper(key).and_then(|value| value.as_bool());
    let shape = variant.expected.shape("param.layers.0.A");
    (spec.bank.num_experts, spec.bank.rank) = (shape[0], shape[1]);
    // Experts have scalings of their own, which are multiplied into B.
    spec.bank.scaling = Scaling::Unit;
    spec.experts = ExpertCount::Same;
    let router = spec.router.as_mut().expect("a classifier");
    router.temperature = number("temperature").unwrap_or(1.0);
    if let Some(k) = number("top_k") {
        router.selection = Selection::TopK(k as usize);
        if flag("softmax_after_top_k") != Some(true) {
            router.normaliser = ProbabilityConfig::default().into();
        }
    }
    spec.router_scope = RouterScope::FirstPass(FirstPassConfig {
        layerwise: flag("layerwise") == Some(true),
        depth: number("depth").unwrap_or(1.0) as usize,
        width: variant.number("classifier_hidden") as usize,
        scaling_pass_value: number("scaling_pass_value").unwrap_or(0.0),
        global_weight: number("global_weight").unwrap_or(1.0),
        ..FirstPassConfig::default()
    });
    spec
}

/// Two sites and the classifier.
struct Model<'a> {
    variant: &'a Variant<'a>,
    sites: Vec<MoLoraLinear>,
    first: FirstPass,
    context: ForwardContext,
    scaling: Tensor<1>,
    device: Device,
}

impl<'a> Model<'a> {
    fn new(variant: &'a Variant<'a>, device: &Device) -> Self {
        let expected = variant.expected;
        let spec = spec(variant);
        let config = *spec.router_scope.first_pass().expect("set above");
        let scaling = expected.tensor::<1>("input.scaling", device);
        let classifier = spec.router.as_ref().expect("a classifier");
        let width = expected.shape("param.layers.1.W0")[0];
        let (features, experts) = (config.features(width), spec.bank.num_experts);
        let site = |layer: usize| {
            let name = |part: &str| format!("param.layers.{layer}.{part}");
            let weight = expected.tensor(&name("W0"), device);
            let bias = Some(expected.tensor(&name("bias"), device));
            let mut linear = common::adapted(weight, bias, &spec, 0, device);
            let adapter = linear.adapter.as_mut().expect("attached");
            let a = expected.tensor::<3>(&name("A"), device);
            let b = expected.tensor::<3>(&name("B"), device);
            let b = b * scaling.clone().reshape([-1, 1, 1]);
            let [_, rank, inputs] = a.dims();
            adapter.bank.a = leaf(a.permute([2, 0, 1]).reshape([inputs, experts * rank]));
            adapter.bank.b = leaf(stacked(b));
            if let Some(router) = &mut adapter.router {
                // Made for the width of another model.
                *router = classifier.init(features, experts, 0, Seed::new(0), device);
            }
            linear
        };
        let sites: Vec<_> = (0..2).map(site).collect();
        let seed = Seed::new(0);
        let router = || classifier.init(features, experts, 0, seed, device);
        let first = config.init(width, (!config.layerwise).then(router), seed, device);
        let mut model = Self {
            variant,
            sites,
            first,
            context: ForwardContext::new(expected.tensor("input.mask", device)),
            scaling,
            device: device.clone(),
        };
        model.fill();
        model
    }

    /// Puts the classifier of the variant in.
    fn fill(&mut self) {
        let expected = self.variant.expected;
        for (tensor, of_case) in self.names() {
            let values = expected.floats(&format!("param.{of_case}"));
            let mut found = false;
            for mut own in self.first.tensors() {
                if own.name() == tensor {
                    own.set(&values);
                    found = true;
                }
            }
            if !found {
                // A share of the values for each site's router.
                let each = values.len() / self.sites.len();
                for (site, values) in self.sites.iter_mut().zip(values.chunks(each)) {
                    let adapter = site.adapter.as_mut().expect("attached");
                    let mut tensors = adapter.tensors();
                    let own = tensors.iter_mut().find(|own| own.name() == tensor);
                    own.expect("a router").set(values);
                }
            }
        }
    }

    /// Names of the classifier's tensors, and what the case calls them.
    fn names(&self) -> Vec<(&'static str, &'static str)> {
        let gradient = |of_case: &&(&str, &str)| {
            let name = self.variant.key(&format!("grad.{}", of_case.1));
            self.variant.expected.has(&name)
        };
        [
            ("router.weight", "classifier"),
            ("router.bias", "classifier_bias"),
            ("router.weight", "classifier_layers"),
            ("router.bias", "classifier_layers_bias"),
            ("classifier.weight", "inner"),
            ("classifier.bias", "inner_bias"),
            ("router.weight", "outer"),
            ("router.bias", "outer_bias"),
        ]
        .iter()
        .filter(gradient)
        .copied()
        .collect()
    }

    /// Both passes: the output, and the weights at each site.
    fn forward(&self, x: Tensor<3>) -> (Tensor<3>, Vec<RouterOutput>) {
        let value = self.first.scaling_pass_value();
        let h = silu(self.sites[0].with_weight(x.clone(), value));
        let last = self.sites[1].with_weight(h, value);
        let mut context = self.context.clone();
        context.first_pass = Some(self.first.states(last));
        let shared = self.first.decide(&mut context);
        let mut routed = Vec::new();
        let mut apply = |site: &MoLoraLinear, x| {
            let (y, route) = site.forward(x, &context, shared.as_ref());
            routed.extend(route.map(|route| route.routed).or(shared.clone()));
            y
        };
        let h = silu(apply(&self.sites[0], x));
        let y = apply(&self.sites[1], h);
        (y, routed)
    }

    fn check(&self) {
        let expected = self.variant.expected;
        let x = expected.tensor::<3>("input.x", &self.device).require_grad();
        let (y, routed) = self.forward(x.clone());
        self.variant.check_tokens("output.y", y.clone());
        let global = self.variant.hyper("global_weight");
        let global = global.and_then(|value| value.as_f64()).unwrap_or(1.0);
        self.check_scalings(&routed, global);
        let cotangent = expected.tensor::<3>("input.cotangent", &self.device);
        let objective = (y * cotangent).sum();
        self.variant.check("objective", objective.clone());
        let gradients = objective.backward();
        self.check_gradients(&gradients);
        let mask = expected.tensor::<2>("input.mask", &self.device.clone().inner());
        let to_x = gradient_or_zero(&x, &gradients) * mask.unsqueeze_dim(2);
        self.variant.check_gradient("grad.x", to_x);
    }

    /// The weights without the global factor, for all sites or for each.
    fn check_scalings(&self, routed: &[RouterOutput], global: f64) {
        let name = self.variant.key("output.scalings");
        let shape = self.variant.expected.shape(&name);
        let mask = self.context.mask.clone();
        let weights = routed.iter().map(|routed| {
            let weights = routed.weights.clone().div_scalar(global);
            (weights * mask.clone().unsqueeze_dim(2)).unsqueeze_dim::<4>(2)
        });
        let weights = Tensor::cat(weights.collect(), 2);
        assert_eq!(weights.dims()[..], shape[..], "{name}");
        let expected = self.variant.expected.tensor::<4>(&name, &self.device);
        let expected = expected * mask.unsqueeze_dim::<3>(2).unsqueeze_dim::<4>(3);
        assert_close(weights, expected, FORWARD, &name);
    }

    fn check_gradients(&self, gradients: &Gradients) {
        for (layer, site) in self.sites.iter().enumerate() {
            let bank = &site.adapter.as_ref().expect("attached").bank;
            let (a, b) = bank_gradients(bank, gradients);
            let scaling = self.scaling.clone().inner().reshape([-1, 1, 1]);
            let name = |part: &str| format!("grad.layers.{layer}.{part}");
            self.variant.check_gradient(&name("A"), a);
            self.variant.check_gradient(&name("B"), b * scaling);
        }
        for (tensor, of_case) in self.names() {
            let mut found = Vec::new();
            for own in self.first.clone().tensors() {
                if own.name() == tensor {
                    found.extend(own.gradient(gradients).expect("reached"));
                }
            }
            for site in &self.sites {
                let mut adapter = site.adapter.clone().expect("attached");
                let tensors = adapter.tensors();
                let own = tensors.iter().find(|own| own.name() == tensor);
                let own = own.map(|own| own.gradient(gradients).expect("reached"));
                found.extend(own.into_iter().flatten());
            }
            let name = self.variant.key(&format!("grad.{of_case}"));
            let shape = self.variant.expected.shape(&name);
            let found = TensorData::new(found, shape);
            self.variant.expected.assert_close(&name, found, GRADIENT);
        }
    }
}
