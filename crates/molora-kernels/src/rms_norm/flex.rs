//! RMS norm over the last axis: each row is read while it is in the first-level cache.

use burn::tensor::Shape;

use crate::flex::buffer::{FlexTensor, contiguous, elements, from_values, map_rows, sum_over_rows};
use crate::flex::math::sum;
use crate::flex::saved::Kept;
use crate::flex::simd::vectorised;

/// `x / sqrt(mean(x^2) + epsilon) * weight` of each row.
pub(super) fn forward(x: FlexTensor, weight: FlexTensor, epsilon: f32) -> FlexTensor {
    let weight = contiguous(weight);
    let weight = elements(&weight);
    map_rows(x, weight.len(), |_, rows| {
        vectorised(
            #[inline(always)]
            || {
                for row in rows.chunks_exact_mut(weight.len()) {
                    let scale = scale_of(row, epsilon);
                    for (value, &weight) in row.iter_mut().zip(weight) {
                        *value = *value * scale * weight;
                    }
                }
            },
        );
    })
}

/// Gradient for `x`: with `h = grad * weight`, `s = 1 / sqrt(mean(x^2) + epsilon)` and `n = s * x`,
/// `(h - n * mean(h * n)) * s`.
pub(super) fn backward_x(
    x: &Kept,
    weight: FlexTensor,
    grad: FlexTensor,
    epsilon: f32,
) -> FlexTensor {
    let weight = contiguous(weight);
    let weight = elements(&weight);
    let width = weight.len();
    map_rows(grad, width, |first, grads| {
        let mut place = Vec::new();
        let x = x.part(first, grads.len(), &mut place);
        vectorised(
            #[inline(always)]
            || {
                for (grad, x) in grads.chunks_exact_mut(width).zip(x.chunks_exact(width)) {
                    backward_row(grad, x, weight, epsilon);
                }
            },
        );
    })
}

#[inline(always)]
fn backward_row(grad: &mut [f32], x: &[f32], weight: &[f32], epsilon: f32) {
    let scale = scale_of(x, epsilon);
    for (grad, &weight) in grad.iter_mut().zip(weight) {
        *grad *= weight;
    }
    let slope = sum(grad, x, |h, x| h * (x * scale)) / x.len() as f32;
    for (grad, &x) in grad.iter_mut().zip(x) {
        *grad = (x * scale).mul_add(-slope, *grad) * scale;
    }
}

/// Gradient for the weight: the sum over the rows of `grad * n`.
pub(super) fn backward_weight(x: FlexTensor, grad: FlexTensor, epsilon: f32) -> FlexTensor {
    let (x, grad) = (contiguous(x), contiguous(grad));
    let width = x.layout().shape().as_slice().last().copied().unwrap_or(1);
    let sums = sum_over_rows(
        [elements(&x), elements(&grad)],
        width,
        width,
        #[inline(always)]
        |sums, x, grad| {
            let scale = scale_of(x, epsilon);
            for ((sum, &x), &grad) in sums.iter_mut().zip(x).zip(grad) {
                *sum = (x * scale).mul_add(grad, *sum);
            }
        },
    );
    from_values(sums, Shape::from([width]))
}

/// `1 / sqrt(mean(row^2) + epsilon)`.
#[inline(always)]
fn scale_of(row: &[f32], epsilon: f32) -> f32 {
    let mean = sum(row, row, |a, b| a * b) / row.len() as f32;
    1.0 / (mean + epsilon).sqrt()
}
