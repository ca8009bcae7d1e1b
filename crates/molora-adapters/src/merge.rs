//! Merging low-rank deltas of one layer into one.
//!
//! Each method follows PEFT's `add_weighted_adapter`, with the scales of rsLoRA and of rank patterns
//! accounted for; the merged delta has scale 1.

use burn::tensor::{Tensor, TensorData};
use serde::{Deserialize, Serialize};

use crate::{AdapterError, qr};

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
    /// Weighted sums of the factors, each with the square root of the weight. Not the weighted sum of
    /// the deltas: products of different adapters' factors come in.
    Linear,
    /// As `Linear` after each factor has lost its smallest entries.
    MagnitudePrune {
        /// Share of the entries that stay.
        density: f64,
    },
    /// As `MagnitudePrune` with the entries averaged that have the sign of their sum (Yadav et al.,
    /// TIES-Merging, arXiv:2306.01708, section 3).
    Ties {
        /// Share of the entries that stay.
        density: f64,
    },
}

impl MergeMethod {
    /// Checks the numbers.
    ///
    /// # Errors
    /// [`AdapterError::Zero`] for a rank of 0, [`AdapterError::Share`] for a density outside of
    /// 0 to 1.
    pub fn validate(self) -> Result<(), AdapterError> {
        match self {
            Self::Svd { rank: 0 } => Err(AdapterError::Zero { field: "rank" }),
            Self::MagnitudePrune { density } | Self::Ties { density }
                if !(0.0..=1.0).contains(&density) =>
            {
                Err(AdapterError::Share {
                    field: "density",
                    value: density,
                })
            }
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

/// One delta from several of the same layer, each with a weight.
///
/// # Errors
/// As [`MergeMethod::validate`]; [`AdapterError::Zero`] if there is none; [`AdapterError::Ranks`] if
/// a method that sums factors gets factors of different ranks.
///
/// # Panics
/// If the widths of the deltas differ.
pub fn merge(parts: &[(LowRank, f64)], method: MergeMethod) -> Result<LowRank, AdapterError> {
    method.validate()?;
    let Some((first, _)) = parts.first() else {
        return Err(AdapterError::Zero { field: "adapters" });
    };
    match method {
        MergeMethod::Cat => return Ok(cat(parts)),
        MergeMethod::Svd { rank } => return Ok(truncated(&cat(parts), rank)),
        _ => {}
    }
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
        a: sum(a.collect(), method),
        b: sum(b.collect(), method),
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

/// The nearest delta of a rank: `a` gets orthonormal columns, `b` the singular values. Filled up with
/// zeros where the rank is larger than that of the given one.
///
/// With `a = Q1 R1` and `b^T = Q2 R2` only the small `R1 R2^T` is decomposed.
pub fn truncated(delta: &LowRank, rank: usize) -> LowRank {
    // burn has no singular values with gradients, and nobody asks for them here.
    if delta.a.is_autodiff() {
        let plain = LowRank {
            a: delta.a.clone().inner(),
            b: delta.b.clone().inner(),
            scale: delta.scale,
        };
        let LowRank { a, b, scale } = truncated(&plain, rank);
        return LowRank {
            a: Tensor::from_inner(a),
            b: Tensor::from_inner(b),
            scale,
        };
    }
    let ((a, size_a), (b, size_b)) = (tamed(&delta.a), tamed(&delta.b));
    let (q1, r1) = qr(a);
    let (q2, r2) = qr(b.transpose());
    let core = r1.matmul(r2.transpose()).mul_scalar(delta.scale);
    let (u, s, vt) = burn::linalg::svd::<2, 1>(core, SWEEPS);
    let s = s.mul_scalar(size_a * size_b);
    let kept = rank.min(s.dims()[0]);
    let s = s.narrow(0, 0, kept).reshape([kept, 1]);
    let a = q1.matmul(u.narrow(1, 0, kept));
    let b = (vt.narrow(0, 0, kept) * s).matmul(q2.transpose());
    let ([d_input, _], [_, d_output], device) = (a.dims(), b.dims(), a.device());
    let (mut a, mut b) = (vec![a], vec![b]);
    if kept < rank {
        a.push(Tensor::zeros([d_input, rank - kept], &device));
        b.push(Tensor::zeros([rank - kept, d_output], &device));
    }
    LowRank {
        a: Tensor::cat(a, 1),
        b: Tensor::cat(b, 0),
        scale: 1.0,
    }
}

/// A matrix whose product with another such one is finite, and the size that was taken out of it: 1
/// unless its numbers are far larger than any that were trained. burn's singular values panic on
/// infinities.
fn tamed(matrix: &Tensor<2>) -> (Tensor<2>, f64) {
    const LARGE: f32 = 1e12;
    let largest: f32 = matrix.clone().abs().max().into_scalar();
    match largest > LARGE && largest.is_finite() {
        true => (matrix.clone().div_scalar(largest), f64::from(largest)),
        false => (matrix.clone(), 1.0),
    }
}

/// Far more than any matrix needs.
const SWEEPS: usize = 1000;

/// The weighted sum of factors under a method that treats them one by one.
fn sum(factors: Vec<(Tensor<2>, f64)>, method: MergeMethod) -> Tensor<2> {
    let weighed = |(factor, weight): &(Tensor<2>, f64)| factor.clone().mul_scalar(*weight);
    let total = |factors: &[(Tensor<2>, f64)]| {
        let mut terms = factors.iter().map(weighed);
        let first = terms.next().expect("at least one factor");
        terms.fold(first, |sum, term| sum + term)
    };
    let prune = |density: f64| -> Vec<(Tensor<2>, f64)> {
        let pruned = factors
            .iter()
            .map(|(f, weight)| (largest(f, density), *weight));
        pruned.collect()
    };
    match method {
        MergeMethod::MagnitudePrune { density } => total(&prune(density)),
        MergeMethod::Ties { density } => elected(&prune(density)),
        _ => total(&factors),
    }
}

/// A matrix with its largest entries alone, as many as the share `density` gives, rounded down.
fn largest(matrix: &Tensor<2>, density: f64) -> Tensor<2> {
    let (shape, device) = (matrix.dims(), matrix.device());
    let mut values = host(matrix.clone());
    let kept = (density * values.len() as f64) as usize;
    let mut order: Vec<usize> = (0..values.len()).collect();
    order.sort_by(|&one, &two| values[two].abs().total_cmp(&values[one].abs()));
    for &index in &order[kept..] {
        values[index] = 0.0;
    }
    Tensor::from_data(TensorData::new(values, shape), &device)
}

/// Entry by entry the mean of the weighted values that have the sign of the sum of all values.
fn elected(factors: &[(Tensor<2>, f64)]) -> Tensor<2> {
    let (shape, device) = (factors[0].0.dims(), factors[0].0.device());
    let values: Vec<(Vec<f32>, f32)> = factors
        .iter()
        .map(|(factor, weight)| (host(factor.clone()), *weight as f32))
        .collect();
    let entry = |index: usize| {
        let total: f32 = values.iter().map(|(values, _)| values[index]).sum();
        // A sum of zero elects the positive sign, as in PEFT.
        let agrees = |value: f32| match total >= 0.0 {
            true => value > 0.0,
            false => value < 0.0,
        };
        let terms = values.iter().filter(|(values, _)| agrees(values[index]));
        let (sum, count) = terms.fold((0.0, 0.0_f32), |(sum, count), (values, weight)| {
            (sum + weight * values[index], count + 1.0)
        });
        sum / count.max(1.0)
    };
    let merged: Vec<f32> = (0..shape[0] * shape[1]).map(entry).collect();
    Tensor::from_data(TensorData::new(merged, shape), &device)
}

fn host(tensor: Tensor<2>) -> Vec<f32> {
    tensor.into_data().try_into_vec().expect("factors are f32")
}

#[cfg(test)]
mod tests {
    use super::*;
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
            MergeMethod::Linear,
            MergeMethod::MagnitudePrune { density: 1.0 },
            MergeMethod::Ties { density: 1.0 },
        ] {
            let merged = merge(&[(part(3, 1), 1.0)], method).expect("valid");
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
            let merged = merge(&parts(), method).expect("valid");
            assert_close(merged.delta(), weighted_sum(), FORWARD, "weighted sum");
        }
    }

    /// The error of the best approximation is the next singular value; any other basis has more.
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

    #[test]
    fn svd_keeps_the_largest_directions() {
        let sum = merge(&parts(), MergeMethod::Cat).expect("valid");
        let (_, s, _) = burn::linalg::svd::<2, 1>(sum.delta(), SWEEPS);
        let left: Tensor<1> = s.narrow(0, 2, 3).powi_scalar(2).sum();
        let merged = merge(&parts(), MergeMethod::Svd { rank: 2 }).expect("valid");
        let error = (merged.delta() - weighted_sum()).powi_scalar(2).sum();
        assert_close(error, left, 1e-4, "left-out singular values");
    }

    #[test]
    fn signs_are_elected_by_the_sum() {
        let device = molora_testkit::device();
        let matrix = |row: [f32; 3]| Tensor::<2>::from_data([row], &device);
        let merged = elected(&[
            (matrix([3.0, -1.0, 1.0]), 1.0),
            (matrix([1.0, -3.0, -1.0]), 0.5),
            (matrix([-1.0, 2.0, 0.0]), 2.0),
        ]);
        // 3 + 0.5 over 2; -1 - 1.5 over 2; a tie elects the positive value.
        assert_close(merged, [[1.75, -1.25, 1.0]], FORWARD, "elected");
        let pruned = largest(&matrix([0.1, -5.0, 2.0]), 0.7);
        assert_close(pruned, [[0.0, -5.0, 2.0]], 0.0, "pruned");
    }

    #[test]
    fn what_cannot_be_merged_is_named() {
        let text = |parts: &[(LowRank, f64)], method| {
            merge(parts, method).expect_err("refused").to_string()
        };
        let unequal = [(part(2, 1), 1.0), (part(3, 2), 1.0)];
        assert_eq!(
            text(&unequal, MergeMethod::Linear),
            "ranks 2 and 3 differ, expected one rank for a sum of factors"
        );
        assert!(merge(&unequal, MergeMethod::Cat).is_ok());
        let dense = MergeMethod::Ties { density: 1.5 };
        assert_eq!(
            text(&parts(), dense),
            "density is 1.5, expected a number from 0 to 1"
        );
        let rank = MergeMethod::Svd { rank: 0 };
        assert_eq!(text(&parts(), rank), "rank is 0, expected at least 1");
        assert!(text(&[], MergeMethod::Cat).starts_with("adapters is 0"));
    }
}
