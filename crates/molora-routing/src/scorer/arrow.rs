//! The size of the features' projection on one direction per expert.
//!
//! Arrow, Ostapenko et al., arXiv:2405.11157, section 4.1: the direction of an expert is the input
//! that its delta stretches most, the first right singular vector of `B A`, and
//!
//! ```text
//! s_e = |<v_e, u>|
//! ```
//!
//! Nothing is trained; a singular vector has no sign, and neither has the score.

use burn::module::{Module, Param};
use burn::tensor::{Device, Tensor};
use molora_kernels::random::Seed;
use molora_parts::PartTensor;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{RowsFrom, Score, ScorerDims, ScorerNumbers, rows_of_experts};

/// The size of the dot product with one direction per expert. Arrow, arXiv:2405.11157. Starts at zero,
/// where no gradient moves it: directions are computed from the experts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
pub struct ArrowConfig;

impl ScorerNumbers for ArrowConfig {
    type Scorer = ArrowScorer;

    fn init(&self, dims: ScorerDims, _seed: Seed, device: &Device) -> ArrowScorer {
        let prototypes = Tensor::zeros([dims.experts, dims.features], device);
        ArrowScorer {
            prototypes: Param::from_tensor(prototypes),
        }
    }

    fn rows_from(&self) -> RowsFrom {
        RowsFrom::Experts
    }
}

/// Size of the dot product with one vector per expert.
#[derive(Module, Debug)]
pub struct ArrowScorer {
    /// One unit vector per expert, `[E, F]`.
    pub prototypes: Param<Tensor<2>>,
}

impl Score for ArrowScorer {
    /// `[N, F]` to scores `[N, E]` of at least 0.
    fn score(&self, features: Tensor<2>) -> Tensor<2> {
        features.matmul(self.prototypes.val().transpose()).abs()
    }

    fn tensors(&mut self) -> Vec<PartTensor<'_>> {
        vec![rows_of_experts("router.prototypes", &mut self.prototypes)]
    }

    fn rows(&mut self) -> Option<&mut Param<Tensor<2>>> {
        Some(&mut self.prototypes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use molora_testkit::{FORWARD, assert_close};

    #[test]
    fn scores_have_no_sign() {
        let device = molora_testkit::device();
        let scorer = ArrowScorer {
            prototypes: Param::from_data([[0.6, 0.8], [-1.0, 0.0]], &device),
        };
        let features = Tensor::from_data([[1.0, 2.0], [-3.0, 0.5]], &device);
        let expected = [[2.2, 1.0], [1.4, 3.0]];
        assert_close(scorer.score(features), expected, FORWARD, "scores");
    }
}
