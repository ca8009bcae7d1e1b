//! What routing tells about tasks. Mod-Squad, arXiv:2212.08066.

use burn::tensor::Tensor;
use molora_routing::RouterOutput;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{Need, SiteView, TermNumbers};
use crate::Reduction;

/// See [`task_information`]; has no reduction. A batch of one task has nothing to tell.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct TaskInformation {
    /// Added to every probability; that of Mod-Squad's gates is 1e-4.
    pub floor: f64,
    /// Added inside the logarithm; Mod-Squad's code has 1e-4.
    pub epsilon: f64,
}

impl TermNumbers for TaskInformation {
    fn needs(&self) -> &'static [Need] {
        &[Need::Router, Need::Tasks]
    }

    fn problem(&self) -> Option<String> {
        let numbers = [("floor", self.floor), ("epsilon", self.epsilon)];
        let wrong = numbers
            .into_iter()
            .find(|(_, value)| !(value.is_finite() && *value >= 0.0));
        wrong.map(|(field, value)| {
            format!("{field} is {value}, expected a finite number of at least 0")
        })
    }

    fn at(&self, site: &SiteView<'_>, _reduction: Reduction) -> Option<Tensor<1>> {
        let (routed, tasks) = (site.balanced()?, site.tasks.clone()?);
        Some(task_information(routed, tasks, *self))
    }
}

/// Minus the mutual information of task and expert in nats,
/// `-sum P(t, e) ln (P(t, e) / (P(t) P(e)) + epsilon)`.
///
/// `P(t, e)` is the routers' probability of expert `e`, plus the floor, over the decisions that count in
/// sequences of task `t`, as a share of all of it. 0 if routing does not depend on the task; it falls as
/// each task has experts of its own. Tasks that are absent add nothing.
///
/// # Shapes
/// - `tasks`: rows that pick each sequence's task, `[B, tasks]`
/// - returns `[1]`
///
/// # Source
/// Mod-Squad, Chen et al., arXiv:2212.08066, section 3.2.
pub fn task_information(
    routed: &RouterOutput,
    tasks: Tensor<2>,
    config: TaskInformation,
) -> Tensor<1> {
    let shape = routed.probs.dims();
    let [batch, _, experts] = shape;
    let counted = routed.counted.clone().unsqueeze_dim::<3>(2);
    let is_padding = counted.equal_elem(0.0).expand(shape);
    let probs = routed.probs.clone().add_scalar(config.floor);
    let mass_be = probs.mask_fill(is_padding, 0.0).sum_dim(1);
    let mass_te = tasks.transpose().matmul(mass_be.reshape([batch, experts]));
    let of_one = 1.0 + config.floor * experts as f64;
    let joint = mass_te / routed.num_decisions().mul_scalar(of_one).unsqueeze();
    let apart = joint.clone().sum_dim(1) * joint.clone().sum_dim(0);
    // Where a task is absent, or an expert's mass underflows, 0 ln 0 counts as 0.
    let is_absent = apart.clone().lower_equal_elem(0.0);
    let ratio = joint.clone().mask_fill(is_absent.clone(), 1.0) / apart.mask_fill(is_absent, 1.0);
    let ratio = ratio
        .add_scalar(config.epsilon)
        .clamp_min(PROBABILITY_FLOOR);
    (joint * ratio.log()).sum().neg()
}

/// Smallest number that a logarithm is taken of.
const PROBABILITY_FLOOR: f64 = 1e-30;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{mass_variation, router_entropy};
    use burn::tensor::activation::softmax;
    use molora_routing::Weighed;
    use molora_testkit::{FORWARD, assert_close};

    /// Two sequences of one decision each.
    fn routed(logits: [[[f32; 2]; 1]; 2]) -> RouterOutput {
        let logits = Tensor::<3>::from_data(logits, &molora_testkit::device());
        let probs = softmax(logits.clone(), 2);
        let counted = Tensor::ones([2, 1], &logits.device());
        RouterOutput::new(logits, Weighed::new(probs, None), counted)
    }

    #[test]
    fn uniform_routers_are_undecided_even_and_blind_to_tasks() {
        let uniform = routed([[[3.0, 3.0]], [[-1.0, -1.0]]]);
        let entropy = router_entropy(&uniform, Reduction::Mean);
        assert_close(entropy, [2.0_f32.ln()], FORWARD, "entropy");
        assert_close(mass_variation(&uniform), [0.0], 0.0, "variation");
        let tasks = Tensor::from_data([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]], &uniform.probs.device());
        assert_close(
            task_information(&uniform, tasks, TaskInformation::default()),
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
        let found = task_information(&sharp, tasks, TaskInformation::default());
        assert_close(found, [-2.0_f32.ln()], FORWARD, "information");
        let one = routed([[[40.0, 0.0]], [[40.0, 0.0]]]);
        assert_close(mass_variation(&one), [2.0], FORWARD, "variation");
    }
}
