//! A weight for every group of ranks. MoDE, Ning et al., arXiv:2408.01505.

use burn::tensor::Tensor;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{Combining, Weighed, added, by_group};
use crate::{AdapterError, BankConfig, ExpertBank};

/// Ranks are weighed in groups of `ranks`: rank r of expert e by the weight of its group. With E
/// experts and G groups a token has E^G combinations. One group is the plain sum over a shared `A`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct RankGroupsConfig {
    /// Ranks of a group; 0 for all of them.
    pub ranks: usize,
}

impl Default for RankGroupsConfig {
    /// A decision for each rank, the paper's choice.
    fn default() -> Self {
        Self { ranks: 1 }
    }
}

impl Combining for RankGroupsConfig {
    fn groups(&self, rank: usize) -> usize {
        rank.checked_div(self.ranks).unwrap_or(1)
    }

    fn needs_shared_slice(&self) -> bool {
        true
    }

    fn validate(&self, bank: &BankConfig) -> Result<(), AdapterError> {
        match self.ranks > 0 && !bank.rank.is_multiple_of(self.ranks) {
            true => Err(AdapterError::Groups {
                groups: self.ranks,
                what: "rank",
                size: bank.rank,
            }),
            false => Ok(()),
        }
    }

    fn mix(&self, bank: &ExpertBank, base: Option<Tensor<3>>, weighed: Weighed) -> Tensor<3> {
        let (rank, experts) = (bank.rank, bank.num_experts);
        let groups = self.groups(rank);
        let [batch, tokens, _] = weighed.code.dims();
        // Codes of every expert side by side: no larger than those of independent experts.
        let code = weighed.code.mul_scalar(bank.factor);
        let code = code.reshape([batch, tokens, 1, groups, rank / groups]);
        let code = match weighed.weights {
            Some(weights) => {
                let weights = by_group(weights, groups).swap_dims(2, 3);
                code * weights.unsqueeze_dim::<5>(4)
            }
            None => code.expand([batch, tokens, experts, groups, rank / groups]),
        };
        let code = code.reshape([batch, tokens, experts * rank]);
        added(base, molora_kernels::linear(code, bank.b.val(), None))
    }
}
