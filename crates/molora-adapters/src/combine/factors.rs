//! Matrices are mixed before they are multiplied. Polytropon, Ponti et al., arXiv:2202.13914;
//! multi-head routing, Caccia et al., arXiv:2211.03831.

use burn::tensor::Tensor;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{Combining, Weighed, added, by_group};
use crate::{AdapterError, BankConfig, ExpertBank, SiteDims, Slices};

/// `A = sum_e w_e A_e` and `B = sum_e w_e B_e`, so that `B A` has terms of every pair of experts. With
/// splits, inputs and outputs lie in as many blocks of equal width, and the weights of split q are
/// those of block q of `A`'s rows and of `B`'s columns (multi-head routing).
///
/// Weights are those of a whole sequence or task.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct FactorsConfig {
    /// Number of blocks; it has to divide both widths of every site.
    pub splits: usize,
}

impl Default for FactorsConfig {
    fn default() -> Self {
        Self { splits: 1 }
    }
}

impl Combining for FactorsConfig {
    fn groups(&self, _rank: usize) -> usize {
        self.splits
    }

    fn reads_inputs(&self) -> bool {
        true
    }

    fn validate(&self, bank: &BankConfig) -> Result<(), AdapterError> {
        if self.splits == 0 {
            return Err(AdapterError::Zero { field: "splits" });
        }
        let is_plain = bank.slices == Slices::Independent
            && bank.down.is_dense()
            && bank.core.is_none()
            && bank.weight_dropout == 0.0;
        match is_plain {
            true => Ok(()),
            false => Err(AdapterError::Combine {
                name: "factors",
                needs: "independent slices, a dense down, no core and no weight_dropout",
            }),
        }
    }

    fn validate_for(&self, dims: SiteDims) -> Result<(), AdapterError> {
        let widths = [
            ("input width", dims.d_input),
            ("output width", dims.d_output),
        ];
        match widths
            .iter()
            .find(|(_, size)| !size.is_multiple_of(self.splits))
        {
            Some(&(what, size)) => Err(AdapterError::Groups {
                groups: self.splits,
                what,
                size,
            }),
            None => Ok(()),
        }
    }

    fn factors(&self, bank: &ExpertBank, weights: Tensor<3>) -> Option<(Tensor<2>, Tensor<2>)> {
        let (a, b) = self.mixed(bank, Some(weights));
        Some((a.squeeze_dim(0), b.squeeze_dim(0)))
    }

    fn mix(&self, bank: &ExpertBank, base: Option<Tensor<3>>, weighed: Weighed) -> Tensor<3> {
        let (a, b) = self.mixed(bank, weighed.weights);
        let code = weighed.code.matmul(a).mul_scalar(bank.factor);
        added(base, code.matmul(b))
    }
}

impl FactorsConfig {
    /// `A` and `B` of each row of weights `[B, Q, E]`: `[B, D, R]` and `[B, R, O]`.
    fn mixed(&self, bank: &ExpertBank, weights: Option<Tensor<3>>) -> (Tensor<3>, Tensor<3>) {
        let (experts, rank, splits) = (bank.num_experts, bank.rank, self.splits);
        let ([d_input, _], [_, d_output]) = (bank.a.dims(), bank.b.dims());
        let ones = || Tensor::ones([1, 1, experts], &bank.b.device());
        let weights = by_group(weights.unwrap_or_else(ones), splits);
        let rows = weights.dims()[0];
        let weights_qbe = weights.reshape([rows, splits, experts]).swap_dims(0, 1);
        // Blocks of inputs, experts, and what is mixed.
        let part = d_input / splits;
        let a_qex = bank
            .a
            .val()
            .reshape([splits, part, experts, rank])
            .swap_dims(1, 2)
            .reshape([splits, experts, part * rank]);
        let a = weights_qbe.clone().matmul(a_qex).swap_dims(0, 1);
        let part = d_output / splits;
        let b_qex = bank
            .b
            .val()
            .reshape([experts, rank, splits, part])
            .permute([2, 0, 1, 3])
            .reshape([splits, experts, rank * part]);
        let b_qbx = weights_qbe.matmul(b_qex);
        let b = b_qbx.reshape([splits, rows, rank, part]);
        let b = b.permute([1, 2, 0, 3]).reshape([rows, rank, d_output]);
        (a.reshape([rows, d_input, rank]), b)
    }
}
