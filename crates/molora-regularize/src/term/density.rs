//! A pull towards fewer experts by a learned sparsity. LD-MoLE, arXiv:2509.25684.

use burn::tensor::Tensor;
use molora_routing::RouterOutput;
use molora_routing::normaliser::Learned;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{Need, SiteView, TermNumbers};
use crate::Reduction;

/// See [`density`]; skips sites whose normaliser learns nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
pub struct Density;

impl TermNumbers for Density {
    fn needs(&self) -> &'static [Need] {
        &[Need::Router, Need::Learned(Learned::Sparsity)]
    }

    fn at(&self, site: &SiteView<'_>, reduction: Reduction) -> Option<Tensor<1>> {
        density(site.balanced()?, reduction)
    }
}

/// `1 - lambda` over the decisions that count, as their mean or sum; `None` if the normaliser learns
/// no lambda.
///
/// # Shapes
/// - returns `[1]`
///
/// # Source
/// Released code of LD-MoLE, Zhuang et al., arXiv:2509.25684.
pub fn density(routed: &RouterOutput, reduction: Reduction) -> Option<Tensor<1>> {
    let lambda = routed.learned.clone()?;
    let total = routed.sum_counted(lambda.neg().add_scalar(1.0));
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
    fn padding_does_not_count() {
        let device = molora_testkit::device();
        let logits = Tensor::<3>::zeros([1, 3, 2], &device);
        let lambda = Tensor::<3>::from_data([[[0.5], [-1.0], [9.0]]], &device);
        let counted = Tensor::from_data([[1.0, 1.0, 0.0]], &device);
        let weighed = Weighed::new(logits.clone(), None);
        let plain = RouterOutput::new(logits.clone(), weighed.clone(), counted.clone());
        assert!(density(&plain, Reduction::Mean).is_none());
        let routed = RouterOutput::new(logits, weighed.with_learned(lambda), counted);
        let found = density(&routed, Reduction::Mean).expect("learned");
        assert_close(found, [1.25], FORWARD, "mean");
    }
}
