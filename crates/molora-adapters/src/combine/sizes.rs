//! Experts of different ranks, one of which may do nothing: adaptive computation. Duo-LLM, Alizadeh et al.,
//! arXiv:2410.10846.

use burn::tensor::{Tensor, TensorData};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{Combining, Weighed, added};
use crate::{AdapterError, BankConfig, ExpertBank};

/// The ranks of one LoRA in parts of different size, each of which is an expert for the router:
/// `s sum_c w_c B_c A_c x`. With `skip` the router's first choice is an expert of rank 0, which leaves the
/// layer as it is.
///
/// The bank has one expert, whose rank is divided.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct SizesConfig {
    /// Share of the rank that each expert has, relative to the others'; rounded down, but at least one rank,
    /// and the last expert has what is left.
    pub shares: Vec<usize>,
    /// Whether the first choice is none of them.
    pub skip: bool,
}

impl Default for SizesConfig {
    /// A small expert, one four times as large, or none.
    fn default() -> Self {
        Self {
            shares: vec![1, 4],
            skip: true,
        }
    }
}

impl Combining for SizesConfig {
    fn is_full(&self) -> Option<&'static str> {
        Some("its experts are the sizes into which one LoRA is divided")
    }

    fn choices(&self, _num_experts: usize) -> usize {
        self.shares.len() + usize::from(self.skip)
    }

    fn costs(&self, rank: usize) -> Option<Vec<f64>> {
        let ranks = self.ranks(rank);
        let largest = *ranks.iter().max()?;
        let share = |rank| rank as f64 / largest.max(1) as f64;
        Some(ranks.into_iter().map(share).collect())
    }

    fn validate(&self, bank: &BankConfig) -> Result<(), AdapterError> {
        let (shares, rank, experts) = (&self.shares, bank.rank, bank.num_experts);
        let wrong = |text: String| Err(AdapterError::Sizes(text));
        if shares.is_empty() || shares.contains(&0) {
            return wrong(format!(
                "combine.sizes.shares is {shares:?}, expected one or more numbers of at least 1"
            ));
        }
        if experts != 1 {
            return wrong(format!(
                "num_experts is {experts}, expected 1: combine.sizes.shares divide the rank of one expert"
            ));
        }
        if rank < shares.len() {
            return wrong(format!(
                "rank is {rank}, expected at least {}, one for each of combine.sizes.shares",
                shares.len()
            ));
        }
        match bank.core.is_none() {
            true => Ok(()),
            false => wrong(format!(
                "core is {}, expected none beside combine = \"sizes\"",
                bank.core.name()
            )),
        }
    }

    /// Without the ranks of choices that have no weight.
    fn factors(&self, bank: &ExpertBank, weights: Tensor<3>) -> Option<(Tensor<2>, Tensor<2>)> {
        let gates = self.gates(weights, bank.rank).reshape([1, bank.rank]);
        let takes_part = gates.clone().not_equal_elem(0.0).float();
        Some((
            bank.a_matrix() * takes_part,
            bank.b.val() * gates.transpose(),
        ))
    }

    fn mix(&self, bank: &ExpertBank, base: Option<Tensor<3>>, weighed: Weighed) -> Tensor<3> {
        let mut code = weighed.code.mul_scalar(bank.factor);
        if let Some(weights) = weighed.weights {
            let weights = match weighed.is_selection {
                // What was not selected gets no gradient.
                true => weights.clone() * weights.detach().not_equal_elem(0.0).float(),
                false => weights,
            };
            code = code * self.gates(weights, bank.rank);
        }
        added(base, molora_kernels::linear(code, bank.b.val(), None))
    }
}

impl SizesConfig {
    /// The rank of each choice of the router, in a bank of this rank.
    fn ranks(&self, rank: usize) -> Vec<usize> {
        let sum: u128 = self.shares.iter().map(|&share| share as u128).sum();
        let mut left = rank;
        let mut ranks: Vec<usize> = self.skip.then_some(0).into_iter().collect();
        for (number, &share) in self.shares.iter().enumerate() {
            let after = self.shares.len() - 1 - number;
            let part = share as u128 * rank as u128 / sum.max(1);
            let part = match after {
                0 => left,
                _ => (part as usize).clamp(1, left.saturating_sub(after).max(1)),
            };
            ranks.push(part);
            left = left.saturating_sub(part);
        }
        ranks
    }

    /// The weight of each of R ranks, `[B, T', R]`, from those of choices `[B, T', C]`.
    fn gates(&self, weights: Tensor<3>, rank: usize) -> Tensor<3> {
        let ranks = self.ranks(rank);
        let choices = ranks.len();
        let mut member = vec![0.0_f32; choices * rank];
        let mut first = 0;
        for (choice, size) in ranks.into_iter().enumerate() {
            let row = choice * rank + first;
            member[row..row + size].fill(1.0);
            first += size;
        }
        let member = TensorData::new(member, [1, choices, rank]);
        let member = Tensor::<3>::from_data(member, &weights.device());
        weights.matmul(member)
    }
}

#[cfg(test)]
mod tests {
    use burn::module::Param;
    use molora_kernels::random::Seed;
    use molora_testkit::{FORWARD, assert_close};

    use super::*;
    use crate::{Scaling, SiteDims};

    /// Ranks 1 and 2 of a bank whose `A` has the columns 1, 10 and 100 and whose `B` sums codes.
    #[test]
    fn a_choice_is_its_own_ranks_and_the_first_is_none() {
        let device = molora_testkit::device();
        let config = BankConfig {
            rank: 3,
            scaling: Scaling::AlphaOverRank(6.0),
            combine: SizesConfig {
                shares: vec![1, 2],
                skip: true,
            }
            .into(),
            ..BankConfig::default()
        };
        config.validate().expect("valid");
        let dims = SiteDims {
            d_input: 3,
            d_output: 3,
        };
        let mut bank = config.init(dims, Seed::new(0), &device);
        let rows = [[1.0, 10.0, 100.0], [0.0; 3], [0.0; 3]];
        bank.a = Param::from_data(rows, &device);
        bank.b = Param::from_data([[1.0, 0.0, 0.0]; 3], &device);
        let x = Tensor::<3>::from_data([[[1.0, 0.0, 0.0]; 4]], &device);
        let weights = [
            [1.0, 0.0, 0.0],
            [0.0, 1.0, 0.0],
            [0.0, 0.0, 1.0],
            [0.2, 0.3, 0.5],
        ];
        let low = bank.down(x, None);
        let found = bank.up(low.clone(), Some(Tensor::from_data([weights], &device)));
        let expected = [0.0, 2.0, 220.0, 0.3 * 2.0 + 0.5 * 220.0];
        let expected = expected.map(|y| [y, 0.0, 0.0]);
        assert_close(found, [expected], FORWARD, "choices");
        let all = bank.up(low, None);
        assert_close(all, [[[222.0, 0.0, 0.0]; 4]], FORWARD, "without weights");
    }

    #[test]
    fn shares_divide_the_rank() {
        let sizes = |shares: &[usize], skip| SizesConfig {
            shares: shares.to_vec(),
            skip,
        };
        for (shares, rank, expected) in [
            (&[1, 4][..], 10, vec![2, 8]),
            (&[1, 4], 4, vec![1, 3]),
            (&[4, 1], 2, vec![1, 1]),
            (&[1, 1, 1], 8, vec![2, 2, 4]),
            (&[9, 1, 1], 3, vec![1, 1, 1]),
        ] {
            assert_eq!(sizes(shares, false).ranks(rank), expected, "{shares:?}");
            assert_eq!(sizes(shares, true).ranks(rank)[1..], expected, "{shares:?}");
        }
        let found = sizes(&[1, 4], true).costs(10);
        assert_eq!(found, Some(vec![0.0, 0.25, 1.0]));
        for (shares, rank) in [(&[][..], 4), (&[1, 0], 4), (&[1, 4], 1)] {
            let config = BankConfig {
                rank,
                combine: sizes(shares, true).into(),
                ..BankConfig::default()
            };
            assert!(config.validate().is_err(), "{shares:?}");
        }
    }
}
