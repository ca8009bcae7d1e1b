//! How the entries of several matrices become one.

use burn::tensor::Tensor;
use serde::{Deserialize, Serialize};

/// Which sign an entry gets where matrices disagree.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Sign {
    /// That of the sum; a sum of zero counts as positive, as in PEFT.
    #[default]
    Total,
    /// That of most matrices; as many of both count as positive, as in PEFT.
    Frequency,
    /// That of the sum; a sum of zero gets the sign that most sums of the matrix have, as in the
    /// code of TIES, whose matrix is the whole model.
    Majority,
}

/// How the entries of several matrices become one. Each matrix has a weight.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Join {
    /// The weighted sum.
    #[default]
    Sum,
    /// The weighted sum of the entries that have the elected sign, divided by their number.
    Mean(Sign),
    /// The weighted sum of the entries that have the elected sign.
    Agreeing(Sign),
}

impl Join {
    pub(super) fn apply(self, matrices: &[Tensor<2>], weights: &[f64]) -> Tensor<2> {
        let sign = match self {
            Self::Sum => return sum(matrices.iter().cloned(), weights),
            Self::Mean(sign) | Self::Agreeing(sign) => sign,
        };
        let masks = masks(matrices, sign);
        let kept = matrices.iter().zip(&masks);
        let joined = sum(kept.map(|(m, mask)| m.clone() * mask.clone()), weights);
        match self {
            Self::Mean(_) => {
                let ones = vec![1.0; masks.len()];
                joined / sum(masks.into_iter(), &ones).clamp_min(1.0)
            }
            _ => joined,
        }
    }
}

/// Each matrix with the entries alone that have the elected sign: TIES without the sum, which
/// AdaMerging++ weighs (arXiv:2310.02575, section 3.3).
///
/// # Panics
/// If there is none, or shapes differ.
pub fn agreeing(matrices: &[Tensor<2>], sign: Sign) -> Vec<Tensor<2>> {
    let masks = masks(matrices, sign).into_iter();
    matrices
        .iter()
        .zip(masks)
        .map(|(m, mask)| m.clone() * mask)
        .collect()
}

/// 1 where an entry has the elected sign; an entry of zero has none.
fn masks(matrices: &[Tensor<2>], sign: Sign) -> Vec<Tensor<2>> {
    let ones = vec![1.0; matrices.len()];
    let votes = match sign {
        Sign::Frequency => sum(matrices.iter().map(|m| m.clone().sign()), &ones),
        Sign::Total | Sign::Majority => sum(matrices.iter().cloned(), &ones),
    };
    let is_zero = votes.clone().equal_elem(0.0).float();
    let for_zero = match sign {
        Sign::Total | Sign::Frequency => is_zero,
        Sign::Majority => {
            let majority = votes.clone().sign().sum().sign();
            is_zero * majority.reshape([1, 1])
        }
    };
    let elected = votes.sign() + for_zero;
    let agrees = |m: &Tensor<2>| (m.clone() * elected.clone()).greater_elem(0.0).float();
    matrices.iter().map(agrees).collect()
}

fn sum(matrices: impl Iterator<Item = Tensor<2>>, weights: &[f64]) -> Tensor<2> {
    let mut terms = matrices
        .zip(weights)
        .map(|(matrix, weight)| matrix.mul_scalar(*weight));
    let first = terms.next().expect("at least one matrix");
    terms.fold(first, |sum, term| sum + term)
}

#[cfg(test)]
mod tests {
    use super::*;
    use molora_testkit::{FORWARD, assert_close, device};

    fn row(values: [f32; 4]) -> Tensor<2> {
        Tensor::from_data([values], &device())
    }

    fn matrices() -> [Tensor<2>; 3] {
        [
            row([3.0, -1.0, 1.0, 5.0]),
            row([1.0, -3.0, -1.0, -1.0]),
            row([-1.0, 2.0, 0.0, -2.0]),
        ]
    }

    #[test]
    fn signs_are_elected() {
        let weights = [1.0, 0.5, 2.0];
        // 3 + 0.5 over 2; -1 - 1.5 over 2; a sum of zero elects the positive value; 5 of 2.
        let total = Join::Mean(Sign::Total).apply(&matrices(), &weights);
        assert_close(total, [[1.75, -1.25, 1.0, 5.0]], FORWARD, "total");
        // Two of three are negative in the last column.
        let votes = Join::Mean(Sign::Frequency).apply(&matrices(), &weights);
        assert_close(votes, [[1.75, -1.25, 1.0, -2.25]], FORWARD, "frequency");
        let sum = Join::Agreeing(Sign::Total).apply(&matrices(), &weights);
        assert_close(sum, [[3.5, -2.5, 1.0, 5.0]], FORWARD, "sum");
    }

    #[test]
    fn a_sum_of_zero_takes_the_sign_of_the_majority() {
        let matrices = [row([-1.0, -1.0, 2.0, 1.0]), row([-1.0, -1.0, -2.0, 0.0])];
        let kept = agreeing(&matrices, Sign::Majority);
        assert_close(&kept[0], [[-1.0, -1.0, 0.0, 1.0]], 0.0, "first");
        assert_close(&kept[1], [[-1.0, -1.0, -2.0, 0.0]], 0.0, "second");
        let kept = agreeing(&matrices, Sign::Total);
        assert_close(&kept[1], [[-1.0, -1.0, 0.0, 0.0]], 0.0, "positive");
    }
}
