//! The affine map `x * weight + bias` on rows, in blocks of rows that run in parallel.

use burn::tensor::Shape;

use super::buffer::{FlexTensor, build, contiguous, elements, from_values, write_tiled};
use super::matrix::{Into, Matrix, MatrixMut, multiply};

/// Multiply-adds of one task: some hundred microseconds.
const TASK_WORK: usize = 16 << 20;

/// `x * weight + bias` for `x` `[rows, in]`, `weight` `[in, out]` and `bias` `[out]`.
pub(crate) fn forward(x: FlexTensor, weight: FlexTensor, bias: FlexTensor) -> FlexTensor {
    let (x, weight, bias) = (contiguous(x), contiguous(weight), contiguous(bias));
    let (x, weight) = (matrix(&x), matrix(&weight));
    let bias = elements(&bias);
    affine(x, weight, bias)
}

/// Gradient for `x`: `grad * weight^T`.
pub(crate) fn backward_x(weight: FlexTensor, grad: FlexTensor) -> FlexTensor {
    let (weight, grad) = (contiguous(weight), contiguous(grad));
    let weight = matrix(&weight).transposed();
    affine(matrix(&grad), weight, &vec![0.0; weight.num_cols()])
}

/// Gradient for the weight: `x^T * grad`.
pub(crate) fn backward_weight(x: FlexTensor, grad: FlexTensor) -> FlexTensor {
    let (x, grad) = (contiguous(x), contiguous(grad));
    let grad = matrix(&grad);
    affine(matrix(&x).transposed(), grad, &vec![0.0; grad.num_cols()])
}

/// The view of a contiguous `[rows, cols]` tensor.
fn matrix(tensor: &FlexTensor) -> Matrix<'_> {
    let shape = tensor.layout().shape();
    Matrix::new(elements(tensor), shape[0], shape[1], shape[1])
}

/// `left * right + bias`, each task taking a block of rows.
fn affine(left: Matrix<'_>, right: Matrix<'_>, bias: &[f32]) -> FlexTensor {
    let (rows, cols) = (left.num_rows(), right.num_cols());
    let block = TASK_WORK.div_ceil(right.num_rows() * cols);
    let values = build(rows * cols, block * cols, |first, target| {
        let target = write_tiled(target, bias);
        let rows = target.len() / cols;
        let mut product = MatrixMut::new(target, rows, cols, cols);
        multiply(
            &mut product,
            Into::Add,
            1.0,
            left.rows(first / cols, rows),
            right,
        );
        target
    });
    from_values(values, Shape::from([rows, cols]))
}
