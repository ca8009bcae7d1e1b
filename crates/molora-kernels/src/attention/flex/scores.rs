//! The scores of a block of queries against the keys that they reach.

use std::ops::Range;

use super::rules::ItemRules;
use crate::flex::math::{LANES, dot, exp, join, sum, tanh};
use crate::flex::matrix::{Into, Matrix, MatrixMut, multiply};
use crate::flex::simd::vectorised;

/// Queries that are scored at a time.
pub(super) const BLOCK: usize = 64;

/// The inputs of one query head of one batch item.
#[derive(Debug, Clone, Copy)]
pub(super) struct Head<'a> {
    /// `[T, W]`.
    pub(super) query: Matrix<'a>,
    /// `[S, W]`, as `value`.
    pub(super) key: Matrix<'a>,
    pub(super) value: Matrix<'a>,
    /// `[T, S]`.
    pub(super) bias: Option<Matrix<'a>>,
    pub(super) rules: ItemRules<'a>,
    pub(super) scale: f32,
    pub(super) soft_cap: Option<f32>,
}

/// Some queries and the keys that they reach.
#[derive(Debug, Clone)]
pub(super) struct Block {
    pub(super) queries: Range<usize>,
    pub(super) keys: Range<usize>,
}

impl Block {
    /// Row length of the block's scores: a multiple of [`LANES`].
    pub(super) fn stride(&self) -> usize {
        self.keys.len().next_multiple_of(LANES)
    }
}

impl<'a> Head<'a> {
    /// The blocks of all queries that reach any key.
    pub(super) fn blocks(self) -> impl Iterator<Item = Block> + 'a {
        let count = self.query.num_rows();
        (0..count).step_by(BLOCK).filter_map(move |first| {
            let queries = first..count.min(first + BLOCK);
            let keys = self.rules.reach(queries.clone());
            (!keys.is_empty()).then_some(Block { queries, keys })
        })
    }
}

/// Memory of a task, used for one block after the other.
#[derive(Debug, Default)]
pub(super) struct Scratch {
    /// Weights of the keys before they are normalised, `[queries, stride]`.
    pub(super) weights: Vec<f32>,
    /// Sum of the weights of each query.
    pub(super) totals: Vec<f32>,
    /// Gradients of the scores, `[queries, stride]`.
    pub(super) slopes: Vec<f32>,
    /// Slopes of the bound of the scores, `[queries, stride]`, where there is one.
    bounds: Vec<f32>,
    /// 1 or 0 for each key of one query.
    keep: Vec<f32>,
}

/// Sets `scratch.weights` to the exponentials of the scores relative to each row's largest, 0 where
/// not allowed, and `scratch.totals` to their sums.
pub(super) fn weigh(head: &Head<'_>, block: &Block, scratch: &mut Scratch) {
    let (rows, keys, stride) = (block.queries.len(), block.keys.clone(), block.stride());
    reset(&mut scratch.weights, rows * stride);
    reset(&mut scratch.totals, rows);
    reset(&mut scratch.keep, stride);
    let mut mode = Into::Replace;
    if let Some(bias) = head.bias {
        for (row, query) in block.queries.clone().enumerate() {
            let bias = &bias.row(query)[keys.clone()];
            scratch.weights[row * stride..][..keys.len()].copy_from_slice(bias);
        }
        mode = Into::Add;
    }
    let query = head.query.rows(block.queries.start, rows);
    let key = head.key.rows(keys.start, keys.len());
    if rows == 1 {
        score(query.row(0), key, head.scale, &mut scratch.weights);
    } else {
        let mut target = MatrixMut::new(&mut scratch.weights, rows, keys.len(), stride);
        multiply(&mut target, mode, head.scale, query, key.transposed());
    }
    if let Some(cap) = head.soft_cap {
        reset(&mut scratch.bounds, rows * stride);
        bound(&mut scratch.weights, cap, &mut scratch.bounds);
    }

    let (rules, is_prefix) = (head.rules, head.rules.is_prefix());
    let (weights, totals, keep) = (&mut scratch.weights, &mut scratch.totals, &mut scratch.keep);
    vectorised(
        #[inline(always)]
        || {
            let weights = weights.chunks_exact_mut(stride);
            // What the last query may attend to; of a prefix, the others see less of it.
            rules.write(block.queries.end - 1, keys.clone(), keep);
            let first = keep.iter().position(|&keep| keep != 0.0);
            for (row, (weights, total)) in weights.zip(totals.iter_mut()).enumerate() {
                let query = block.queries.start + row;
                let seen = rules.seen(query, &keys);
                let is_open = match is_prefix {
                    true => first.is_some_and(|first| first < seen),
                    false => {
                        rules.write(query, keys.clone(), keep);
                        keep[..seen].iter().any(|&keep| keep != 0.0)
                    }
                };
                *total = match is_open {
                    true => exponentials(weights, keep, seen),
                    false => {
                        weights.fill(0.0);
                        1.0
                    }
                };
            }
        },
    );
}

/// Adds the scores of one query: a matrix product would take longer to begin.
fn score(query: &[f32], key: Matrix<'_>, scale: f32, scores: &mut [f32]) {
    vectorised(
        #[inline(always)]
        || {
            for (index, score) in scores[..key.num_rows()].iter_mut().enumerate() {
                *score += scale * dot(query, key.row(index));
            }
        },
    );
}

/// Numbers whose sums stay in registers.
const WIDE: usize = 4 * LANES;

/// Replaces `out` by the sum of the rows of `value`, each `weights` times.
pub(super) fn add_weighed(weights: &[f32], value: Matrix<'_>, out: &mut [f32]) {
    vectorised(
        #[inline(always)]
        || {
            let (wide, rest) = out.as_chunks_mut::<WIDE>();
            for (part, out) in wide.iter_mut().enumerate() {
                let mut sums = [0.0; WIDE];
                for (index, &weight) in weights[..value.num_rows()].iter().enumerate() {
                    let value = &value.row(index)[part * WIDE..][..WIDE];
                    for (sum, &value) in sums.iter_mut().zip(value) {
                        *sum = weight.mul_add(value, *sum);
                    }
                }
                *out = sums;
            }
            rest.fill(0.0);
            let first = wide.len() * WIDE;
            for (index, &weight) in weights[..value.num_rows()].iter().enumerate() {
                for (out, &value) in rest.iter_mut().zip(&value.row(index)[first..]) {
                    *out = weight.mul_add(value, *out);
                }
            }
        },
    );
}

/// Replaces scores by `cap * tanh(score / cap)`, and writes the slopes of that.
fn bound(scores: &mut [f32], cap: f32, slopes: &mut [f32]) {
    vectorised(
        #[inline(always)]
        || {
            for (score, slope) in scores.iter_mut().zip(slopes.iter_mut()) {
                let (share, of_share) = tanh(*score / cap);
                (*score, *slope) = (cap * share, of_share);
            }
        },
    );
}

/// Replaces the first `seen` scores of a row, of which some are kept, by `exp(score - largest)`, 0 where not kept, and
/// the others by 0. Returns the sum.
#[inline(always)]
fn exponentials(row: &mut [f32], keep: &[f32], seen: usize) -> f32 {
    let end = seen.next_multiple_of(LANES);
    row[end..].fill(0.0);
    let row = &mut row[..end];
    row[seen..].fill(f32::NEG_INFINITY);
    let mut largest = [f32::NEG_INFINITY; LANES];
    let chunks = row.as_chunks_mut::<LANES>().0.iter_mut();
    for (row, keep) in chunks.zip(keep.as_chunks::<LANES>().0) {
        for lane in 0..LANES {
            let score = if keep[lane] != 0.0 {
                row[lane]
            } else {
                f32::NEG_INFINITY
            };
            row[lane] = score;
            largest[lane] = if score > largest[lane] {
                score
            } else {
                largest[lane]
            };
        }
    }
    let largest = join(largest, |a, b| if b > a { b } else { a });
    let mut total = [0.0; LANES];
    for row in row.as_chunks_mut::<LANES>().0 {
        for lane in 0..LANES {
            row[lane] = exp(row[lane] - largest);
            total[lane] += row[lane];
        }
    }
    join(total, |a, b| a + b)
}

/// After [`weigh`], normalises `scratch.weights` to probabilities `p` and sets `scratch.slopes` to
/// the gradients of the scores, `p * (dp - sum(p * dp))` with `dp = grad * value^T`; where the scores
/// are bounded, those in front of the bound.
pub(super) fn slope(head: &Head<'_>, grad: Matrix<'_>, block: &Block, scratch: &mut Scratch) {
    let (rows, keys, stride) = (block.queries.len(), block.keys.clone(), block.stride());
    reset(&mut scratch.slopes, rows * stride);
    let mut target = MatrixMut::new(&mut scratch.slopes, rows, keys.len(), stride);
    let value = head.value.rows(keys.start, keys.len());
    let grad = grad.rows(block.queries.start, rows);
    multiply(&mut target, Into::Replace, 1.0, grad, value.transposed());

    let (weights, slopes, totals) = (&mut scratch.weights, &mut scratch.slopes, &scratch.totals);
    vectorised(
        #[inline(always)]
        || {
            let rows = weights
                .chunks_exact_mut(stride)
                .zip(slopes.chunks_exact_mut(stride));
            for ((weights, slopes), &total) in rows.zip(totals) {
                let factor = 1.0 / total;
                weights.iter_mut().for_each(|weight| *weight *= factor);
                let mean = sum(weights, slopes, |p, slope| p * slope);
                for (slope, &p) in slopes.iter_mut().zip(&*weights) {
                    *slope = p * (*slope - mean);
                }
            }
        },
    );
    if head.soft_cap.is_some() {
        let bounds = scratch.bounds.iter();
        for (slope, bound) in scratch.slopes.iter_mut().zip(bounds) {
            *slope *= bound;
        }
    }
}

/// `len` zeros, in the memory that `values` has.
fn reset(values: &mut Vec<f32>, len: usize) {
    values.clear();
    values.resize(len, 0.0);
}
