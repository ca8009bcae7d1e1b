//! A linear map from features to logits.

use burn::module::{Module, Param};
use burn::tensor::{Device, Tensor};
use molora_kernels::random::Seed;
use molora_parts::{Axis, ParameterKind, PartTensor};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{Score, ScorerDims, ScorerNumbers, draw, rows_of_experts};

/// `W u (+ b)`.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct LinearConfig {
    /// Whether there is a bias `b`.
    pub bias: bool,
}

impl ScorerNumbers for LinearConfig {
    type Scorer = LinearScorer;

    fn init(&self, dims: ScorerDims, seed: Seed, device: &Device) -> LinearScorer {
        let (width, experts) = (dims.features, dims.experts);
        let bias = || draw([experts], width, seed.child("bias"), device);
        LinearScorer {
            weight: draw([experts, width], width, seed.child("weight"), device),
            bias: self.bias.then(bias),
        }
    }
}

/// A linear map from features to logits.
#[derive(Module, Debug)]
pub struct LinearScorer {
    /// One row per expert, `[E, F]`.
    pub weight: Param<Tensor<2>>,
    /// Bias, `[E]`.
    pub bias: Option<Param<Tensor<1>>>,
}

impl Score for LinearScorer {
    fn score(&self, features: Tensor<2>) -> Tensor<2> {
        let logits = features.matmul(self.weight.val().transpose());
        match &self.bias {
            Some(bias) => logits + bias.val().unsqueeze(),
            None => logits,
        }
    }

    fn tensors(&mut self) -> Vec<PartTensor<'_>> {
        let experts = [Axis::Expert.of(self.weight.dims()[0])];
        let weight = rows_of_experts("router.weight", &mut self.weight);
        let bias = self
            .bias
            .iter_mut()
            .map(|bias| PartTensor::vector("router.bias", ParameterKind::Routers, bias, &experts));
        std::iter::once(weight).chain(bias).collect()
    }

    fn rows(&mut self) -> Option<&mut Param<Tensor<2>>> {
        Some(&mut self.weight)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_linear_score_has_a_bias_on_demand() {
        let device = molora_testkit::device();
        let dims = ScorerDims {
            features: 4,
            experts: 3,
            tasks: 0,
            groups: 1,
        };
        for bias in [false, true] {
            let scorer = LinearConfig { bias }.init(dims, Seed::new(1), &device);
            let zero = scorer.score(Tensor::zeros([1, 4], &device)).abs().max();
            assert_eq!(zero.into_scalar::<f32>() > 0.0, bias);
        }
    }
}
