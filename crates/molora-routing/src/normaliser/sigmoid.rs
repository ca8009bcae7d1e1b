//! The sigmoid of each expert's own logit, so that weights need not add up to 1: the gate that is
//! trained for one expert alone. PHATGOOSE, arXiv:2402.05859, section 3.

use burn::module::Module;
use burn::tensor::{Device, activation::sigmoid};
use molora_kernels::random::Seed;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{Normalise, NormaliserNumbers, Scores, Weighed};

/// The sigmoid of each expert's own logit. PHATGOOSE, arXiv:2402.05859, section 3.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
pub struct SigmoidConfig;

impl NormaliserNumbers for SigmoidConfig {
    type Normaliser = Sigmoid;

    fn init(&self, _d_features: usize, _seed: Seed, _device: &Device) -> Sigmoid {
        Sigmoid {}
    }
}

/// The sigmoid of each expert's own logit; nothing is trained.
#[derive(Module, Debug)]
pub struct Sigmoid {}

impl Normalise for Sigmoid {
    fn weigh(&self, scores: Scores) -> Weighed {
        let weights = sigmoid(scores.logits);
        match scores.selected {
            None => Weighed::new(weights, None),
            Some(selected) => {
                let weights = weights.mask_fill(selected.clone().bool_not(), 0.0);
                Weighed::new(weights, Some(selected))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use burn::tensor::{Tensor, activation::softmax};
    use molora_testkit::{FORWARD, assert_close};

    #[test]
    fn every_expert_is_gated_for_itself() {
        let device = molora_testkit::device();
        let logits = Tensor::<3>::from_data([[[0.0; 4], [1.5; 4], [-1.5; 4]]], &device);
        let scores = Scores {
            features: logits.clone(),
            probs: softmax(logits.clone(), 2),
            logits,
            selected: None,
        };
        let expected = [[[0.5; 4], [0.817574; 4], [0.182426; 4]]];
        let all = Sigmoid {}.weigh(scores.clone()).weights;
        assert_close(all, expected, FORWARD, "weights");
        let first = Tensor::<3>::from_data([[[1.0, 0.0, 0.0, 0.0]; 3]], &device).bool();
        let selected = Some(first);
        let kept = Sigmoid {}.weigh(Scores { selected, ..scores }).weights;
        let expected = [[0.5, 0.817574, 0.182426].map(|weight| [weight, 0.0, 0.0, 0.0])];
        assert_close(kept, expected, FORWARD, "weights of the selected one");
    }
}
