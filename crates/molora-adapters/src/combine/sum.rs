//! The weighed sum of experts' outputs, in two products whatever the number of experts.

use burn::tensor::Tensor;
use molora_kernels::{LowRankMix, low_rank_mix};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{Combining, Weighed};
use crate::ExpertBank;

/// The weighed sum of experts' outputs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
pub struct SumConfig;

impl Combining for SumConfig {
    fn mix(&self, bank: &ExpertBank, base: Option<Tensor<3>>, weighed: Weighed) -> Tensor<3> {
        let operands = LowRankMix {
            low: weighed.code,
            weights: weighed.weights,
            is_selection: weighed.is_selection,
            // A factor of its own, which the mix multiplies by in its own products.
            rank_scale: bank.core.scale(),
            factor: bank.factor,
            b: bank.b.val(),
        };
        low_rank_mix(base, operands)
    }
}
