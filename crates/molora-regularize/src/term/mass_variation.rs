//! Variation of the experts' probability mass. arXiv:1701.06538.

use burn::tensor::Tensor;
use molora_routing::RouterOutput;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{Need, SiteView, TermNumbers};
use crate::Reduction;

/// See [`mass_variation`]; skips sites of one expert and has no reduction.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
pub struct MassVariation;

impl TermNumbers for MassVariation {
    fn needs(&self) -> &'static [Need] {
        &[Need::Router]
    }

    fn at(&self, site: &SiteView<'_>, _reduction: Reduction) -> Option<Tensor<1>> {
        site.balanced().map(mass_variation)
    }
}

/// Added to the squared mean of the mass, so that an empty batch divides by something.
const MEAN_EPSILON: f64 = 1e-10;

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
