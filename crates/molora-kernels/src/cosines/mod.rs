//! Cosines of rows.

#[cfg(feature = "flex")]
mod flex;
pub(crate) mod portable;

use burn::tensor::Tensor;

/// Cosines of every row of `a` with every row of `b`, whose norms count as `epsilon` at least: a row of zeros has
/// cosine 0.
///
/// The fast path is for tensors without gradients, as a router's are while a text is written.
///
/// # Shapes
/// - `a`: `[N, F]`
/// - `b`: `[M, F]`
/// - returns `[N, M]`
///
/// # Panics
/// If the widths disagree.
pub fn cosines(a: Tensor<2>, b: Tensor<2>, epsilon: f64) -> Tensor<2> {
    assert_eq!(a.dims()[1], b.dims()[1], "widths of both sides");
    #[cfg(feature = "flex")]
    if crate::flex::supports(&a) && crate::flex::supports(&b) {
        let (left, right) = (a.clone().into_dispatch(), b.clone().into_dispatch());
        if let (Some(a), Some(b)) = (crate::flex::untracked(left), crate::flex::untracked(right)) {
            return crate::flex::tensor(flex::cosines(a, b, epsilon as f32));
        }
    }
    portable::cosines(a, b, epsilon)
}

#[cfg(test)]
pub(crate) mod tests {
    use molora_testkit::{assert_close, autodiff_device, device};
    use proptest::prelude::*;

    use super::*;
    use crate::testing::{Case, Oracle};

    pub(crate) const CASES: &[Case] = &[Case {
        name: "cosines",
        others: |[_, width]| vec![[3, width]],
        fast: |t| cosines(t[0].clone(), t[1].clone(), 1e-12),
        plain: Some(|t| portable::cosines(t[0].clone(), t[1].clone(), 1e-12)),
        is_row_wise: false,
        tiny: None,
    }];

    #[test]
    fn known_values() {
        for device in [device(), autodiff_device()] {
            let a = Tensor::<2>::from_floats([[3.0, 4.0], [0.0, 0.0]], &device);
            let b = Tensor::<2>::from_floats([[1.0, 0.0], [0.0, 2.0], [-3.0, -4.0]], &device);
            let expected = [[0.6, 0.8, -1.0], [0.0, 0.0, 0.0]];
            assert_close(cosines(a, b, 1e-12), expected, 1e-6, "cosines");
        }
    }

    #[test]
    #[should_panic(expected = "widths of both sides")]
    fn another_width_is_refused() {
        let a = Tensor::<2>::ones([1, 2], &device());
        cosines(a, Tensor::ones([1, 3], &device()), 1e-12);
    }

    #[test]
    fn numbers_have_cosines_of_one_and_no_gradient() {
        for device in [device(), autodiff_device()] {
            let a = Tensor::<2>::from_floats([[0.5], [-3.0]], &device);
            let b = Tensor::<2>::from_floats([[2.0], [-0.7]], &device);
            let out = cosines(a, b, 1e-12);
            assert_close(out, [[1.0, -1.0], [-1.0, 1.0]], 1e-6, "cosines");
        }
        let device = autodiff_device();
        let a = Tensor::<2>::from_floats([[0.5], [-3.0]], &device).require_grad();
        let b = Tensor::<2>::from_floats([[2.0], [-0.7]], &device).require_grad();
        let grads = cosines(a.clone(), b.clone(), 1e-12).sum().backward();
        for leaf in [a, b] {
            let largest: f32 = leaf
                .grad(&grads)
                .expect("tracked")
                .abs()
                .max()
                .into_scalar();
            assert!(largest < 1e-5, "{largest}");
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]

        // Elsewhere than on the processor the definition itself runs. Of one column a gradient is zero but for what its
        // products lose, which no tolerance relative to it allows.
        #[test]
        fn the_path_of_the_processor_equals_the_definition(
            rows in 1usize..40, others in 1usize..12, width in 2usize..90, tracked: [bool; 2], seed: u64,
        ) {
            let mut oracle = Oracle::new(seed);
            let a = oracle.tensor([rows, width], 2.0, tracked[0]);
            let b = oracle.tensor([others, width], 1.0, tracked[1]);
            oracle.check(
                &[a, b],
                |t| cosines(t[0].matrix(), t[1].matrix(), 1e-12),
                |t| portable::cosines(t[0].matrix(), t[1].matrix(), 1e-12),
            );
            let a = oracle.tensor([rows, width], 2.0, false).matrix().inner();
            let b = oracle.tensor([others, width], 1.0, false).matrix().inner();
            let expected = portable::cosines(a.clone(), b.clone(), 1e-12);
            assert_close(cosines(a, b, 1e-12), expected, 2e-6, "without gradients");
        }
    }
}
