//! Cross-entropy of class labels.

use burn::tensor::activation::log_softmax;
use burn::tensor::{Int, Tensor};

/// Computes the cross-entropy of each row, `-log softmax(logits)[target]`, in nats.
///
/// No reduction, so that the caller can mask and weight the rows. The gradient is
/// `(softmax(logits) - onehot(target)) * upstream`.
///
/// # Shapes
/// - `logits`: `[rows, classes]`
/// - `targets`: `[rows]`, each below `classes`
/// - returns `[rows]`
///
/// # Panics
/// If `targets` has another length than `logits` has rows, or a target is not a class.
pub fn softmax_cross_entropy(logits: Tensor<2>, targets: Tensor<1, Int>) -> Tensor<1> {
    let [rows, _] = logits.dims();
    assert_eq!(targets.dims(), [rows], "one target per row");
    let picked = log_softmax(logits, 1).gather(1, targets.reshape([rows, 1]));
    picked.reshape([rows]).neg()
}

#[cfg(test)]
mod tests {
    use molora_testkit::{assert_close, device};
    use proptest::prelude::*;

    use super::*;
    use crate::testing::Oracle;

    #[test]
    fn known_values_and_gradient() {
        let device = device().autodiff();
        // Probabilities 1/4 and 3/4.
        let logits = Tensor::<2>::from_floats([[0.0, 1.098_612_3], [1.098_612_3, 0.0]], &device);
        let logits = logits.require_grad();
        let targets = Tensor::<1, Int>::from_ints([1, 1], &device);
        let loss = softmax_cross_entropy(logits.clone(), targets);
        assert_close(&loss, [0.287_682_07, 1.386_294_4], 1e-6, "loss");
        let upstream = Tensor::<1>::from_floats([1.0, 2.0], &device);
        let grad = logits.grad(&(loss * upstream).sum().backward()).unwrap();
        assert_close(grad, [[0.25, -0.25], [1.5, -1.5]], 1e-6, "gradient");
    }

    #[test]
    fn large_logits_do_not_overflow() {
        let logits = Tensor::<2>::from_floats([[1e4, -1e4], [-1e4, 1e4]], &device());
        let targets = Tensor::<1, Int>::from_ints([0, 0], &device());
        assert_close(
            softmax_cross_entropy(logits, targets),
            [0.0, 2e4],
            1e-6,
            "loss",
        );
    }

    #[test]
    #[should_panic(expected = "one target per row")]
    fn a_missing_target_is_refused() {
        let targets = Tensor::<1, Int>::from_ints([0], &device());
        softmax_cross_entropy(Tensor::ones([2, 2], &device()), targets);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(16))]

        #[test]
        fn equals_its_evaluation_in_f64(rows in 1usize..40, classes in 1usize..60, seed: u64) {
            let mut oracle = Oracle::new(seed);
            let logits = oracle.tensor([rows, classes], 5.0, true);
            let targets: Vec<i32> = (0..rows).map(|row| ((row * 7) % classes) as i32).collect();
            let loss = |t: &[crate::testing::Input]| {
                let targets = Tensor::<1, Int>::from_ints(&targets[..], &device());
                softmax_cross_entropy(t[0].matrix(), targets).reshape([rows, 1])
            };
            oracle.check(&[logits], loss, loss);
        }
    }
}
