//! Cross-entropy in burn's tensor operations.

use burn::tensor::activation::log_softmax;
use burn::tensor::{Int, Tensor};

/// The definition by the logarithm of the softmax.
pub fn softmax_cross_entropy(logits: Tensor<2>, targets: Tensor<1, Int>) -> Tensor<1> {
    let [rows, _] = logits.dims();
    let is_ignored = targets.clone().lower_elem(0);
    let targets = targets.clamp_min(0).reshape([rows, 1]);
    let picked = log_softmax(logits, 1).gather(1, targets).reshape([rows]);
    picked.neg().mask_fill(is_ignored, 0.0)
}
