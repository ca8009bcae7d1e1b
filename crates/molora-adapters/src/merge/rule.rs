//! A way of merging as a value.

use burn::tensor::Tensor;
use serde::{Deserialize, Serialize};

use super::{Join, Sparsify};
use crate::AdapterError;

/// What becomes of the entries of each matrix, and how those of several become one.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rule {
    /// Which entries of each matrix stay.
    #[serde(default)]
    pub sparsify: Sparsify,
    /// How entries become one.
    #[serde(default)]
    pub join: Join,
}

impl Rule {
    /// Checks the numbers.
    ///
    /// # Errors
    /// As [`Sparsify::validate`].
    pub fn validate(self) -> Result<(), AdapterError> {
        self.sparsify.validate()
    }

    /// One matrix from several of the same shape with a weight each. `name` is the parameter's, which
    /// keys random draws.
    ///
    /// # Panics
    /// If there is none, or shapes differ.
    pub fn apply(self, name: &str, matrices: &[(Tensor<2>, f64)]) -> Tensor<2> {
        let kept: Vec<Tensor<2>> = matrices
            .iter()
            .enumerate()
            .map(|(index, (matrix, _))| self.sparsify.apply(matrix, name, index))
            .collect();
        let weights: Vec<f64> = matrices.iter().map(|(_, weight)| *weight).collect();
        self.join.apply(&kept, &weights)
    }
}

/// `sum_i w_i tau_i`, task arithmetic (Ilharco et al., arXiv:2212.04089, section 2).
///
/// # Panics
/// If there is none, or shapes differ.
pub fn weighted_sum(matrices: &[(Tensor<2>, f64)]) -> Tensor<2> {
    Rule::default().apply("", matrices)
}
