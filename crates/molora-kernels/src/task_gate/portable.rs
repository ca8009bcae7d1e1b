//! The gate of a task in burn's tensor operations.

use burn::tensor::{Tensor, activation::sigmoid};

/// The definition by two matrix products.
pub fn task_gate(
    selector: Tensor<2>,
    embedding: Tensor<2>,
    weight: Tensor<2>,
    bias: Option<Tensor<1>>,
) -> Tensor<2> {
    let logits = selector.matmul(embedding.matmul(weight));
    sigmoid(match bias {
        Some(bias) => logits + bias.unsqueeze(),
        None => logits,
    })
}
