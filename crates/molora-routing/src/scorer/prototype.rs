//! One vector per expert, trained alone as a gate and compared by a standardised dot product.
//!
//! PHATGOOSE, Muqeeth et al., arXiv:2402.05859, section 3; the local half of GLIDER,
//! arXiv:2410.07172. A gate `v_e` is trained with its expert frozen and multiplies the expert's
//! delta by `sigmoid(<v_e, u>)`. Gates of experts that never met are then stacked and scored by
//!
//! ```text
//! std(z) = (z - mean(z)) / sqrt(var(z) + 1e-5)      population variance over the F features
//! s_e    = <std(v_e), std(u)> / sqrt(F)
//! ```

use burn::module::{Module, Param};
use burn::tensor::{Device, Tensor, activation::sigmoid};
use molora_kernels::random::Seed;
use molora_parts::PartTensor;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{RowsFrom, Score, ScorerDims, ScorerNumbers, rows_of_experts};

/// Added to the variance before the root, as layer norms do.
const EPSILON: f64 = 1e-5;

/// The standardised dot product with one vector per expert. PHATGOOSE, arXiv:2402.05859. Starts at
/// zero: a gate that is half open, and uniform weights.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
pub struct PrototypeConfig;

impl ScorerNumbers for PrototypeConfig {
    type Scorer = PrototypeScorer;

    fn init(&self, dims: ScorerDims, _seed: Seed, device: &Device) -> PrototypeScorer {
        let prototypes = Tensor::zeros([dims.experts, dims.features], device);
        PrototypeScorer {
            prototypes: Param::from_tensor(prototypes),
        }
    }

    fn rows_from(&self) -> RowsFrom {
        RowsFrom::Gates
    }
}

/// Standardised dot product with one vector per expert.
#[derive(Module, Debug)]
pub struct PrototypeScorer {
    /// One vector per expert, `[E, F]`; zero for an expert whose gate was never trained.
    pub prototypes: Param<Tensor<2>>,
}

impl Score for PrototypeScorer {
    /// `[N, F]` to scores `[N, E]` between `-sqrt(F)` and `sqrt(F)`: the correlation of features
    /// and vector, times `sqrt(F)`.
    ///
    /// A constant vector has no direction once its mean is gone: it scores 0, which is neutral and
    /// not low.
    fn score(&self, features: Tensor<2>) -> Tensor<2> {
        let scale = 1.0 / (features.dims()[1] as f64).sqrt();
        let prototypes = standardised(self.prototypes.val());
        standardised(features)
            .matmul(prototypes.transpose())
            .mul_scalar(scale)
    }

    fn tensors(&mut self) -> Vec<PartTensor<'_>> {
        vec![rows_of_experts("router.prototypes", &mut self.prototypes)]
    }

    fn rows(&mut self) -> Option<&mut Param<Tensor<2>>> {
        Some(&mut self.prototypes)
    }
}

impl PrototypeScorer {
    /// The gate of one expert while its vector is trained: `sigmoid(<v_e, u>)` for every row,
    /// `[N, F]` to `[N, 1]`.
    ///
    /// Features are not standardised here. A vector of zeros opens the gate by one half.
    ///
    /// # Panics
    /// If there is no such expert.
    pub fn gate(&self, expert: usize, features: Tensor<2>) -> Tensor<2> {
        let prototype = self.prototypes.val().narrow(0, expert, 1);
        sigmoid(features.matmul(prototype.transpose()))
    }
}

/// Rows of mean 0 and variance 1; constant rows become 0.
fn standardised(rows: Tensor<2>) -> Tensor<2> {
    let centred = rows.clone() - rows.mean_dim(1);
    let variance = centred.clone().square().mean_dim(1);
    centred / variance.add_scalar(EPSILON).sqrt()
}

#[cfg(test)]
mod tests {
    use super::*;
    use molora_testkit::{FORWARD, assert_close};

    const FEATURES: [[f32; 4]; 1] = [[1.0, -2.0, 0.5, 3.0]];

    fn scorer() -> PrototypeScorer {
        let prototypes = [
            [0.2, -0.1, 0.4, 0.3],
            [-0.5, 0.1, 0.0, 0.6],
            [0.3, 0.3, -0.2, -0.4],
            [0.1, -0.6, 0.2, 0.9],
        ];
        PrototypeScorer {
            prototypes: Param::from_data(prototypes, &molora_testkit::device()),
        }
    }

    #[test]
    fn scores_of_the_worked_example() {
        let features = Tensor::from_data(FEATURES, &molora_testkit::device());
        let expected = [[1.500428, 0.700917, -1.457292, 1.967527]];
        assert_close(scorer().score(features), expected, FORWARD, "scores");
    }

    #[test]
    fn gates_of_the_worked_example() {
        let features = Tensor::<2>::from_data(FEATURES, &molora_testkit::device());
        for (expert, gate) in [0.817574, 0.750260, 0.167982, 0.983698]
            .into_iter()
            .enumerate()
        {
            let found = scorer().gate(expert, features.clone());
            assert_close(found, [[gate]], FORWARD, "gate");
        }
    }

    #[test]
    fn constant_vectors_are_neutral_and_have_finite_gradients() {
        let device = molora_testkit::autodiff_device();
        let scorer = PrototypeScorer {
            prototypes: Param::from_data([[0.0; 4], [0.1, -0.6, 0.2, 0.9]], &device),
        };
        let features = [[1.0, -2.0, 0.5, 3.0], [0.0; 4]];
        let scores = scorer.score(Tensor::from_data(features, &device));
        assert_close(
            scores.clone(),
            [[0.0, 1.967527], [0.0, 0.0]],
            FORWARD,
            "scores",
        );
        let gradients = scores.sum().backward();
        let gradient = scorer.prototypes.val().grad(&gradients).expect("tracked");
        let gradient = gradient.into_data().try_to_vec::<f32>().expect("f32");
        assert!(gradient.iter().all(|value| value.is_finite()));
        assert!(gradient[0].abs() > 1e-3, "a zero gate learns");
    }

    #[test]
    fn shifts_and_positive_factors_of_the_features_do_not_matter() {
        let features = Tensor::<2>::from_data(FEATURES, &molora_testkit::device());
        let moved = features.clone().mul_scalar(3.0).add_scalar(0.5);
        let scores = scorer().score(features);
        assert_close(scorer().score(moved), scores, 1e-4, "scores");
    }
}
