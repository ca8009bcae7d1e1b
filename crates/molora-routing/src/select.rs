//! Which experts take part in a decision.

use burn::tensor::{Bool, Tensor};
use molora_kernels::top_k_mask;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::RoutingError;
use crate::normaliser::{Normaliser, Scores, Softmax, Weighed};

/// Which experts take part.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Selection {
    /// All of them.
    Dense,
    /// The `k` with the largest logits; of equal ones the lower index wins.
    TopK(usize),
    /// The fewest that hold more than this probability mass together, from the largest down: the
    /// one that crosses it takes part. Huang et al., arXiv:2403.07652, section 3.2; a variant of
    /// GLIDER, arXiv:2410.07172.
    ///
    /// Whether what is kept is renormalised is up to the normaliser, as for [`TopK`](Self::TopK):
    /// `softmax` does, `probability` does not.
    TopP(f64),
    /// The one with the largest logit, with weight 1 and so without gradient; of equal ones the
    /// lower index wins. Mixture-of-LoRAs, arXiv:2403.03432.
    Argmax,
    /// The one with the largest logit, with weight 1 in the forward pass and the gradient of its
    /// probability in the backward pass: the router learns from the chosen expert's output.
    /// Hard-Routed MoR-LoRA, arXiv:2606.31413.
    StraightThrough,
    /// The same, where the router learns from the outputs of all experts; theirs get the gradients
    /// that they have under [`StraightThrough`](Self::StraightThrough).
    StraightThroughDense,
}

/// Which experts were selected, `[B, T', E]`.
#[derive(Debug, Clone)]
pub enum Selected {
    /// All of them.
    All,
    /// These, weighed by the normaliser.
    These(Tensor<3, Bool>),
    /// One each, with weight 1.
    One(Tensor<3, Bool>),
    /// One each, with weight 1 that has the gradient of the probability.
    StraightThrough(Tensor<3, Bool>),
}

impl Selection {
    /// Checks `k` against the number of experts, and the probability mass.
    ///
    /// # Errors
    /// [`RoutingError::TopKZero`], [`RoutingError::TopKTooLarge`] or [`RoutingError::TopP`].
    pub fn validate(self, num_experts: usize) -> Result<(), RoutingError> {
        match self {
            Self::Dense | Self::Argmax | Self::StraightThrough | Self::StraightThroughDense => {
                Ok(())
            }
            Self::TopK(0) => Err(RoutingError::TopKZero),
            Self::TopK(top_k) if top_k > num_experts => {
                Err(RoutingError::TopKTooLarge { top_k, num_experts })
            }
            Self::TopK(_) => Ok(()),
            Self::TopP(p) if (0.0..=1.0).contains(&p) => Ok(()),
            Self::TopP(p) => Err(RoutingError::TopP(p)),
        }
    }

    /// Whether a decision is for one expert, with weight 1.
    pub fn is_one(self) -> bool {
        matches!(
            self,
            Self::Argmax | Self::StraightThrough | Self::StraightThroughDense
        )
    }

    /// Whether experts that were not selected reach the router's gradient all the same.
    pub fn reaches_all(self) -> bool {
        self == Self::StraightThroughDense
    }

    /// The most experts whose outputs a decision needs, of so many.
    pub fn most(self, num_experts: usize) -> usize {
        match self {
            Self::TopK(k) => k.min(num_experts),
            Self::Argmax | Self::StraightThrough => 1,
            Self::Dense | Self::TopP(_) | Self::StraightThroughDense => num_experts,
        }
    }

    /// Which experts take part, from logits and their softmax; without gradient.
    ///
    /// # Shapes
    /// - `logits`, `probs`: `[B, T', E]`
    pub fn select(self, logits: &Tensor<3>, probs: &Tensor<3>) -> Selected {
        let fixed = logits.clone().detach();
        let selected = match self {
            Self::TopK(k) if k < logits.dims()[2] => top_k_mask(fixed.clone(), k),
            Self::TopP(p) if p < 1.0 => nucleus(fixed.clone(), probs.clone().detach(), p),
            Self::Argmax => return Selected::One(top_k_mask(fixed, 1)),
            Self::StraightThrough | Self::StraightThroughDense => {
                return Selected::StraightThrough(top_k_mask(fixed, 1));
            }
            _ => return Selected::All,
        };
        // A barred expert is never selected, be it one of the k largest.
        Selected::These(selected.bool_and(fixed.greater_elem(f32::NEG_INFINITY)))
    }
}

impl Selection {
    /// Weights from logits and their softmax under the softmax of the selected experts, and which
    /// those are; `None` for all.
    ///
    /// # Shapes
    /// - `logits`, `probs`: `[B, T', E]`
    pub fn weigh(self, logits: &Tensor<3>, probs: &Tensor<3>) -> Weighed {
        let scores = Scores {
            features: logits.clone(),
            logits: logits.clone(),
            probs: probs.clone(),
            selected: None,
        };
        crate::router::weigh(self, &Normaliser::Softmax(Softmax {}), scores)
    }
}

/// True for the fewest experts whose mass exceeds `p`: those before which there is at most `p`.
fn nucleus(logits: Tensor<3>, probs: Tensor<3>, p: f64) -> Tensor<3, Bool> {
    let shape = logits.dims();
    let before = before(logits).float();
    let mass_before = (before * probs.unsqueeze_dim(2)).sum_dim(3).reshape(shape);
    mass_before.lower_equal_scalar(p)
}

/// Whether expert j is before expert e, for all pairs `[B, T', E, E]` in the order `[.., e, j]`: by
/// a larger logit, or an equal one and a lower index.
fn before(logits: Tensor<3>) -> Tensor<4, Bool> {
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
    other.greater(own).bool_or(tie_lost)
}

#[cfg(test)]
mod tests {
    use super::*;
    use burn::tensor::activation::softmax;
    use molora_testkit::{FORWARD, GRADIENT, assert_close};

    fn weighed(selection: Selection, logits: Tensor<3>) -> Weighed {
        selection.weigh(&logits, &softmax(logits.clone(), 2))
    }

    fn weigh(selection: Selection, logits: [[[f32; 4]; 3]; 1]) -> Tensor<3> {
        weighed(
            selection,
            Tensor::from_data(logits, &molora_testkit::device()),
        )
        .weights
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
    fn top_p_keeps_the_expert_that_crosses() {
        // Softmax 0.5, 0.25, 0.125, 0.125.
        let row = [8.0_f32, 4.0, 2.0, 2.0].map(f32::ln);
        let kept = [
            (0.0, [1.0, 0.0, 0.0, 0.0]),
            (0.45, [1.0, 0.0, 0.0, 0.0]),
            (0.55, [2.0 / 3.0, 1.0 / 3.0, 0.0, 0.0]),
            (0.8, [4.0 / 7.0, 2.0 / 7.0, 1.0 / 7.0, 0.0]),
            (0.9, [0.5, 0.25, 0.125, 0.125]),
        ];
        for (p, expected) in kept {
            let found = weigh(Selection::TopP(p), [[row; 3]]);
            assert_close(found, [[expected; 3]], FORWARD, &format!("top-p {p}"));
        }
    }

    #[test]
    fn top_p_of_the_whole_mass_is_dense() {
        let dense = weigh(Selection::Dense, LOGITS);
        assert_close(weigh(Selection::TopP(1.0), LOGITS), dense.clone(), 0.0, "1");
        assert_close(weigh(Selection::TopP(0.99), LOGITS), dense, FORWARD, "0.99");
    }

    #[test]
    fn argmax_takes_one_expert_with_weight_one() {
        let logits = [[[1.0, 3.0, 3.0, 0.0], [0.0; 4], [-4.0, -3.0, -2.0, -1.0]]];
        let expected = [[
            [0.0, 1.0, 0.0, 0.0],
            [1.0, 0.0, 0.0, 0.0],
            [0.0, 0.0, 0.0, 1.0],
        ]];
        for selection in [Selection::Argmax, Selection::StraightThrough] {
            assert_close(weigh(selection, logits), expected, 0.0, "weights");
        }
    }

    /// Forward 1, backward the softmax: `dw_0/dl_j = p_0 (1[j = 0] - p_j)`.
    #[test]
    fn straight_through_has_the_gradient_of_the_probability() {
        let device = molora_testkit::autodiff_device();
        let logits = [8.0_f32, 4.0, 2.0, 2.0].map(f32::ln);
        let logits = Tensor::<3>::from_data([[logits]], &device).require_grad();
        let weights = weighed(Selection::StraightThrough, logits.clone()).weights;
        assert_close(weights.clone(), [[[1.0, 0.0, 0.0, 0.0]]], 0.0, "weights");
        let gradients = weights.narrow(2, 0, 1).sum().backward();
        let expected = [[[0.25, -0.125, -0.0625, -0.0625]]];
        let found = logits.grad(&gradients).expect("tracked");
        assert_close(found, expected, GRADIENT, "d w / d logits");
    }

    #[test]
    fn barred_experts_are_never_selected() {
        let logits = [[[f32::NEG_INFINITY, 1.0, f32::NEG_INFINITY, f32::NEG_INFINITY]; 3]];
        let expected = [[[0.0, 1.0, 0.0, 0.0]; 3]];
        let tensor = Tensor::<3>::from_data(logits, &molora_testkit::device());
        for selection in [
            Selection::TopK(3),
            Selection::TopP(0.9),
            Selection::Argmax,
            Selection::StraightThrough,
        ] {
            let Weighed {
                weights, selected, ..
            } = weighed(selection, tensor.clone());
            assert_close(weights, expected, 0.0, "weights");
            let selected = selected.expect("a selection").float();
            assert_close(selected, expected, 0.0, "selected");
        }
    }

    #[test]
    fn experts_that_were_not_selected_get_no_gradient() {
        let device = molora_testkit::autodiff_device();
        let logits = Tensor::<3>::from_data(LOGITS, &device).require_grad();
        let weights = weighed(Selection::TopK(2), logits.clone()).weights;
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
        assert_eq!(
            message(Selection::TopP(1.5)),
            Err("top_p is 1.5, expected a number from 0 to 1".into())
        );
    }
}
