//! The same score for every expert, whatever the features: under [`Selection::Dense`] the mixture is
//! the mean of the experts, which is the same for all inputs.
//!
//! [`Selection::Dense`]: crate::Selection::Dense

use burn::module::Module;
use burn::tensor::{Device, Tensor};
use molora_kernels::random::Seed;
use molora_parts::PartTensor;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{Score, ScorerDims, ScorerNumbers};

/// The same score for all: the mean of the experts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
pub struct UniformConfig;

impl ScorerNumbers for UniformConfig {
    type Scorer = UniformScorer;

    fn init(&self, dims: ScorerDims, _seed: Seed, _device: &Device) -> UniformScorer {
        UniformScorer {
            num_experts: dims.experts,
        }
    }

    fn is_uniform(&self) -> bool {
        true
    }

    fn is_full(&self) -> Option<&'static str> {
        Some(
            "all its experts weigh the same, so that one more would take a share of the others for good",
        )
    }
}

/// Score 0 for every expert; nothing is trained.
#[derive(Module, Debug)]
pub struct UniformScorer {
    num_experts: usize,
}

impl Score for UniformScorer {
    /// `[N, F]` to zeros `[N, E]`.
    fn score(&self, features: Tensor<2>) -> Tensor<2> {
        Tensor::zeros([features.dims()[0], self.num_experts], &features.device())
    }

    fn tensors(&mut self) -> Vec<PartTensor<'_>> {
        Vec::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{RouteInput, RouterConfig};
    use molora_testkit::{FORWARD, assert_close};

    #[test]
    fn every_expert_has_the_same_weight() {
        let device = molora_testkit::device();
        let config = RouterConfig {
            scorer: UniformConfig.into(),
            ..RouterConfig::default()
        };
        let router = config.init(3, 4, 0, Seed::new(0), &device);
        let routed = router.route(&RouteInput {
            features: Tensor::ones([1, 2, 3], &device),
            mask: Tensor::ones([1, 2], &device),
            tasks: None,
            columns: None,
        });
        assert_close(routed.weights, [[[0.25; 4]; 2]], FORWARD, "weights");
    }
}
