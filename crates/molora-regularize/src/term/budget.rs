//! How much is computed, of the model as a whole. Duo-LLM, Alizadeh et al., arXiv:2410.10846.

use burn::tensor::{Tensor, TensorData};
use molora_routing::RouterOutput;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{Need, SiteView, TermNumbers};
use crate::Reduction;

/// See [`mean_cost`]: the squared distance of the mean cost over the whole model from a target, so that
/// layers may share the budget unevenly. It has no reduction within a site, and needs `over_sites = "mean"`.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Budget {
    /// The mean cost that is aimed at, from 0 (always the expert that costs nothing) to 1 (always the
    /// largest).
    pub target: f64,
}

impl Default for Budget {
    fn default() -> Self {
        Self { target: 0.5 }
    }
}

impl TermNumbers for Budget {
    fn needs(&self) -> &'static [Need] {
        &[Need::Router, Need::Costs]
    }

    fn problem(&self) -> Option<String> {
        let target = self.target;
        let is_valid = (0.0..=1.0).contains(&target);
        (!is_valid).then(|| format!("target is {target}, expected a number from 0 to 1"))
    }

    fn at(&self, site: &SiteView<'_>, _reduction: Reduction) -> Option<Tensor<1>> {
        Some(mean_cost(site.routed?, &site.bank.costs()?))
    }

    fn is_of_model(&self) -> bool {
        true
    }

    fn of_model(&self, cost: Tensor<1>) -> Tensor<1> {
        cost.sub_scalar(self.target).square()
    }
}

/// The mean over decisions of `sum_e p_e c_e`, with the cost of each expert relative to the largest, `[1]`.
///
/// # Panics
/// If there is not a cost for each expert.
pub fn mean_cost(routed: &RouterOutput, costs: &[f64]) -> Tensor<1> {
    assert_eq!(routed.num_experts(), costs.len(), "a cost for each expert");
    let probs = routed.sum_counted(routed.probs.clone()) / routed.num_decisions();
    let costs: Vec<f32> = costs.iter().map(|&cost| cost as f32).collect();
    let costs = TensorData::new(costs, [probs.dims()[0]]);
    (probs.clone() * Tensor::from_data(costs, &probs.device())).sum()
}

#[cfg(test)]
mod tests {
    use super::*;
    use molora_routing::Weighed;
    use molora_testkit::{FORWARD, assert_close};

    #[test]
    fn the_cost_is_that_of_decisions_that_count() {
        let device = molora_testkit::device();
        // Probabilities (1/4, 3/4) and, of padding, (1/2, 1/2).
        let logits = Tensor::<3>::from_data([[[0.0, 3.0_f32.ln()], [0.0, 0.0]]], &device);
        let weighed = Weighed::new(logits.clone(), None);
        let counted = Tensor::from_data([[1.0, 0.0]], &device);
        let routed = RouterOutput::new(logits, weighed, counted);
        assert_close(mean_cost(&routed, &[0.25, 1.0]), [0.8125], FORWARD, "cost");
    }
}
