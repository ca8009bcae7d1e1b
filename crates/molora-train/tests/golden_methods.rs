//! Methods, penalties and routing losses against their equations in float64, with padding that
//! holds junk. `case.json` names the case; each variant has the gradients of the whole objective
//! and those of the auxiliary terms alone.

mod common;

use std::path::Path;

use burn::module::Param;
use burn::tensor::activation::softmax;
use burn::tensor::{Device, Gradients, Tensor};
use common::{leaf, stacked};
use molora_adapters::{BankConfig, ExpertBank, SiteDims, task_selector};
use molora_kernels::random::Seed;
use molora_models::{Adapter, AdapterSpec, ForwardContext, MoLoraLinear};
use molora_regularize::{ObjectiveConfig, Reduction, SiteView, Term};
use molora_regularize::{
    balance_literal, balance_mass, key_matching, load_balance, orthogonality, router_z_loss,
};
use molora_routing::{CosineScorer, LinearScorer, RouterOutput, Scorer, Selection};
use molora_testkit::golden::{self, Case, Tensors};
use molora_testkit::{FORWARD, GRADIENT, autodiff_device};
use molora_train::recipe;

fn cases(name: &str) -> Vec<Case> {
    let bundled = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden-methods"));
    let cases = golden::cases(bundled, golden::MOLORA_GOLDEN_METHODS);
    golden::of_kind(cases, name, |case| {
        case.json("case.json")
            .is_some_and(|document| document["case"] == name)
    })
}

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
            bank: &adapter.bank,
            keys,
            routed: None,
            labels: None,
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
            mask: mask.clone(),
            tasks: self.tasks.clone(),
            dropout: None,
            guidance: Default::default(),
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
        self.compare(kind, "sigma", bank.rank_scale.as_ref().and_then(of_vector));
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
    let mut linear = common::adapted(weight, Some(bias), spec, num_tasks, device);
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
    adapter.bank.rank_scale = Some(vector(expected, "param.sigma", device));
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
        .filter(|config| config.term == Term::Orthogonality)
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

/// Independent experts with the matrices of the case.
fn independent_bank(expected: &Tensors, device: &Device) -> ExpertBank {
    let [num_experts, rank, d_input] = expected.shape("param.A")[..] else {
        panic!("A")
    };
    let d_output = expected.shape("param.B")[1];
    let config = BankConfig {
        num_experts,
        rank,
        ..BankConfig::default()
    };
    let mut bank = config.init(SiteDims { d_input, d_output }, Seed::new(0), device);
    let a_der = expected.tensor::<3>("param.A", device).permute([2, 0, 1]);
    bank.a = leaf(a_der.reshape([d_input, num_experts * rank]));
    bank.b = leaf(stacked(expected.tensor("param.B", device)));
    bank
}

#[test]
fn golden_methods_orthogonality() {
    let device = autodiff_device();
    for case in cases("weight_regularizers") {
        let expected = case.tensors();
        for (suffix, reduction) in [("mean", Reduction::Mean), ("sum", Reduction::Sum)] {
            let bank = independent_bank(&expected, &device);
            let value = orthogonality(&bank, reduction);
            let part = |side: &str| {
                expected.tensor::<1>(&format!("orth_{side}_{suffix}.aux.value"), &device)
            };
            let both = part("down") + part("up");
            molora_testkit::assert_close(value.clone(), both, FORWARD, suffix);
            let gradients = value.backward();
            let [d_input, width] = bank.a.dims();
            let shape = [d_input, bank.num_experts(), width / bank.num_experts()];
            let a = bank
                .a
                .val()
                .grad(&gradients)
                .expect("tracked")
                .reshape(shape);
            let down = format!("orth_down_{suffix}.grad.A");
            expected.assert_close(&down, a.permute([1, 2, 0]), GRADIENT);
            let b = bank.b.val().grad(&gradients).expect("tracked");
            let up = format!("orth_up_{suffix}.grad.B");
            expected.assert_close(&up, unstacked(b, bank.num_experts()), GRADIENT);
        }
    }
}

#[test]
fn golden_methods_key_matching() {
    let device = autodiff_device();
    for case in cases("weight_regularizers") {
        let expected = case.tensors();
        let bank = independent_bank(&expected, &device);
        let keys = expected.tensor::<2>("param.keys", &device).require_grad();
        let value = key_matching(keys.clone(), &bank, Reduction::Mean);
        expected.assert_close("key_match.aux.value", value.clone(), FORWARD);
        let gradients = value.backward();
        let to_keys = keys.grad(&gradients).expect("tracked");
        expected.assert_close("key_match.grad.keys", to_keys, GRADIENT);
        let to_b = bank.b.val().grad(&gradients).expect("tracked");
        let to_b = unstacked(to_b, bank.num_experts());
        expected.assert_close("key_match.grad.B", to_b, GRADIENT);
    }
}

#[test]
fn golden_methods_routing_losses() {
    let device = autodiff_device();
    for case in cases("routing_losses") {
        let expected = case.tensors();
        let top_k = case.number("case.json", &["hyper", "top_k"]) as usize;
        type Loss = fn(&RouterOutput, Reduction) -> Tensor<1>;
        let variants: [(&str, Loss, usize, Reduction); 6] = [
            ("switch_top1", load_balance, 1, Reduction::Mean),
            ("switch_mixtral", load_balance, top_k, Reduction::Sum),
            ("switch_normalised", load_balance, top_k, Reduction::Mean),
            ("mass", balance_mass, top_k, Reduction::Sum),
            ("literal", balance_literal, top_k, Reduction::Sum),
            ("z_loss", router_z_loss, top_k, Reduction::Mean),
        ];
        for (name, loss, top_k, reduction) in variants {
            let logits = expected.tensor::<3>("input.x", &device).require_grad();
            let probs = softmax(logits.clone(), 2);
            let (weights, selected) = Selection::TopK(top_k).weigh(&logits, &probs);
            let counted = expected.tensor("input.mask", &device);
            let routed = RouterOutput {
                logits: logits.clone(),
                probs,
                weights,
                selected,
                counted,
            };
            let value = loss(&routed, reduction);
            expected.assert_close(&format!("{name}.aux.value"), value.clone(), FORWARD);
            let gradient = logits.grad(&value.backward()).expect("tracked");
            expected.assert_close(&format!("{name}.grad.x"), gradient, GRADIENT);
        }
    }
}
