//! Which layers' routers decide for a sequence.
//!
//! Mixture-of-LoRAs, arXiv:2403.03432, has a router in every layer and one expert per sequence. The
//! paper does not say how layers that disagree are reconciled, so the rule is a choice.

use burn::tensor::{Tensor, activation::softmax};
use molora_kernels::top_k_mask;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// How the layers' routers are reconciled.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum LayerRule {
    /// Every layer takes its own best expert.
    #[default]
    PerLayer,
    /// All layers take the first layer's best expert.
    First,
    /// All layers take the expert that is best in most layers; of equally many, the one with the
    /// larger mean probability over the layers.
    Vote,
}

impl LayerRule {
    /// The expert of every layer as one-hot rows, `[B, L, E]`, from the logits of all layers'
    /// routers for each sequence, `[B, L, E]`; the lower index wins what is still a tie.
    ///
    /// A layer's rows are labels for [`Guidance`](crate::Guidance). Without gradient.
    pub fn decide(self, logits: Tensor<3>) -> Tensor<3> {
        let shape = logits.dims();
        let logits = logits.detach();
        match self {
            Self::PerLayer => top_k_mask(logits, 1).float(),
            Self::First => top_k_mask(logits.narrow(1, 0, 1), 1).float().expand(shape),
            Self::Vote => majority(logits).expand(shape),
        }
    }
}

/// In how many layers each expert is the best one: `[B, L, E]` to `[B, E]`.
pub fn count_votes(logits: Tensor<3>) -> Tensor<2> {
    let [batch, _, experts] = logits.dims();
    let best = top_k_mask(logits.detach(), 1).float();
    best.sum_dim(1).reshape([batch, experts])
}

/// The winner as a one-hot row, `[B, 1, E]`.
fn majority(logits: Tensor<3>) -> Tensor<3> {
    let votes = count_votes(logits.clone()).unsqueeze_dim::<3>(1);
    let most = votes.clone().max_dim(2).expand(votes.dims());
    let mean_probs = softmax(logits, 2).mean_dim(1);
    // Below every probability: those with fewer votes are out.
    let leading = mean_probs.mask_fill(votes.lower(most), -1.0);
    top_k_mask(leading, 1).float()
}

#[cfg(test)]
mod tests {
    use super::*;
    use molora_testkit::assert_close;

    fn chosen(rule: LayerRule, logits: [[[f32; 3]; 4]; 1]) -> Vec<usize> {
        let logits = Tensor::from_data(logits, &molora_testkit::device());
        let rows = rule.decide(logits).into_data();
        let rows = rows.try_to_vec::<f32>().expect("f32");
        let expert = |row: &[f32]| {
            assert_eq!(row.iter().sum::<f32>(), 1.0, "one-hot");
            row.iter()
                .position(|&weight| weight == 1.0)
                .expect("one-hot")
        };
        rows.chunks(3).map(expert).collect()
    }

    /// Two layers each for experts 0 and 1, and mean probabilities that favour 0.
    const TIE: [[[f32; 3]; 4]; 1] = [[
        [2.0, 0.5, 0.1],
        [0.2, 1.5, 0.3],
        [0.1, 1.2, 1.1],
        [1.4, 0.2, 0.9],
    ]];

    #[test]
    fn rules_of_the_worked_example() {
        assert_eq!(chosen(LayerRule::PerLayer, TIE), [0, 1, 1, 0]);
        assert_eq!(chosen(LayerRule::First, TIE), [0; 4]);
        assert_eq!(chosen(LayerRule::Vote, TIE), [0; 4]);
        let votes = count_votes(Tensor::from_data(TIE, &molora_testkit::device()));
        assert_close(votes, [[2.0, 2.0, 0.0]], 0.0, "votes");
    }

    #[test]
    fn more_votes_beat_a_larger_mean_probability() {
        let logits = [[
            [0.1, 0.0, -9.0],
            [0.1, 0.0, -9.0],
            [0.0, 9.0, 0.0],
            [0.1, 0.0, -9.0],
        ]];
        assert_eq!(chosen(LayerRule::Vote, logits), [0; 4]);
        assert_eq!(chosen(LayerRule::PerLayer, logits), [0, 0, 1, 0]);
    }

    #[test]
    fn a_tie_may_go_to_the_higher_index() {
        let mut logits = TIE;
        for layer in &mut logits[0] {
            layer.swap(0, 1);
        }
        assert_eq!(chosen(LayerRule::Vote, logits), [1; 4]);
        assert_eq!(chosen(LayerRule::Vote, [[[0.5; 3]; 4]]), [0; 4]);
    }
}
