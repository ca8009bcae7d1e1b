//! Cross-entropy of the routers with each sequence's own expert. arXiv:2403.03432.

use burn::tensor::{Tensor, activation::log_softmax};
use molora_routing::RouterOutput;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{Need, SiteView, TermNumbers};
use crate::Reduction;

/// See [`domain_cross_entropy`]; needs, for each sequence, the label of its expert.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
pub struct DomainCrossEntropy;

impl TermNumbers for DomainCrossEntropy {
    fn needs(&self) -> &'static [Need] {
        &[Need::Router, Need::Labels]
    }

    fn at(&self, site: &SiteView<'_>, reduction: Reduction) -> Option<Tensor<1>> {
        let labels = site.labels.clone()?;
        Some(domain_cross_entropy(site.routed?, labels, reduction))
    }
}

/// Cross-entropy of the routers' softmax with each sequence's own expert.
///
/// Mean over the decisions that count of `-log p_d`, where `d` is the expert that `labels` names for
/// the decision's sequence; sequences without a label are left out. [`Reduction::Sum`] adds the
/// decisions up. 0 if no decision has a label.
///
/// # Shapes
/// - `labels`: one-hot rows `[B, E]`, zeros for a sequence without a label
/// - returns `[1]`
///
/// # Source
/// Mixture-of-LoRAs, Feng et al., arXiv:2403.03432, section 3.
pub fn domain_cross_entropy(
    routed: &RouterOutput,
    labels: Tensor<2>,
    reduction: Reduction,
) -> Tensor<1> {
    let [_, decisions, _] = routed.logits.dims();
    let [batch, _] = labels.dims();
    let has_label_b1 = labels.clone().sum_dim(1);
    let log_probs = log_softmax(routed.logits.clone(), 2);
    let negative_bt = (log_probs * labels.unsqueeze_dim(1))
        .sum_dim(2)
        .reshape([batch, decisions])
        .neg();
    let counted_bt = routed.counted.clone() * has_label_b1;
    let total = (negative_bt * counted_bt.clone()).sum();
    match reduction {
        Reduction::Sum => total,
        Reduction::Mean => total / counted_bt.sum().clamp_min(1.0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use burn::tensor::activation::softmax;
    use molora_routing::Weighed;
    use molora_testkit::{FORWARD, assert_close};

    #[test]
    fn domain_cross_entropy_of_the_worked_example() {
        let device = molora_testkit::device();
        // Two sequences with one decision each, the last without a label.
        let logits = [[[0.15, 0.55, 0.55]], [[7.0, -3.0, 1.0]]];
        let logits = Tensor::<3>::from_data(logits, &device);
        let probs = softmax(logits.clone(), 2);
        let counted = Tensor::ones([2, 1], &device);
        let routed = RouterOutput::new(logits, Weighed::new(probs, None), counted);
        let labels = Tensor::from_data([[0.0, 1.0, 0.0], [0.0; 3]], &device);
        for reduction in [Reduction::Mean, Reduction::Sum] {
            let loss = domain_cross_entropy(&routed, labels.clone(), reduction);
            assert_close(loss, [0.982198], FORWARD, "one label");
        }
        let none = Tensor::zeros([2, 3], &device);
        let loss = domain_cross_entropy(&routed, none, Reduction::Mean);
        assert_close(loss, [0.0], 0.0, "no label");
    }
}
