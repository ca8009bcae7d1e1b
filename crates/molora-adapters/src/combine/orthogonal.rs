//! Outputs of the selected experts, made orthogonal. OMoE, Feng et al., arXiv:2501.10062.

use burn::tensor::Tensor;
use molora_kernels::top_k_mask;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{Combining, SumConfig, Weighed, added};
use crate::{AdapterError, BankConfig, ExpertBank};

/// The outputs of the `selected` experts with the largest weights are made orthogonal one after the
/// other, from the largest weight down (Gram-Schmidt), and summed with their weights:
/// `y = s sum_e w_e q_e`.
///
/// An output of norm 0, as all are while `B` is zero, stays 0. No code is published; the order, and what
/// happens to norms, are inferred.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct OrthogonalConfig {
    /// The most experts of a token whose outputs take part; a router that selects more is refused. Of a
    /// dense decision those with the largest weights.
    pub selected: usize,
    /// Whether each orthogonal output gets the norm of the expert's own one; otherwise it has norm 1,
    /// as printed, and the delta cannot start at zero.
    pub norms: bool,
}

impl Default for OrthogonalConfig {
    fn default() -> Self {
        Self {
            selected: 2,
            norms: true,
        }
    }
}

/// Added to squares of norms, so that a norm of zero has a gradient. Far below what f32 keeps of an
/// output of ordinary size.
const TINY: f64 = 1e-24;

impl Combining for OrthogonalConfig {
    fn is_full(&self) -> Option<&'static str> {
        Some(
            "the outputs of a token's experts are made orthogonal to each other, so that one more would turn those \
             of the others",
        )
    }

    fn is_linear(&self) -> bool {
        false
    }

    fn most_selected(&self) -> Option<usize> {
        Some(self.selected)
    }

    fn validate(&self, _bank: &BankConfig) -> Result<(), AdapterError> {
        match self.selected {
            0 => Err(AdapterError::Zero { field: "selected" }),
            _ => Ok(()),
        }
    }

    fn mix(&self, bank: &ExpertBank, base: Option<Tensor<3>>, weighed: Weighed) -> Tensor<3> {
        let experts = bank.num_experts;
        let [batch, tokens, _] = weighed.code.dims();
        let ones = || Tensor::ones([1, 1, experts], &weighed.code.device());
        let weights = weighed.weights.clone().unwrap_or_else(ones);
        let mut left = weights.clone().detach();
        let mut units: Vec<Tensor<3>> = Vec::new();
        let mut delta = Tensor::zeros([batch, tokens, bank.b.dims()[1]], &weights.device());
        for _ in 0..self.selected.min(experts) {
            // Rows with a one at the largest weight that is left: that expert's output alone is computed.
            let is_next = top_k_mask(left.clone(), 1);
            left = left.mask_fill(is_next.clone(), f32::NEG_INFINITY);
            let next = is_next.float();
            let weight = (weights.clone() * next.clone()).sum_dim(2);
            let alone = Weighed {
                code: weighed.code.clone(),
                weights: Some(next),
                is_selection: true,
            };
            let output = SumConfig.mix(bank, None, alone);
            let mut rest = output.clone();
            for unit in &units {
                let along = (unit.clone() * rest.clone()).sum_dim(2);
                rest = rest - unit.clone() * along;
            }
            let unit = rest.clone() / norm(rest);
            let part = match self.norms {
                true => unit.clone() * norm(output),
                false => unit.clone().mul_scalar(bank.factor),
            };
            delta = delta + part * weight;
            units.push(unit);
        }
        added(base, delta)
    }
}

fn norm(rows: Tensor<3>) -> Tensor<3> {
    (rows.powi_scalar(2).sum_dim(2) + TINY).sqrt()
}
