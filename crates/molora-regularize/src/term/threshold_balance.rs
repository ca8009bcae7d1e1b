//! Load balance of what exceeds a learned threshold. AdaMoLE, arXiv:2405.00361.

use burn::tensor::Tensor;
use molora_routing::RouterOutput;
use molora_routing::normaliser::Learned;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{Need, SiteView, TermNumbers};
use crate::Reduction;

/// See [`threshold_balance`]; needs a router with a learned threshold, and has no reduction.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
pub struct ThresholdBalance;

impl TermNumbers for ThresholdBalance {
    fn needs(&self) -> &'static [Need] {
        &[Need::Router, Need::Learned(Learned::Threshold)]
    }

    fn at(&self, site: &SiteView<'_>, _reduction: Reduction) -> Option<Tensor<1>> {
        let routed = site.balanced()?;
        let threshold = routed.learned.clone()?;
        Some(threshold_balance(routed, threshold))
    }
}

/// Load-balancing loss `E sum_e f_e mean(p_e - theta)`.
///
/// `f_e` is the share of decisions that selected expert `e` (no gradient), `p_e` the router's probability
/// and `theta` the threshold of the decision; the mean is over all decisions that count, whether or not
/// they selected `e`.
///
/// # Shapes
/// - `threshold`: `[B, T', 1]`
/// - returns `[1]`
///
/// # Source
/// AdaMoLE, Liu and Luo, arXiv:2405.00361, and its code.
pub fn threshold_balance(routed: &RouterOutput, threshold: Tensor<3>) -> Tensor<1> {
    let decisions = routed.num_decisions();
    let share = (routed.selection_counts() / decisions.clone()).detach();
    let above = routed.sum_counted(routed.probs.clone() - threshold) / decisions;
    (share * above)
        .sum()
        .mul_scalar(routed.num_experts() as f64)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::load_balance;
    use crate::term::testing::{LOGITS, routed};
    use molora_routing::Selection;
    use molora_testkit::{FORWARD, assert_close};

    #[test]
    fn without_a_threshold_it_is_the_load_balance() {
        let logits = Tensor::<3>::from_data(LOGITS, &molora_testkit::device());
        let routed = routed(logits, Selection::TopK(2));
        let zero = Tensor::zeros([1, 4, 1], &routed.probs.device());
        let expected = load_balance(&routed, Reduction::Sum);
        assert_close(
            threshold_balance(&routed, zero),
            expected.clone(),
            FORWARD,
            "theta 0",
        );
        // Every expert's mean falls by theta: E theta sum f, with two selections of four experts.
        let theta = Tensor::full([1, 4, 1], 0.1, &routed.probs.device());
        let expected = expected.sub_scalar(0.8);
        assert_close(
            threshold_balance(&routed, theta),
            expected,
            FORWARD,
            "theta 0.1",
        );
    }
}
