//! Gini impurity of each sequence's decisions together. Hard-Routed MoR-LoRA, arXiv:2606.31413.

use burn::tensor::Tensor;
use molora_routing::RouterOutput;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{Need, SiteView, TermNumbers};
use crate::Reduction;

/// See [`sequence_gini`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
pub struct SequenceGini;

impl TermNumbers for SequenceGini {
    fn needs(&self) -> &'static [Need] {
        &[Need::Router]
    }

    fn at(&self, site: &SiteView<'_>, reduction: Reduction) -> Option<Tensor<1>> {
        site.balanced()
            .map(|routed| sequence_gini(routed, reduction))
    }
}

/// Gini impurity `1 - sum_e q_e^2`, where `q` is the mean of the routers' softmax over the decisions of
/// one sequence that count: the mean over sequences, or their sum. Sequences without such a decision are
/// left out.
///
/// The paper takes `q` as the mean over layers too; here each site counts for itself.
///
/// # Shapes
/// - returns `[1]`
///
/// # Source
/// Hard-Routed MoR-LoRA, arXiv:2606.31413.
pub fn sequence_gini(routed: &RouterOutput, reduction: Reduction) -> Tensor<1> {
    let shape = routed.probs.dims();
    let counted = routed.counted.clone().unsqueeze_dim::<3>(2);
    let is_padding = counted.clone().equal_elem(0.0).expand(shape);
    let mass_b1e = routed.probs.clone().mask_fill(is_padding, 0.0).sum_dim(1);
    let count_b11 = counted.sum_dim(1);
    let has_any = count_b11.clone().greater_elem(0.0).float();
    let mean_b1e = mass_b1e / count_b11.clamp_min(1.0);
    let sequences = has_any.sum();
    // A sequence without decisions has no mass and adds nothing.
    let total = sequences.clone() - mean_b1e.square().sum();
    match reduction {
        Reduction::Mean => total / sequences.clamp_min(1.0),
        Reduction::Sum => total,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use burn::tensor::activation::softmax;
    use molora_routing::Weighed;
    use molora_testkit::{FORWARD, assert_close};

    /// Two sure tokens for different experts make a mixed sequence; one that counts makes a pure one.
    #[test]
    fn a_sequence_is_pure_if_its_tokens_agree() {
        let device = molora_testkit::device();
        let tokens = [[90.0, 0.0], [0.0, 90.0]];
        let logits = Tensor::<3>::from_data([tokens; 3], &device);
        let weighed = Weighed::new(softmax(logits.clone(), 2), None);
        let counted = Tensor::from_data([[1.0, 1.0], [1.0, 0.0], [0.0, 0.0]], &device);
        let routed = RouterOutput::new(logits, weighed, counted);
        assert_close(
            sequence_gini(&routed, Reduction::Mean),
            [0.25],
            FORWARD,
            "mean",
        );
        assert_close(
            sequence_gini(&routed, Reduction::Sum),
            [0.5],
            FORWARD,
            "sum",
        );
    }
}
