//! Control of how many experts a learned sparsity keeps. LD-MoLE, arXiv:2509.25684.

use burn::tensor::Tensor;
use molora_routing::RouterOutput;
use molora_routing::normaliser::Learned;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{Need, SiteView, TermNumbers};
use crate::Reduction;

/// See [`sparsity`]; skips sites whose normaliser learns nothing or that have no more experts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Sparsity {
    /// A decision for more experts than this costs.
    pub experts: usize,
}

impl Default for Sparsity {
    /// That of the released code.
    fn default() -> Self {
        Self { experts: 2 }
    }
}

impl TermNumbers for Sparsity {
    fn needs(&self) -> &'static [Need] {
        &[Need::Router, Need::Learned(Learned::Sparsity)]
    }

    fn problem(&self) -> Option<String> {
        (self.experts == 0).then(|| "experts is 0, expected at least 1".into())
    }

    fn at(&self, site: &SiteView<'_>, reduction: Reduction) -> Option<Tensor<1>> {
        let routed = site.balanced()?;
        sparsity(routed, self.experts, reduction)
    }
}

/// `max(0, L - lambda)` over the decisions that count, as their mean or sum, where `L` is the least
/// lambda that keeps no more than k experts:
/// `L = 1 - (u_(1) + .. + u_(k) - k u_(k+1))` for logits u from the largest down, without gradient.
///
/// `None` if the normaliser learns no lambda, or there are no more than k experts.
///
/// # Shapes
/// - returns `[1]`
///
/// # Source
/// Zhuang et al., LD-MoLE, arXiv:2509.25684, section 3.3, with the bound of the released code.
pub fn sparsity(routed: &RouterOutput, k: usize, reduction: Reduction) -> Option<Tensor<1>> {
    let lambda = routed.learned.clone()?;
    if routed.num_experts() <= k {
        return None;
    }
    let sorted = routed.logits.clone().detach().sort_descending(2);
    let largest = sorted.clone().narrow(2, 0, k).sum_dim(2);
    let next = sorted.narrow(2, k, 1).mul_scalar(k as f64);
    let bound = (largest - next).neg().add_scalar(1.0);
    let total = routed.sum_counted((bound - lambda).clamp_min(0.0));
    Some(match reduction {
        Reduction::Mean => total / routed.num_decisions(),
        Reduction::Sum => total,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use molora_routing::normaliser::Weighed;
    use molora_testkit::{FORWARD, assert_close};

    #[test]
    fn a_decision_costs_what_lambda_lacks() {
        let device = molora_testkit::device();
        let logits = Tensor::<3>::from_data([[[0.5, 0.1, 0.4], [0.5, 0.1, 0.4]]], &device);
        let lambda = Tensor::<3>::from_data([[[0.9], [0.0]]], &device);
        let weighed = Weighed::new(logits.clone(), None).with_learned(lambda);
        let routed = RouterOutput::new(logits, weighed, Tensor::ones([1, 2], &device));
        // Two experts: L = 1 - (0.5 + 0.4 - 2 * 0.1) = 0.3, which 0.9 exceeds and 0 lacks.
        let found = sparsity(&routed, 2, Reduction::Mean).expect("three experts");
        assert_close(found, [0.15], FORWARD, "two experts");
        // One: L = 1 - (0.5 - 0.4) = 0.9.
        let found = sparsity(&routed, 1, Reduction::Sum).expect("three experts");
        assert_close(found, [0.9], FORWARD, "one expert");
        assert!(sparsity(&routed, 3, Reduction::Mean).is_none());
    }
}
