//! Dropout without a mask in memory. Forward and backward are the same map.

use burn::tensor::Shape;
use rayon::prelude::*;

use super::mask::DropMask;
use crate::flex::buffer::{FlexTensor, build, contiguous, from_values, map_rows, write_tiled};
use crate::flex::matrix::{Into, Matrix, MatrixMut, multiply};
use crate::flex::simd::vectorised;
use crate::flex::views::{matrix, with_matrix};

/// Rows of a product that a task takes: with what was dropped they stay in the second-level cache.
const ROWS: usize = 128;

/// Multiplies each element by its factor.
pub(super) fn apply(x: FlexTensor, mask: DropMask) -> FlexTensor {
    map_rows(x, 1, |first, values| drop_from(values, first, mask))
}

/// Multiplies the elements from the one at `first` on by their factors.
fn drop_from(values: &mut [f32], first: usize, mask: DropMask) {
    vectorised(
        #[inline(always)]
        || {
            for (value, index) in values.iter_mut().zip(first as u64..) {
                *value *= mask.factor(index);
            }
        },
    );
}

/// Some rows of `x`, from `first` on, with what is dropped.
fn dropped(x: Matrix<'_>, first: usize, count: usize, mask: DropMask) -> Vec<f32> {
    let width = x.num_cols();
    let mut rows = x.rows(first, count).data()[..count * width].to_vec();
    drop_from(&mut rows, first * width, mask);
    rows
}

/// `dropout(x) * weight`.
pub(super) fn forward_linear(x: FlexTensor, weight: FlexTensor, mask: DropMask) -> FlexTensor {
    let x = contiguous(x);
    let x = matrix(&x);
    with_matrix(weight, |weight| {
        let (width, cols) = (x.num_cols(), weight.num_cols());
        let zeros = vec![0.0; cols];
        let values = build(x.num_rows() * cols, ROWS * cols, |first, target| {
            let values = write_tiled(target, &zeros);
            let count = values.len() / cols;
            let rows = dropped(x, first / cols, count, mask);
            let rows = Matrix::new(&rows, count, width, width);
            let mut target = MatrixMut::new(values, count, cols, cols);
            multiply(&mut target, Into::Replace, 1.0, rows, weight);
            values
        });
        from_values(values, Shape::from([x.num_rows(), cols]))
    })
}

/// Gradient of [`forward_linear`] for `x`: what `grad * weight^T` has where `x` was not dropped.
pub(super) fn backward_linear_x(
    weight: FlexTensor,
    grad: FlexTensor,
    mask: DropMask,
) -> FlexTensor {
    let grad = contiguous(grad);
    let grad = matrix(&grad);
    with_matrix(weight, |weight| {
        let width = weight.num_rows();
        let zeros = vec![0.0; width];
        let values = build(grad.num_rows() * width, ROWS * width, |first, target| {
            let values = write_tiled(target, &zeros);
            let count = values.len() / width;
            let mut target = MatrixMut::new(values, count, width, width);
            let grad = grad.rows(first / width, count);
            multiply(&mut target, Into::Replace, 1.0, grad, weight.transposed());
            drop_from(values, first, mask);
            values
        });
        from_values(values, Shape::from([grad.num_rows(), width]))
    })
}

/// Gradient of [`forward_linear`] for the weight: `dropout(x)^T * grad`.
pub(super) fn backward_linear_weight(
    x: FlexTensor,
    grad: FlexTensor,
    mask: DropMask,
) -> FlexTensor {
    let (x, grad) = (contiguous(x), contiguous(grad));
    let (x, grad) = (matrix(&x), matrix(&grad));
    let (width, cols) = (x.num_cols(), grad.num_cols());
    let starts = (0..x.num_rows()).into_par_iter().step_by(ROWS);
    let parts = starts.map(|first| {
        let count = ROWS.min(x.num_rows() - first);
        let rows = dropped(x, first, count, mask);
        let rows = Matrix::new(&rows, count, width, width).transposed();
        let mut part = vec![0.0; width * cols];
        let mut target = MatrixMut::new(&mut part, width, cols, cols);
        multiply(
            &mut target,
            Into::Replace,
            1.0,
            rows,
            grad.rows(first, count),
        );
        part
    });
    // In the order of the rows, so that the number of threads does not show.
    let mut total = vec![0.0; width * cols];
    for part in parts.collect::<Vec<_>>() {
        for (total, part) in total.iter_mut().zip(part) {
            *total += part;
        }
    }
    from_values(total, Shape::from([width, cols]))
}
