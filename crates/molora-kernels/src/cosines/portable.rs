//! Cosines in burn's tensor operations.

use burn::tensor::Tensor;

/// The definition by rows of norm 1.
pub fn cosines(a: Tensor<2>, b: Tensor<2>, epsilon: f64) -> Tensor<2> {
    unit_rows(a, epsilon).matmul(unit_rows(b, epsilon).transpose())
}

/// Rows divided by `max(norm, epsilon)`.
///
/// The square is clamped before the root, so the gradient at a zero row is zero instead of NaN.
fn unit_rows(rows: Tensor<2>, epsilon: f64) -> Tensor<2> {
    let square = rows.clone().square().sum_dim(1);
    rows / square.clamp_min(epsilon * epsilon).sqrt()
}
