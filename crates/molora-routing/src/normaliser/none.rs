//! No weighing: every expert that takes part has weight 1. FlyLoRA, arXiv:2510.08396.

use burn::module::Module;
use burn::tensor::Device;
use molora_kernels::random::Seed;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{Normalise, NormaliserNumbers, Scores, Weighed};

/// Every expert that takes part has weight 1, so that no gradient reaches the scores.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
pub struct NoneConfig;

impl NormaliserNumbers for NoneConfig {
    type Normaliser = NoNormaliser;

    fn init(&self, _d_features: usize, _seed: Seed, _device: &Device) -> NoNormaliser {
        NoNormaliser {}
    }
}

/// Weight 1 for every expert that takes part; nothing is trained.
#[derive(Module, Debug)]
pub struct NoNormaliser {}

impl Normalise for NoNormaliser {
    fn weigh(&self, scores: Scores) -> Weighed {
        match scores.selected {
            Some(selected) => Weighed::new(selected.clone().float(), Some(selected)),
            // An expert that is barred takes no part.
            None => {
                let is_free = scores.logits.detach().greater_elem(f32::NEG_INFINITY);
                Weighed::new(is_free.float(), None)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use burn::tensor::{Tensor, activation::softmax};
    use molora_testkit::assert_close;

    #[test]
    fn who_takes_part_counts_fully() {
        let logits = Tensor::<3>::from_data([[[3.0, -1.0]]], &molora_testkit::device());
        let scores = Scores {
            features: logits.clone(),
            probs: softmax(logits.clone(), 2),
            logits: logits.clone(),
            selected: None,
        };
        let all = NoNormaliser {}.weigh(scores.clone()).weights;
        assert_close(all, [[[1.0, 1.0]]], 0.0, "all");
        let selected = Some(logits.lower_elem(0.0));
        let one = NoNormaliser {}.weigh(Scores { selected, ..scores }).weights;
        assert_close(one, [[[0.0, 1.0]]], 0.0, "one");
    }
}
