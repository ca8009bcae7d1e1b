//! Layer norm in burn's tensor operations.

use burn::tensor::Tensor;

/// The definition by mean and variance.
pub fn layer_norm<const D: usize>(
    x: Tensor<D>,
    gamma: Tensor<1>,
    beta: Tensor<1>,
    epsilon: f64,
) -> Tensor<D> {
    let centered = x.clone() - x.mean_dim(D - 1);
    let variance = (centered.clone() * centered.clone()).mean_dim(D - 1);
    let normalised = centered / variance.add_scalar(epsilon).sqrt();
    normalised * gamma.unsqueeze() + beta.unsqueeze()
}
