//! The SiLU gate in burn's tensor operations.

use burn::tensor::Tensor;
use burn::tensor::activation::sigmoid;

/// The definition by the sigmoid.
pub fn silu_gate<const D: usize>(gate: Tensor<D>, up: Tensor<D>) -> Tensor<D> {
    gate.clone() * sigmoid(gate) * up
}
