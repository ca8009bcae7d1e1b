//! One site of SAMoRA against the authors' layer: outputs, penalty, the output for unknown tasks and
//! the gradients of every parameter and of the input.
//!
//! The site is built as a user's is: the recipe `samora`, an encoder read from a folder, an adapter
//! attached to one of its linear layers. Sizes and parameters are then those of the case.

use molora_adapters::core::{Core, ScaleCore};
use molora_routing::scorer::CosineScorer;
use std::path::Path;

use crate::common::{leaf, stacked};
use burn::module::Param;
use burn::tensor::{Device, Gradients, Tensor};
use molora_adapters::task_selector;
use molora_models::{ForwardContext, MoLoraLinear};
use molora_regularize::SiteView;
use molora_routing::Scorer;
use molora_testkit::golden::{self, Case, Tensors};
use molora_testkit::{FORWARD, GRADIENT, assert_close, autodiff_device};
use molora_train::recipe;
use molora_train::recipe::Recipe;

fn samora_cases() -> Vec<Case> {
    let bundled = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden"));
    let cases = golden::cases(bundled, golden::MOLORA_GOLDEN);
    golden::of_kind(cases, "SAMoRA layer", |case| {
        case.tensors().has("param.lora_lambdas")
    })
}

/// The recipe with the sizes of the case.
fn recipe(case: &Case, expected: &Tensors) -> Recipe {
    let [num_experts, rank] = expected.shape("param.lora_lambdas")[..] else {
        panic!("{}: keys are no matrix", case.name);
    };
    let mut recipe = recipe::find("samora").expect("a recipe of that name");
    let bank = &mut recipe.adapter.bank;
    (bank.num_experts, bank.rank) = (num_experts, rank);
    let router = recipe.adapter.router.as_mut().expect("a router");
    router.temperature = case.number("case.json", &["temperature"]);
    recipe
}

struct Site {
    expected: Tensors,
    recipe: Recipe,
    linear: MoLoraLinear,
    num_tasks: usize,
    device: Device,
}

impl Site {
    fn read(case: &Case) -> Self {
        let device = autodiff_device();
        let expected = case.tensors();
        let recipe = recipe(case, &expected);
        let num_tasks = expected.shape("param.lora_task_embedding.weight")[0];
        let weight = expected.tensor::<2>("param.weight", &device);
        let mut linear = crate::common::adapted(weight, None, &recipe.adapter, num_tasks, &device);
        set_parameters(&mut linear, &expected, &device);
        Self {
            expected,
            recipe,
            linear,
            num_tasks,
            device,
        }
    }

    /// The case's tasks; the authors write -1 for an unknown one.
    fn tasks(&self) -> Vec<Option<usize>> {
        self.expected
            .ints("task")
            .into_iter()
            .map(|task| usize::try_from(task).ok())
            .collect()
    }

    fn forward(&self, x: Tensor<3>, tasks: &[Option<usize>]) -> Tensor<3> {
        let [batch, tokens, _] = x.dims();
        let tasks = task_selector(tasks, self.num_tasks, &self.device).expect("tasks in range");
        let mask = Tensor::ones([batch, tokens], &self.device);
        let context = ForwardContext {
            tasks: Some(tasks),
            ..ForwardContext::new(mask)
        };
        self.linear.forward(x, &context, None).0
    }

    fn penalty(&self) -> Tensor<1> {
        let adapter = self.linear.adapter.as_ref().expect("attached");
        let keys = adapter.router.as_ref().expect("a router").keys();
        let view = SiteView {
            keys,
            ..SiteView::of_weights(&adapter.bank)
        };
        self.recipe
            .objective
            .evaluate(&[view])
            .total
            .expect("two terms")
    }

    fn input(&self) -> Tensor<3> {
        self.expected.tensor("x", &self.device)
    }

    /// Our gradients by the authors' names and in their layout.
    fn gradients(&self, gradients: &Gradients) -> Vec<(&'static str, Tensor<2>)> {
        let adapter = self.linear.adapter.as_ref().expect("attached");
        let (bank, gate) = (&adapter.bank, adapter.gate.as_ref().expect("a gate"));
        let keys = match &adapter.router.as_ref().expect("a router").scorer {
            Scorer::Cosine(scorer) => &scorer.keys,
            other => panic!("cosine keys were set, found {other:?}"),
        };
        let of = |param: &Param<Tensor<2>>| param.val().grad(gradients).expect("tracked");
        let scale = bank.core.scale().expect("a rank scale");
        vec![
            ("grad.lora_A", of(&bank.a).transpose()),
            ("grad.lora_B", of(&bank.b)),
            ("grad.lora_lambdas", of(keys)),
            (
                "grad.lora_scale",
                scale.grad(gradients).expect("tracked").unsqueeze(),
            ),
            ("grad.lora_task_embedding.weight", of(&gate.embedding)),
            ("grad.lora_task_gate_weight", of(&gate.weight)),
        ]
    }

    /// An expected gradient as a matrix in the layout of [`gradients`](Self::gradients).
    fn expected_gradient(&self, name: &str) -> Tensor<2> {
        match name {
            "grad.lora_B" => stacked(self.expected.tensor(name, &self.device)),
            "grad.lora_scale" => self.expected.tensor::<1>(name, &self.device).unsqueeze(),
            _ => self.expected.tensor(name, &self.device),
        }
    }
}

fn set_parameters(linear: &mut MoLoraLinear, expected: &Tensors, device: &Device) {
    let matrix = |name: &str| leaf(expected.tensor::<2>(name, device));
    let adapter = linear.adapter.as_mut().expect("attached");
    adapter.bank.a = leaf(expected.tensor::<2>("param.lora_A", device).transpose());
    adapter.bank.b = leaf(stacked(expected.tensor("param.lora_B", device)));
    let sigma = leaf(expected.tensor::<1>("param.lora_scale", device));
    adapter.bank.core = Core::Scale(ScaleCore::new(sigma, adapter.bank.rank()));
    let router = adapter.router.as_mut().expect("a router");
    router.scorer = Scorer::Cosine(CosineScorer {
        keys: matrix("param.lora_lambdas"),
    });
    let gate = adapter.gate.as_mut().expect("a gate");
    gate.embedding = matrix("param.lora_task_embedding.weight");
    gate.weight = matrix("param.lora_task_gate_weight");
}

#[test]
fn golden_samora_outputs_and_penalty() {
    for case in samora_cases() {
        let site = Site::read(&case);
        let y = site.forward(site.input(), &site.tasks());
        site.expected.assert_close("y", y, FORWARD);
        site.expected
            .assert_close("penalty", site.penalty(), FORWARD);
        let unknown = site.forward(site.input(), &vec![None; site.tasks().len()]);
        site.expected
            .assert_close("y_unknown_task", unknown, FORWARD);
    }
}

#[test]
fn golden_samora_gradients() {
    for case in samora_cases() {
        let site = Site::read(&case);
        let x = site.input().require_grad();
        let cotangent = site.expected.tensor::<3>("cotangent", &site.device);
        let y = site.forward(x.clone(), &site.tasks());
        let gradients = ((y * cotangent).sum() + site.penalty()).backward();
        site.expected
            .assert_close("grad.x", x.grad(&gradients).expect("tracked"), GRADIENT);
        for (name, found) in site.gradients(&gradients) {
            let what = format!("{}: {name}", case.name);
            assert_close(found, site.expected_gradient(name), GRADIENT, &what);
        }
        let weight = site.linear.weight.wide().grad(&gradients);
        assert!(weight.is_none(), "{}: the base is frozen", case.name);
    }
}

/// Where the authors' code switches a whole batch, a row of ours is decided by itself.
#[test]
fn golden_samora_decides_unknown_tasks_row_by_row() {
    for case in samora_cases() {
        let site = Site::read(&case);
        let mut tasks = site.tasks();
        let rows = tasks.len();
        tasks[rows - 1] = None;
        let found = site.forward(site.input(), &tasks);
        let unknown = site.expected.tensor::<3>("y_unknown_task", &site.device);
        let last = |y: &Tensor<3>| y.clone().narrow(0, rows - 1, 1);
        assert_close(last(&found), last(&unknown), FORWARD, &case.name);
        if rows > 1 {
            let known = site
                .expected
                .tensor::<3>("y", &site.device)
                .narrow(0, 0, rows - 1);
            assert_close(found.narrow(0, 0, rows - 1), known, FORWARD, &case.name);
        }
    }
}
