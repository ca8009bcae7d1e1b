//! Load balance. Switch Transformers, arXiv:2101.03961.

use burn::tensor::Tensor;
use molora_routing::RouterOutput;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{Need, SiteView, TermNumbers};
use crate::Reduction;

/// See [`load_balance`]; skips sites of one expert, where it is constant.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
pub struct LoadBalance;

impl TermNumbers for LoadBalance {
    fn needs(&self) -> &'static [Need] {
        &[Need::Router]
    }

    fn at(&self, site: &SiteView<'_>, reduction: Reduction) -> Option<Tensor<1>> {
        site.balanced()
            .map(|routed| load_balance(routed, reduction))
    }
}

/// Load-balancing loss `E * sum_e f_e * P_e`.
///
/// `f_e` is the share of selections that went to expert `e` (no gradient) and `P_e` the mean router
/// probability of `e`. With [`Reduction::Mean`] `f` is divided by all selections and the loss of a
/// uniform router is 1; with [`Reduction::Sum`] `f` is summed over the K slots of a decision
/// (Mixtral's form) and the loss of a uniform router is K. Dense routing selects every expert
/// equally, so its loss is constant. `P` of a blend of two routers is that of the one that reads
/// features, as in HMoRA's code.
///
/// # Shapes
/// - returns `[1]`
///
/// # Source
/// Fedus et al., Switch Transformers, arXiv:2101.03961, section 2.2, eq. 4.
pub fn load_balance(routed: &RouterOutput, reduction: Reduction) -> Tensor<1> {
    let counts = routed.selection_counts();
    let selections = match reduction {
        Reduction::Mean => counts.clone().sum().clamp_min(1.0),
        Reduction::Sum => routed.num_decisions(),
    };
    let probs = routed
        .parts
        .first()
        .map_or(&routed.probs, |part| &part.probs);
    let mass = routed.sum_counted(probs.clone()) / routed.num_decisions();
    ((counts / selections).detach() * mass)
        .sum()
        .mul_scalar(routed.num_experts() as f64)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::term::testing::{LOGITS, routed};
    use molora_routing::Selection;
    use molora_testkit::{FORWARD, GRADIENT, assert_close};

    #[test]
    fn balance_of_the_worked_example() {
        let logits = Tensor::<3>::from_data(LOGITS, &molora_testkit::device());
        let routed = routed(logits, Selection::TopK(2));
        assert_close(
            load_balance(&routed, Reduction::Mean),
            [1.015326],
            FORWARD,
            "switch",
        );
        assert_close(
            load_balance(&routed, Reduction::Sum),
            [2.030652],
            FORWARD,
            "without the k",
        );
    }

    #[test]
    fn balance_gradient_of_the_worked_example() {
        let device = molora_testkit::autodiff_device();
        let logits = Tensor::<3>::from_data(LOGITS, &device).require_grad();
        let loss = load_balance(&routed(logits.clone(), Selection::TopK(2)), Reduction::Mean);
        let gradient = logits.grad(&loss.backward()).expect("tracked");
        let expected = [[
            [-0.024213, -0.039920, -0.018857, 0.082990],
            [-0.027974, -0.020724, -0.041732, 0.090430],
            [-0.052619, -0.019358, -0.011741, 0.083718],
            [0.0; 4],
        ]];
        assert_close(gradient, expected, GRADIENT, "d balance / d logits");
    }

    #[test]
    fn dense_routing_is_balanced() {
        let logits = Tensor::<3>::from_data(LOGITS, &molora_testkit::device());
        let loss = load_balance(&routed(logits, Selection::Dense), Reduction::Mean);
        assert_close(loss, [1.0], FORWARD, "dense");
    }
}
