//! A general expert, which is not routed, beside those that are.

use burn::tensor::Tensor;
use serde::{Deserialize, Serialize};

use crate::AdapterError;

/// What a general expert, the last one of its bank, gets of the weight.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum GeneralExpert {
    /// The routed experts share lambda, the general one has 1 - lambda:
    /// `lambda F_G + (1 - lambda) W_p`. AT-MoE, arXiv:2410.10896.
    RoutedShare(f64),
}

impl GeneralExpert {
    /// Checks the share.
    ///
    /// # Errors
    /// [`AdapterError::Share`] if it is not between 0 and 1.
    pub fn validate(self) -> Result<(), AdapterError> {
        let Self::RoutedShare(value) = self;
        match (0.0..=1.0).contains(&value) {
            true => Ok(()),
            false => Err(AdapterError::Share {
                field: "routed_share",
                value,
            }),
        }
    }

    /// Weights `[B, T', E]` of the routed experts as those of all, `[B, T', E + 1]`.
    pub fn joined(self, weights: Tensor<3>) -> Tensor<3> {
        let Self::RoutedShare(share) = self;
        let [batch, decisions, _] = weights.dims();
        let general = Tensor::full([batch, decisions, 1], 1.0 - share, &weights.device());
        Tensor::cat(vec![weights.mul_scalar(share), general], 2)
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
