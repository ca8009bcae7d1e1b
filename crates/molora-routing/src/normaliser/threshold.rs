//! A learned threshold for each decision, below which an expert has no weight. AdaMoLE, Liu and Luo,
//! arXiv:2405.00361.
//!
//! ```text
//! theta = theta_max sigmoid(<w, u> + b)
//! w_e   = max(p_e - theta, 0) / sum_j max(p_j - theta, 0)
//! ```
//!
//! With `theta_max` of `1 / E` one expert always passes, since the largest probability is at least that;
//! with a larger one a decision may be for none, whose weights are all 0.

use burn::module::{Module, Param};
use burn::tensor::{Device, Tensor, activation::sigmoid};
use molora_kernels::random::{Seed, uniform};
use molora_parts::{Axis, ParameterKind, PartTensor};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{Learned, Normalise, NormaliserNumbers, Scores, Weighed};
use crate::RoutingError;

/// What exceeds a learned threshold. AdaMoLE, arXiv:2405.00361.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct ThresholdConfig {
    /// The largest threshold; `1 / E` if absent, as in the paper.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub theta_max: Option<f64>,
}

impl NormaliserNumbers for ThresholdConfig {
    type Normaliser = Threshold;

    /// Weight and bias from U(-1/sqrt(F), 1/sqrt(F)), PyTorch's default for a linear layer.
    fn init(&self, d_features: usize, seed: Seed, device: &Device) -> Threshold {
        let bound = 1.0 / (d_features as f64).sqrt();
        let weight = uniform([1, d_features], bound, seed.child("weight"), device);
        let bias = uniform([1], bound, seed.child("bias"), device);
        Threshold {
            weight: Param::from_tensor(weight),
            bias: Param::from_tensor(bias),
            theta_max: self.theta_max,
        }
    }

    fn learns(&self) -> Option<Learned> {
        Some(Learned::Threshold)
    }

    fn validate(&self) -> Result<(), RoutingError> {
        match self.theta_max {
            Some(theta_max) if !(theta_max > 0.0 && theta_max <= 1.0) => {
                Err(RoutingError::Threshold(theta_max))
            }
            _ => Ok(()),
        }
    }
}

/// What exceeds a learned threshold, as a share of all that does.
#[derive(Module, Debug)]
pub struct Threshold {
    /// `w`, `[1, F]`.
    pub weight: Param<Tensor<2>>,
    /// `b`, `[1]`.
    pub bias: Param<Tensor<1>>,
    #[module(skip)]
    theta_max: Option<f64>,
}

impl Threshold {
    /// theta of every decision, `[B, T', F]` to `[B, T', 1]`, between 0 and `theta_max`.
    pub fn theta(&self, features: Tensor<3>, num_experts: usize) -> Tensor<3> {
        let largest = self.theta_max.unwrap_or(1.0 / num_experts as f64);
        let weight = self.weight.val().transpose().unsqueeze();
        let logits = features.matmul(weight) + self.bias.val().unsqueeze();
        sigmoid(logits).mul_scalar(largest)
    }
}

impl Normalise for Threshold {
    fn weigh(&self, scores: Scores) -> Weighed {
        let experts = scores.probs.dims()[2];
        let theta = self.theta(scores.features, experts);
        let above = scores.probs - theta.clone();
        let passes = above.clone().detach().greater_equal_elem(0.0);
        let selected = match scores.selected {
            None => passes,
            Some(selected) => passes.bool_and(selected),
        };
        let above = above.mask_fill(selected.clone().bool_not(), 0.0);
        let total = above.clone().sum_dim(2);
        // A decision for none keeps its zeros.
        let is_none = total.clone().equal_elem(0.0);
        let weights = above / total.mask_fill(is_none, 1.0);
        Weighed::new(weights, Some(selected)).with_learned(theta)
    }

    fn tensors(&mut self) -> Vec<PartTensor<'_>> {
        let kind = ParameterKind::Routers;
        let (one, features) = (
            [Axis::Unit.of(1)],
            [Axis::Feature.of(self.weight.dims()[1])],
        );
        let (weight, bias) = (&mut self.weight, &mut self.bias);
        vec![
            PartTensor::matrix("router.threshold.weight", kind, weight, &one, &features),
            PartTensor::vector("router.threshold.bias", kind, bias, &one),
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use burn::tensor::activation::softmax;
    use molora_testkit::{FORWARD, GRADIENT, assert_close};

    /// A threshold of half of `theta_max`, whatever is read.
    fn half(theta_max: Option<f64>, device: &Device) -> Threshold {
        let config = ThresholdConfig { theta_max };
        Threshold {
            weight: Param::from_tensor(Tensor::zeros([1, 2], device)),
            bias: Param::from_tensor(Tensor::zeros([1], device)),
            ..config.init(2, Seed::new(0), device)
        }
    }

    /// Softmax 0.5, 0.25, 0.125, 0.125.
    fn scores(device: &Device) -> Scores {
        let logits = [8.0_f32, 4.0, 2.0, 2.0].map(f32::ln);
        let logits = Tensor::<3>::from_data([[logits]], device);
        Scores {
            features: Tensor::ones([1, 1, 2], device),
            probs: softmax(logits.clone(), 2),
            logits,
            selected: None,
        }
    }

    /// At theta = 1/8 the last two stand at the threshold.
    #[test]
    fn weights_are_shares_of_what_exceeds_the_threshold() {
        let device = molora_testkit::device();
        for (theta_max, expected) in [
            (None, [0.75, 0.25, 0.0, 0.0]),
            (Some(0.4), [0.857143, 0.142857, 0.0, 0.0]),
            (Some(0.6), [1.0, 0.0, 0.0, 0.0]),
        ] {
            let weighed = half(theta_max, &device).weigh(scores(&device));
            let theta = theta_max.unwrap_or(0.25) as f32 / 2.0;
            assert_close(
                weighed.learned.expect("theta"),
                [[[theta]]],
                FORWARD,
                "theta",
            );
            assert_close(weighed.weights, [[expected]], FORWARD, "weights");
        }
        let weighed = half(Some(0.6), &device).weigh(scores(&device));
        let selected = weighed.selected.expect("a selection").float();
        assert_close(selected, [[[1.0, 0.0, 0.0, 0.0]]], 0.0, "selected");
    }

    #[test]
    fn a_decision_may_be_for_none() {
        let device = molora_testkit::autodiff_device();
        let mut scores = scores(&device);
        let logits = scores.logits.require_grad();
        scores.logits = logits.clone();
        scores.probs = softmax(logits.clone(), 2);
        let threshold = Threshold {
            bias: Param::from_tensor(Tensor::full([1], 3.0, &device)),
            ..half(Some(0.9), &device)
        };
        let weighed = threshold.weigh(scores);
        assert_close(weighed.weights.clone(), [[[0.0; 4]]], 0.0, "weights");
        let selected = weighed.selected.expect("a selection").float();
        assert_close(selected, [[[0.0; 4]]], 0.0, "selected");
        let gradients = weighed.weights.sum().backward();
        let gradient = logits.grad(&gradients).expect("tracked");
        assert_close(gradient, [[[0.0; 4]]], 0.0, "gradient");
    }

    /// With two experts above the threshold, `w_0 = (p_0 - t) / (p_0 + p_1 - 2 t)`, so that
    /// `dw_0/dt = (p_0 - p_1) / (p_0 + p_1 - 2 t)^2`: 0.25 / 0.35^2 at t = 0.2, which is
    /// `theta_max / 2`, and `dt/db = theta_max / 4`.
    #[test]
    fn the_threshold_learns() {
        let device = molora_testkit::autodiff_device();
        let threshold = half(Some(0.4), &device);
        let weights = threshold.weigh(scores(&device)).weights;
        let gradients = weights.narrow(2, 0, 1).sum().backward();
        let found = threshold.bias.val().grad(&gradients).expect("tracked");
        assert_close(found, [0.204082], GRADIENT, "d w / d b");
    }

    #[test]
    fn a_threshold_is_a_probability() {
        let error = ThresholdConfig {
            theta_max: Some(0.0),
        }
        .validate();
        let error = error.expect_err("nothing to learn").to_string();
        assert_eq!(
            error,
            "theta_max is 0, expected a number above 0 and at most 1"
        );
    }
}
