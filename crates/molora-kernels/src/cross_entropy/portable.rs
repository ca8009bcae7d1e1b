//! Cross-entropy in burn's tensor operations.

use burn::tensor::activation::log_softmax;
use burn::tensor::{Int, Tensor};

/// The definition without smoothing.
pub fn softmax_cross_entropy(logits: Tensor<2>, targets: Tensor<1, Int>) -> Tensor<1> {
    smoothed_cross_entropy(logits, targets, 0.0)
}

/// The definition by the logarithm of the softmax.
pub(crate) fn smoothed_cross_entropy(
    logits: Tensor<2>,
    targets: Tensor<1, Int>,
    smoothing: f64,
) -> Tensor<1> {
    let [rows, _] = logits.dims();
    let is_ignored = targets.clone().lower_elem(0);
    let targets = targets.clamp_min(0).reshape([rows, 1]);
    let logs = log_softmax(logits, 1);
    let mut picked = logs.clone().gather(1, targets);
    // Not times zero: a class of minus infinity would make that NaN.
    if smoothing > 0.0 {
        picked = picked * (1.0 - smoothing) + logs.mean_dim(1) * smoothing;
    }
    picked.reshape([rows]).neg().mask_fill(is_ignored, 0.0)
}
