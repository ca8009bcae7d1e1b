//! RMS norm in burn's tensor operations.

use burn::tensor::Tensor;

/// The definition by the mean of the squares.
pub fn rms_norm<const D: usize>(x: Tensor<D>, weight: Tensor<1>, epsilon: f64) -> Tensor<D> {
    let mean = (x.clone() * x.clone()).mean_dim(D - 1);
    x / mean.add_scalar(epsilon).sqrt() * weight.unsqueeze()
}
