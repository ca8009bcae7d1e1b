//! MoSLD's balance loss read as counts times probability mass. arXiv:2412.08946.

use burn::tensor::Tensor;
use molora_routing::RouterOutput;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{Need, SiteView, TermNumbers};
use crate::Reduction;

/// See [`balance_mass`]; skips sites of one expert.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
pub struct BalanceMass;

impl TermNumbers for BalanceMass {
    fn needs(&self) -> &'static [Need] {
        &[Need::Router]
    }

    fn at(&self, site: &SiteView<'_>, reduction: Reduction) -> Option<Tensor<1>> {
        site.balanced()
            .map(|routed| balance_mass(routed, reduction))
    }
}

/// MoSLD's balance loss read as counts times probability mass: `sum_e c_e sum_x p_e(x)`.
///
/// `c_e` is how many decisions selected expert `e` (no gradient), `p` the router's softmax.
/// [`Reduction::Sum`] is the paper's sum over decisions, which grows with their number squared;
/// [`Reduction::Mean`] takes `c` and the mass per decision, so that a uniform router gives `K / E`.
///
/// # Shapes
/// - returns `[1]`
///
/// # Source
/// MoSLD, arXiv:2412.08946, eq. 4, whose `s^k` is taken for the router's probability.
pub fn balance_mass(routed: &RouterOutput, reduction: Reduction) -> Tensor<1> {
    counts_times_mass(routed, routed.probs.clone(), reduction)
}

/// `sum_e c_e sum_x p_e(x)` over the decisions that count, gradient through `p` alone.
pub(super) fn counts_times_mass(
    routed: &RouterOutput,
    probs: Tensor<3>,
    reduction: Reduction,
) -> Tensor<1> {
    let counts = routed.selection_counts().detach();
    let total = (counts * routed.sum_counted(probs)).sum();
    match reduction {
        Reduction::Mean => total / routed.num_decisions().square(),
        Reduction::Sum => total,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::load_balance;
    use crate::term::testing::{LOGITS, routed};
    use molora_routing::Selection;
    use molora_testkit::{GRADIENT, assert_close};

    /// `Mass` is `Switch` times `T^2 K / E`, and so is its gradient.
    #[test]
    fn gradient_of_mass_is_that_of_switch_rescaled() {
        let device = molora_testkit::autodiff_device();
        let gradient = |loss: fn(&RouterOutput, Reduction) -> Tensor<1>, reduction| {
            let logits = Tensor::<3>::from_data(LOGITS, &device).require_grad();
            let loss = loss(&routed(logits.clone(), Selection::TopK(2)), reduction);
            logits.grad(&loss.backward()).expect("tracked")
        };
        let switch = gradient(load_balance, Reduction::Mean);
        let mass = gradient(balance_mass, Reduction::Sum);
        assert_close(mass, switch.mul_scalar(4.5), GRADIENT, "d mass / d logits");
    }
}
