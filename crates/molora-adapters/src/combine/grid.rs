//! Experts of rank 1 from every pair of a down-vector and an up-vector. MoR1E, arXiv:2404.08985.

use burn::tensor::Tensor;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{Combining, Weighed, added, by_group};
use crate::ExpertBank;

/// R down-vectors and E up-vectors make a grid of R x E experts of rank 1:
/// `y = s sum_j b_j sum_i w_ij z_i`. Up-vector j counts as expert j, and each rank weighs them for
/// itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
pub struct GridConfig;

impl Combining for GridConfig {
    fn is_full(&self) -> Option<&'static str> {
        Some("its experts are the lines of a grid, whose cells are chosen as one set")
    }

    fn groups(&self, rank: usize) -> usize {
        rank
    }

    fn rows(&self, _rank: usize) -> usize {
        1
    }

    fn needs_shared_slice(&self) -> bool {
        true
    }

    fn weighs_vectors(&self) -> bool {
        true
    }

    fn mix(&self, bank: &ExpertBank, base: Option<Tensor<3>>, weighed: Weighed) -> Tensor<3> {
        let code = weighed.code.mul_scalar(bank.factor);
        let [batch, tokens, rank] = code.dims();
        let sums = match weighed.weights {
            // One decision for all tokens of a row.
            Some(weights) if weights.dims()[1] == rank && rank > 1 => {
                code.matmul(weights).unsqueeze_dim::<4>(2)
            }
            Some(weights) => {
                let weights = by_group(weights, rank);
                (weights * code.unsqueeze_dim::<4>(3)).sum_dim(2)
            }
            None => {
                let sums = code.sum_dim(2).unsqueeze_dim::<4>(3);
                sums.expand([batch, tokens, 1, bank.num_experts])
            }
        };
        let sums = sums.reshape([batch, tokens, bank.num_experts]);
        added(base, molora_kernels::linear(sums, bank.b.val(), None))
    }
}
