//! Merging low-rank deltas of one layer into one.
//!
//! Each method follows PEFT's `add_weighted_adapter`, with the scales of rsLoRA and of rank patterns
//! accounted for; the merged delta has scale 1.

use burn::tensor::Tensor;
use serde::{Deserialize, Serialize};

use super::{Join, Rule, Sparsify, truncated, truncated_matrix};
use crate::AdapterError;

/// A delta `scale * a b` of a weight `[D, O]`.
#[derive(Debug, Clone)]
pub struct LowRank {
    /// Down-projection, `[D, R]`.
    pub a: Tensor<2>,
    /// Up-projection, `[R, O]`.
    pub b: Tensor<2>,
    /// Factor on the product.
    pub scale: f64,
}

/// How weighted deltas become one.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum MergeMethod {
    /// The factors side by side: exactly the weighted sum, with the sum of the ranks.
    Cat,
    /// The best approximation of the weighted sum by a rank: its truncated singular value
    /// decomposition (Eckart and Young, 1936).
    Svd {
        /// Rank of the result.
        rank: usize,
    },
    /// A rule on the factors `A` and on the factors `B`, each with the square root of the weight: PEFT's
    /// `linear`, `magnitude_prune`, `ties`, `dare_linear` and `dare_ties`. Not what the rule gives on the
    /// deltas: products of different adapters' factors come in.
    Factors(Rule),
    /// A rule on the deltas, of whose result a truncated singular value decomposition remains: PEFT's
    /// `ties_svd` and the like.
    Products {
        /// The rule.
        rule: Rule,
        /// Rank of the result.
        rank: usize,
    },
}

impl MergeMethod {
    /// PEFT's `linear`: weighted sums of the factors.
    pub const LINEAR: Self = Self::Factors(Rule {
        sparsify: Sparsify::Nothing,
        join: Join::Sum,
    });

    /// Checks the numbers.
    ///
    /// # Errors
    /// [`AdapterError::Zero`] for a rank of 0; as [`Rule::validate`].
    pub fn validate(self) -> Result<(), AdapterError> {
        match self {
            Self::Svd { rank: 0 } | Self::Products { rank: 0, .. } => {
                Err(AdapterError::Zero { field: "rank" })
            }
            Self::Factors(rule) | Self::Products { rule, .. } => rule.validate(),
            _ => Ok(()),
        }
    }
}

impl LowRank {
    /// `scale * a b`, `[D, O]`.
    pub fn delta(&self) -> Tensor<2> {
        self.a.clone().matmul(self.b.clone()).mul_scalar(self.scale)
    }

    /// Rank R of the factors.
    pub fn rank(&self) -> usize {
        self.a.dims()[1]
    }
}

/// One delta from several of the same layer, each with a weight. `name` is the layer's, which keys
/// random draws.
///
/// # Errors
/// As [`MergeMethod::validate`]; [`AdapterError::Zero`] if there is none; [`AdapterError::Ranks`] if
/// a method that sums factors gets factors of different ranks.
///
/// # Panics
/// If the widths of the deltas differ.
pub fn merge(
    name: &str,
    parts: &[(LowRank, f64)],
    method: MergeMethod,
) -> Result<LowRank, AdapterError> {
    method.validate()?;
    let Some((first, _)) = parts.first() else {
        return Err(AdapterError::Zero { field: "adapters" });
    };
    let rule = match method {
        MergeMethod::Cat => return Ok(cat(parts)),
        MergeMethod::Svd { rank } => return Ok(truncated(&cat(parts), rank)),
        MergeMethod::Products { rule, rank } => {
            let deltas = parts.iter().map(|(part, weight)| (part.delta(), *weight));
            let merged = rule.apply(name, &deltas.collect::<Vec<_>>());
            return Ok(truncated_matrix(&merged, rank));
        }
        MergeMethod::Factors(rule) => rule,
    };
    if let Some((other, _)) = parts.iter().find(|(part, _)| part.rank() != first.rank()) {
        return Err(AdapterError::Ranks {
            first: first.rank(),
            other: other.rank(),
        });
    }
    // A negative weight turns the sign of one factor alone.
    let weigh = |(part, weight): &(LowRank, f64)| (weight * part.scale).abs().sqrt();
    let sign = |(part, weight): &(LowRank, f64)| match weight * part.scale < 0.0 {
        true => -1.0,
        false => 1.0,
    };
    let a = parts
        .iter()
        .map(|part| (part.0.a.clone(), sign(part) * weigh(part)));
    let b = parts.iter().map(|part| (part.0.b.clone(), weigh(part)));
    Ok(LowRank {
        a: rule.apply(&format!("{name}.a"), &a.collect::<Vec<_>>()),
        b: rule.apply(&format!("{name}.b"), &b.collect::<Vec<_>>()),
        scale: 1.0,
    })
}

/// The factors side by side, with weights and scales in `a`.
fn cat(parts: &[(LowRank, f64)]) -> LowRank {
    let a = parts
        .iter()
        .map(|(part, weight)| part.a.clone().mul_scalar(weight * part.scale));
    let b = parts.iter().map(|(part, _)| part.b.clone());
    LowRank {
        a: Tensor::cat(a.collect(), 1),
        b: Tensor::cat(b.collect(), 0),
        scale: 1.0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::merge::Sign;
    use molora_kernels::random::{Seed, uniform};
    use molora_testkit::{FORWARD, assert_close};

    fn part(rank: usize, seed: u64) -> LowRank {
        let device = molora_testkit::device();
        let seed = Seed::new(seed);
        LowRank {
            a: uniform([7, rank], 1.0, seed.child("a"), &device),
            b: uniform([rank, 5], 1.0, seed.child("b"), &device),
            scale: 1.5,
        }
    }

    fn pruning(density: f64, join: Join) -> Rule {
        let sparsify = Sparsify::Largest { density };
        Rule { sparsify, join }
    }

    fn parts() -> Vec<(LowRank, f64)> {
        vec![(part(2, 1), 0.5), (part(2, 2), -0.3)]
    }

    fn weighted_sum() -> Tensor<2> {
        let terms = parts();
        terms[0].0.delta().mul_scalar(0.5) - terms[1].0.delta().mul_scalar(0.3)
    }

    #[test]
    fn a_single_adapter_of_weight_one_stays_itself() {
        for method in [
            MergeMethod::Cat,
            MergeMethod::Svd { rank: 3 },
            MergeMethod::LINEAR,
            MergeMethod::Factors(pruning(1.0, Join::Sum)),
            MergeMethod::Factors(pruning(1.0, Join::Mean(Sign::Total))),
            MergeMethod::Products {
                rule: pruning(1.0, Join::Mean(Sign::Total)),
                rank: 3,
            },
        ] {
            let merged = merge("site", &[(part(3, 1), 1.0)], method).expect("valid");
            let what = format!("{method:?}");
            assert_close(merged.delta(), part(3, 1).delta(), FORWARD, &what);
            assert_eq!((merged.rank(), merged.scale), (3, 1.0));
        }
    }

    #[test]
    fn cat_and_svd_of_full_rank_are_the_weighted_sum() {
        for method in [
            MergeMethod::Cat,
            MergeMethod::Svd { rank: 4 },
            MergeMethod::Svd { rank: 9 },
        ] {
            let merged = merge("site", &parts(), method).expect("valid");
            assert_close(merged.delta(), weighted_sum(), FORWARD, "weighted sum");
        }
    }

    #[test]
    fn far_too_large_numbers_do_not_panic() {
        let LowRank { a, b, .. } = part(2, 1);
        let large = LowRank {
            a: a.clone().mul_scalar(1e30),
            b: b.clone().mul_scalar(1e30),
            scale: 1.0,
        };
        let plain = truncated(&LowRank { a, b, scale: 1.0 }, 1).a.abs();
        assert_close(truncated(&large, 1).a.abs(), plain, 1e-5, "direction");
    }

    /// The error of the best approximation is the next singular value; any other basis has more.
    #[test]
    fn svd_keeps_the_largest_directions() {
        let sum = merge("site", &parts(), MergeMethod::Cat).expect("valid");
        let values = crate::merge::singular_values(&sum.delta());
        let left: f64 = values[2..].iter().map(|value| value * value).sum();
        let merged = merge("site", &parts(), MergeMethod::Svd { rank: 2 }).expect("valid");
        let error = (merged.delta() - weighted_sum()).powi_scalar(2).sum();
        assert_close(error, [left as f32], 1e-4, "left-out singular values");
    }

    #[test]
    fn what_cannot_be_merged_is_named() {
        let text = |parts: &[(LowRank, f64)], method| {
            merge("site", parts, method)
                .expect_err("refused")
                .to_string()
        };
        let unequal = [(part(2, 1), 1.0), (part(3, 2), 1.0)];
        assert_eq!(
            text(&unequal, MergeMethod::LINEAR),
            "ranks 2 and 3 differ, expected one rank for a sum of factors"
        );
        assert!(merge("site", &unequal, MergeMethod::Cat).is_ok());
        let dense = MergeMethod::Factors(pruning(1.5, Join::Sum));
        assert_eq!(
            text(&parts(), dense),
            "density is 1.5, expected a number from 0 to 1"
        );
        let rank = MergeMethod::Svd { rank: 0 };
        assert_eq!(text(&parts(), rank), "rank is 0, expected at least 1");
        assert!(text(&[], MergeMethod::Cat).starts_with("adapters is 0"));
    }
}
