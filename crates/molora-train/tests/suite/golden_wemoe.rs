//! Feed-forwards that are merged for each row by a gate, against golden vectors.

use burn::module::Param;
use burn::tensor::{Bool, Device, Tensor, TensorData, activation::silu};
use molora_adapters::merge::{above_quantile, merged_linear, weighted_sum};
use molora_adapters::{BankConfig, Scaling};
use molora_kernels::random::{Seed, uniform};
use molora_models::{AdapterSpec, ForwardContext, MoLoraLinear};
use molora_regularize::prediction_entropy;
use molora_routing::normaliser::IdentityConfig;
use molora_routing::scorer::{PerceptronConfig, PerceptronScorer};
use molora_routing::{Granularity, Pooling, RouteInput, Router, RouterConfig, Scorer};
use molora_testkit::golden::{Case, Tensors};
use molora_testkit::{FORWARD, GRADIENT, assert_close, autodiff_device};

use crate::cases::cases;

/// A linear part of the feed-forward: base and task vectors of weight and bias, as `[D, O]`.
struct Part {
    weight: (Tensor<2>, Tensor<3>),
    bias: (Tensor<1>, Tensor<2>),
}

impl Part {
    fn read(expected: &Tensors, block: usize, number: usize, device: &Device) -> Self {
        let of = |kind: &str, name: &str| format!("param.blocks.{block}.{kind}.{name}{number}");
        let weight: Tensor<2> = expected.tensor(&of("base", "w"), device);
        let deltas: Tensor<3> = expected.tensor(&of("task", "w"), device);
        Self {
            weight: (weight.transpose(), deltas.swap_dims(1, 2)),
            bias: (
                expected.tensor(&of("base", "b"), device),
                expected.tensor(&of("task", "b"), device),
            ),
        }
    }

    /// Each task's weight and bias cut to the entries above a quantile, and how many are left of
    /// both.
    fn cut(self, quantile: f64) -> (Self, [i64; 2]) {
        let count = |kept: &Tensor<2>| -> i64 {
            kept.clone().not_equal_elem(0.0).int().sum().into_scalar()
        };
        let (mut weights, mut biases, mut left) = (Vec::new(), Vec::new(), [0, 0]);
        for task in 0..self.weight.1.dims()[0] {
            let own = self.weight.1.clone().narrow(0, task, 1).squeeze_dim(0);
            let own = above_quantile(&own, quantile);
            let bias = above_quantile(&self.bias.1.clone().narrow(0, task, 1), quantile);
            left[0] += count(&own);
            left[1] += count(&bias);
            weights.push(own.unsqueeze());
            biases.push(bias);
        }
        let part = Self {
            weight: (self.weight.0, Tensor::cat(weights, 0)),
            bias: (self.bias.0, Tensor::cat(biases, 0)),
        };
        (part, left)
    }

    fn forward(&self, x: Tensor<3>, gates: Tensor<2>) -> Tensor<3> {
        merged_linear(x, gates, self.weight.clone(), Some(self.bias.clone()))
    }
}

/// A router as a gate of WEMoE.
fn config() -> RouterConfig {
    RouterConfig {
        scorer: PerceptronConfig::default().into(),
        normaliser: IdentityConfig.into(),
        granularity: Granularity::Sequence,
        pooling: Pooling::Scores,
        ..RouterConfig::default()
    }
}

/// The case's gate as a router that decides for each row.
fn gate(expected: &Tensors, device: &Device) -> Router {
    let config = config();
    config.validate(2).expect("valid numbers");
    let [experts, width] = expected.shape("param.gate.w2")[..] else {
        panic!("the second layer is a matrix");
    };
    let matrix =
        |name: &str| -> Param<Tensor<2>> { Param::from_tensor(expected.tensor(name, device)) };
    let vector =
        |name: &str| -> Param<Tensor<1>> { Param::from_tensor(expected.tensor(name, device)) };
    let mut router = config.init(width, experts, 0, Seed::new(0), device);
    router.scorer = Scorer::Perceptron(PerceptronScorer {
        hidden: matrix("param.gate.w1"),
        hidden_bias: vector("param.gate.b1"),
        weight: matrix("param.gate.w2"),
        bias: vector("param.gate.b2"),
    });
    router
}

struct Site {
    expected: Tensors,
    device: Device,
    router: Router,
    mask: Tensor<2>,
    x: Tensor<3>,
}

impl Site {
    fn read(case: &Case) -> Self {
        let (expected, device) = (case.tensors(), autodiff_device());
        let mask: Tensor<2, Bool> = expected.bool_tensor("input.mask", &device);
        Self {
            router: gate(&expected, &device),
            mask: mask.float(),
            x: expected.tensor::<3>("input.x", &device).require_grad(),
            expected,
            device,
        }
    }

    /// Gates of every row, `[B, K]`.
    fn gates(&self, h: Tensor<3>) -> Tensor<2> {
        let input = RouteInput {
            features: h,
            mask: self.mask.clone(),
            tasks: None,
            columns: None,
        };
        self.router.route(&input).weights.squeeze_dim(1)
    }

    /// Zero on padding.
    fn masked(&self, y: Tensor<3>) -> Tensor<3> {
        let padding = self.mask.clone().equal_elem(0.0).unsqueeze_dim::<3>(2);
        let dims = y.dims();
        y.mask_fill(padding.expand(dims), 0.0)
    }

    /// Outputs, the objective, the entropy where the variant has it, and all gradients. A graph is gone
    /// after its backward pass, so that each loss has one of its own.
    fn check(&self, variant: &str, forward: impl Fn() -> Tensor<3>) {
        let expected = &self.expected;
        let of = |name: &str| format!("{variant}.{name}");
        let Scorer::Perceptron(gate) = &self.router.scorer else {
            panic!("the gate is a network");
        };
        for kind in ["grad", "aux_grad"] {
            let y = self.masked(forward());
            expected.assert_close(&of("output.y"), y.clone(), FORWARD);
            let cotangent: Tensor<3> = expected.tensor("input.cotangent", &self.device);
            let mut loss = (y.clone() * cotangent).sum();
            if expected.has(&of("aux.total")) {
                let [rows, tokens, width] = y.dims();
                let entropies = prediction_entropy(y.reshape([rows * tokens, width]));
                let mask = self.mask.clone().reshape([rows * tokens]);
                let total = (entropies * mask.clone()).sum() / mask.sum();
                for name in ["aux.entropy", "aux.total"] {
                    expected.assert_close(&of(name), total.clone(), FORWARD);
                }
                loss = loss + total.clone();
                expected.assert_close(&of("objective"), loss.clone(), FORWARD);
                if kind == "aux_grad" {
                    loss = total;
                }
            } else if kind == "aux_grad" {
                continue;
            } else {
                expected.assert_close(&of("objective"), loss.clone(), FORWARD);
            }
            let gradients = loss.backward();
            let check = |name: &str, gradient| {
                expected.assert_close(&of(&format!("{kind}.{name}")), gradient, GRADIENT);
            };
            let of = |gradient: Option<TensorData>| gradient.expect("tracked");
            check("x", of(self.x.grad(&gradients).map(Tensor::into_data)));
            for (name, matrix) in [("gate.w1", &gate.hidden), ("gate.w2", &gate.weight)] {
                check(
                    name,
                    of(matrix.val().grad(&gradients).map(Tensor::into_data)),
                );
            }
            for (name, vector) in [("gate.b1", &gate.hidden_bias), ("gate.b2", &gate.bias)] {
                check(
                    name,
                    of(vector.val().grad(&gradients).map(Tensor::into_data)),
                );
            }
        }
    }
}

#[test]
fn golden_wemoe() {
    for case in cases("wemoe") {
        let document = case.json("case.json").expect("a case");
        let lambda = case.number("case.json", &["hyper", "lambda"]);
        for (variant, about) in document["variants"].as_object().expect("variants") {
            let site = Site::read(&case);
            let (expected, device) = (&site.expected, &site.device);
            let base: Tensor<2> = expected.tensor("param.pre.base", device);
            let deltas: Tensor<3> = expected.tensor("param.pre.task", device);
            let own = |task| (deltas.clone().narrow(0, task, 1).squeeze_dim(0), lambda);
            let sum: Vec<_> = (0..deltas.dims()[0]).map(own).collect();
            let pre = (base + weighted_sum(&sum)).transpose();
            let is_batch = about["hyper"]["batch_reduce"].as_bool() == Some(true);
            let hidden = || {
                let h = site.x.clone().matmul(pre.clone().unsqueeze());
                let gates = site.gates(h.clone());
                let rows = gates.dims()[0];
                match is_batch {
                    true => (h, gates.mean_dim(0).repeat_dim(0, rows)),
                    false => (h, gates),
                }
            };
            let gates = hidden().1;
            expected.assert_close(&format!("{variant}.output.gate"), gates.clone(), FORWARD);
            let [first, second] = [1, 2].map(|number| Part::read(expected, 0, number, device));
            let row: Tensor<2> = gates.clone().narrow(0, 0, 1);
            let [tasks, d_input, d_output] = first.weight.1.dims();
            let flat = first.weight.1.clone().reshape([tasks, d_input * d_output]);
            let weight =
                first.weight.0.clone() + row.clone().matmul(flat).reshape([d_input, d_output]);
            expected.assert_close(
                &format!("{variant}.output.merged_row0.w1"),
                weight.transpose(),
                FORWARD,
            );
            let bias = second.bias.0.clone() + row.matmul(second.bias.1.clone()).squeeze_dim(0);
            expected.assert_close(&format!("{variant}.output.merged_row0.b2"), bias, FORWARD);
            site.check(variant, || {
                let (h, gates) = hidden();
                let inner = silu(first.forward(h, gates.clone()));
                second.forward(inner, gates)
            });
        }
    }
}

#[test]
fn golden_e_wemoe() {
    for case in cases("e_wemoe") {
        let site = Site::read(&case);
        let quantile = case.number("case.json", &["hyper", "quantile"]);
        let blocks = case.number("case.json", &["hyper", "blocks"]) as usize;
        let (mut parts, mut kept) = (Vec::new(), Vec::new());
        for block in 0..blocks {
            let part =
                |number| Part::read(&site.expected, block, number, &site.device).cut(quantile);
            let [(first, left), (second, rest)] = [part(1), part(2)];
            kept.extend(left.into_iter().chain(rest));
            parts.push([first, second]);
        }
        let counted = site.expected.ints("row.output.kept_entries");
        assert_eq!(counted, kept, "{}", case.name);
        let forward = || {
            let (mut h, mut gates) = (site.x.clone(), Vec::new());
            for [first, second] in &parts {
                let own = site.gates(h.clone());
                gates.push(own.clone().unsqueeze::<3>());
                let hidden = silu(first.forward(h.clone(), own.clone()));
                h = h + second.forward(hidden, own);
            }
            (h, Tensor::cat(gates, 0))
        };
        site.expected
            .assert_close("row.output.gate", forward().1, FORWARD);
        site.check("row", || forward().0);
    }
}

/// With a gate that gives every row the same, the experts of a site are what task arithmetic merges;
/// another gate gives each row a merge of its own, whatever its padding.
#[test]
fn a_gate_of_low_rank_experts_merges_them_for_each_row() {
    let device = molora_testkit::device();
    let draw = |name: &str| Seed::new(5).child(name);
    let weight: Tensor<2> = uniform([4, 6], 1.0, draw("w"), &device);
    let spec = AdapterSpec {
        bank: BankConfig {
            num_experts: 3,
            rank: 2,
            scaling: Scaling::Unit,
            ..BankConfig::default()
        },
        router: Some(config()),
        ..AdapterSpec::default()
    };
    let mut linear = crate::common::adapted(weight.clone(), None, &spec, 0, &device);
    let adapter = linear.adapter.as_mut().expect("attached");
    let b = uniform(adapter.bank.b.dims(), 1.0, draw("b"), &device);
    adapter.bank.b = crate::common::leaf(b);
    let x: Tensor<3> = uniform([2, 3, 6], 1.0, draw("x"), &device);
    let mask = Tensor::<2>::from_data([[1.0, 1.0, 1.0], [0.0, 1.0, 1.0]], &device);
    let context = ForwardContext::new(mask.clone());
    let adapter = linear.adapter.as_mut().expect("attached");
    let router = adapter.router.as_mut().expect("a gate");
    let Scorer::Perceptron(gate) = &mut router.scorer else {
        panic!("the gate is a network");
    };
    for matrix in [&mut gate.hidden, &mut gate.weight] {
        let large = uniform(matrix.dims(), 1.0, draw("gate"), &device);
        *matrix = Param::from_tensor(large);
    }
    let zeroed = |linear: &MoLoraLinear| {
        let mut linear = linear.clone();
        let router = linear.adapter.as_mut().and_then(|a| a.router.as_mut());
        if let Some(Scorer::Perceptron(gate)) = router.map(|router| &mut router.scorer) {
            let zeros = gate.weight.val().zeros_like();
            gate.weight = Param::from_tensor(zeros);
        }
        linear
    };
    let (y, _) = zeroed(&linear).forward(x.clone(), &context, None);
    let bank = &linear.adapter.as_ref().expect("attached").bank;
    let delta = bank.weight_delta(Tensor::full([3], 0.3, &device));
    let merged = weight.clone().transpose() + delta;
    assert_close(
        y,
        x.clone().matmul(merged.unsqueeze()),
        FORWARD,
        "task arithmetic",
    );

    let (y, route) = linear.forward(x.clone(), &context, None);
    let gates = route.expect("routed").routed.weights;
    assert_eq!(gates.dims(), [2, 1, 3]);
    for row in 0..2 {
        let own = gates.clone().narrow(0, row, 1).reshape([3]);
        let merged = weight.clone().transpose() + bank.weight_delta(own);
        let expected = x.clone().narrow(0, row, 1).matmul(merged.unsqueeze());
        assert_close(y.clone().narrow(0, row, 1), expected, FORWARD, "a row");
    }
}
