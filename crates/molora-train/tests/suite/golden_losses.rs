//! Routing losses and weight penalties as functions of logits and weights, against their equations
//! in float64: every variant that a case has, with its gradients.

use crate::cases::cases;
use crate::common::leaf;
use burn::tensor::activation::softmax;
use burn::tensor::{Device, Tensor};
use molora_adapters::{BankConfig, ExpertBank, SiteDims, task_selector};
use molora_kernels::random::Seed;
use molora_regularize::{
    Reduction, TaskInformation, across_experts, balance_literal, balance_mass, key_matching, l2,
    load_balance, mass_variation, orthogonality, output_cosine, router_entropy, router_z_loss,
    task_information,
};
use molora_routing::{RouterOutput, Selection};
use molora_testkit::golden::{Case, Tensors};
use molora_testkit::{FORWARD, GRADIENT, assert_close, autodiff_device};

/// The names of a case's variants.
fn variants(case: &Case) -> Vec<String> {
    let document = case.json("case.json").expect("found by it");
    let variants = document["variants"].as_object().expect("variants");
    variants.keys().cloned().collect()
}

/// What the penalties of a case read.
struct Site {
    bank: ExpertBank,
    keys: Tensor<2>,
    x: Tensor<3>,
    mask: Tensor<2>,
}

impl Site {
    fn new(expected: &Tensors, device: &Device) -> Self {
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
        let b_ero = expected.tensor::<3>("param.B", device).swap_dims(1, 2);
        bank.b = leaf(b_ero.reshape([num_experts * rank, d_output]));
        Self {
            bank,
            keys: expected.tensor::<2>("param.keys", device).require_grad(),
            x: expected.tensor::<3>("input.x", device).require_grad(),
            mask: expected.tensor("input.mask", device),
        }
    }

    /// The penalty of a variant, and what the case calls its value: `orthogonality` is two variants,
    /// which read `A` and `B` alone.
    fn penalty(&self, variant: &str) -> (Tensor<1>, Vec<String>) {
        let (bank, mean, sum) = (&self.bank, Reduction::Mean, Reduction::Sum);
        let value = match variant {
            "orth_down_mean" | "orth_up_mean" => orthogonality(bank, mean),
            "orth_down_sum" | "orth_up_sum" => orthogonality(bank, sum),
            "across_l1" => across_experts(bank, sum),
            "output_cos2" => output_cosine(bank, self.x.clone(), self.mask.clone(), mean),
            "key_match" => key_matching(self.keys.clone(), bank, mean),
            "l2" => l2(bank, sum),
            other => panic!("no penalty is known as {other}"),
        };
        let parts = match variant.strip_prefix("orth_") {
            Some(rest) => {
                let (_, reduction) = rest.split_once('_').expect("side and reduction");
                vec![
                    format!("orth_down_{reduction}"),
                    format!("orth_up_{reduction}"),
                ]
            }
            None => vec![variant.to_owned()],
        };
        (value, parts)
    }

    /// Gradients in the case's layout by the case's names, where the value reaches them.
    fn check_gradients(&self, variant: &str, value: &Tensor<1>, expected: &Tensors) {
        let gradients = value.backward();
        let (experts, rank) = (self.bank.num_experts(), self.bank.rank());
        let wanted = |name: &str| {
            let name = format!("{variant}.grad.{name}");
            expected.has(&name).then_some(name)
        };
        if let Some(name) = wanted("A") {
            let a = self.bank.a.val().grad(&gradients).expect("tracked");
            let a = a.reshape([-1, experts as i32, rank as i32]);
            expected.assert_close(&name, a.permute([1, 2, 0]), GRADIENT);
        }
        if let Some(name) = wanted("B") {
            let b = self.bank.b.val().grad(&gradients).expect("tracked");
            let b = b.reshape([experts as i32, rank as i32, -1]);
            expected.assert_close(&name, b.swap_dims(1, 2), GRADIENT);
        }
        if let Some(name) = wanted("keys") {
            let keys = self.keys.grad(&gradients).expect("tracked");
            expected.assert_close(&name, keys, GRADIENT);
        }
        if let Some(name) = wanted("x") {
            expected.assert_close(&name, self.x.grad(&gradients).expect("tracked"), GRADIENT);
        }
    }
}

#[test]
fn golden_methods_weight_regularizers() {
    let device = autodiff_device();
    for case in cases("weight_regularizers") {
        let expected = case.tensors();
        for variant in variants(&case) {
            let site = Site::new(&expected, &device);
            let (value, parts) = site.penalty(&variant);
            let part = |name: &String| {
                expected.tensor::<1>(&format!("{name}.aux.value"), &device.clone().inner())
            };
            let whole = parts.iter().map(part).reduce(|sum, part| sum + part);
            let whole = whole.expect("one or two parts");
            assert_close(value.clone().inner(), whole, FORWARD, &variant);
            site.check_gradients(&variant, &value, &expected);
        }
    }
}

/// The loss of a variant; `tasks` picks each row's task.
fn routing_loss(
    variant: &str,
    routed: &dyn Fn(usize) -> RouterOutput,
    top_k: usize,
    tasks: Tensor<2>,
) -> Tensor<1> {
    let (mean, sum) = (Reduction::Mean, Reduction::Sum);
    match variant {
        "switch_top1" => load_balance(&routed(1), mean),
        "switch_mixtral" => load_balance(&routed(top_k), sum),
        "switch_normalised" => load_balance(&routed(top_k), mean),
        "mass" => balance_mass(&routed(top_k), sum),
        "literal" => balance_literal(&routed(top_k), sum),
        "z_loss" => router_z_loss(&routed(top_k), mean),
        "entropy" => router_entropy(&routed(top_k), mean),
        "cv2_mass" => mass_variation(&routed(top_k)),
        "mutual_info" => task_information(&routed(top_k), tasks, TaskInformation::default()),
        other => panic!("no loss is known as {other}"),
    }
}

#[test]
fn golden_methods_routing_losses() {
    let device = autodiff_device();
    for case in cases("routing_losses") {
        let expected = case.tensors();
        let hyper = |name| case.number("case.json", &["hyper", name]) as usize;
        let rows: Vec<_> = expected
            .ints("input.task")
            .iter()
            .map(|&task| usize::try_from(task).ok())
            .collect();
        let tasks = task_selector(&rows, hyper("tasks"), &device).expect("in range");
        for variant in variants(&case) {
            let logits = expected.tensor::<3>("input.x", &device).require_grad();
            let routed = |top_k| {
                let probs = softmax(logits.clone(), 2);
                let weighed = Selection::TopK(top_k).weigh(&logits, &probs);
                let counted = expected.tensor("input.mask", &device);
                RouterOutput::new(logits.clone(), weighed, counted)
            };
            let value = routing_loss(&variant, &routed, hyper("top_k"), tasks.clone());
            expected.assert_close(&format!("{variant}.aux.value"), value.clone(), FORWARD);
            let gradient = logits.grad(&value.backward()).expect("tracked");
            expected.assert_close(&format!("{variant}.grad.x"), gradient, GRADIENT);
        }
    }
}
