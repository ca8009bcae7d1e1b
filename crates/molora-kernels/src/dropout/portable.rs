//! Dropout in burn's tensor operations.

use burn::tensor::{Tensor, TensorData};

use super::mask::DropMask;
use crate::random::Seed;

/// The definition by a tensor of factors made on the host.
pub(super) fn dropout<const D: usize>(x: Tensor<D>, mask: DropMask) -> Tensor<D> {
    let len = x.shape().num_elements() as u64;
    let factors: Vec<f32> = (0..len).map(|index| mask.factor(index)).collect();
    let factors = Tensor::<D>::from_data(TensorData::new(factors, x.shape()), &x.device());
    let factors = factors.cast(x.dtype());
    x * factors
}

/// The definition by one after the other.
pub fn dropout_linear<const D: usize>(
    x: Tensor<D>,
    weight: Tensor<2>,
    probability: f64,
    seed: Seed,
) -> Tensor<D> {
    let x = dropout(x, DropMask::new(probability, seed));
    crate::linear::portable::linear(x, weight, None)
}
