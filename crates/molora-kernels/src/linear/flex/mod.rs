//! The affine map `x * weight + bias` on rows.

#[cfg(target_arch = "x86_64")]
mod few;
pub(super) mod frozen;
mod half;
#[cfg(target_arch = "x86_64")]
mod tiles;

use burn::backend::Flex;
use burn::backend::ops::FloatTensorOps;
use burn::tensor::Shape;

use crate::flex::buffer::{
    FlexTensor, build, contiguous, elements, from_values, task_elements, write_tiled,
};
use crate::flex::matrix::{Into, Matrix, MatrixMut, multiply_parallel};
use crate::flex::views::{matrix, with_matrix};

/// `x * weight + bias` for `x` `[rows, in]`, `weight` `[in, out]` and `bias` `[out]`, or a zero
/// in the place of none.
pub(super) fn forward(x: FlexTensor, weight: FlexTensor, bias: FlexTensor) -> FlexTensor {
    let (x, bias) = (contiguous(x), contiguous(bias));
    with_matrix(weight, |weight| {
        product(matrix(&x), weight, given(&bias, weight.num_cols()))
    })
}

/// The bias of so many columns; what is shorter stands in for none.
fn given(bias: &FlexTensor, columns: usize) -> Option<&[f32]> {
    Some(elements(bias)).filter(|bias| bias.len() == columns)
}

/// Gradient for `x`: `grad * weight^T`.
pub(super) fn backward_x(weight: FlexTensor, grad: FlexTensor) -> FlexTensor {
    let grad = contiguous(grad);
    with_matrix(weight, |weight| {
        product(matrix(&grad), weight.transposed(), None)
    })
}

/// Gradient for the weight: `x^T * grad`.
pub(super) fn backward_weight(x: FlexTensor, grad: FlexTensor) -> FlexTensor {
    let (x, grad) = (contiguous(x), contiguous(grad));
    product(matrix(&x).transposed(), matrix(&grad), None)
}

/// Gradient for the bias: the sum of all rows, `[out]`.
pub(super) fn backward_bias(grad: FlexTensor) -> FlexTensor {
    let width = grad.layout().shape()[1];
    Flex::float_reshape(Flex::float_sum_dim(grad, 0), [width].into())
}

/// `left * right`, plus `bias` if there is one.
fn product(left: Matrix<'_>, right: Matrix<'_>, bias: Option<&[f32]>) -> FlexTensor {
    let shape = Shape::from([left.num_rows(), right.num_cols()]);
    #[cfg(target_arch = "x86_64")]
    if let Some(values) =
        few::product(left, right, bias).or_else(|| tiles::product(left, right, bias))
    {
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
