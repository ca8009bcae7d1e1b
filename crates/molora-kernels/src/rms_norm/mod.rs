//! RMS norm.

#[cfg(feature = "flex")]
mod backend;
#[cfg(feature = "flex")]
mod flex;
pub(crate) mod portable;

#[cfg(feature = "flex")]
use burn::backend::Dispatch;
use burn::tensor::Tensor;

#[cfg(feature = "flex")]
use self::backend::RmsNormOps;

/// Scales each row of the last axis to a root mean square of one:
/// `x / sqrt(mean(x^2) + epsilon) * weight`.
///
/// # Shapes
/// - `x`: `[..., width]`
/// - `weight`: `[width]`
/// - returns `[..., width]`
///
/// # Panics
/// If `weight` has another width than `x`.
///
/// # Source
/// Zhang and Sennrich, Root Mean Square Layer Normalization, arXiv:1910.07467, eq. 4.
pub fn rms_norm<const D: usize>(x: Tensor<D>, weight: Tensor<1>, epsilon: f64) -> Tensor<D> {
    let width = x.dims()[D - 1];
    assert_eq!(weight.dims(), [width], "width of the weight");
    #[cfg(feature = "flex")]
    if crate::flex::supports(&x) && crate::flex::supports(&weight) {
        return Tensor::from_dispatch(Dispatch::fast_rms_norm(
            x.into_dispatch(),
            weight.into_dispatch(),
            epsilon as f32,
        ));
    }
    portable::rms_norm(x, weight, epsilon)
}

#[cfg(test)]
pub(crate) mod tests {
    use molora_testkit::{assert_close, device};
    use proptest::prelude::*;

    use super::*;
    use crate::testing::{Case, Oracle};

    pub(crate) const CASES: &[Case] = &[Case {
        name: "rms_norm",
        others: |[_, width]| vec![[1, width]],
        fast: |t| rms_norm(t[0].clone(), t[1].clone().reshape([-1]), 1e-5),
        plain: Some(|t| portable::rms_norm(t[0].clone(), t[1].clone().reshape([-1]), 1e-5)),
        is_row_wise: true,
        tiny: None,
    }];

    #[test]
    fn known_values() {
        // Root mean squares 5 and 0.
        let x = Tensor::<2>::from_floats([[7.0, -1.0], [0.0, 0.0]], &device());
        let weight = Tensor::from_floats([1.0, 10.0], &device());
        let expected = [[1.4, -2.0], [0.0, 0.0]];
        let out = rms_norm(x.clone(), weight.clone(), 1e-12);
        assert_close(out, expected, 1e-6, "rms norm");
        let out = portable::rms_norm(x, weight, 1e-12);
        assert_close(out, expected, 1e-6, "portable rms norm");
    }

    #[test]
    fn a_row_with_nan_does_not_touch_the_others() {
        let x = Tensor::<2>::from_floats([[1.0, f32::NAN], [3.0, 3.0]], &device());
        let out = rms_norm(x, Tensor::ones([2], &device()), 0.0);
        let out = out.into_data().try_to_vec::<f32>().unwrap();
        assert!(out[0].is_nan() && out[1].is_nan());
        assert_eq!(out[2..], [1.0, 1.0]);
    }

    #[test]
    #[should_panic(expected = "width of the weight")]
    fn another_width_is_refused() {
        rms_norm(
            Tensor::<2>::ones([2, 2], &device()),
            Tensor::ones([3], &device()),
            1e-5,
        );
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(32))]

        #[test]
        fn equals_the_portable_definition(
            rows in 1usize..90, width in 2usize..500, tracked: [bool; 2], seed: u64,
        ) {
            let mut oracle = Oracle::new(seed);
            let x = oracle.tensor([rows, width], 2.0, tracked[0]);
            let weight = oracle.tensor([1, width], 1.0, tracked[1]);
            oracle.check(
                &[x, weight],
                |t| rms_norm(t[0].matrix(), t[1].row(), 1e-5),
                |t| portable::rms_norm(t[0].matrix(), t[1].row(), 1e-5),
            );
        }
    }
}
