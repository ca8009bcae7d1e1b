//! Cross-entropy of class labels.

#[cfg(feature = "flex")]
mod backend;
#[cfg(feature = "flex")]
mod flex;
pub(crate) mod portable;

#[cfg(feature = "flex")]
use burn::backend::Dispatch;
use burn::tensor::{Int, Tensor};

#[cfg(feature = "flex")]
use self::backend::CrossEntropyOps;

/// Computes the cross-entropy of each row, `-log softmax(logits)[target]`, in nats.
///
/// A row with a negative target is ignored: its loss is 0, and so is its gradient. No reduction, so
/// that the caller can weight the rows. The gradient is
/// `(softmax(logits) - onehot(target)) * upstream`; the fast path puts it into the memory of the
/// logits if nobody else holds them, so that they are never held twice.
///
/// # Shapes
/// - `logits`: `[rows, classes]`
/// - `targets`: `[rows]`, each below `classes`
/// - returns `[rows]`
///
/// # Panics
/// If `targets` has another length than `logits` has rows, or a target is not a class.
pub fn softmax_cross_entropy(logits: Tensor<2>, targets: Tensor<1, Int>) -> Tensor<1> {
    smoothed_cross_entropy(logits, targets, 0.0)
}

/// Computes [`softmax_cross_entropy`] with label smoothing: `(1 - s) * -log p[target] + s * mean_c -log p[c]`
/// for `p = softmax(logits)` and `s = smoothing`, as PyTorch's `CrossEntropyLoss(label_smoothing=s)`.
///
/// The gradient is `(p - (1 - s) * onehot(target) - s / classes) * upstream`. Szegedy et al.,
/// arXiv:1512.00567, section 7.
///
/// # Shapes
/// As [`softmax_cross_entropy`].
///
/// # Panics
/// As [`softmax_cross_entropy`], or if `smoothing` is not in `[0, 1)`.
pub fn smoothed_cross_entropy(
    logits: Tensor<2>,
    targets: Tensor<1, Int>,
    smoothing: f64,
) -> Tensor<1> {
    let [rows, _] = logits.dims();
    assert_eq!(targets.dims(), [rows], "one target per row");
    assert!(
        (0.0..1.0).contains(&smoothing),
        "label smoothing {smoothing} is not in [0, 1)"
    );
    #[cfg(feature = "flex")]
    if crate::flex::supports(&logits) {
        let labels = flex::Labels::new(&targets, logits.dims()[1], smoothing);
        let logits = logits.into_dispatch();
        return Tensor::from_dispatch(Dispatch::fast_cross_entropy(logits, labels));
    }
    portable::smoothed_cross_entropy(logits, targets, smoothing)
}

#[cfg(test)]
pub(crate) mod tests {
    use std::f32::consts::LN_2;

    use molora_testkit::{assert_close, device};
    use proptest::prelude::*;

    use super::*;
    use crate::testing::{Case, Oracle};

    pub(crate) const CASES: &[Case] = &[
        Case {
            name: "softmax_cross_entropy",
            others: |_| vec![],
            fast: |t| of_scores(softmax_cross_entropy, &t[0]),
            plain: Some(|t| of_scores(portable::softmax_cross_entropy, &t[0])),
            is_row_wise: true,
            tiny: None,
        },
        Case {
            name: "smoothed_cross_entropy",
            others: |_| vec![],
            fast: |t| of_scores(smoothed, &t[0]),
            plain: Some(|t| of_scores(smoothed_portable, &t[0])),
            is_row_wise: true,
            tiny: None,
        },
    ];

    fn smoothed(logits: Tensor<2>, targets: Tensor<1, Int>) -> Tensor<1> {
        smoothed_cross_entropy(logits, targets, 0.1)
    }

    fn smoothed_portable(logits: Tensor<2>, targets: Tensor<1, Int>) -> Tensor<1> {
        portable::smoothed_cross_entropy(logits, targets, 0.1)
    }

    /// The losses of large logits, for one class after the other.
    fn of_scores(run: fn(Tensor<2>, Tensor<1, Int>) -> Tensor<1>, scores: &Tensor<2>) -> Tensor<2> {
        let [rows, classes] = scores.dims();
        let targets = Tensor::arange(0..rows as i64, &scores.device());
        let targets = targets.remainder_scalar(classes as i64);
        run(scores.clone() * 9.0, targets).reshape([rows, 1])
    }

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

    /// `-0.8 ln(1/4) - 0.1 (ln(1/4) + ln(3/4))` and the same for a target of 3/4, with the gradient of
    /// the equation.
    #[test]
    fn a_smoothed_target_is_known_and_so_is_its_gradient() {
        let device = device().autodiff();
        for run in [smoothed_cross_entropy, portable::smoothed_cross_entropy] {
            let logits = [[0.0, 1.098_612_3], [0.0, 1.098_612_3], [5.0, 1.0]];
            let logits = Tensor::<2>::from_floats(logits, &device).require_grad();
            let targets = Tensor::<1, Int>::from_ints([0, 1, -1], &device);
            let loss = run(logits.clone(), targets, 0.2);
            assert_close(&loss, [1.276_433_1, 0.397_543_3, 0.0], 1e-6, "loss");
            let upstream = Tensor::<1>::from_floats([1.0, 2.0, 1.0], &device);
            let grad = logits.grad(&(loss * upstream).sum().backward()).unwrap();
            // Of the first row 1/4 - 0.8 - 0.1 and 3/4 - 0.1.
            let expected = [[-0.65, 0.65], [0.3, -0.3], [0.0, 0.0]];
            assert_close(grad, expected, 1e-6, "gradient");
        }
    }

    #[test]
    #[should_panic(expected = "label smoothing 1 is not in [0, 1)")]
    fn smoothing_leaves_something_of_the_target() {
        let targets = Tensor::<1, Int>::from_ints([0], &device());
        smoothed_cross_entropy(Tensor::ones([1, 2], &device()), targets, 1.0);
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

    #[test]
    fn an_ignored_row_has_no_loss_and_no_gradient() {
        let device = device().autodiff();
        for run in [softmax_cross_entropy, portable::softmax_cross_entropy] {
            let logits = Tensor::<2>::from_floats([[1.0, 2.0], [0.0, 0.0]], &device);
            let logits = logits.require_grad();
            let targets = Tensor::<1, Int>::from_ints([-100, 1], &device);
            let loss = run(logits.clone(), targets);
            assert_close(&loss, [0.0, LN_2], 1e-6, "loss");
            let grad = logits.grad(&loss.sum().backward()).unwrap();
            assert_close(grad, [[0.0, 0.0], [0.5, -0.5]], 1e-6, "gradient");
        }
    }

    #[test]
    fn a_row_with_nan_does_not_touch_the_others() {
        let device = device().autodiff();
        let logits = Tensor::<2>::from_floats([[1.0, f32::NAN], [0.0, 0.0]], &device);
        let logits = logits.require_grad();
        let targets = Tensor::<1, Int>::from_ints([0, 1], &device);
        let loss = softmax_cross_entropy(logits.clone(), targets);
        let grad = logits.grad(&loss.clone().sum().backward()).unwrap();
        let (loss, grad) = (loss.into_data(), grad.into_data());
        let (loss, grad) = (
            loss.try_to_vec::<f32>().unwrap(),
            grad.try_to_vec::<f32>().unwrap(),
        );
        assert!(loss[0].is_nan() && grad[0].is_nan() && grad[1].is_nan());
        assert!((loss[1] - LN_2).abs() < 1e-6);
        assert_eq!(grad[2..], [0.5, -0.5]);
    }

    #[test]
    fn a_class_of_minus_infinity_has_no_probability() {
        let logits = Tensor::<2>::from_floats([[f32::NEG_INFINITY, 3.0]; 2], &device());
        let targets = Tensor::<1, Int>::from_ints([1, 0], &device());
        let loss = softmax_cross_entropy(logits, targets).into_data();
        assert_eq!(loss.try_to_vec::<f32>().unwrap(), [0.0, f32::INFINITY]);
    }

    #[test]
    #[should_panic(expected = "target 2 of row 1 is not one of 2 classes")]
    fn a_target_that_is_no_class_is_refused() {
        let targets = Tensor::<1, Int>::from_ints([0, 2], &device());
        softmax_cross_entropy(Tensor::ones([2, 2], &device()), targets);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(32))]

        #[test]
        fn equals_the_portable_definition(
            rows in 1usize..70, classes in 1usize..700, is_smoothed: bool, seed: u64,
        ) {
            let mut oracle = Oracle::new(seed);
            let logits = oracle.tensor([rows, classes], 5.0, true);
            // Every seventh row or so is ignored.
            let target = |row: usize| (row * 7) as i32 % (classes as i32 + 1) - 1;
            let targets: Vec<i32> = (0..rows).map(target).collect();
            let loss = |run: fn(Tensor<2>, Tensor<1, Int>) -> Tensor<1>| {
                let targets = targets.clone();
                move |t: &[crate::testing::Input]| {
                    let logits = t[0].matrix();
                    let targets = Tensor::<1, Int>::from_ints(&targets[..], &logits.device());
                    run(logits, targets).reshape([rows, 1])
                }
            };
            let [fast, plain] = match is_smoothed {
                true => [smoothed, smoothed_portable],
                false => [softmax_cross_entropy, portable::softmax_cross_entropy],
            };
            oracle.check(&[logits], loss(fast), loss(plain));
        }
    }
}
