//! Cosine similarity with one key per expert. SAMoRA, arXiv:2604.19048.

use burn::module::{Module, Param};
use burn::tensor::{Device, Tensor};
use molora_kernels::random::Seed;
use molora_parts::PartTensor;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{Score, ScorerDims, ScorerNumbers, draw, rows_of_experts};

/// The cosine of the features with one key per expert. SAMoRA, arXiv:2604.19048.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
pub struct CosineConfig;

impl ScorerNumbers for CosineConfig {
    type Scorer = CosineScorer;

    fn init(&self, dims: ScorerDims, seed: Seed, device: &Device) -> CosineScorer {
        let (width, experts) = (dims.features, dims.experts);
        CosineScorer {
            keys: draw([experts, width], width, seed.child("keys"), device),
        }
    }

    fn has_keys(&self) -> bool {
        true
    }
}

/// Cosine similarity with one key per expert.
#[derive(Module, Debug)]
pub struct CosineScorer {
    /// One key per expert, `[E, F]`.
    pub keys: Param<Tensor<2>>,
}

impl Score for CosineScorer {
    /// `[N, F]` to cosines `[N, E]`; features of norm 0 have cosine 0 with every key.
    fn score(&self, features: Tensor<2>) -> Tensor<2> {
        molora_kernels::cosines(features, self.keys.val(), 1e-12)
    }

    fn tensors(&mut self) -> Vec<PartTensor<'_>> {
        vec![rows_of_experts("router.keys", &mut self.keys)]
    }

    fn rows(&mut self) -> Option<&mut Param<Tensor<2>>> {
        Some(&mut self.keys)
    }

    fn keys(&self) -> Option<Tensor<2>> {
        Some(self.keys.val())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use molora_testkit::{FORWARD, assert_close};

    #[test]
    fn cosines_of_the_worked_example() {
        let device = molora_testkit::device();
        let keys = Param::from_data([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]], &device);
        let features = Tensor::from_data([[3.0, 1.5], [0.0, 0.0]], &device);
        let cosines = CosineScorer { keys }.score(features);
        let expected = [[0.894427, 0.447214, 0.948683], [0.0, 0.0, 0.0]];
        assert_close(cosines, expected, FORWARD, "cosines");
    }

    #[test]
    fn the_gradient_at_zero_features_is_finite() {
        let device = molora_testkit::autodiff_device();
        let dims = ScorerDims {
            features: 3,
            experts: 2,
            tasks: 0,
            groups: 1,
        };
        let scorer = CosineConfig.init(dims, Seed::new(1), &device);
        let features = Tensor::<2>::zeros([2, 3], &device).require_grad();
        let gradients = scorer.score(features.clone()).sum().backward();
        let gradient = features.grad(&gradients).expect("tracked").into_data();
        assert!(
            gradient
                .try_to_vec::<f32>()
                .expect("f32")
                .iter()
                .all(|value| value.is_finite())
        );
    }
}
