//! Layer norm over the last axis: each row is read while it is in the first-level cache.

use burn::tensor::Shape;

use crate::flex::buffer::{FlexTensor, contiguous, elements, from_values, map_rows, sum_over_rows};
use crate::flex::math::sum;
use crate::flex::saved::Kept;
use crate::flex::simd::vectorised;

/// `(x - mean) / sqrt(variance + epsilon) * gamma + beta` of each row.
pub(super) fn forward(
    x: FlexTensor,
    gamma: FlexTensor,
    beta: FlexTensor,
    epsilon: f32,
) -> FlexTensor {
    let (gamma, beta) = (contiguous(gamma), contiguous(beta));
    let (gamma, beta) = (elements(&gamma), elements(&beta));
    map_rows(x, gamma.len(), |_, rows| {
        vectorised(
            #[inline(always)]
            || {
                for row in rows.chunks_exact_mut(gamma.len()) {
                    let statistics = Statistics::of(row, epsilon);
                    for ((value, &gamma), &beta) in row.iter_mut().zip(gamma).zip(beta) {
                        *value = statistics.normalise(*value).mul_add(gamma, beta);
                    }
                }
            },
        );
    })
}

/// Gradient for `x`: with `h = grad * gamma` and the normalised row `n`,
/// `(h - mean(h) - n * mean(h * n)) / sqrt(variance + epsilon)`.
pub(super) fn backward_x(
    x: &Kept,
    gamma: FlexTensor,
    grad: FlexTensor,
    epsilon: f32,
) -> FlexTensor {
    let gamma = contiguous(gamma);
    let gamma = elements(&gamma);
    let width = gamma.len();
    map_rows(grad, width, |first, grads| {
        let mut place = Vec::new();
        let x = x.part(first, grads.len(), &mut place);
        vectorised(
            #[inline(always)]
            || {
                for (grad, x) in grads.chunks_exact_mut(width).zip(x.chunks_exact(width)) {
                    backward_row(grad, x, gamma, epsilon);
                }
            },
        );
    })
}

#[inline(always)]
fn backward_row(grad: &mut [f32], x: &[f32], gamma: &[f32], epsilon: f32) {
    let count = x.len() as f32;
    let statistics = Statistics::of(x, epsilon);
    for (grad, &gamma) in grad.iter_mut().zip(gamma) {
        *grad *= gamma;
    }
    let offset = sum(grad, grad, |h, _| h) / count;
    let slope = sum(grad, x, |h, x| h * statistics.normalise(x)) / count;
    for (grad, &x) in grad.iter_mut().zip(x) {
        let normalised = statistics.normalise(x);
        *grad = normalised.mul_add(-slope, *grad - offset) * statistics.scale;
    }
}

/// Gradients for `gamma` and `beta`: sums over the rows of `grad * n` and of `grad`.
pub(super) fn backward_affine(
    x: FlexTensor,
    grad: FlexTensor,
    epsilon: f32,
) -> (FlexTensor, FlexTensor) {
    let (x, grad) = (contiguous(x), contiguous(grad));
    let width = x.layout().shape().as_slice().last().copied().unwrap_or(1);
    let sums = sum_over_rows(
        [elements(&x), elements(&grad)],
        width,
        2 * width,
        #[inline(always)]
        |sums, x, grad| affine_row(sums, x, grad, epsilon),
    );
    let (gamma, beta) = sums.split_at(width);
    let tensor = |sums: &[f32]| from_values(sums.to_vec(), Shape::from([width]));
    (tensor(gamma), tensor(beta))
}

/// Adds `grad * n` to the first half of `sums` and `grad` to the second.
#[inline(always)]
fn affine_row(sums: &mut [f32], x: &[f32], grad: &[f32], epsilon: f32) {
    let statistics = Statistics::of(x, epsilon);
    let (gamma, beta) = sums.split_at_mut(x.len());
    for (((gamma, beta), &x), &grad) in gamma.iter_mut().zip(beta).zip(x).zip(grad) {
        *gamma = statistics.normalise(x).mul_add(grad, *gamma);
        *beta += grad;
    }
}

/// What normalises a row.
#[derive(Debug, Clone, Copy)]
struct Statistics {
    mean: f32,
    /// What rounding took from the mean: seen beside it where the row varies little.
    rest: f32,
    /// `1 / sqrt(variance + epsilon)`.
    scale: f32,
}

impl Statistics {
    #[inline(always)]
    fn of(row: &[f32], epsilon: f32) -> Self {
        let count = row.len() as f32;
        let mean = sum(row, row, |value, _| value) / count;
        let rest = sum(row, row, |value, _| value - mean) / count;
        let squares = sum(row, row, |value, _| (value - mean) * (value - mean)) / count;
        let variance = squares - rest * rest;
        Self {
            mean,
            rest,
            scale: 1.0 / (variance + epsilon).sqrt(),
        }
    }

    #[inline(always)]
    fn normalise(self, value: f32) -> f32 {
        ((value - self.mean) - self.rest) * self.scale
    }
}
