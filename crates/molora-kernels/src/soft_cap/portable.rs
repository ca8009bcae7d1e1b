//! A soft bound in burn's tensor operations.

use burn::tensor::Tensor;

/// The definition.
pub fn soft_cap<const D: usize>(x: Tensor<D>, cap: f64) -> Tensor<D> {
    x.div_scalar(cap).tanh().mul_scalar(cap)
}
