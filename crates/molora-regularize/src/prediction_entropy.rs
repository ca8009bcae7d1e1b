//! How undecided predictions are.

use burn::tensor::Tensor;
use burn::tensor::activation::{log_softmax, softmax};

/// The entropy `-sum_c p_c log p_c` of each row of `p = softmax(logits)`, in nats: small where a
/// prediction is sure. Its mean over unlabelled records is what test-time adaptation minimises
/// (AdaMerging, arXiv:2310.02575, eq. 4).
///
/// # Shapes
/// - `logits`: `[N, C]`
/// - returns `[N]`
pub fn prediction_entropy(logits: Tensor<2>) -> Tensor<1> {
    let probs = softmax(logits.clone(), 1);
    (probs * log_softmax(logits, 1))
        .sum_dim(1)
        .neg()
        .squeeze_dim(1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use molora_testkit::{FORWARD, assert_close, device};

    #[test]
    fn equal_logits_are_undecided_and_a_far_larger_one_is_sure() {
        let logits = Tensor::<2>::from_data([[1.0, 1.0], [90.0, -90.0]], &device());
        let expected = [std::f32::consts::LN_2, 0.0];
        assert_close(prediction_entropy(logits), expected, FORWARD, "entropy");
    }
}
