//! Riemannian preconditioning against its equations in float64: preconditioned gradients, and steps of
//! plain gradient descent and of the released code's AdamW (no bias correction) taken with them.

use burn::tensor::{Device, Tensor};
use molora_adapters::{precondition_down, precondition_up};
use molora_testkit::{FORWARD, GRADIENT, device};

use crate::cases::cases;
use crate::golden_layer::Variant;

/// Moments of AdamW without bias correction.
struct Moments {
    first: Tensor<3>,
    second: Tensor<3>,
}

impl Moments {
    fn new(of: &Tensor<3>) -> Self {
        Self {
            first: of.zeros_like(),
            second: of.zeros_like(),
        }
    }

    fn step(&mut self, variant: &Variant, gradient: Tensor<3>) -> Tensor<3> {
        let betas = variant.list("betas");
        let mix = |old: &Tensor<3>, new: Tensor<3>, beta: f64| {
            old.clone().mul_scalar(beta) + new.mul_scalar(1.0 - beta)
        };
        self.first = mix(&self.first, gradient.clone(), betas[0]);
        self.second = mix(&self.second, gradient.square(), betas[1]);
        self.first.clone() / self.second.clone().sqrt().add_scalar(variant.number("eps"))
    }
}

/// `A` and `B` after the variant's steps.
fn stepped(variant: &Variant, device: &Device) -> [Tensor<3>; 2] {
    let expected = variant.expected;
    let (delta, rate) = (variant.number("delta"), variant.number("learning_rate"));
    let name = variant.key("");
    let (is_adamw, uses_old_a) = (name.starts_with("adamw"), name.starts_with("adamw_old_A"));
    let mut a = expected.tensor::<3>("param.A", device);
    let mut b = expected.tensor::<3>("param.B", device);
    let (mut of_a, mut of_b) = (Moments::new(&a), Moments::new(&b));
    for step in 1..=variant.number("steps") as usize {
        let gradient = |factor| expected.tensor(&format!("input.g{factor}{step}"), device);
        let old_a = a.clone();
        let p_a = precondition_down(b.clone(), gradient("A"), delta);
        let update = match is_adamw {
            true => of_a.step(variant, p_a),
            false => p_a,
        };
        a = a - update.mul_scalar(rate);
        // The released AdamW reads the A that it has just updated.
        let down = match is_adamw && !uses_old_a {
            true => a.clone(),
            false => old_a,
        };
        let p_b = precondition_up(down, gradient("B"), delta);
        let update = match is_adamw {
            true => of_b.step(variant, p_b),
            false => p_b,
        };
        b = b - update.mul_scalar(rate);
    }
    [a, b]
}

#[test]
fn golden_methods_riemannian_precondition() {
    let device = device();
    for case in cases("riemannian_precondition") {
        let (document, expected) = (case.json("case.json").expect("read"), case.tensors());
        for variant in Variant::all(&document, &expected) {
            if expected.has(&variant.key("output.A_next")) {
                let [a, b] = stepped(&variant, &device);
                expected.assert_close(&variant.key("output.A_next"), a, FORWARD);
                expected.assert_close(&variant.key("output.B_next"), b, FORWARD);
                continue;
            }
            let (a, mut b) = (
                expected.tensor("param.A", &device),
                expected.tensor::<3>("param.B", &device),
            );
            if variant.hyper("B").is_some() {
                b = b.zeros_like();
            }
            let delta = variant.number("delta");
            let p_a = precondition_down(b, expected.tensor("input.gA1", &device), delta);
            let p_b = precondition_up(a, expected.tensor("input.gB1", &device), delta);
            for (name, found) in [("preconditioned_A", p_a), ("preconditioned_B", p_b)] {
                let name = variant.key(&format!("output.{name}"));
                expected.assert_close(&name, found, GRADIENT);
            }
        }
    }
}
