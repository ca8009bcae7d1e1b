//! What routing tells about tasks.

use burn::tensor::Tensor;
use molora_routing::RouterOutput;

/// Smallest probability inside a logarithm; 0 ln 0 counts as 0.
const PROBABILITY_FLOOR: f64 = 1e-30;

/// Minus the mutual information of task and expert in nats, `-sum P(t, e) ln (P(t, e) / P(t) P(e))`.
///
/// `P(t, e)` is the routers' probability of expert `e` over the decisions that count in sequences of
/// task `t`, as a share of all of it. 0 if routing does not depend on the task; it falls as each task
/// has experts of its own. Tasks that are absent add nothing.
///
/// # Shapes
/// - `tasks`: rows that pick each sequence's task, `[B, tasks]`
/// - returns `[1]`
///
/// # Source
/// Mod-Squad, Chen et al., arXiv:2212.08066, section 3.2, without an epsilon in the logarithm.
pub fn task_information(routed: &RouterOutput, tasks: Tensor<2>) -> Tensor<1> {
    let counted_bt1 = routed.counted.clone().unsqueeze_dim::<3>(2);
    let [batch, _, experts] = routed.probs.dims();
    let is_padding = counted_bt1
        .clone()
        .equal_elem(0.0)
        .expand(routed.probs.dims());
    let probs = (routed.probs.clone() * counted_bt1).mask_fill(is_padding, 0.0);
    let mass_be = probs.sum_dim(1).reshape([batch, experts]);
    let joint_te = tasks.transpose().matmul(mass_be) / routed.num_decisions().unsqueeze();
    let of_task = joint_te.clone().sum_dim(1);
    let of_expert = joint_te.clone().sum_dim(0);
    let ln = |values: Tensor<2>| values.clamp_min(PROBABILITY_FLOOR).log();
    let shape = joint_te.dims();
    let apart = ln(of_task).expand(shape) + ln(of_expert).expand(shape);
    (joint_te.clone() * (apart - ln(joint_te))).sum()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Reduction, mass_variation, router_entropy};
    use burn::tensor::activation::softmax;
    use molora_testkit::{FORWARD, assert_close};

    /// Two sequences of one decision each.
    fn routed(logits: [[[f32; 2]; 1]; 2]) -> RouterOutput {
        let logits = Tensor::<3>::from_data(logits, &molora_testkit::device());
        let probs = softmax(logits.clone(), 2);
        RouterOutput {
            weights: probs.clone(),
            selected: None,
            counted: Tensor::ones([2, 1], &logits.device()),
            logits,
            probs,
        }
    }

    #[test]
    fn uniform_routers_are_undecided_even_and_blind_to_tasks() {
        let uniform = routed([[[3.0, 3.0]], [[-1.0, -1.0]]]);
        let entropy = router_entropy(&uniform, Reduction::Mean);
        assert_close(entropy, [2.0_f32.ln()], FORWARD, "entropy");
        assert_close(mass_variation(&uniform), [0.0], 0.0, "variation");
        let tasks = Tensor::from_data([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]], &uniform.probs.device());
        assert_close(
            task_information(&uniform, tasks),
            [0.0],
            1e-6,
            "information",
        );
    }

    #[test]
    fn an_expert_for_each_task_tells_all_about_the_task() {
        let sharp = routed([[[40.0, 0.0]], [[0.0, 40.0]]]);
        let entropy = router_entropy(&sharp, Reduction::Sum);
        assert_close(entropy, [0.0], 1e-6, "entropy");
        let tasks = Tensor::from_data([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]], &sharp.probs.device());
        let found = task_information(&sharp, tasks);
        assert_close(found, [-2.0_f32.ln()], FORWARD, "information");
        let one = routed([[[40.0, 0.0]], [[40.0, 0.0]]]);
        assert_close(mass_variation(&one), [2.0], FORWARD, "variation");
    }
}
