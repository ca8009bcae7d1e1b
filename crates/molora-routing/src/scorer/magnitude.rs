//! How large an expert's own low-rank code is. FlyLoRA, Zou et al., arXiv:2510.08396.
//!
//! ```text
//! s_e = sum_r |z_er + d_e|
//! ```
//!
//! for the code `z = x A` of an expert; with experts of rank 1, `|A x + d|`. The bias d is no gradient's:
//! after each step `d <- d + u sign(mean count - count)`, so that experts that were chosen seldom are
//! chosen more often. It enters the choice alone.

use burn::module::{Module, Param};
use burn::tensor::{Device, Tensor};
use molora_kernels::random::Seed;
use molora_parts::{Axis, ParameterKind, PartTensor};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{Reads, Score, ScorerDims, ScorerNumbers};
use crate::RoutingError;

/// What an expert's count is compared with when its bias is moved.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum CountTarget {
    /// The mean count: FlyLoRA's paper and its adapted PEFT layers.
    #[default]
    Mean,
    /// The share of the experts that a token selects, as FlyLoRA's minimal file does, which compares a
    /// share with a count: whoever was chosen at all loses.
    Share,
}

/// The size of an expert's code plus a bias that balances how often experts are chosen.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct MagnitudeConfig {
    /// By how much a bias moves in a step: u.
    pub rate: f64,
    /// Whether codes are taken with their signs, without the absolute value.
    pub signed: bool,
    /// What counts are compared with.
    pub target: CountTarget,
}

impl Default for MagnitudeConfig {
    fn default() -> Self {
        Self {
            rate: 1e-3,
            signed: false,
            target: CountTarget::Mean,
        }
    }
}

impl ScorerNumbers for MagnitudeConfig {
    type Scorer = MagnitudeScorer;

    fn init(&self, dims: ScorerDims, _seed: Seed, device: &Device) -> MagnitudeScorer {
        let bias = Tensor::zeros([dims.experts], device);
        MagnitudeScorer {
            bias: Param::from_tensor(bias).set_require_grad(false),
            rate: self.rate,
            signed: self.signed,
            target: self.target,
        }
    }

    fn reads(&self) -> Reads {
        Reads::Codes
    }

    fn is_full(&self) -> Option<&'static str> {
        Some("its router balances all experts after every step, also those that are there")
    }

    fn validate(&self, _num_experts: usize) -> Result<(), RoutingError> {
        match self.rate.is_finite() && self.rate >= 0.0 {
            true => Ok(()),
            false => Err(RoutingError::Rate(self.rate)),
        }
    }
}

/// A bias for each expert.
#[derive(Module, Debug)]
pub struct MagnitudeScorer {
    /// The bias d, `[E]`; never trained by a gradient.
    pub bias: Param<Tensor<1>>,
    rate: f64,
    signed: bool,
    #[module(skip)]
    target: CountTarget,
}

impl Score for MagnitudeScorer {
    /// Codes `[N, E*R]` to scores `[N, E]`, without a gradient.
    fn score(&self, codes: Tensor<2>) -> Tensor<2> {
        let ([rows, width], [experts]) = (codes.dims(), self.bias.dims());
        let bias = self.bias.val().detach().reshape([1, experts, 1]);
        let codes = codes.detach().reshape([rows, experts, width / experts]) + bias;
        let sizes = match self.signed {
            true => codes,
            false => codes.abs(),
        };
        sizes.sum_dim(2).squeeze_dim(2)
    }

    fn tensors(&mut self) -> Vec<PartTensor<'_>> {
        let experts = [Axis::Expert.of(self.bias.dims()[0])];
        let kind = ParameterKind::Frozen;
        vec![PartTensor::vector(
            "router.bias",
            kind,
            &mut self.bias,
            &experts,
        )]
    }

    fn is_balanced(&self) -> bool {
        true
    }

    fn balance(&mut self, counts: Tensor<1>, decisions: Tensor<1>) {
        let mean = counts.clone().mean();
        let target = match self.target {
            CountTarget::Mean => mean,
            CountTarget::Share => mean / decisions,
        };
        let step = (target - counts).sign().mul_scalar(self.rate);
        let bias = (self.bias.val() + step).detach();
        self.bias = Param::initialized(self.bias.id, bias).set_require_grad(false);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use molora_testkit::{FORWARD, assert_close};

    fn scorer(signed: bool, target: CountTarget) -> MagnitudeScorer {
        let dims = ScorerDims {
            features: 3,
            experts: 3,
            tasks: 0,
            groups: 1,
        };
        let config = MagnitudeConfig {
            rate: 0.5,
            signed,
            target,
        };
        let device = molora_testkit::device();
        let mut scorer = config.init(dims, Seed::new(0), &device);
        scorer.bias = Param::from_data([0.0, 1.0, -1.0], &device);
        scorer
    }

    #[test]
    fn a_score_is_the_size_of_code_and_bias() {
        let codes = || Tensor::from_data([[-2.0, 1.0, 0.5]], &molora_testkit::device());
        let found = scorer(false, CountTarget::Mean).score(codes());
        assert_close(found, [[2.0, 2.0, 0.5]], FORWARD, "sizes");
        let found = scorer(true, CountTarget::Mean).score(codes());
        assert_close(found, [[-2.0, 2.0, -0.5]], FORWARD, "signed");
    }

    #[test]
    fn who_was_chosen_more_often_than_the_target_loses() {
        for (target, expected) in [
            (CountTarget::Mean, [0.5, 1.0, -1.5]),
            // One of three experts a token: 1/3, which only a count of 0 is below.
            (CountTarget::Share, [0.5, 0.5, -1.5]),
        ] {
            let device = molora_testkit::device();
            let mut scorer = scorer(false, target);
            let counts = Tensor::from_data([0.0, 2.0, 4.0], &device);
            scorer.balance(counts, Tensor::from_data([6.0], &device));
            assert_close(scorer.bias.val(), expected, FORWARD, "bias");
        }
    }
}
