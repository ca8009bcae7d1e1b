//! The softmax of the *probabilities* of the experts that take part, as HMoRA's released code has it
//! (ICLR 2025, openreview lTkHiXeuDl). It is flatter than renormalising: 0.6 and 0.2 become 0.60 and 0.40
//! and not 0.75 and 0.25.

use burn::module::Module;
use burn::tensor::Device;
use molora_kernels::random::Seed;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::softmax::masked_softmax;
use super::{Normalise, NormaliserNumbers, Scores, Weighed};

/// The softmax of the probabilities of the experts that take part; the probabilities themselves where all
/// do. HMoRA's released code, openreview lTkHiXeuDl.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
pub struct SoftmaxTwiceConfig;

impl NormaliserNumbers for SoftmaxTwiceConfig {
    type Normaliser = SoftmaxTwice;

    fn init(&self, _d_features: usize, _seed: Seed, _device: &Device) -> SoftmaxTwice {
        SoftmaxTwice {}
    }
}

/// The softmax of the probabilities of the experts that take part; nothing is trained.
#[derive(Module, Debug)]
pub struct SoftmaxTwice {}

impl Normalise for SoftmaxTwice {
    fn weigh(&self, scores: Scores) -> Weighed {
        let Some(selected) = scores.selected else {
            return Weighed::new(scores.probs, None);
        };
        let weights = masked_softmax(scores.probs, selected.clone());
        Weighed::new(weights, Some(selected))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use burn::tensor::{Tensor, activation::softmax};
    use molora_testkit::{FORWARD, assert_close};

    #[test]
    fn kept_probabilities_become_flatter() {
        let device = molora_testkit::device();
        let logits = [0.6_f32, 0.2, 0.15, 0.05].map(f32::ln);
        let logits = Tensor::<3>::from_data([[logits]], &device);
        let selected = Tensor::<3>::from_data([[[1.0, 1.0, 0.0, 0.0]]], &device);
        let scores = Scores {
            features: logits.clone(),
            probs: softmax(logits.clone(), 2),
            logits,
            selected: None,
        };
        let all = SoftmaxTwice {}.weigh(scores.clone()).weights;
        assert_close(all, [[[0.6, 0.2, 0.15, 0.05]]], FORWARD, "of all");
        let selected = Some(selected.bool());
        let two = SoftmaxTwice {}.weigh(Scores { selected, ..scores }).weights;
        assert_close(two, [[[0.598688, 0.401312, 0.0, 0.0]]], FORWARD, "of two");
    }
}
