//! Which experts take part in a decision.

use burn::tensor::{Bool, Tensor, activation::softmax};
use serde::{Deserialize, Serialize};

use crate::RoutingError;

/// Which experts take part.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Selection {
    /// All of them.
    Dense,
    /// The `k` with the largest logits; of equal ones the lower index wins.
    TopK(usize),
}

impl Selection {
    /// Checks `k` against the number of experts.
    ///
    /// # Errors
    /// [`RoutingError::TopKZero`] or [`RoutingError::TopKTooLarge`].
    pub fn validate(self, num_experts: usize) -> Result<(), RoutingError> {
        match self {
            Self::Dense => Ok(()),
            Self::TopK(0) => Err(RoutingError::TopKZero),
            Self::TopK(top_k) if top_k > num_experts => {
                Err(RoutingError::TopKTooLarge { top_k, num_experts })
            }
            Self::TopK(_) => Ok(()),
        }
    }

    /// Weights from logits and their softmax, and the selected experts unless all are.
    ///
    /// Renormalising a softmax over the selected experts equals the softmax of their logits, so
    /// experts that were not selected get weight 0 and no gradient through the weights.
    ///
    /// # Shapes
    /// - `logits`, `probs`: `[B, T', E]`
    pub fn weigh(
        self,
        logits: &Tensor<3>,
        probs: &Tensor<3>,
    ) -> (Tensor<3>, Option<Tensor<3, Bool>>) {
        match self {
            Self::TopK(k) if k < logits.dims()[2] => {
                let selected = largest(logits.clone().detach(), k);
                let kept = logits
                    .clone()
                    .mask_fill(selected.clone().bool_not(), f32::NEG_INFINITY);
                (softmax(kept, 2), Some(selected))
            }
            _ => (probs.clone(), None),
        }
    }
}

/// True for the `k` largest of each row `[B, T', E]`, ties going to the lower index.
///
/// An expert's rank is the number of experts before it, counted in one comparison of all pairs:
/// deterministic on every backend and without a host sync, at `E^2` comparisons per decision.
fn largest(logits: Tensor<3>, k: usize) -> Tensor<3, Bool> {
    let [batch, tokens, experts] = logits.dims();
    let pairs = [batch, tokens, experts, experts];
    let own = logits.clone().unsqueeze_dim::<4>(3).expand(pairs);
    let other = logits.unsqueeze_dim::<4>(2).expand(pairs);
    // Row e, column j: is j < e, so that a tie counts against the higher index.
    let earlier = Tensor::<2>::ones([experts, experts], &own.device())
        .tril(-1)
        .bool();
    let earlier = earlier.unsqueeze::<4>().expand(pairs);
    let tie_lost = other.clone().equal(own.clone()).bool_and(earlier);
    let before = other.greater(own).bool_or(tie_lost);
    let rank = before.float().sum_dim(3).reshape([batch, tokens, experts]);
    rank.lower_scalar(k as f32 - 0.5)
}

#[cfg(test)]
mod tests {
    use super::*;
    use molora_testkit::{FORWARD, assert_close};

    fn weigh(selection: Selection, logits: [[[f32; 4]; 3]; 1]) -> Tensor<3> {
        let logits = Tensor::<3>::from_data(logits, &molora_testkit::device());
        selection.weigh(&logits, &softmax(logits.clone(), 2)).0
    }

    /// Tokens of the MoSLD notes' worked example, top-2 of 4.
    const LOGITS: [[[f32; 4]; 3]; 1] = [[
        [0.5, 1.0, 0.25, 0.625],
        [0.1, -0.2, 0.5, 0.35],
        [1.0, 0.0, -0.5, 0.375],
    ]];

    #[test]
    fn top_2_is_renormalised() {
        let expected = [[
            [0.0, 0.592667, 0.0, 0.407333],
            [0.0, 0.0, 0.537430, 0.462570],
            [0.651355, 0.0, 0.0, 0.348645],
        ]];
        assert_close(
            weigh(Selection::TopK(2), LOGITS),
            expected,
            FORWARD,
            "weights",
        );
    }

    #[test]
    fn top_k_of_all_experts_is_dense() {
        let dense = weigh(Selection::Dense, LOGITS);
        assert_close(weigh(Selection::TopK(4), LOGITS), dense, 0.0, "weights");
    }

    #[test]
    fn ties_go_to_the_lower_index() {
        let logits = [[[1.0, 1.0, 1.0, 0.0], [0.0, 2.0, 1.0, 1.0], [3.0; 4]]];
        let expected = [[
            [1.0, 0.0, 0.0, 0.0],
            [0.0, 1.0, 0.0, 0.0],
            [1.0, 0.0, 0.0, 0.0],
        ]];
        assert_close(weigh(Selection::TopK(1), logits), expected, 0.0, "weights");
    }

    #[test]
    fn experts_that_were_not_selected_get_no_gradient() {
        let device = molora_testkit::autodiff_device();
        let logits = Tensor::<3>::from_data(LOGITS, &device).require_grad();
        let (weights, _) = Selection::TopK(2).weigh(&logits, &softmax(logits.clone(), 2));
        let gradients = weights.powi_scalar(2).sum().backward();
        let gradient = logits.grad(&gradients).expect("tracked").into_data();
        let gradient = gradient.try_to_vec::<f32>().expect("f32");
        assert_eq!((gradient[0], gradient[2]), (0.0, 0.0));
        assert!(gradient[1].abs() > 1e-3 && gradient.iter().all(|value| value.is_finite()));
    }

    #[test]
    fn k_is_checked() {
        let message = |selection: Selection| selection.validate(4).map_err(|e| e.to_string());
        assert_eq!(
            message(Selection::TopK(5)),
            Err("top_k 5 exceeds num_experts 4".into())
        );
        assert!(message(Selection::TopK(0)).is_err());
        assert_eq!(message(Selection::TopK(4)), Ok(()));
    }
}
