//! The affine map `x * weight + bias` on rows.

use burn::tensor::Shape;

use super::buffer::{
    FlexTensor, build, contiguous, elements, from_values, task_elements, write_tiled,
};
use super::matrix::{Into, Matrix, MatrixMut, multiply_parallel};
use super::views::{matrix, with_matrix};

/// `x * weight + bias` for `x` `[rows, in]`, `weight` `[in, out]` and `bias` `[out]`.
pub(crate) fn forward(x: FlexTensor, weight: FlexTensor, bias: FlexTensor) -> FlexTensor {
    let (x, bias) = (contiguous(x), contiguous(bias));
    with_matrix(weight, |weight| {
        product(matrix(&x), weight, Some(elements(&bias)))
    })
}

/// Gradient for `x`: `grad * weight^T`.
pub(crate) fn backward_x(weight: FlexTensor, grad: FlexTensor) -> FlexTensor {
    let grad = contiguous(grad);
    with_matrix(weight, |weight| {
        product(matrix(&grad), weight.transposed(), None)
    })
}

/// Gradient for the weight: `x^T * grad`.
pub(crate) fn backward_weight(x: FlexTensor, grad: FlexTensor) -> FlexTensor {
    let (x, grad) = (contiguous(x), contiguous(grad));
    product(matrix(&x).transposed(), matrix(&grad), None)
}

/// `left * right`, plus `bias` if there is one.
fn product(left: Matrix<'_>, right: Matrix<'_>, bias: Option<&[f32]>) -> FlexTensor {
    let shape = Shape::from([left.num_rows(), right.num_cols()]);
    #[cfg(target_arch = "x86_64")]
    if let Some(values) = super::tiles::product(left, right, bias) {
        return from_values(values, shape);
    }
    from_values(plain(left, right, bias), shape)
}

/// As [`product`], for any processor and shape.
fn plain(left: Matrix<'_>, right: Matrix<'_>, bias: Option<&[f32]>) -> Vec<f32> {
    let (rows, cols) = (left.num_rows(), right.num_cols());
    let zeros = vec![0.0; if bias.is_none() { cols } else { 0 }];
    let bias = bias.unwrap_or(&zeros);
    let mut values = build(rows * cols, task_elements(cols), |_, target| {
        write_tiled(target, bias)
    });
    let mut target = MatrixMut::new(&mut values, rows, cols, cols);
    // One product over all rows rather than one per task, so that `right` is packed once.
    multiply_parallel(&mut target, Into::Add, 1.0, left, right);
    values
}
