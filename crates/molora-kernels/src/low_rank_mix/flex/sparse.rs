//! The mix where each token selects few of many experts: its code times the rows of `b` that belong
//! to the selected experts, one after the other.

use std::ops::Range;

use rayon::prelude::*;

use super::Operands;
use crate::flex::math::sum;
use crate::flex::matrix::{Matrix, MatrixMut};
use crate::flex::simd::vectorised;

/// Columns of the output that stay in registers while rows are added to them.
const TILE: usize = 64;

/// The numbers of the gated codes that are not left out, by token.
#[derive(Debug)]
pub(super) struct Terms {
    /// Row of `b` and the number of the code that multiplies it.
    terms: Vec<(usize, f32)>,
    /// Where the terms of each token end.
    ends: Vec<usize>,
}

impl Terms {
    /// Of some tokens.
    pub(super) fn of(operands: &Operands<'_>, tokens: Range<usize>) -> Self {
        let rank = operands.shape.rank;
        let (mut terms, mut ends) = (Vec::new(), Vec::with_capacity(tokens.len()));
        for token in tokens {
            let low = operands.low(token);
            for (expert, &weight) in operands.weights(token).iter().enumerate() {
                if weight == 0.0 {
                    continue;
                }
                let start = operands.start(expert);
                let code = low[start..][..rank]
                    .iter()
                    .zip(&operands.rank_scale[start..]);
                let rows = expert * rank..;
                terms.extend(rows.zip(code).map(|(row, (&low, &scale))| {
                    (row, low * scale * operands.shape.factor * weight)
                }));
            }
            ends.push(terms.len());
        }
        Self { terms, ends }
    }

    /// The terms of each token.
    fn by_token(&self) -> impl Iterator<Item = &[(usize, f32)]> {
        let starts = std::iter::once(&0).chain(&self.ends);
        starts
            .zip(&self.ends)
            .map(|(&start, &end)| &self.terms[start..end])
    }

    /// Adds the product with `b` to the rows of the tokens.
    pub(super) fn add_to(&self, rows: &mut [f32], b: Matrix<'_>) {
        vectorised(
            #[inline(always)]
            || {
                for (row, terms) in rows.chunks_exact_mut(b.num_cols()).zip(self.by_token()) {
                    add_rows(row, terms, b);
                }
            },
        );
    }

    /// The sum over the tokens of code times `grad`, `[height, width]`.
    pub(super) fn gradient_of_b(&self, grad: Matrix<'_>, height: usize) -> Vec<f32> {
        let width = grad.num_cols();
        // A task has some of the columns and all tokens, so that no sum depends on the tasks.
        let parts = (1..=width / TILE)
            .rev()
            .find(|&parts| width.is_multiple_of(parts));
        let parts = parts.unwrap_or(1);
        let cols = width / parts;
        let mut to_b = vec![0.0; height * width];
        let targets = MatrixMut::columns(&mut to_b, height, cols, parts);
        let tasks = targets.into_par_iter().enumerate();
        tasks.for_each(|(part, mut target)| {
            vectorised(
                #[inline(always)]
                || {
                    for (token, terms) in self.by_token().enumerate() {
                        let grad = &grad.row(token)[part * cols..][..cols];
                        for &(row, code) in terms {
                            for (target, &grad) in target.row(row).iter_mut().zip(grad) {
                                *target = grad.mul_add(code, *target);
                            }
                        }
                    }
                },
            );
        });
        to_b
    }
}

/// Adds each term's number times its row of `b` to `target`.
#[inline(always)]
fn add_rows(target: &mut [f32], terms: &[(usize, f32)], b: Matrix<'_>) {
    let (tiles, rest) = target.as_chunks_mut::<TILE>();
    let start = tiles.len() * TILE;
    for (index, tile) in tiles.iter_mut().enumerate() {
        let mut sums = *tile;
        for &(row, code) in terms {
            let row = &b.row(row)[index * TILE..][..TILE];
            for (sum, &value) in sums.iter_mut().zip(row) {
                *sum = value.mul_add(code, *sum);
            }
        }
        *tile = sums;
    }
    for &(row, code) in terms {
        for (sum, &value) in rest.iter_mut().zip(&b.row(row)[start..]) {
            *sum = value.mul_add(code, *sum);
        }
    }
}

/// `factor * grad * b^T` of the tokens from `first` on where the expert was selected; the rest of
/// `slopes` stays as it is.
pub(super) fn slopes(operands: &Operands<'_>, grad: Matrix<'_>, first: usize, slopes: &mut [f32]) {
    let (rank, factor) = (operands.shape.rank, operands.shape.factor);
    vectorised(
        #[inline(always)]
        || {
            let rows = slopes.chunks_exact_mut(operands.b.num_rows());
            for (row, slopes) in rows.enumerate() {
                let weights = operands.weights(first + row);
                for (expert, slopes) in slopes.chunks_exact_mut(rank).enumerate() {
                    if weights[expert] == 0.0 {
                        continue;
                    }
                    for (r, slope) in slopes.iter_mut().enumerate() {
                        let b = operands.b.row(expert * rank + r);
                        *slope = factor * sum(grad.row(row), b, |grad, b| grad * b);
                    }
                }
            }
        },
    );
}
