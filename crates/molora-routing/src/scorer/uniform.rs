//! The same score for every expert, whatever the features: under [`Selection::Dense`] the mixture is
//! the mean of the experts, which is the same for all inputs.
//!
//! [`Selection::Dense`]: crate::Selection::Dense

use burn::module::Module;
use burn::tensor::Tensor;

/// Score 0 for every expert; nothing is trained.
#[derive(Module, Debug)]
pub struct UniformScorer {
    num_experts: usize,
}

impl UniformScorer {
    /// A scorer of so many experts.
    pub fn new(num_experts: usize) -> Self {
        Self { num_experts }
    }

    /// `[N, F]` to zeros `[N, E]`.
    pub fn score(&self, features: &Tensor<2>) -> Tensor<2> {
        Tensor::zeros([features.dims()[0], self.num_experts], &features.device())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{RouteInput, RouterConfig, ScorerConfig};
    use molora_kernels::random::Seed;
    use molora_testkit::{FORWARD, assert_close};

    #[test]
    fn every_expert_has_the_same_weight() {
        let device = molora_testkit::device();
        let config = RouterConfig {
            scorer: ScorerConfig::Uniform,
            ..RouterConfig::default()
        };
        let router = config.init(3, 4, 0, Seed::new(0), &device);
        let routed = router.route(&RouteInput {
            features: Tensor::ones([1, 2, 3], &device),
            mask: Tensor::ones([1, 2], &device),
            tasks: None,
        });
        assert_close(routed.weights, [[[0.25; 4]; 2]], FORWARD, "weights");
    }
}
