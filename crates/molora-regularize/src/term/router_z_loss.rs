//! Router z-loss. ST-MoE, arXiv:2202.08906.

use burn::tensor::{Tensor, activation::log_softmax};
use molora_routing::RouterOutput;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{Need, SiteView, TermNumbers};
use crate::Reduction;

/// See [`router_z_loss`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
pub struct RouterZLoss;

impl TermNumbers for RouterZLoss {
    fn needs(&self) -> &'static [Need] {
        &[Need::Router]
    }

    fn at(&self, site: &SiteView<'_>, reduction: Reduction) -> Option<Tensor<1>> {
        site.routed.map(|routed| router_z_loss(routed, reduction))
    }
}

/// Router z-loss: `logsumexp(logits)^2` over decisions, which keeps logits small.
///
/// The mean over the decisions that count, or their sum. With all logits 0 each decision's value is
/// `ln(E)^2`.
///
/// # Shapes
/// - returns `[1]`
///
/// # Source
/// Zoph et al., ST-MoE, arXiv:2202.08906, eq. 5.
pub fn router_z_loss(routed: &RouterOutput, reduction: Reduction) -> Tensor<1> {
    let [batch, tokens, _] = routed.logits.dims();
    // logits - log_softmax(logits) is logsumexp in every column, computed without overflow.
    let first = |values: Tensor<3>| values.slice([0..batch, 0..tokens, 0..1]);
    let normalizer = log_softmax(routed.logits.clone(), 2);
    let log_sum_exp = first(routed.logits.clone()) - first(normalizer);
    let total = routed.sum_counted(log_sum_exp.square());
    match reduction {
        Reduction::Mean => total / routed.num_decisions(),
        Reduction::Sum => total,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::term::testing::{LOGITS, routed};
    use molora_routing::Selection;
    use molora_testkit::{FORWARD, assert_close};

    #[test]
    fn z_loss_of_zero_logits_is_the_squared_log_of_experts() {
        let logits = Tensor::<3>::zeros([1, 4, 4], &molora_testkit::device());
        let routed = routed(logits, Selection::Dense);
        let square = 4f32.ln().powi(2);
        assert_close(
            router_z_loss(&routed, Reduction::Mean),
            [square],
            FORWARD,
            "mean",
        );
        assert_close(
            router_z_loss(&routed, Reduction::Sum),
            [3.0 * square],
            FORWARD,
            "sum",
        );
    }

    #[test]
    fn z_loss_survives_large_logits() {
        let logits = Tensor::<3>::from_data(LOGITS, &molora_testkit::device()).mul_scalar(100.0);
        let value = router_z_loss(&routed(logits, Selection::Dense), Reduction::Mean);
        assert!(value.into_scalar::<f32>().is_finite());
    }
}
