//! One site of SAMoRA against the authors' layer: outputs, penalty, the output for unknown tasks and
//! the gradients of every parameter and of the input.
//!
//! The site is built as a user's is: an encoder read from a folder, an adapter attached to one of
//! its linear layers. Only the parameters are then set to those of the case.

mod common;

use std::path::Path;

use burn::module::Param;
use burn::tensor::Gradients;
use burn::tensor::{Device, Tensor};
use molora_adapters::{BankConfig, GateConfig, Scaling, Sharing, task_selector};
use molora_models::{AdapterSpec, ForwardContext, MoLoraLinear};
use molora_regularize::{ObjectiveConfig, Reduction, SiteView, Term, TermConfig};
use molora_routing::{CosineScorer, RouteFrom, RouterConfig, Scorer, ScorerConfig};
use molora_testkit::golden::{self, Case, Tensors};
use molora_testkit::{FORWARD, GRADIENT, assert_close, autodiff_device};

fn samora_cases() -> Vec<Case> {
    let bundled = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden"));
    let cases = golden::cases(bundled, golden::MOLORA_GOLDEN);
    golden::of_kind(cases, "SAMoRA layer", |case| {
        case.tensors().has("param.lora_lambdas")
    })
}

/// The adapter of the authors' layer, with the sizes of the case.
fn spec(case: &Case, expected: &Tensors) -> AdapterSpec {
    let [num_experts, rank] = expected.shape("param.lora_lambdas")[..] else {
        panic!("{}: keys are no matrix", case.name);
    };
    AdapterSpec {
        targets: vec![common::TARGET.into()],
        bank: BankConfig {
            sharing: Sharing::SharedA,
            num_experts,
            rank,
            scaling: Scaling::Unit,
            rank_scale: true,
            dropout: 0.05,
        },
        router: Some(RouterConfig {
            scorer: ScorerConfig::Cosine,
            route_from: RouteFrom::LowRank,
            temperature: case.number("case.json", &["temperature"]),
            ..RouterConfig::default()
        }),
        gate: Some(GateConfig::default()),
    }
}

/// The penalties with the weights of the authors' code.
fn penalty() -> ObjectiveConfig {
    let term = |term, weight| TermConfig {
        term,
        weight,
        within_site: Reduction::Mean,
        over_sites: Reduction::Sum,
    };
    ObjectiveConfig {
        terms: vec![
            term(Term::Orthogonality, 1e-3),
            term(Term::KeyMatching, 1e-2),
        ],
    }
}

struct Site {
    expected: Tensors,
    linear: MoLoraLinear,
    num_tasks: usize,
    device: Device,
}

impl Site {
    fn read(case: &Case) -> Self {
        let device = autodiff_device();
        let expected = case.tensors();
        let num_tasks = expected.shape("param.lora_task_embedding.weight")[0];
        let weight = expected.tensor::<2>("param.weight", &device);
        let mut linear = common::adapted(weight, &spec(case, &expected), num_tasks, &device);
        set_parameters(&mut linear, &expected, &device);
        Self {
            expected,
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
            mask,
            tasks: Some(tasks),
            dropout: None,
        };
        self.linear.forward(x, &context).0
    }

    fn penalty(&self) -> Tensor<1> {
        let adapter = self.linear.adapter.as_ref().expect("attached");
        let keys = adapter.router.as_ref().expect("a router").keys();
        let view = SiteView {
            bank: &adapter.bank,
            keys,
            routed: None,
        };
        penalty().evaluate(&[view]).total.expect("two terms")
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
        let scale = bank.rank_scale.as_ref().expect("a rank scale").val();
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

/// The authors' `[E, O, R]` as our `[E * R, O]`.
fn stacked(b_eor: Tensor<3>) -> Tensor<2> {
    let [experts, d_output, rank] = b_eor.dims();
    b_eor.swap_dims(1, 2).reshape([experts * rank, d_output])
}

fn set_parameters(linear: &mut MoLoraLinear, expected: &Tensors, device: &Device) {
    // Through the host: a parameter must be a leaf of the graph.
    let leaf = |tensor: Tensor<2>| Param::from_data(tensor.to_data(), device);
    let matrix = |name: &str| leaf(expected.tensor(name, device));
    let adapter = linear.adapter.as_mut().expect("attached");
    adapter.bank.a = leaf(expected.tensor::<2>("param.lora_A", device).transpose());
    adapter.bank.b = leaf(stacked(expected.tensor("param.lora_B", device)));
    adapter.bank.rank_scale = Some(Param::from_data(
        expected.data("param.lora_scale").clone(),
        device,
    ));
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
        let weight = site.linear.weight.val().grad(&gradients);
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
        let last = |y: &Tensor<3>| y.clone().slice([rows - 1..rows]);
        assert_close(last(&found), last(&unknown), FORWARD, &case.name);
        if rows > 1 {
            let known = site
                .expected
                .tensor::<3>("y", &site.device)
                .slice([0..rows - 1]);
            assert_close(found.slice([0..rows - 1]), known, FORWARD, &case.name);
        }
    }
}
