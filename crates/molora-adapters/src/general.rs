//! A general expert, which is not routed, beside those that are.

use burn::tensor::Tensor;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::AdapterError;

/// What a general expert, the last one of its bank, gets of the weight.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum GeneralExpert {
    /// The routed experts share lambda, the general one has 1 - lambda:
    /// `lambda F_G + (1 - lambda) W_p`. AT-MoE, arXiv:2410.10896.
    RoutedShare(f64),
    /// The general one has what the weights of the routed ones leave of 1: `w F_e + (1 - w) F_G` for one
    /// routed expert, whose weight is its probability. MoCLE, arXiv:2312.12379.
    Rest,
    /// The same, but for the routed weights being squared: `w^2 F_e + (1 - w) F_G`, as in MoCLE's released
    /// code, which multiplies twice.
    RestOfSquared,
}

impl GeneralExpert {
    /// Checks the share.
    ///
    /// # Errors
    /// [`AdapterError::Share`] if it is not between 0 and 1.
    pub fn validate(self) -> Result<(), AdapterError> {
        match self {
            Self::RoutedShare(value) if !(0.0..=1.0).contains(&value) => Err(AdapterError::Share {
                field: "routed_share",
                value,
            }),
            _ => Ok(()),
        }
    }

    /// Weights `[B, T', E]` of the routed experts as those of all, `[B, T', E + 1]`.
    pub fn joined(self, weights: Tensor<3>) -> Tensor<3> {
        let [batch, decisions, _] = weights.dims();
        let rest = |weights: &Tensor<3>| weights.clone().sum_dim(2).neg().add_scalar(1.0);
        let (routed, general) = match self {
            Self::RoutedShare(share) => {
                let general = Tensor::full([batch, decisions, 1], 1.0 - share, &weights.device());
                (weights.mul_scalar(share), general)
            }
            Self::Rest => (weights.clone(), rest(&weights)),
            Self::RestOfSquared => (weights.clone().square(), rest(&weights)),
        };
        Tensor::cat(vec![routed, general], 2)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use molora_testkit::{FORWARD, assert_close};

    #[test]
    fn the_general_expert_has_what_the_others_leave() {
        let weights = Tensor::from_data([[[0.25, 0.75]]], &molora_testkit::device());
        let all = GeneralExpert::RoutedShare(0.8).joined(weights);
        assert_close(all, [[[0.2, 0.6, 0.2]]], FORWARD, "weights");
    }

    #[test]
    fn the_general_expert_has_what_is_left_of_one() {
        let weights = Tensor::<3>::from_data([[[0.0, 0.75]]], &molora_testkit::device());
        let all = GeneralExpert::Rest.joined(weights.clone());
        assert_close(all, [[[0.0, 0.75, 0.25]]], FORWARD, "weights");
        let all = GeneralExpert::RestOfSquared.joined(weights);
        assert_close(all, [[[0.0, 0.5625, 0.25]]], FORWARD, "weights, squared");
    }

    #[test]
    fn a_share_is_between_zero_and_one() {
        assert_eq!(GeneralExpert::RoutedShare(1.0).validate(), Ok(()));
        let error = GeneralExpert::RoutedShare(1.5)
            .validate()
            .expect_err("above 1");
        assert_eq!(
            error.to_string(),
            "routed_share is 1.5, expected a number from 0 to 1"
        );
    }
}
