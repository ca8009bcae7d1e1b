//! Layer norm over the last axis: each row is read while it is in the first-level cache.

use burn::tensor::Shape;
use rayon::prelude::*;

use super::buffer::{FlexTensor, contiguous, elements, from_values, map_rows, task_elements};
use super::math::sum;
use super::simd::vectorised;

/// `(x - mean) / sqrt(variance + epsilon) * gamma + beta` of each row.
pub(crate) fn forward(
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
pub(crate) fn backward_x(
    x: FlexTensor,
    gamma: FlexTensor,
    grad: FlexTensor,
    epsilon: f32,
) -> FlexTensor {
    let (x, gamma) = (contiguous(x), contiguous(gamma));
    let (x, gamma) = (elements(&x), elements(&gamma));
    let width = gamma.len();
    map_rows(grad, width, |first, grads| {
        let x = &x[first..first + grads.len()];
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
pub(crate) fn backward_affine(
    x: FlexTensor,
    grad: FlexTensor,
    epsilon: f32,
) -> (FlexTensor, FlexTensor) {
    let (x, grad) = (contiguous(x), contiguous(grad));
    let width = x.layout().shape().as_slice().last().copied().unwrap_or(1);
    let (x, grad) = (elements(&x), elements(&grad));
    let chunk = task_elements(width);

    let partial = |(x, grad): (&[f32], &[f32])| {
        let mut sums = (vec![0.0; width], vec![0.0; width]);
        vectorised(
            #[inline(always)]
            || {
                for (x, grad) in x.chunks_exact(width).zip(grad.chunks_exact(width)) {
                    affine_row(&mut sums, x, grad, epsilon);
                }
            },
        );
        sums
    };
    let partials: Vec<_> = x
        .par_chunks(chunk)
        .zip(grad.par_chunks(chunk))
        .map(partial)
        .collect();

    // In the order of the rows, so that the number of threads does not show.
    let mut total = (vec![0.0; width], vec![0.0; width]);
    for (gamma, beta) in partials {
        total
            .0
            .iter_mut()
            .zip(gamma)
            .for_each(|(total, part)| *total += part);
        total
            .1
            .iter_mut()
            .zip(beta)
            .for_each(|(total, part)| *total += part);
    }
    let shape = Shape::from([width]);
    (
        from_values(total.0, shape.clone()),
        from_values(total.1, shape),
    )
}

#[inline(always)]
fn affine_row(sums: &mut (Vec<f32>, Vec<f32>), x: &[f32], grad: &[f32], epsilon: f32) {
    let statistics = Statistics::of(x, epsilon);
    for (((gamma, beta), &x), &grad) in sums.0.iter_mut().zip(&mut sums.1).zip(x).zip(grad) {
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
