//! Products for processors that do not multiply bf16: the matrix is widened to f32.

use burn::tensor::bf16;

use super::matrix::Frozen;
use crate::flex::buffer::{build, task_elements, write_tiled};
use crate::flex::matrix::{Into, Matrix, MatrixMut, multiply_parallel};

/// Numbers of the matrix that are wide at once, so that its copy stays in the cache and small.
const WIDE: usize = 256 * 1024;

/// See [`super::product`].
pub(super) fn product(x: &[f32], weight: Frozen<'_>, bias: Option<&[f32]>) -> Vec<f32> {
    let (inner, outer) = (weight.inner(), weight.outer());
    let rows = x.len() / inner;
    let zeros = vec![0.0; if bias.is_none() { outer } else { 0 }];
    let bias = bias.unwrap_or(&zeros);
    let mut values = build(rows * outer, task_elements(outer), |_, target| {
        write_tiled(target, bias)
    });
    let step = (WIDE / weight.cols).max(1);
    let (mut wide, mut scratch) = (Vec::new(), Vec::new());
    for first in (0..weight.rows).step_by(step) {
        let count = step.min(weight.rows - first);
        let narrow = weight.part(first..first + count, 0..weight.cols, &mut scratch);
        wide.clear();
        for row in 0..count {
            wide.extend(narrow.row(row).iter().copied().map(bf16::to_f32));
        }
        let part = Matrix::new(&wide, count, weight.cols, weight.cols);
        if weight.is_transposed {
            // These rows of the matrix are columns of the product.
            let mut target =
                MatrixMut::some_columns(&mut values, [rows, outer], first..first + count);
            let x = Matrix::new(x, rows, inner, inner);
            multiply_parallel(&mut target, Into::Add, 1.0, x, part.transposed());
        } else {
            let mut target = MatrixMut::new(&mut values, rows, outer, outer);
            let x = Matrix::new(&x[first..], rows, count, inner);
            multiply_parallel(&mut target, Into::Add, 1.0, x, part);
        }
    }
    values
}
