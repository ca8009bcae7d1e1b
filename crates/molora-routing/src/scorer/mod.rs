//! Scorers: features to logits. The only files with router parameters.

mod arrow;
mod grouped;
mod prototype;
mod uniform;

use burn::module::{Module, Param};
use burn::tensor::{Device, Tensor};
use molora_kernels::random::{Seed, uniform};
use serde::{Deserialize, Serialize};

pub use arrow::ArrowScorer;
pub use grouped::{GroupedConfig, GroupedScorer, WithinGroup, WithinScorer};
pub use prototype::PrototypeScorer;
pub use uniform::UniformScorer;

use crate::RoutingError;

/// Which score an expert gets from the features.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum ScorerConfig {
    /// `W u (+ b)`.
    Linear {
        /// Whether there is a bias `b`.
        bias: bool,
    },
    /// The cosine of the features with one key per expert. SAMoRA, arXiv:2604.19048.
    Cosine,
    /// The standardised dot product with one vector per expert. PHATGOOSE, arXiv:2402.05859.
    Prototype,
    /// The size of the dot product with one direction per expert. Arrow, arXiv:2405.11157.
    Arrow,
    /// The same score for all: the mean of the experts.
    Uniform,
    /// Two levels: groups, and experts inside each. AT-MoE, arXiv:2410.10896.
    Grouped(GroupedConfig),
}

impl ScorerConfig {
    /// Checks what depends on the number of experts.
    ///
    /// # Errors
    /// See [`GroupedConfig::validate`]; the other scorers fit any number.
    pub fn validate(&self, num_experts: usize) -> Result<(), RoutingError> {
        match self {
            Self::Grouped(config) => config.validate(num_experts),
            Self::Linear { .. } | Self::Cosine | Self::Prototype | Self::Arrow | Self::Uniform => {
                Ok(())
            }
        }
    }

    /// A scorer for features of width `d_features`.
    ///
    /// Linear and cosine scorers draw all parameters from U(-1/sqrt(F), 1/sqrt(F)), PyTorch's
    /// default for linear layers and the reference code's choice for keys. Prototypes, directions
    /// and grouped scorers start at zero: a gate that is half open, and uniform weights.
    ///
    /// # Panics
    /// If [`validate`](Self::validate) refuses the number of experts.
    pub fn init(
        &self,
        d_features: usize,
        num_experts: usize,
        seed: Seed,
        device: &Device,
    ) -> Scorer {
        let bound = 1.0 / (d_features as f64).sqrt();
        let matrix = |name| uniform([num_experts, d_features], bound, seed.child(name), device);
        match self {
            Self::Linear { bias } => {
                let bias = bias.then(|| uniform([num_experts], bound, seed.child("bias"), device));
                Scorer::Linear(LinearScorer {
                    weight: Param::from_tensor(matrix("weight")),
                    bias: bias.map(Param::from_tensor),
                })
            }
            Self::Cosine => Scorer::Cosine(CosineScorer {
                keys: Param::from_tensor(matrix("keys")),
            }),
            Self::Prototype => Scorer::Prototype(PrototypeScorer {
                prototypes: Param::from_tensor(Tensor::zeros([num_experts, d_features], device)),
            }),
            Self::Arrow => Scorer::Arrow(ArrowScorer {
                prototypes: Param::from_tensor(Tensor::zeros([num_experts, d_features], device)),
            }),
            Self::Uniform => Scorer::Uniform(UniformScorer::new(num_experts)),
            Self::Grouped(config) => Scorer::Grouped(config.init(d_features, num_experts, device)),
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

impl LinearScorer {
    /// `[N, F]` to logits `[N, E]`.
    pub fn score(&self, features: Tensor<2>) -> Tensor<2> {
        let logits = features.matmul(self.weight.val().transpose());
        match &self.bias {
            Some(bias) => logits + bias.val().unsqueeze(),
            None => logits,
        }
    }
}

/// Cosine similarity with one key per expert.
#[derive(Module, Debug)]
pub struct CosineScorer {
    /// One key per expert, `[E, F]`.
    pub keys: Param<Tensor<2>>,
}

impl CosineScorer {
    /// `[N, F]` to cosines `[N, E]`; features of norm 0 have cosine 0 with every key.
    pub fn score(&self, features: Tensor<2>) -> Tensor<2> {
        cosines(features, self.keys.val(), 1e-12)
    }
}

/// Cosines of every row of `a` `[N, F]` with every row of `b` `[M, F]`, `[N, M]`; norms are at least
/// `epsilon`, so a row of zeros has cosine 0.
pub(crate) fn cosines(a: Tensor<2>, b: Tensor<2>, epsilon: f64) -> Tensor<2> {
    unit_rows(a, epsilon).matmul(unit_rows(b, epsilon).transpose())
}

/// Rows divided by `max(norm, epsilon)`.
///
/// The square is clamped before the root, so the gradient at a zero row is zero instead of NaN.
fn unit_rows(rows: Tensor<2>, epsilon: f64) -> Tensor<2> {
    let square = rows.clone().square().sum_dim(1);
    rows / square.clamp_min(epsilon * epsilon).sqrt()
}

/// A scorer of any kind.
#[derive(Module, Debug)]
#[non_exhaustive]
pub enum Scorer {
    /// See [`LinearScorer`].
    Linear(LinearScorer),
    /// See [`CosineScorer`].
    Cosine(CosineScorer),
    /// See [`PrototypeScorer`].
    Prototype(PrototypeScorer),
    /// See [`ArrowScorer`].
    Arrow(ArrowScorer),
    /// See [`UniformScorer`].
    Uniform(UniformScorer),
    /// See [`GroupedScorer`].
    Grouped(GroupedScorer),
}

impl Scorer {
    /// `[N, F]` to logits `[N, E]`.
    pub fn score(&self, features: Tensor<2>) -> Tensor<2> {
        match self {
            Self::Linear(scorer) => scorer.score(features),
            Self::Cosine(scorer) => scorer.score(features),
            Self::Prototype(scorer) => scorer.score(features),
            Self::Arrow(scorer) => scorer.score(features),
            Self::Uniform(scorer) => scorer.score(&features),
            Self::Grouped(scorer) => scorer.score(features),
        }
    }

    /// The keys `[E, F]`, where the score is the cosine with a key.
    pub fn keys(&self) -> Option<Tensor<2>> {
        match self {
            Self::Cosine(scorer) => Some(scorer.keys.val()),
            _ => None,
        }
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
        let scorer = ScorerConfig::Cosine.init(3, 2, Seed::new(1), &device);
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

    #[test]
    fn a_linear_score_has_a_bias_on_demand() {
        let device = molora_testkit::device();
        for bias in [false, true] {
            let scorer = ScorerConfig::Linear { bias }.init(4, 3, Seed::new(1), &device);
            let zero = scorer.score(Tensor::zeros([1, 4], &device)).abs().max();
            assert_eq!(zero.into_scalar::<f32>() > 0.0, bias);
        }
    }
}
