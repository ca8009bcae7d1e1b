//! A weight for every block of outputs. mtLoRA, arXiv:2603.01526.

use burn::tensor::Tensor;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{Combining, Weighed, added, by_group};
use crate::{AdapterError, ExpertBank, SiteDims};

/// Outputs lie in blocks of equal width, and each block weighs the experts for itself:
/// `y_o = s sum_e w_{e, g(o)} (B_e z)_o`. One group is the plain sum.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct OutputGroupsConfig {
    /// Number of blocks; it has to divide the output width of every site.
    pub groups: usize,
}

impl Default for OutputGroupsConfig {
    fn default() -> Self {
        Self { groups: 4 }
    }
}

impl Combining for OutputGroupsConfig {
    fn groups(&self, _rank: usize) -> usize {
        self.groups
    }

    fn needs_shared_slice(&self) -> bool {
        true
    }

    fn validate(&self, _bank: &crate::BankConfig) -> Result<(), AdapterError> {
        match self.groups {
            0 => Err(AdapterError::Zero { field: "groups" }),
            _ => Ok(()),
        }
    }

    fn validate_for(&self, dims: SiteDims) -> Result<(), AdapterError> {
        match dims.d_output.is_multiple_of(self.groups) {
            true => Ok(()),
            false => Err(AdapterError::Groups {
                groups: self.groups,
                what: "output width",
                size: dims.d_output,
            }),
        }
    }

    /// A product for each block on codes that its weights have gated, all at once: `G E R` numbers for
    /// each token. Where blocks are narrower than the rank that would be more than the experts'
    /// outputs, which are then weighed themselves.
    fn mix(&self, bank: &ExpertBank, base: Option<Tensor<3>>, weighed: Weighed) -> Tensor<3> {
        let (rank, experts, groups) = (bank.rank, bank.num_experts, self.groups);
        let [batch, tokens, _] = weighed.code.dims();
        let width = bank.b.dims()[1];
        let block = width / groups;
        let code = weighed.code.mul_scalar(bank.factor);
        let weights = match weighed.weights {
            Some(weights) => by_group(weights, groups),
            None => Tensor::ones([1, 1, groups, experts], &code.device()),
        };
        let rows = batch * tokens;
        let delta = if block < rank {
            let b_reo = bank.b_by_expert().swap_dims(0, 1);
            let b = b_reo.reshape([rank, experts * width]);
            let outputs = code.reshape([rows, rank]).matmul(b);
            let outputs = outputs.reshape([batch, tokens, experts, groups, block]);
            let weights = weights.swap_dims(2, 3).unsqueeze_dim::<5>(4);
            (outputs * weights).sum_dim(2)
        } else {
            let weights = weights.unsqueeze_dim::<5>(4);
            let code = code.reshape([batch, tokens, 1, 1, rank]) * weights;
            let code_gnx = code.reshape([rows, groups, experts * rank]).swap_dims(0, 1);
            let b_gxo = bank
                .b
                .val()
                .reshape([experts * rank, groups, block])
                .swap_dims(0, 1);
            code_gnx.matmul(b_gxo).swap_dims(0, 1).unsqueeze()
        };
        added(base, delta.reshape([batch, tokens, width]))
    }
}
