//! A network of one hidden layer from features to scores.

use burn::module::{Module, Param};
use burn::tensor::{Device, Tensor, activation::relu};
use molora_kernels::random::{Seed, normal};
use molora_parts::{Axis, ParameterKind, PartTensor};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{Score, ScorerDims, ScorerNumbers, rows_of_experts};
use crate::RoutingError;

/// Deviation of fresh weights, as in the authors' code.
const DEVIATION: f64 = 0.01;

/// `W2 relu(W1 u + b1) + b2` with a hidden layer as wide as the features: the gate of WEMoE
/// (arXiv:2402.00433, section 3.3).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct PerceptronConfig {
    /// What `b2` starts at for every expert.
    pub start: f64,
}

impl Default for PerceptronConfig {
    /// 0.3, so that a fresh gate is task arithmetic.
    fn default() -> Self {
        Self { start: 0.3 }
    }
}

impl ScorerNumbers for PerceptronConfig {
    type Scorer = PerceptronScorer;

    fn init(&self, dims: ScorerDims, seed: Seed, device: &Device) -> PerceptronScorer {
        let (width, experts) = (dims.features, dims.experts);
        let draw =
            |shape, name| Param::from_tensor(normal(shape, DEVIATION, seed.child(name), device));
        PerceptronScorer {
            hidden: draw([width, width], "hidden"),
            hidden_bias: Param::from_tensor(Tensor::zeros([width], device)),
            weight: draw([experts, width], "weight"),
            bias: Param::from_tensor(Tensor::full([experts], self.start, device)),
        }
    }

    fn validate(&self, _num_experts: usize) -> Result<(), RoutingError> {
        match self.start.is_finite() {
            true => Ok(()),
            false => Err(RoutingError::NotFinite {
                field: "start",
                value: self.start,
            }),
        }
    }
}

/// A network of one hidden layer.
#[derive(Module, Debug)]
pub struct PerceptronScorer {
    /// `W1` `[F, F]`, a row for each hidden number.
    pub hidden: Param<Tensor<2>>,
    /// `b1` `[F]`.
    pub hidden_bias: Param<Tensor<1>>,
    /// `W2` `[E, F]`, a row for each expert.
    pub weight: Param<Tensor<2>>,
    /// `b2` `[E]`.
    pub bias: Param<Tensor<1>>,
}

impl Score for PerceptronScorer {
    fn score(&self, features: Tensor<2>) -> Tensor<2> {
        let hidden = features.matmul(self.hidden.val().transpose());
        let hidden = relu(hidden + self.hidden_bias.val().unsqueeze());
        hidden.matmul(self.weight.val().transpose()) + self.bias.val().unsqueeze()
    }

    fn tensors(&mut self) -> Vec<PartTensor<'_>> {
        let kind = ParameterKind::Routers;
        let [width, _] = self.hidden.dims();
        let [experts] = self.bias.dims();
        let (wide, experts) = ([Axis::Feature.of(width)], [Axis::Expert.of(experts)]);
        vec![
            PartTensor::matrix("router.hidden", kind, &mut self.hidden, &wide, &wide),
            PartTensor::vector("router.hidden_bias", kind, &mut self.hidden_bias, &wide),
            rows_of_experts("router.weight", &mut self.weight),
            PartTensor::vector("router.bias", kind, &mut self.bias, &experts),
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use molora_testkit::{FORWARD, assert_close};

    #[test]
    fn fresh_scores_are_near_the_start() {
        let device = molora_testkit::device();
        let dims = ScorerDims {
            features: 4,
            experts: 3,
            tasks: 0,
            groups: 1,
        };
        let scorer = PerceptronConfig::default().init(dims, Seed::new(1), &device);
        let zero = scorer.score(Tensor::zeros([2, 4], &device));
        assert_close(zero, [[0.3; 3]; 2], FORWARD, "of zeros");
        let gap = scorer.score(Tensor::ones([2, 4], &device)).sub_scalar(0.3);
        let gap: f32 = gap.abs().max().into_scalar();
        assert!(gap > 0.0 && gap < 0.01, "{gap}");
    }
}
