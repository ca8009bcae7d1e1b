//! GELU in burn's tensor operations.

use std::f64::consts::{PI, SQRT_2};

use burn::tensor::Tensor;
use burn::tensor::activation::sigmoid;

/// The definition by the error function.
pub fn gelu<const D: usize>(x: Tensor<D>) -> Tensor<D> {
    let below = (x.clone() / SQRT_2).erf().add_scalar(1.0).mul_scalar(0.5);
    x * below
}

/// The definition of the approximation by the sigmoid: `(1 + tanh(u)) / 2 = sigmoid(2 u)`, which
/// keeps the digits of the left tail.
pub fn gelu_tanh<const D: usize>(x: Tensor<D>) -> Tensor<D> {
    let cubic = x.clone()
        * (x.clone() * x.clone())
            .mul_scalar(0.044_715)
            .add_scalar(1.0);
    let twice = (8.0 / PI).sqrt();
    x * sigmoid(cubic.mul_scalar(twice))
}
