//! Losses on how the routers' probability is spread over experts and tasks.

use burn::tensor::Tensor;
use burn::tensor::activation::log_softmax;
use molora_routing::RouterOutput;

use crate::Reduction;

/// Added to the squared mean of the mass, so that an empty batch divides by something.
const MEAN_EPSILON: f64 = 1e-10;

/// Smallest probability inside a logarithm; 0 ln 0 counts as 0.
const PROBABILITY_FLOOR: f64 = 1e-30;

/// Entropy `-sum_e p_e ln p_e` of the routers' softmax in nats: the mean over the decisions that
/// count, or their sum. Between 0 (one expert has it all) and `ln E` (uniform).
///
/// # Shapes
/// - returns `[1]`
pub fn router_entropy(routed: &RouterOutput, reduction: Reduction) -> Tensor<1> {
    let surprise = log_softmax(routed.logits.clone(), 2).neg();
    let total = routed.sum_counted(routed.probs.clone() * surprise).sum();
    match reduction {
        Reduction::Mean => total / routed.num_decisions(),
        Reduction::Sum => total,
    }
}

/// Squared coefficient of variation of the experts' probability mass over the decisions that count:
/// unbiased variance over experts, divided by the squared mean. 0 if all experts have the same mass,
/// `E` if one has it all; 0 for a single expert.
///
/// # Shapes
/// - returns `[1]`
///
/// # Source
/// Shazeer et al., Sparsely-Gated Mixture-of-Experts, arXiv:1701.06538, eq. 6.
pub fn mass_variation(routed: &RouterOutput) -> Tensor<1> {
    let mass_e = routed.sum_counted(routed.probs.clone());
    let mean = mass_e.clone().mean();
    let square = (mass_e - mean.clone()).square().sum();
    let others = routed.num_experts().saturating_sub(1).max(1);
    square.div_scalar(others as f64) / mean.square().add_scalar(MEAN_EPSILON)
}

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
