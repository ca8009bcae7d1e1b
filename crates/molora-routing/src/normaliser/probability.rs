//! The probability of each expert that takes part, which is not renormalised: the share of the
//! experts that were left out is dropped, and the router learns from every logit.
//!
//! Top-p routing, Huang et al., arXiv:2403.07652, section 3.2; Mod-Squad, Chen et al.,
//! arXiv:2212.08066, with a floor under every probability; MoCLE, arXiv:2312.12379.

use burn::module::Module;
use burn::tensor::Device;
use molora_kernels::random::Seed;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{Normalise, NormaliserNumbers, Scores, Weighed};
use crate::RoutingError;

/// The softmax over all experts, kept for those that take part. Top-p routing, arXiv:2403.07652.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct ProbabilityConfig {
    /// Added to every probability (Mod-Squad's code: 1e-4).
    pub floor: f64,
}

impl NormaliserNumbers for ProbabilityConfig {
    type Normaliser = Probability;

    fn init(&self, _d_features: usize, _seed: Seed, _device: &Device) -> Probability {
        Probability { floor: self.floor }
    }

    fn validate(&self) -> Result<(), RoutingError> {
        match self.floor {
            floor if (0.0..1.0).contains(&floor) => Ok(()),
            floor => Err(RoutingError::Floor(floor)),
        }
    }
}

/// The softmax over all experts, kept for those that take part; nothing is trained.
#[derive(Module, Debug)]
pub struct Probability {
    floor: f64,
}

impl Normalise for Probability {
    fn weigh(&self, scores: Scores) -> Weighed {
        let barred = scores.logits.equal_elem(f32::NEG_INFINITY);
        let weights = match self.floor {
            0.0 => scores.probs,
            floor => scores.probs.add_scalar(floor).mask_fill(barred, 0.0),
        };
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
    use molora_testkit::{FORWARD, GRADIENT, assert_close};

    /// Softmax 0.5, 0.25, 0.125, 0.125, of which the first two take part.
    fn scores(device: &Device) -> Scores {
        let logits = [8.0_f32, 4.0, 2.0, 2.0].map(f32::ln);
        let logits = Tensor::<3>::from_data([[logits]], device);
        let selected = Tensor::<3>::from_data([[[1.0, 1.0, 0.0, 0.0]]], device);
        Scores {
            features: logits.clone(),
            probs: softmax(logits.clone(), 2),
            logits,
            selected: Some(selected.bool()),
        }
    }

    #[test]
    fn what_is_left_out_is_not_given_to_others() {
        let device = molora_testkit::device();
        for (floor, expected) in [(0.0, [0.5, 0.25]), (0.01, [0.51, 0.26])] {
            let probability = ProbabilityConfig { floor }.init(1, Seed::new(0), &device);
            let weights = probability.weigh(scores(&device)).weights;
            let expected = [[[expected[0], expected[1], 0.0, 0.0]]];
            assert_close(weights, expected, FORWARD, "weights");
        }
    }

    /// `d p_0 / d l_j = p_0 (1[j = 0] - p_j)`, for experts that were left out too.
    #[test]
    fn every_logit_has_a_gradient() {
        let device = molora_testkit::autodiff_device();
        let mut scores = scores(&device);
        let logits = scores.logits.require_grad();
        scores.logits = logits.clone();
        scores.probs = softmax(logits.clone(), 2);
        let weights = ProbabilityConfig::default()
            .init(1, Seed::new(0), &device)
            .weigh(scores)
            .weights;
        let gradients = weights.narrow(2, 0, 1).sum().backward();
        let expected = [[[0.25, -0.125, -0.0625, -0.0625]]];
        let found = logits.grad(&gradients).expect("tracked");
        assert_close(found, expected, GRADIENT, "d p / d logits");
    }

    #[test]
    fn a_barred_expert_has_no_floor() {
        let device = molora_testkit::device();
        let logits = Tensor::<3>::from_data([[[0.0, f32::NEG_INFINITY]]], &device);
        let scores = Scores {
            features: logits.clone(),
            probs: softmax(logits.clone(), 2),
            logits,
            selected: None,
        };
        let probability = ProbabilityConfig { floor: 0.25 }.init(1, Seed::new(0), &device);
        let weights = probability.weigh(scores).weights;
        assert_close(weights, [[[1.25, 0.0]]], FORWARD, "weights");
    }

    #[test]
    fn a_floor_is_below_one() {
        let error = ProbabilityConfig { floor: -0.5 }.validate();
        let error = error.expect_err("negative").to_string();
        assert_eq!(error, "floor is -0.5, expected at least 0 and less than 1");
    }
}
