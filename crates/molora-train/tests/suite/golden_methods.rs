//! SAMoRA and HydraLoRA against their equations in float64, with padding that holds junk.
//! `case.json` names the case; each variant has the gradients of the whole objective and those
//! of the auxiliary terms alone.

use crate::cases::cases;
use crate::common::{leaf, stacked};
use burn::module::Param;
use burn::tensor::{Device, Gradients, Tensor};
use molora_adapters::core::{Core, ScaleCore};
use molora_adapters::task_selector;
use molora_models::{Adapter, AdapterSpec, ForwardContext, MoLoraLinear};
use molora_regularize::Orthogonality;
use molora_regularize::{ObjectiveConfig, Reduction, SiteView};
use molora_routing::Scorer;
use molora_routing::scorer::{CosineScorer, LinearScorer};
use molora_testkit::golden::{Case, Tensors};
use molora_testkit::{FORWARD, GRADIENT, autodiff_device};
use molora_train::recipe;

/// A matrix of the case as a parameter.
fn matrix(expected: &Tensors, name: &str, device: &Device) -> Param<Tensor<2>> {
    leaf(expected.tensor::<2>(name, device))
}

fn vector(expected: &Tensors, name: &str, device: &Device) -> Param<Tensor<1>> {
    leaf(expected.tensor::<1>(name, device))
}

/// One variant of a case of a whole site.
struct Variant<'a> {
    name: &'a str,
    expected: &'a Tensors,
    linear: MoLoraLinear,
    objective: ObjectiveConfig,
    tasks: Option<Tensor<2>>,
}

impl Variant<'_> {
    fn adapter(&self) -> &Adapter {
        self.linear.adapter.as_ref().expect("attached")
    }

    fn key(&self, tensor: &str) -> String {
        format!("{}.{tensor}", self.name)
    }

    /// The weighted auxiliary terms, if the method has any.
    fn total(&self) -> Option<Tensor<1>> {
        let adapter = self.adapter();
        let keys = adapter.router.as_ref().and_then(|router| router.keys());
        let site = SiteView {
            keys,
            ..SiteView::of_weights(&adapter.bank)
        };
        self.objective.evaluate(&[site]).total
    }

    /// Checks outputs, auxiliary terms and, where `gradients`, those of both.
    fn check(&self, x: Tensor<3>, gradients: bool, device: &Device) {
        // Before the forward pass: a backward uses up every graph that shares its parameters.
        if let (Some(total), true) = (self.total(), gradients) {
            self.check_gradients("aux_grad", &total.backward());
        }
        let x = x.detach().require_grad();
        let y = self.forward(x.clone(), device);
        let total = self.total();
        if let Some(total) = &total {
            self.expected
                .assert_close(&self.key("aux.total"), total, FORWARD);
        }
        if gradients {
            let cotangent = self.expected.tensor::<3>("input.cotangent", device);
            let main = (y * cotangent).sum();
            let objective = total.into_iter().fold(main, |sum, total| sum + total);
            let found = objective.backward();
            self.check_gradients("grad", &found);
            let to_x = x.grad(&found).expect("tracked");
            self.expected
                .assert_close(&self.key("grad.x"), to_x, GRADIENT);
        }
    }

    /// The output, after it and the routing weights were compared at real tokens.
    fn forward(&self, x: Tensor<3>, device: &Device) -> Tensor<3> {
        let mask = self.expected.tensor::<2>("input.mask", device);
        let context = ForwardContext {
            tasks: self.tasks.clone(),
            ..ForwardContext::new(mask.clone())
        };
        let (y, route) = self.linear.forward(x, &context, None);
        let real = |t: Tensor<3>| t * mask.clone().unsqueeze_dim::<3>(2);
        self.expected
            .assert_close(&self.key("output.y"), real(y.clone()), FORWARD);
        let weights = real(route.expect("routed").routed.weights);
        let names = ["output.router", "output.weights"].map(|name| self.key(name));
        let name = names
            .iter()
            .find(|name| self.expected.has(name))
            .expect("routing weights");
        self.expected.assert_close(name, weights, FORWARD);
        y
    }

    /// Compares every gradient that the variant has under `kind`, `grad` or `aux_grad`.
    fn check_gradients(&self, kind: &str, gradients: &Gradients) {
        let bank = &self.adapter().bank;
        let of = |param: &Param<Tensor<2>>| param.val().grad(gradients);
        let of_vector = |param: &Param<Tensor<1>>| param.val().grad(gradients);
        self.compare(kind, "A", of(&bank.a).map(Tensor::transpose));
        self.compare(kind, "sigma", sigma(bank).and_then(of_vector));
        let up = of(&bank.b).map(|b| unstacked(b, bank.num_experts()));
        self.compare(kind, "B", up);
        match &self.adapter().router.as_ref().expect("a router").scorer {
            Scorer::Cosine(scorer) => self.compare(kind, "keys", of(&scorer.keys)),
            Scorer::Linear(scorer) => self.compare(kind, "router", of(&scorer.weight)),
            other => panic!("an unknown scorer {other:?}"),
        }
        if let Some(gate) = &self.adapter().gate {
            self.compare(kind, "task_embedding", of(&gate.embedding));
            self.compare(kind, "gate_weight", of(&gate.weight));
            self.compare(kind, "gate_bias", gate.bias.as_ref().and_then(of_vector));
        }
    }

    fn compare<const D: usize>(&self, kind: &str, name: &str, found: Option<Tensor<D>>) {
        let name = self.key(&format!("{kind}.{name}"));
        if self.expected.has(&name) {
            let found = found.unwrap_or_else(|| panic!("{name}: not tracked"));
            self.expected.assert_close(&name, found, GRADIENT);
        }
    }
}

/// The bank's `[E * R, O]` as a case's `[E, O, R]`.
fn unstacked(b: Tensor<2>, experts: usize) -> Tensor<3> {
    let [rows, d_output] = b.dims();
    b.reshape([experts, rows / experts, d_output])
        .swap_dims(1, 2)
}

/// A site of `spec` with the matrices that every method has.
fn site(expected: &Tensors, spec: &AdapterSpec, num_tasks: usize, device: &Device) -> MoLoraLinear {
    let weight = expected.tensor::<2>("param.W0", device);
    let bias = expected.tensor::<1>("param.bias", device);
    let mut linear = crate::common::adapted(weight, Some(bias), spec, num_tasks, device);
    let bank = &mut linear.adapter.as_mut().expect("attached").bank;
    bank.a = leaf(expected.tensor::<2>("param.A", device).transpose());
    bank.b = leaf(stacked(expected.tensor("param.B", device)));
    linear
}

fn samora(expected: &Tensors, case: &Case, bias: bool, device: &Device) -> MoLoraLinear {
    let mut spec = recipe::find("samora").expect("listed").adapter;
    let [num_experts, rank] = expected.shape("param.keys")[..] else {
        panic!("keys")
    };
    (spec.bank.num_experts, spec.bank.rank) = (num_experts, rank);
    let router = spec.router.as_mut().expect("a router");
    router.temperature = case.number("case.json", &["hyper", "tau"]);
    spec.gate.as_mut().expect("a gate").bias = bias;
    let num_tasks = expected.shape("param.task_embedding")[0];
    let mut linear = site(expected, &spec, num_tasks, device);
    let adapter = linear.adapter.as_mut().expect("attached");
    let sigma = vector(expected, "param.sigma", device);
    adapter.bank.core = Core::Scale(ScaleCore::new(sigma, adapter.bank.rank()));
    let scorer = CosineScorer {
        keys: matrix(expected, "param.keys", device),
    };
    adapter.router.as_mut().expect("a router").scorer = Scorer::Cosine(scorer);
    let gate = adapter.gate.as_mut().expect("a gate");
    gate.embedding = matrix(expected, "param.task_embedding", device);
    gate.weight = matrix(expected, "param.gate_weight", device);
    gate.bias = bias.then(|| vector(expected, "param.gate_bias", device));
    linear
}

/// The recipe's terms, the orthogonality reduced as the variant says.
fn samora_objective(reduction: Reduction) -> ObjectiveConfig {
    let mut objective = recipe::find("samora").expect("listed").objective;
    for term in objective
        .terms
        .iter_mut()
        .filter(|config| config.term == Orthogonality.into())
    {
        term.within_site = reduction;
    }
    objective
}

#[test]
fn golden_methods_samora() {
    let device = autodiff_device();
    for case in cases("samora") {
        let expected = &case.tensors();
        let variants = [
            ("mean", Reduction::Mean, "input.task", false),
            ("sum", Reduction::Sum, "input.task", false),
            (
                "unknown_task",
                Reduction::Mean,
                "input.task_with_unknown",
                false,
            ),
            ("gate_bias", Reduction::Mean, "input.task", true),
        ];
        for (name, reduction, tasks, bias) in variants {
            let linear = samora(expected, &case, bias, &device);
            let rows = expected
                .ints(tasks)
                .into_iter()
                .map(|task| usize::try_from(task).ok());
            let num_tasks = expected.shape("param.task_embedding")[0];
            let rows: Vec<_> = rows.collect();
            let tasks = Some(task_selector(&rows, num_tasks, &device).expect("in range"));
            let objective = samora_objective(reduction);
            let variant = Variant {
                name,
                expected,
                linear,
                objective,
                tasks,
            };
            variant.check(expected.tensor("input.x", &device), true, &device);
        }
    }
}

/// B = 0 and x = 0: the start of a run, and features without a direction.
#[test]
fn golden_methods_samora_start() {
    let device = autodiff_device();
    for case in cases("samora") {
        let expected = &case.tensors();
        let mut linear = samora(expected, &case, false, &device);
        let bank = &mut linear.adapter.as_mut().expect("attached").bank;
        bank.b = leaf(bank.b.val().zeros_like());
        let rows: Vec<_> = expected
            .ints("input.task")
            .iter()
            .map(|&t| Some(t as usize))
            .collect();
        let num_tasks = expected.shape("param.task_embedding")[0];
        let tasks = Some(task_selector(&rows, num_tasks, &device).expect("in range"));
        let objective = samora_objective(Reduction::Mean);
        let variant = Variant {
            name: "zero_up",
            expected,
            linear,
            objective,
            tasks,
        };
        let x = expected.tensor::<3>("input.x", &device).zeros_like();
        variant.check(x, false, &device);
    }
}

#[test]
fn golden_methods_hydralora() {
    let device = autodiff_device();
    for case in cases("hydralora") {
        let expected = &case.tensors();
        let mut spec = recipe::find("hydralora").expect("listed").adapter;
        let scaling = case.number("case.json", &["hyper", "scaling"]);
        let rank = expected.shape("param.A")[0];
        (spec.bank.num_experts, spec.bank.rank) = (expected.shape("param.B")[0], rank);
        spec.bank.scaling = molora_adapters::Scaling::AlphaOverRank(scaling * rank as f64);
        let mut linear = site(expected, &spec, 0, &device);
        let weight = matrix(expected, "param.router", &device);
        let router = linear.adapter.as_mut().expect("attached").router.as_mut();
        router.expect("a router").scorer = Scorer::Linear(LinearScorer { weight, bias: None });
        let objective = recipe::find("hydralora").expect("listed").objective;
        let variant = Variant {
            name: "dense",
            expected,
            linear,
            objective,
            tasks: None,
        };
        variant.check(expected.tensor("input.x", &device), true, &device);
    }
}

/// The scale of the low-rank code, if the bank has one.
fn sigma(bank: &molora_adapters::ExpertBank) -> Option<&Param<Tensor<1>>> {
    match &bank.core {
        Core::Scale(core) => Some(&core.sigma),
        _ => None,
    }
}
