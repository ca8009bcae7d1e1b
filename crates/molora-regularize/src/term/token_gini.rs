//! Gini impurity of each decision. Hard-Routed MoR-LoRA, arXiv:2606.31413.

use burn::tensor::Tensor;
use molora_routing::RouterOutput;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{Need, SiteView, TermNumbers};
use crate::Reduction;

/// See [`token_gini`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
pub struct TokenGini;

impl TermNumbers for TokenGini {
    fn needs(&self) -> &'static [Need] {
        &[Need::Router]
    }

    fn at(&self, site: &SiteView<'_>, reduction: Reduction) -> Option<Tensor<1>> {
        site.balanced().map(|routed| token_gini(routed, reduction))
    }
}

/// Gini impurity `1 - sum_e p_e^2` of the routers' softmax: the mean over the decisions that count, or
/// their sum. Between 0 (one expert has it all) and `1 - 1 / E` (uniform).
///
/// The paper takes `p` as the mean over layers; here each site counts for itself.
///
/// # Shapes
/// - returns `[1]`
///
/// # Source
/// Hard-Routed MoR-LoRA, arXiv:2606.31413.
pub fn token_gini(routed: &RouterOutput, reduction: Reduction) -> Tensor<1> {
    let decisions = routed.num_decisions();
    let total = decisions.clone() - routed.sum_counted(routed.probs.clone().square()).sum();
    match reduction {
        Reduction::Mean => total / decisions,
        Reduction::Sum => total,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::term::testing::routed;
    use molora_routing::Selection;
    use molora_testkit::{FORWARD, assert_close};

    #[test]
    fn one_expert_is_pure_and_a_uniform_router_is_not() {
        let logits = [[[0.0; 4], [90.0, 0.0, 0.0, 0.0], [0.0; 4], [5.0; 4]]];
        let logits = Tensor::<3>::from_data(logits, &molora_testkit::device());
        let routed = routed(logits, Selection::StraightThrough);
        assert_close(token_gini(&routed, Reduction::Mean), [0.5], FORWARD, "mean");
        assert_close(token_gini(&routed, Reduction::Sum), [1.5], FORWARD, "sum");
    }
}
