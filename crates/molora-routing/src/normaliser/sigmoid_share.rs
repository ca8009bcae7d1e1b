//! Sigmoids of the experts that take part, divided by their sum. Polytropon, Ponti et al.,
//! arXiv:2202.13914, eq. 1.

use burn::module::Module;
use burn::tensor::{Device, activation::sigmoid};
use molora_kernels::random::Seed;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{Normalise, NormaliserNumbers, Scores, Weighed};

/// `sigmoid(l_e) / sum_j sigmoid(l_j)` over the experts that take part.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
pub struct SigmoidShareConfig;

impl NormaliserNumbers for SigmoidShareConfig {
    type Normaliser = SigmoidShare;

    fn init(&self, _d_features: usize, _seed: Seed, _device: &Device) -> SigmoidShare {
        SigmoidShare {}
    }
}

/// Sigmoids divided by their sum; nothing is trained.
#[derive(Module, Debug)]
pub struct SigmoidShare {}

/// Added to the sum, as in PEFT.
const EPSILON: f64 = 1e-12;

impl Normalise for SigmoidShare {
    fn weigh(&self, scores: Scores) -> Weighed {
        let gates = sigmoid(scores.logits);
        let gates = match &scores.selected {
            Some(selected) => gates.mask_fill(selected.clone().bool_not(), 0.0),
            None => gates,
        };
        let sum = gates.clone().sum_dim(2).add_scalar(EPSILON);
        Weighed::new(gates / sum, scores.selected)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use burn::tensor::{Tensor, activation::softmax};
    use molora_testkit::{FORWARD, assert_close};

    #[test]
    fn shares_of_sigmoids() {
        let logits = Tensor::<3>::from_data([[[0.0, 0.0, -1.0986123]]], &molora_testkit::device());
        let scores = Scores {
            features: logits.clone(),
            probs: softmax(logits.clone(), 2),
            logits,
            selected: None,
        };
        // 1/2, 1/2, 1/4.
        let found = SigmoidShare {}.weigh(scores.clone()).weights;
        assert_close(found, [[[0.4, 0.4, 0.2]]], FORWARD, "weights");
        let first = Tensor::<3>::from_data([[[1.0, 0.0, 1.0]]], &molora_testkit::device()).bool();
        let selected = Some(first);
        let found = SigmoidShare {}.weigh(Scores { selected, ..scores }).weights;
        assert_close(found, [[[2.0 / 3.0, 0.0, 1.0 / 3.0]]], FORWARD, "of two");
    }
}
