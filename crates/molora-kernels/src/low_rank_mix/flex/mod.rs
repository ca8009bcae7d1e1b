//! The gated low-rank mix: each task scales the codes of some tokens and multiplies them by all
//! up-projections at once, or (`sparse.rs`) adds the selected rows of the up-projections.

mod sparse;
mod timing;

use burn::tensor::Shape;
use rayon::prelude::*;

use self::sparse::Terms;
pub(super) use self::timing::time_mix;
use super::shape::MixShape;
use crate::flex::buffer::{FlexTensor, contiguous, elements, from_values, map_rows};
use crate::flex::matrix::{Into, Matrix, MatrixMut, multiply, multiply_parallel};
use crate::flex::simd::vectorised;

/// Tokens that one task of the backward takes.
const BLOCK: usize = 128;

/// Code, weights, rank scale and `b` as slices, and their sizes.
#[derive(Debug, Clone, Copy)]
struct Operands<'a> {
    /// `[N, A * R]`.
    low: &'a [f32],
    /// `[items, positions, E]`.
    weights: &'a [f32],
    rank_scale: &'a [f32],
    b: Matrix<'a>,
    shape: MixShape,
    /// Whether to leave out experts that were not selected.
    is_sparse: bool,
    batch: usize,
    tokens: usize,
    experts: usize,
    items: usize,
    positions: usize,
}

impl<'a> Operands<'a> {
    /// Of contiguous tensors.
    fn new([low, weights, rank_scale, b]: [&'a FlexTensor; 4], shape: MixShape) -> Self {
        let (low_shape, weights_shape) = (low.layout().shape(), weights.layout().shape());
        let (rows, width) = (b.layout().shape()[0], b.layout().shape()[1]);
        let selected = elements(weights).iter().filter(|weight| **weight != 0.0);
        let is_rare =
            || shape.sparse_ratio.saturating_mul(selected.count()) <= elements(weights).len();
        Self {
            low: elements(low),
            weights: elements(weights),
            rank_scale: elements(rank_scale),
            b: Matrix::new(elements(b), rows, width, width),
            shape,
            is_sparse: shape.is_selection && is_rare(),
            batch: low_shape[0],
            tokens: low_shape[1],
            experts: weights_shape[2],
            items: weights_shape[0],
            positions: weights_shape[1],
        }
    }

    /// Width of the code, `A * R`.
    fn code_width(&self) -> usize {
        self.rank_scale.len()
    }

    /// The code of one token.
    fn low(&self, token: usize) -> &'a [f32] {
        &self.low[token * self.code_width()..][..self.code_width()]
    }

    /// Row of the weights that serves a token.
    fn weights_row(&self, token: usize) -> usize {
        let (item, position) = (token / self.tokens, token % self.tokens);
        let item = if self.items == 1 { 0 } else { item };
        let position = if self.positions == 1 { 0 } else { position };
        item * self.positions + position
    }

    /// Where the code of an expert begins in a token's.
    fn start(&self, expert: usize) -> usize {
        let has_own = self.code_width() > self.shape.rank;
        if has_own { expert * self.shape.rank } else { 0 }
    }

    /// Weight of each expert for a token.
    fn weights(&self, token: usize) -> &'a [f32] {
        &self.weights[self.weights_row(token) * self.experts..][..self.experts]
    }

    /// The gated codes of the tokens from `first` on, `[.., E * R]`.
    fn write_codes(&self, first: usize, codes: &mut [f32]) {
        let rank = self.shape.rank;
        vectorised(
            #[inline(always)]
            || {
                let rows = codes.chunks_exact_mut(self.b.num_rows());
                for (row, codes) in rows.enumerate() {
                    let (low, weights) = (self.low(first + row), self.weights(first + row));
                    for (expert, code) in codes.chunks_exact_mut(rank).enumerate() {
                        let (start, weight) = (self.start(expert), weights[expert]);
                        let inputs = low[start..][..rank].iter().zip(&self.rank_scale[start..]);
                        for (code, (&low, &scale)) in code.iter_mut().zip(inputs) {
                            *code = low * scale * self.shape.factor * weight;
                        }
                    }
                }
            },
        );
    }
}

/// `base + codes * b`, see [`crate::low_rank_mix`].
pub(super) fn forward(base: FlexTensor, operands: [FlexTensor; 4], shape: MixShape) -> FlexTensor {
    let operands = operands.map(contiguous);
    let operands = Operands::new(operands.each_ref(), shape);
    let (height, width) = (operands.b.num_rows(), operands.b.num_cols());
    let mode = if shape.has_base {
        Into::Add
    } else {
        Into::Replace
    };
    let base = match shape.has_base {
        true => base,
        false => {
            let out = Shape::from([operands.batch, operands.tokens, width]);
            from_values(vec![0.0; out.num_elements()], out)
        }
    };
    map_rows(base, width, |first, rows| {
        let (first, count) = (first / width, rows.len() / width);
        if operands.is_sparse {
            return Terms::of(&operands, first..first + count).add_to(rows, operands.b);
        }
        let mut codes = vec![0.0; count * height];
        operands.write_codes(first, &mut codes);
        let codes = Matrix::new(&codes, count, height, height);
        let mut target = MatrixMut::new(rows, count, width, width);
        multiply(&mut target, mode, 1.0, codes, operands.b);
    })
}

/// Gradients of code, weights, rank scale and, if wanted, `b`; the base's is the output's.
///
/// With `dc = grad * b^T` per token and expert: `dlow = sum_e dc_e * w_e * scale * factor`,
/// `dw_e = factor * sum_r dc_e * scale * low`, `dscale = factor * sum_ne dc_e * w_e * low`, and
/// `db = codes^T * grad` with the codes computed again.
pub(super) fn backward(
    operands: [FlexTensor; 4],
    shape: MixShape,
    grad: FlexTensor,
    wants_b: bool,
) -> [Option<FlexTensor>; 4] {
    let [low_shape, weights_shape, scale_shape, b_shape] = operands
        .each_ref()
        .map(|operand| operand.layout().shape().clone());
    let (operands, grad) = (operands.map(contiguous), contiguous(grad));
    let operands = Operands::new(operands.each_ref(), shape);
    let (rows, width) = (operands.batch * operands.tokens, operands.b.num_cols());
    let grad = Matrix::new(elements(&grad), rows, width, width);

    let mut to_low = vec![0.0; operands.low.len()];
    let mut to_weights = vec![0.0; rows * operands.experts];
    let scales: Vec<Vec<f32>> = to_low
        .par_chunks_mut(BLOCK * operands.code_width())
        .zip(to_weights.par_chunks_mut(BLOCK * operands.experts))
        .enumerate()
        .map(|(task, (to_low, to_weights))| {
            backward_block(&operands, grad, task * BLOCK, [to_low, to_weights])
        })
        .collect();
    let mut to_scale = vec![0.0; operands.code_width()];
    for part in scales {
        add(&mut to_scale, &part);
    }
    let to_weights = sum_shared(&operands, to_weights);
    [
        Some(from_values(to_low, low_shape)),
        Some(from_values(to_weights, weights_shape)),
        Some(from_values(to_scale, scale_shape)),
        wants_b.then(|| {
            let to_b = match operands.is_sparse {
                true => Terms::of(&operands, 0..rows).gradient_of_b(grad, operands.b.num_rows()),
                false => gradient_of_b(&operands, grad),
            };
            from_values(to_b, b_shape)
        }),
    ]
}

/// Writes the gradients of the codes and weights of the tokens from `first` on, and returns their
/// part of the gradient of the rank scale.
fn backward_block(
    operands: &Operands<'_>,
    grad: Matrix<'_>,
    first: usize,
    [to_low, to_weights]: [&mut [f32]; 2],
) -> Vec<f32> {
    let (height, rank) = (operands.b.num_rows(), operands.shape.rank);
    let (code_width, factor) = (operands.code_width(), operands.shape.factor);
    let count = to_low.len() / code_width;
    let mut slopes = vec![0.0; count * height];
    let grad = grad.rows(first, count);
    if operands.is_sparse {
        sparse::slopes(operands, grad, first, &mut slopes);
    } else {
        let mut target = MatrixMut::new(&mut slopes, count, height, height);
        multiply(
            &mut target,
            Into::Replace,
            factor,
            grad,
            operands.b.transposed(),
        );
    }

    let mut to_scale = vec![0.0; code_width];
    vectorised(
        #[inline(always)]
        || {
            let rows = to_low.chunks_exact_mut(code_width);
            let rows = rows.zip(to_weights.chunks_exact_mut(operands.experts));
            for (row, (to_low, to_weights)) in rows.enumerate() {
                let (low, weights) = (operands.low(first + row), operands.weights(first + row));
                let slopes = slopes[row * height..][..height].chunks_exact(rank);
                for ((expert, slopes), to_weight) in slopes.enumerate().zip(to_weights) {
                    let part = operands.start(expert)..operands.start(expert) + rank;
                    let inputs = [
                        slopes,
                        &low[part.clone()],
                        &operands.rank_scale[part.clone()],
                    ];
                    let targets = [&mut to_low[part.clone()], &mut to_scale[part]];
                    if !operands.shape.is_selection || weights[expert] != 0.0 {
                        *to_weight = backward_code(inputs, weights[expert], targets);
                    }
                }
            }
        },
    );
    to_scale
}

/// Adds the gradients of one expert's code of one token to `[to_low, to_scale]`, and returns that of
/// its weight.
#[inline(always)]
fn backward_code(
    [slopes, low, scale]: [&[f32]; 3],
    weight: f32,
    [to_low, to_scale]: [&mut [f32]; 2],
) -> f32 {
    let targets = to_low.iter_mut().zip(to_scale);
    let inputs = slopes.iter().zip(low).zip(scale);
    let mut to_weight = 0.0;
    for ((to_low, to_scale), ((&slope, &low), &scale)) in targets.zip(inputs) {
        *to_low += slope * weight * scale;
        *to_scale += slope * weight * low;
        to_weight += slope * scale * low;
    }
    to_weight
}

/// Sums the gradients of the weights of each token over the tokens that share them.
fn sum_shared(operands: &Operands<'_>, by_token: Vec<f32>) -> Vec<f32> {
    if by_token.len() == operands.weights.len() {
        return by_token;
    }
    let experts = operands.experts;
    let mut shared = vec![0.0; operands.weights.len()];
    for (token, weights) in by_token.chunks_exact(experts).enumerate() {
        let row = operands.weights_row(token);
        add(&mut shared[row * experts..][..experts], weights);
    }
    shared
}

/// `codes^T * grad`.
fn gradient_of_b(operands: &Operands<'_>, grad: Matrix<'_>) -> Vec<f32> {
    let (height, width) = (operands.b.num_rows(), operands.b.num_cols());
    let mut codes = vec![0.0; grad.num_rows() * height];
    let tasks = codes.par_chunks_mut(BLOCK * height).enumerate();
    tasks.for_each(|(task, codes)| operands.write_codes(task * BLOCK, codes));
    let codes = Matrix::new(&codes, grad.num_rows(), height, height);
    let mut to_b = vec![0.0; height * width];
    let mut target = MatrixMut::new(&mut to_b, height, width, width);
    multiply_parallel(&mut target, Into::Replace, 1.0, codes.transposed(), grad);
    to_b
}

fn add(target: &mut [f32], part: &[f32]) {
    for (target, part) in target.iter_mut().zip(part) {
        *target += part;
    }
}
