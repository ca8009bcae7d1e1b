//! Load balance by the weights themselves. LD-MoLE, arXiv:2509.25684.

use burn::tensor::Tensor;
use molora_routing::RouterOutput;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{Need, SiteView, TermNumbers};
use crate::Reduction;

/// See [`balance_weights`]; skips sites of one expert and has no reduction.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
pub struct BalanceWeights;

impl TermNumbers for BalanceWeights {
    fn needs(&self) -> &'static [Need] {
        &[Need::Router]
    }

    fn at(&self, site: &SiteView<'_>, _reduction: Reduction) -> Option<Tensor<1>> {
        site.balanced().map(balance_weights)
    }
}

/// Load-balancing loss `E * sum_e f_e * P_e` for normalisers that give exact zeros.
///
/// `f_e` is the share of all selections that went to expert `e` (no gradient) and `P_e` its mean
/// weight. 1 if experts are selected and weighed alike.
///
/// # Shapes
/// - returns `[1]`
///
/// # Source
/// Zhuang et al., LD-MoLE, arXiv:2509.25684, section 3.3.
pub fn balance_weights(routed: &RouterOutput) -> Tensor<1> {
    let counts = routed.selection_counts();
    let shares = (counts.clone() / counts.sum().clamp_min(1.0)).detach();
    let mean = routed.sum_counted(routed.weights.clone()) / routed.num_decisions();
    (shares * mean)
        .sum()
        .mul_scalar(routed.num_experts() as f64)
}

#[cfg(test)]
mod tests {
    use super::*;
    use molora_routing::normaliser::Weighed;
    use molora_testkit::{FORWARD, assert_close};

    #[test]
    fn values_that_can_be_checked_by_hand() {
        let device = molora_testkit::device();
        let loss = |weights: [[[f32; 2]; 2]; 1]| {
            let weights = Tensor::<3>::from_data(weights, &device);
            let selected = weights.clone().greater_elem(0.0);
            let weighed = Weighed::new(weights.clone(), Some(selected));
            let counted = Tensor::ones([1, 2], &device);
            balance_weights(&RouterOutput::new(weights, weighed, counted))
        };
        let even = loss([[[1.0, 0.0], [0.0, 1.0]]]);
        assert_close(even, [1.0], FORWARD, "each token another expert");
        let one = loss([[[1.0, 0.0], [1.0, 0.0]]]);
        assert_close(one, [2.0], FORWARD, "always the same");
        // Shares 2/3 and 1/3, mean weights 0.8 and 0.2.
        let mixed = loss([[[1.0, 0.0], [0.6, 0.4]]]);
        assert_close(mixed, [2.0 * (1.6 + 0.2) / 3.0], FORWARD, "mixed");
    }
}
