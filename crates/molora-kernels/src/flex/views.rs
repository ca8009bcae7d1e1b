//! Tensors as matrices.

use super::buffer::{FlexTensor, contiguous, elements};
use super::matrix::Matrix;

/// Calls `run` with the view of a tensor, without a copy if the tensor or its transpose is contiguous.
pub(crate) fn with_matrix(
    tensor: FlexTensor,
    run: impl FnOnce(Matrix<'_>) -> FlexTensor,
) -> FlexTensor {
    let transposed = tensor.transpose(0, 1);
    if transposed.is_contiguous() {
        return run(matrix(&transposed).transposed());
    }
    run(matrix(&contiguous(tensor)))
}

/// The view of a contiguous `[rows, cols]` tensor.
pub(crate) fn matrix(tensor: &FlexTensor) -> Matrix<'_> {
    let shape = tensor.layout().shape();
    Matrix::new(elements(tensor), shape[0], shape[1], shape[1])
}
