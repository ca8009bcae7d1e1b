//! MoSLD's balance loss read by the letter. arXiv:2412.08946.

use burn::tensor::{Tensor, activation::softmax};
use molora_routing::RouterOutput;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::balance_mass::counts_times_mass;
use super::{Need, SiteView, TermNumbers};
use crate::Reduction;

/// See [`balance_literal`]; skips sites of one expert.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
pub struct BalanceLiteral;

impl TermNumbers for BalanceLiteral {
    fn needs(&self) -> &'static [Need] {
        &[Need::Router]
    }

    fn at(&self, site: &SiteView<'_>, reduction: Reduction) -> Option<Tensor<1>> {
        site.balanced()
            .map(|routed| balance_literal(routed, reduction))
    }
}

/// MoSLD's balance loss read by the letter: as [`balance_mass`](crate::balance_mass), with `p` replaced by a softmax over
/// the experts of the final weights, which are zero for unselected experts.
///
/// # Shapes
/// - returns `[1]`
///
/// # Source
/// MoSLD, arXiv:2412.08946, eq. 4.
pub fn balance_literal(routed: &RouterOutput, reduction: Reduction) -> Tensor<1> {
    counts_times_mass(routed, softmax(routed.weights.clone(), 2), reduction)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::balance_mass;
    use crate::term::testing::{LOGITS, routed};
    use molora_routing::Selection;
    use molora_testkit::{FORWARD, GRADIENT, assert_close};

    #[test]
    fn readings_of_the_worked_example() {
        let logits = Tensor::<3>::from_data(LOGITS, &molora_testkit::device());
        let routed = routed(logits, Selection::TopK(2));
        for (loss, expected) in [
            (balance_mass as fn(&_, _) -> _, 4.568968),
            (balance_literal, 4.696422),
        ] {
            let sum: Tensor<1> = loss(&routed, Reduction::Sum);
            assert_close(sum, [expected], FORWARD, "sum");
            let mean = loss(&routed, Reduction::Mean);
            assert_close(mean, [expected / 9.0], FORWARD, "mean over 3 tokens");
        }
    }

    /// With `q = softmax(S)`: `dL/dS_j = q_j (c_j - sum_k c_k q_k)`, and through the softmax over the
    /// selected logits `dL/dl_j = S_j (dL/dS_j - sum_k S_k dL/dS_k)`.
    #[test]
    fn gradient_of_literal_is_analytic() {
        let device = molora_testkit::autodiff_device();
        let logits = Tensor::<3>::from_data(LOGITS, &device).require_grad();
        let routed = routed(logits.clone(), Selection::TopK(2));
        let loss = balance_literal(&routed, Reduction::Sum);
        let gradient = logits.grad(&loss.backward()).expect("tracked");
        let counts = Tensor::<1>::from_data([1.0, 1.0, 1.0, 3.0], &device).reshape([1, 1, 4]);
        let weights = routed.weights.detach();
        let through = |p: Tensor<3>, d: Tensor<3>| {
            let mean = (p.clone() * d.clone()).sum_dim(2);
            p * (d - mean)
        };
        let to_weights = through(softmax(weights.clone(), 2), counts.expand([1, 4, 4]));
        let expected = through(weights, to_weights) * routed.counted.unsqueeze_dim::<3>(2);
        assert_close(gradient, expected, GRADIENT, "d literal / d logits");
    }
}
