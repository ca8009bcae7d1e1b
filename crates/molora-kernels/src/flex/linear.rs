//! The affine map `x * weight + bias` on rows.

use burn::tensor::Shape;

use super::buffer::{
    FlexTensor, build, contiguous, elements, from_values, task_elements, write_tiled,
};
use super::matrix::{Into, Matrix, MatrixMut, multiply_parallel};

/// `x * weight + bias` for `x` `[rows, in]`, `weight` `[in, out]` and `bias` `[out]`.
pub(crate) fn forward(x: FlexTensor, weight: FlexTensor, bias: FlexTensor) -> FlexTensor {
    let (x, weight, bias) = (contiguous(x), contiguous(weight), contiguous(bias));
    affine(matrix(&x), matrix(&weight), elements(&bias))
}

/// Gradient for `x`: `grad * weight^T`.
pub(crate) fn backward_x(weight: FlexTensor, grad: FlexTensor) -> FlexTensor {
    let (weight, grad) = (contiguous(weight), contiguous(grad));
    product(matrix(&grad), matrix(&weight).transposed())
}

/// Gradient for the weight: `x^T * grad`.
pub(crate) fn backward_weight(x: FlexTensor, grad: FlexTensor) -> FlexTensor {
    let (x, grad) = (contiguous(x), contiguous(grad));
    product(matrix(&x).transposed(), matrix(&grad))
}

/// The view of a contiguous `[rows, cols]` tensor.
fn matrix(tensor: &FlexTensor) -> Matrix<'_> {
    let shape = tensor.layout().shape();
    Matrix::new(elements(tensor), shape[0], shape[1], shape[1])
}

/// `left * right`.
fn product(left: Matrix<'_>, right: Matrix<'_>) -> FlexTensor {
    affine(left, right, &vec![0.0; right.num_cols()])
}

/// `left * right + bias`.
fn affine(left: Matrix<'_>, right: Matrix<'_>, bias: &[f32]) -> FlexTensor {
    let (rows, cols) = (left.num_rows(), right.num_cols());
    let mut values = build(rows * cols, task_elements(cols), |_, target| {
        write_tiled(target, bias)
    });
    let mut target = MatrixMut::new(&mut values, rows, cols, cols);
    // One product over all rows rather than one per task, so that `right` is packed once.
    multiply_parallel(&mut target, Into::Add, 1.0, left, right);
    from_values(values, Shape::from([rows, cols]))
}
