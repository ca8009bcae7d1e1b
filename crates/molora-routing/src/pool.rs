//! From the tokens of a sequence to one row of features.

use burn::tensor::{Int, Tensor};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// How decisions per sequence sum up its tokens. Only tokens that the mask keeps are read: give the
/// prompt's mask to decide by the prompt alone.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Pooling {
    /// The mean over all kept tokens.
    #[default]
    Mean,
    /// The last kept token, wherever the padding is (Mixture-of-LoRAs, arXiv:2403.03432).
    Last,
    /// Every kept token is scored, and the scores are averaged (WEMoE, arXiv:2402.00433).
    Scores,
}

impl Pooling {
    /// `[B, T, F]` to `[B, 1, F]` by the mask `[B, T]`; zero for a row without any kept token.
    pub fn pool(self, features: Tensor<3>, mask: Tensor<2>) -> Tensor<3> {
        match self {
            Self::Mean | Self::Scores => masked_mean(features, mask),
            Self::Last => masked_mean(features, last_only(mask)),
        }
    }
}

/// Mean over real tokens, `[B, T, F]` to `[B, 1, F]`; zero for a row without any.
fn masked_mean(features: Tensor<3>, mask: Tensor<2>) -> Tensor<3> {
    let count_b11 = mask.clone().sum_dim(1).clamp_min(1.0).unsqueeze_dim::<3>(2);
    without_padding(features, mask).sum_dim(1) / count_b11
}

/// Features with zeros for padding, which may hold anything, infinities included: replaced, not
/// multiplied by zero.
pub(crate) fn without_padding(features: Tensor<3>, mask: Tensor<2>) -> Tensor<3> {
    let padding = mask
        .equal_elem(0.0)
        .unsqueeze_dim::<3>(2)
        .expand(features.dims());
    features.mask_fill(padding, 0.0)
}

/// The mask `[B, T]` of the last kept token of each row.
fn last_only(mask: Tensor<2>) -> Tensor<2> {
    let [batch, tokens] = mask.dims();
    let from_one = Tensor::<1, Int>::arange(1..tokens as i64 + 1, &mask.device()).float();
    let position = mask * from_one.unsqueeze();
    // A row without kept tokens has its maximum 0 everywhere, and no last one.
    let last = position.clone().max_dim(1).expand([batch, tokens]);
    let is_last = position.clone().equal(last);
    is_last.bool_and(position.greater_elem(0.0)).float()
}

#[cfg(test)]
mod tests {
    use super::*;
    use molora_testkit::{FORWARD, assert_close};

    const FEATURES: [[[f32; 3]; 3]; 3] = [
        [[0.5, 1.0, -1.0], [1.5, 0.0, 2.0], [9.0, 9.0, 9.0]],
        [[f32::INFINITY; 3], [0.5, 1.0, -1.0], [1.5, 0.0, 2.0]],
        [[9.0; 3], [9.0; 3], [f32::NAN; 3]],
    ];
    /// Padded on the right, on the left, and nothing but padding.
    const MASK: [[f32; 3]; 3] = [[1.0, 1.0, 0.0], [0.0, 1.0, 1.0], [0.0; 3]];

    #[test]
    fn the_worked_example_padded_on_either_side() {
        let device = molora_testkit::device();
        let mean = [1.0, 0.5, 0.5];
        let last = [1.5, 0.0, 2.0];
        for (pooling, row) in [(Pooling::Mean, mean), (Pooling::Last, last)] {
            let features = Tensor::from_data(FEATURES, &device);
            let pooled = pooling.pool(features, Tensor::from_data(MASK, &device));
            assert_close(pooled, [[row], [row], [[0.0; 3]]], FORWARD, "pooled");
        }
    }

    #[test]
    fn a_gap_in_the_mask_does_not_hide_the_last_token() {
        let device = molora_testkit::device();
        let mask = Tensor::from_data([[1.0, 0.0, 1.0, 0.0]], &device);
        assert_close(last_only(mask), [[0.0, 0.0, 1.0, 0.0]], 0.0, "last");
    }
}
